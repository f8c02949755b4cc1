"""Scores become circuits: the best edges, a growing set, the best connected set, or all above a threshold."""

import heapq
from dataclasses import asdict, dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from edgeprune import graph_paths
from edgeprune.circuit import Circuit, edges_at
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.methods.bootstrap import Bootstrap, Samples, filled
from edgeprune.methods.connected import SECONDS, connected
from edgeprune.runs import numbered_name

Rule = Literal["top_n", "greedy", "connected", "threshold"]


def top_n(graph: EdgeGraph, scores: Tensor, num_edges: int, *, absolute: bool = False) -> Tensor:
    """Bool `[..., reader, writer]` with exactly the `num_edges` highest scores; ties go to the earlier edge.

    Args:
        graph: The graph.
        scores: Float `[..., reader, writer]`.
        num_edges: Edges to keep.
        absolute: Rank by absolute value, so that edges whose closing lowers the loss are kept too.
    """
    return Circuit.from_scores(graph, scores.abs() if absolute else scores, num_edges=num_edges).keep


def positive_first(graph: EdgeGraph, scores: Tensor, num_edges: int, share: float) -> Tensor:
    """Bool `[..., reader, writer]`: a share of `num_edges` by score, none below 0, then the others by absolute value.

    Args:
        graph: The graph.
        scores: Float `[..., reader, writer]`.
        num_edges: Edges to keep.
        share: In [0, 1]: 0 ranks by absolute value alone, 1 by score as far as edges score above 0.
    """
    best = top_n(graph, scores, num_positive(graph, scores, num_edges, share))
    return _filled_up(graph, best, scores.abs(), num_edges)


def num_positive(graph: EdgeGraph, scores: Tensor, num_edges: int, share: float) -> int:
    """The share of `num_edges`, rounded down, or the edges above 0 in `[..., reader, writer]` if fewer."""
    return min(int(share * num_edges), int((graph.to_vector(scores) > 0).sum()))


def above(graph: EdgeGraph, scores: Tensor, threshold: float, *, absolute: bool = False) -> Tensor:
    """Bool `[..., reader, writer]`: edges that score more than `threshold`. Arguments as for `top_n`."""
    values = graph.to_vector(scores.abs() if absolute else scores)
    return top_n(graph, scores, int((values > threshold).sum()), absolute=absolute)


def greedy(graph: EdgeGraph, scores: Tensor, num_edges: int, *, absolute: bool = False) -> Tensor:
    """Bool `[..., reader, writer]`: the set of `num_edges` edges that grows from the logits.

    Again and again the best edge that ends in a node already reached is taken, and its writer's own readers become
    reachable; with roles these are q at the writer's role, k and v at all roles that it sees, and the logits are those
    that are scored. Every kept edge leads to the logits; a writer may still lack a path from an embedding. Edges from
    which nothing scored hears come when there are no others, by score. Arguments as for `top_n`.
    """
    top_n(graph, scores, num_edges, absolute=absolute)  # the same checks
    ranks = scores.abs() if absolute else scores
    values = ranks.cpu().double().reshape(-1, *graph.shape[-2:]).tolist()
    keep = torch.zeros(len(values), *graph.shape[-2:], dtype=torch.bool)
    offered: set[tuple[int, int]] = set()
    heap: list[tuple[float, int, int, int]] = []

    def offer(role: int, reader: int) -> None:
        if (role, reader) not in offered:
            offered.add((role, reader))
            for writer in range(graph.num_visible[reader]):
                heapq.heappush(heap, (-values[role][reader][writer], role, reader, writer))

    seen = [row.nonzero().flatten().tolist() for row in graph_paths.seen_roles(graph)]
    for role in graph_paths.scored_roles(graph).nonzero().flatten().tolist():
        offer(role, len(graph.readers) - 1)
    for _ in range(num_edges):
        if not heap:
            return _filled_up(graph, keep.view(graph.shape), ranks, num_edges)
        _, role, reader, writer = heapq.heappop(heap)
        keep[role, reader, writer] = True
        for own in graph.inputs[writer]:
            for other in seen[role] if graph_paths.is_key_or_value(graph, own) else (role,):
                offer(other, own)
    return keep.view(graph.shape)


def _filled_up(graph: EdgeGraph, keep: Tensor, ranks: Tensor, num_edges: int) -> Tensor:
    """Kept edges and the best others, so many in all."""
    first = ranks.double().cpu().masked_fill(keep, torch.finfo(torch.float64).max)
    return top_n(graph, first, num_edges)


def prune_dangling(graph: EdgeGraph, keep: Tensor) -> Tensor:
    """Bool `[..., reader, writer]`: the kept edges that lie on a path of kept edges from an embedding to the logits.

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
        rule: `"top_n"`: the best edges over the whole graph. `"greedy"`: grow from the logits. `"connected"`: the edges
            with the largest sum among all sets in which none dangles, by an integer programme. `"threshold"`: all that
            score more than a threshold.
        absolute: Rank by absolute value. For scores whose sign says which way the loss moves, when a circuit should
            stay close to the full model; not for scores that are negative where an edge wants to be closed.
        sparsities: Edge sparsities in [0, 1), for all rules but `"threshold"`.
        thresholds: For that.
        prune_dangling: Then drop the edges on no path from an embedding to the logits, so that fewer stay than asked.
        positive_first: Share of the edges that are taken by signed score, before the others by absolute value; for
            `"connected"`, the least share of edges that score above 0. In [0, 1], with `absolute`, for `"top_n"` and
            `"connected"` (arXiv 2510.25786).
        bootstrap: Rank by the end of each score's bootstrap interval that is nearer to 0. Edges whose interval holds 0
            come last, by their scores; `"threshold"` counts them as 0. None: rank by scores.
        seconds: How long `"connected"` may look for a better circuit of each size.
    """

    rule: Rule = "top_n"
    absolute: bool = False
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    thresholds: tuple[float, ...] = ()
    prune_dangling: bool = False
    positive_first: float = 0.0
    bootstrap: Bootstrap | None = None
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise EdgepruneError(f"rule must be one of {', '.join(get_args(Rule))}, got {self.rule!r}")
        wrong = [value for value in self.sparsities if not 0 <= value < 1]
        if wrong:
            raise EdgepruneError(f"sparsities must lie in [0, 1), got {wrong[0]}; 0.95 keeps 5 % of the edges")
        if not (self.thresholds if self.rule == "threshold" else self.sparsities):
            missing = "thresholds" if self.rule == "threshold" else "sparsities"
            raise EdgepruneError(f"selection rule {self.rule!r} needs {missing}, got none")
        if not 0 <= self.positive_first <= 1:
            raise EdgepruneError(
                f"positive_first must lie in [0, 1], got {self.positive_first}: it is a share of edges"
            )
        if self.positive_first and not (self.absolute and self.rule in ("top_n", "connected")):
            raise EdgepruneError(
                f"positive_first={self.positive_first} says what comes before edges ranked by absolute value: it needs "
                f"absolute=true and rule top_n or connected, got {self.rule!r} with absolute={self.absolute}"
            )
        if not self.seconds > 0:
            raise EdgepruneError(f"seconds must be above 0, got {self.seconds}")

    def circuits(self, graph: EdgeGraph, scores: Tensor, samples: Samples | None = None) -> dict[str, Circuit]:
        """One circuit per sparsity or threshold, by name (`"sparsity-0.9500"`).

        A circuit's header says, under `selection`, the rule, what was asked for, and the edges before and after
        dangling ones were dropped.

        Args:
            graph: The graph.
            scores: Float `[..., reader, writer]`.
            samples: Scores by batch, which `bootstrap` needs.
        """
        about: dict[str, Any] = {}
        ranks = scores
        if self.bootstrap is not None:
            if samples is None:
                raise EdgepruneError("selection.bootstrap needs scores of single batches, got none; leave it out")
            cautious = self.bootstrap.cautious(graph, samples)
            ranks = cautious if self.rule == "threshold" else filled(cautious, scores.double().cpu())
            about = {**asdict(self.bootstrap), "batches": len(samples.sizes), "sure_edges": int((cautious != 0).sum())}
        if self.rule == "threshold":
            cuts = {numbered_name(value, "threshold-", "g"): value for value in sorted(set(self.thresholds))}
        else:
            cuts = {numbered_name(value): value for value in sorted(set(self.sparsities))}
        more = {"bootstrap": about} if about else {}
        return {name: self._circuit(graph, scores, ranks, value, more) for name, value in cuts.items()}

    def _circuit(self, graph: EdgeGraph, scores: Tensor, ranks: Tensor, value: float, more: dict[str, Any]) -> Circuit:
        chosen, found = self._choose(graph, ranks, value)
        keep = prune_dangling(graph, chosen) if self.prune_dangling else chosen
        about: dict[str, Any] = {
            "rule": self.rule,
            "absolute": self.absolute,
            "threshold" if self.rule == "threshold" else "sparsity": value,
            "prune_dangling": self.prune_dangling,
            "edges_before_pruning": int(chosen.sum()),
            "edges": int(keep.sum()),
            **({"positive_first": self.positive_first} if self.positive_first else {}),
            **found,
            **more,
        }
        return Circuit(graph, keep, torch.where(graph.exists, scores.detach().float().cpu(), 0.0), {"selection": about})

    def _choose(self, graph: EdgeGraph, scores: Tensor, value: float) -> tuple[Tensor, dict[str, Any]]:
        """Kept edges `[..., reader, writer]`, and what there is to say of them."""
        if self.rule == "threshold":
            return above(graph, scores, value, absolute=self.absolute), {}
        size = edges_at(graph, value)
        if self.rule == "connected":
            top_n(graph, scores, size)  # the same checks
            least = num_positive(graph, scores, size, self.positive_first)
            keep, gap = connected(graph, scores, size, absolute=self.absolute, num_positive=least, seconds=self.seconds)
            return keep, {"gap": gap}
        if self.rule == "greedy":
            return greedy(graph, scores, size, absolute=self.absolute), {}
        if self.positive_first:
            return positive_first(graph, scores, size, self.positive_first), {}
        return top_n(graph, scores, size, absolute=self.absolute), {}
