"""Scores become circuits: the best edges, a growing set, or all above a threshold. Pure functions."""

import heapq
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from edgeprune.circuit import Circuit, edges_at
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.runs import numbered_name

Rule = Literal["top_n", "greedy", "threshold"]


def top_n(graph: EdgeGraph, scores: Tensor, num_edges: int, *, absolute: bool = False) -> Tensor:
    """Bool `[reader, writer]` with exactly the `num_edges` highest scores; ties go to the earlier edge.

    Args:
        graph: The graph.
        scores: Float `[reader, writer]`.
        num_edges: Edges to keep.
        absolute: Rank by absolute value, so that edges whose closing lowers the loss are kept too.
    """
    return Circuit.from_scores(graph, scores.abs() if absolute else scores, num_edges=num_edges).keep


def above(graph: EdgeGraph, scores: Tensor, threshold: float, *, absolute: bool = False) -> Tensor:
    """Bool `[reader, writer]`: edges that score more than `threshold`. Arguments as for `top_n`."""
    values = graph.to_vector(scores.abs() if absolute else scores)
    return top_n(graph, scores, int((values > threshold).sum()), absolute=absolute)


def greedy(graph: EdgeGraph, scores: Tensor, num_edges: int, *, absolute: bool = False) -> Tensor:
    """Bool `[reader, writer]`: the set of `num_edges` edges that grows from the logits.

    Again and again the best edge that ends in a node already reached is taken, and its writer's own readers become
    reachable. Every kept edge leads to the logits; a writer may still lack a path from an embedding. Arguments as for
    `top_n`.
    """
    ranking = top_n(graph, scores, num_edges, absolute=absolute)  # the same checks
    keep = torch.zeros_like(ranking)
    values = (scores.abs() if absolute else scores).cpu().double().tolist()
    offered: set[int] = set()
    heap: list[tuple[float, int, int]] = []

    def offer(reader: int) -> None:
        if reader not in offered:
            offered.add(reader)
            for writer in range(graph.num_visible[reader]):
                heapq.heappush(heap, (-values[reader][writer], reader, writer))

    offer(len(graph.readers) - 1)
    for _ in range(num_edges):
        _, reader, writer = heapq.heappop(heap)
        keep[reader, writer] = True
        for own in graph.inputs[writer]:
            offer(own)
    return keep


def prune_dangling(graph: EdgeGraph, keep: Tensor) -> Tensor:
    """Bool `[reader, writer]`: the kept edges that lie on a path of kept edges from an embedding to the logits.

    This is the fixed point of removing, again and again, the edges of nodes that lack an incoming or an outgoing one.
    `keep` itself is left alone.
    """
    keep = keep.cpu().bool() & graph.exists
    return keep & ~graph.dangling(keep)


@final
@dataclass(frozen=True)
class Selection:
    """Which edges of a scored graph make a circuit, and how large they are.

    Attributes:
        rule: `"top_n"`: the best edges over the whole graph. `"greedy"`: grow from the logits. `"threshold"`: all
            that score more than a threshold.
        absolute: Rank by absolute value. For scores whose sign says which way the loss moves, when a circuit should
            stay close to the full model; not for scores that are negative where an edge wants to be closed.
        sparsities: Edge sparsities in [0, 1), for the first two rules.
        thresholds: For the third.
        prune_dangling: Then drop the edges on no path from an embedding to the logits, so that fewer stay than asked.
    """

    rule: Rule = "top_n"
    absolute: bool = False
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    thresholds: tuple[float, ...] = ()
    prune_dangling: bool = False

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise EdgepruneError(f"rule must be one of {', '.join(get_args(Rule))}, got {self.rule!r}")
        wrong = [value for value in self.sparsities if not 0 <= value < 1]
        if wrong:
            raise EdgepruneError(f"sparsities must lie in [0, 1), got {wrong[0]}; 0.95 keeps 5 % of the edges")
        if not (self.thresholds if self.rule == "threshold" else self.sparsities):
            missing = "thresholds" if self.rule == "threshold" else "sparsities"
            raise EdgepruneError(f"selection rule {self.rule!r} needs {missing}, got none")

    def circuits(self, graph: EdgeGraph, scores: Tensor) -> dict[str, Circuit]:
        """One circuit per sparsity or threshold, by name (`"sparsity-0.9500"`), of scores `[reader, writer]`.

        A circuit's header says, under `selection`, the rule, what was asked for, and the edges before and after
        dangling ones were dropped.
        """
        if self.rule == "threshold":
            cuts = {numbered_name(value, "threshold-", "g"): value for value in sorted(set(self.thresholds))}
        else:
            cuts = {numbered_name(value): value for value in sorted(set(self.sparsities))}
        return {name: self._circuit(graph, scores, value) for name, value in cuts.items()}

    def _circuit(self, graph: EdgeGraph, scores: Tensor, value: float) -> Circuit:
        chosen = self._choose(graph, scores, value)
        keep = prune_dangling(graph, chosen) if self.prune_dangling else chosen
        about: dict[str, Any] = {
            "rule": self.rule,
            "absolute": self.absolute,
            "threshold" if self.rule == "threshold" else "sparsity": value,
            "prune_dangling": self.prune_dangling,
            "edges_before_pruning": int(chosen.sum()),
            "edges": int(keep.sum()),
        }
        return Circuit(graph, keep, torch.where(graph.exists, scores.detach().float().cpu(), 0.0), {"selection": about})

    def _choose(self, graph: EdgeGraph, scores: Tensor, value: float) -> Tensor:
        if self.rule == "threshold":
            return above(graph, scores, value, absolute=self.absolute)
        choose = greedy if self.rule == "greedy" else top_n
        return choose(graph, scores, edges_at(graph, value), absolute=self.absolute)
