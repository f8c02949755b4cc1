"""Where the noise of Edge Pruning's gradient comes from: from the pairs of a batch, or from the sampled gates?

    edgeprune get smollm2
    python benchmarks/gate_noise.py CIRCUIT --draws 16 --json docs/results/gate_noise.json

CIRCUIT is a snapshot of a run of `configs/ioi_smollm2.yaml`, whose scores are the log-alphas at that moment. The
gradient of the KL in the log-alphas is drawn again and again: with other pairs, with other noise of the gates, or with
both, and with the batch cut into more and more groups that have a sample of the gates each. Noise is the variance over
the draws, summed over edges.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.cli.data import read_data_config
from edgeprune.cli.pairs import pair_batches
from edgeprune.gates import HardConcrete, uniform_noise
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.objectives import OBJECTIVES, masked_mean

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "ioi_smollm2.yaml"


def slope(
    model: MaskedModel, runs: ReferenceRuns, gates: HardConcrete, batch: PairBatch, noises: list[Tensor]
) -> Tensor:
    """Gradient of the mean KL in the log-alphas, `[num_edges]`, one noise tensor per group of the batch."""
    full, ablated = runs(batch, "train")
    masks = torch.stack([model.graph.to_matrix(gates.sample(noise)) for noise in noises])
    error = masked_mean(OBJECTIVES["kl"](full, gated_logits(model, batch, masks, ablated)), batch.position_mask)
    return torch.autograd.grad(error, gates.log_alpha)[0].double()


def noise_of(draws: list[Tensor]) -> float:
    """Unbiased variance over the draws, summed over edges."""
    return torch.stack(draws).var(0).sum().item()


def main() -> None:
    """Draw, print, and optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("circuit", type=Path)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    circuit = Circuit.load(options.circuit)
    if circuit.scores is None:
        raise SystemExit(f"{options.circuit} holds no scores")
    data = read_data_config(str(CONFIG), tokenizer="smollm2")
    size = data.batch_size
    batches = pair_batches(data, "train", options.draws * size)
    model = load_model("smollm2", kv_readers="group")
    runs = ReferenceRuns(model, "interchange", 1.0)
    gates = HardConcrete(model.graph.num_edges, init_mean=0.0)
    gates.log_alpha.data = model.graph.to_vector(circuit.scores).float()

    def noises(draw: int, groups: int) -> list[Tensor]:
        return [uniform_noise(draw, 0, gates.num_gates, stream=group) for group in range(groups)]

    kinds: dict[str, tuple[int, bool, bool]] = {"pairs alone": (1, True, False), "gates alone": (1, False, True)}
    kinds |= {f"both, {groups} per batch": (groups, True, True) for groups in (1, 2, 4, 8) if groups <= size}
    result: dict[str, Any] = {"sparsity": round(circuit.sparsity, 4), "batch_size": size, "draws": options.draws}
    for kind, (groups, new_pairs, new_gates) in kinds.items():
        numbers = track(range(options.draws), description=kind, console=Console(stderr=True))
        drawn = [slope(model, runs, gates, batches[i * new_pairs], noises(i * new_gates, groups)) for i in numbers]
        result[kind] = noise_of(drawn)
        print(f"{kind:20s} {result[kind]:.3e}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
