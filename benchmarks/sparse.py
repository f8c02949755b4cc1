"""What a pass of a sparse circuit costs beside a plain forward pass of its model.

    python -m benchmarks.sparse MODEL CIRCUIT.safetensors ...
    python -m benchmarks.sparse MODEL CIRCUIT.safetensors --batch 25 --tokens 16 --threads 1 --rounds 5

Random prompts, float32, the last position scored. `whole` runs every reader, `changed` only what the circuit's open
edges change from the run with every edge closed (`edgeprune.models.sparse_run`), which is run once for all circuits of
a batch (`with every edge closed`). Times are processor seconds over those of a plain pass (the library's own forward
with its head on the last position) of the same round; the median of the rounds is shown.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from datamodules.collate import collate
from datamodules.tasks.base import TokenPair
from edgeprune.circuit import Circuit
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.loading import load_model
from edgeprune.models.sparse_run import EmptyRun


def timed(things: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median ratio of each thing's processor time to that of `plain`; one round before goes uncounted."""
    ratios: dict[str, list[float]] = {name: [] for name in things}
    for number in range(rounds + 1):
        seconds: dict[str, float] = {}
        for name, thing in things.items():
            start = time.process_time()
            thing()
            seconds[name] = time.process_time() - start
        if number:
            for name, found in seconds.items():
                ratios[name].append(found / seconds["plain"])
    return {name: statistics.median(found) for name, found in ratios.items()}


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("circuits", nargs="+")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    shape = (2, options.batch, options.tokens)
    ids = torch.randint(model.num_outputs, shape, generator=torch.Generator().manual_seed(0))
    last = options.tokens - 1
    pairs = [TokenPair(tuple(a), tuple(b), (last,), (0,), (1,)) for a, b in zip(*ids.tolist(), strict=True)]
    batch = collate(list(enumerate(pairs)))
    ablated = model.record(batch.corrupted, batch.attention_mask)
    empty = EmptyRun(model, batch, ablated, like_batch=True)
    circuits = {path: Circuit.load(path) for path in options.circuits}
    things: dict[str, Callable[[], object]] = {
        "plain": lambda: model.hf(batch.clean, attention_mask=batch.attention_mask, logits_to_keep=1),
        "empty": lambda: EmptyRun(model, batch, ablated, like_batch=True),
    }
    for path, circuit in circuits.items():
        gates, keep = circuit.gates(), circuit.keep & circuit.graph.exists
        things[f"{path} whole"] = lambda gates=gates: gated_logits(model, batch, gates, ablated)
        things[f"{path} changed"] = lambda keep=keep: empty.logits(keep)
    found = timed(things, options.rounds)
    print("| sparsity | edges | whole, plain passes | changed, plain passes | largest difference of logits |")
    print("|---:|---:|---:|---:|---:|")
    for path, circuit in circuits.items():
        whole = gated_logits(model, batch, circuit.gates(), ablated)
        difference = (empty.logits(circuit.keep & circuit.graph.exists) - whole).abs().max() / whole.abs().max()
        costs = f"{found[f'{path} whole']:.2f} | {found[f'{path} changed']:.2f}"
        print(f"| {circuit.sparsity:.3f} | {circuit.num_edges:,} | {costs} | {difference:.1e} |")
    print(f"\nwith every edge closed, once a batch: {found['empty']:.2f} plain passes")


if __name__ == "__main__":
    main()
