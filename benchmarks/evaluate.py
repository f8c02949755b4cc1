"""What it costs to evaluate circuits, beside the plain forward passes of the same model on the same pairs.

    edgeprune get smollm2
    python benchmarks/evaluate.py CIRCUIT --rounds 3

Plain is the stock Hugging Face model on all clean prompts, then on all corrupted ones, with logits at the last position
only. Evaluating one circuit needs three passes: the full model on the clean prompts, what closed edges carry from the
corrupted ones, and the circuit itself. A curve of ten circuits shares the first two. The kinds take turns in one
process; ratios are medians over rounds of the ratio within a round. Last, the effect of a closed edge, by whole runs
and by running again only what it changes, on the first pairs and edges drawn at random.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.cli.data import read_data_config
from edgeprune.cli.pairs import pair_batches
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.evaluation.minimality import marginal_effects
from edgeprune.metrics.registry import measures_for
from edgeprune.models.loading import load_model

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "ioi_smollm2.yaml"
EFFECT_PAIRS, EFFECT_EDGES = 8, 24
CURVE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)


def main() -> None:
    """Time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("circuit", type=Path, help="a circuit with scores, of smollm2")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    circuit = Circuit.load(options.circuit)
    assert circuit.scores is not None, "a curve needs scores"
    data = read_data_config(str(CONFIG), tokenizer="smollm2")
    batches = pair_batches(data, "test", options.pairs, data.eval_batch_size)
    model = load_model("smollm2", kv_readers=circuit.graph.arch.kv_readers)
    curve = [Circuit.from_scores(circuit.graph, circuit.scores, sparsity=share).keep for share in CURVE]

    @torch.no_grad()
    def plain() -> None:
        for batch in batches:
            for ids in (batch.clean, batch.corrupted):
                model.hf(ids, attention_mask=batch.attention_mask, logits_to_keep=1, use_cache=False)

    def evaluate(*keep: torch.Tensor) -> None:
        runs = ReferenceRuns(model, "interchange")
        Evaluator(model, runs, batches, "test", measures_for())(keep)

    kinds: dict[str, Callable[[], None]] = {
        "plain, both prompts": plain,
        "one circuit": lambda: evaluate(circuit.keep),
        "curve of ten": lambda: evaluate(*curve),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, work in kinds.items():
            begin = time.perf_counter()
            work()
            seconds[kind].append(time.perf_counter() - begin)
    base = seconds["plain, both prompts"]
    print(f"{options.pairs} pairs, circuit of {circuit.num_edges:,} edges, {torch.get_num_threads()} threads")
    print("| kind | seconds | times plain, both prompts | times the plain passes it needs |\n|---|---|---|---|")
    for kind, passes in zip(kinds, (2, 3, 12), strict=True):
        ratio = median(own / other for own, other in zip(seconds[kind], base, strict=True))
        print(f"| {kind} | {median(seconds[kind]):.2f} | {ratio:.2f} | {ratio * 2 / passes:.2f} |", flush=True)
    few = Evaluator(model, ReferenceRuns(model, "interchange", 1.0), batches, "test").limited(EFFECT_PAIRS)
    few.ends  # noqa: B018 (makes the reference runs that both ways share)
    times: list[float] = []
    for reuse in (False, True):
        begin = time.perf_counter()
        marginal_effects(few, circuit.keep, max_edges=EFFECT_EDGES, reuse=reuse)
        times.append((time.perf_counter() - begin) / EFFECT_EDGES)
    plain_run, reused = times
    print(f"effect of an edge: {plain_run:.3f} s, with reuse {reused:.3f} s, {plain_run / reused:.1f} times faster")


if __name__ == "__main__":
    main()
