"""Attention edges of SmolLM2 on IOI: the ones that score highest, and how many carry the logit difference.

    edgeprune get smollm2
    python benchmarks/attention_edges.py               # five minutes on two cores

Every edge stays open. Attention edges are scored to first order on training pairs; the largest by absolute score are
kept, all others closed under interchange, and the logit difference is measured on held-out pairs, beside as many
attention edges drawn at random.
"""

import argparse

import torch
from torch import Tensor

from datamodules import PairDataModule
from datamodules.tasks.ioi import IOI
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.gates.base import top_k
from edgeprune.graph_attention import AttentionEdges
from edgeprune.methods.attention_effects import attention_scores
from edgeprune.methods.attribution import open_gates
from edgeprune.methods.problem import Problem
from edgeprune.metrics.measure import gated_logits
from edgeprune.model_options import ModelOptions
from edgeprune.roles import observed_roles

SHOWN = 12


def problems(pairs: int) -> dict[str, Problem]:
    """Training and test pairs; the model's graph has the roles of both."""
    model = ModelOptions(name="smollm2").load()
    task = IOI(num_train=pairs, num_validation=1, num_test=pairs, entities="shared", corruption="abc", templates=1)
    data = PairDataModule(task, "smollm2", eval_batch_size=8)
    data.setup()
    batches = {split: list(data.ordered_dataloader(split)) for split in ("train", "test")}
    model.use_roles(observed_roles([batch for split in batches.values() for batch in split]))
    runs = ReferenceRuns(model, "interchange", 1.0)
    return {split: Problem(model, found, runs, "logit_difference", split) for split, found in batches.items()}


@torch.no_grad()
def logit_difference(problem: Problem, keep: Tensor) -> float:
    """Mean over pairs, with these attention edges open, bool `[layer, head, query role, key role]`."""
    model, total = problem.model, 0.0
    inside = model.graph.attention.gates(keep)
    for batch, full, ablated in problem.batches_with_runs():
        logits = gated_logits(model, batch, open_gates(model), ablated, attention_gates=inside)
        total -= problem.losses(full, logits, batch).sum().item()
    return total / problem.num_examples


def chosen(edges: AttentionEdges, scores: Tensor, count: int) -> Tensor:
    """The existing attention edges with the highest scores."""
    keep = torch.zeros(edges.shape, dtype=torch.bool)
    keep[edges.exists] = top_k(scores[edges.exists], count)
    return keep


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000])
    options = parser.parse_args()
    given = problems(options.pairs)
    edges = given["train"].model.graph.attention
    scores = attention_scores(given["train"])
    best = scores.flatten().argsort(descending=True)[:SHOWN].tolist()
    print("| attention edge | score |\n|---|---|")
    for place in best:
        where = (int(axis) for axis in torch.unravel_index(torch.tensor(place), edges.shape))
        print(f"| `{edges.edge_name(*where)}` | {scores.flatten()[place]:.2f} |")
    test, noise = given["test"], torch.rand(edges.shape, generator=torch.Generator().manual_seed(0))
    print(f"\n| open of {edges.num_edges:,} | logit difference | of as many at random |\n|---|---|---|")
    for count in (0, *options.sizes, edges.num_edges):
        own, other = (logit_difference(test, chosen(edges, by, count)) for by in (scores.abs(), noise))
        print(f"| {count:,} | {own:.2f} | {other:.2f} |", flush=True)


if __name__ == "__main__":
    main()
