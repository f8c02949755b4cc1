"""Circuits of one graph against each other: shared edges, nodes and weight, agreeing ranks, and a common core."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.comparison.overlap import by_chance, edge_overlap
from edgeprune.errors import EdgepruneError
from edgeprune.json_numbers import json_number
from edgeprune.statistics.correlation import kendall, spearman


# -------------------------------------------------------------------- two circuits
@final
@dataclass(frozen=True)
class PairOverlap:
    """What two circuits of one graph have in common.

    `to_dict` has the same keys, None where undefined. Where both circuits are empty, shares are 1 (they agree).

    Attributes:
        first: Name of the one.
        second: Name of the other.
        edges_first: Edges of the one.
        edges_second: Edges of the other.
        edges_both: Edges of both.
        edge_jaccard: Edges of both / edges of either.
        node_jaccard: The same of nodes (`edgeprune.comparison.overlap.nodes`).
        share_of_first: Containment: edges of both / edges of the first.
        share_of_second: Likewise of the second.
        weighted_overlap: Ruzicka similarity, see `ruzicka`; NaN where a circuit with edges has no weight.
        same_sign: Of the edges of both, the share whose scores have one sign; NaN without common edges or scores.
        expected_both: Edges of both by chance, for random circuits of these sizes.
        log10_p_value: Hypergeometric: log10 of the probability to have `edges_both` or more in common.
        spearman_all: Rank correlation, ties with average ranks, of what the edges were ranked by (`Circuit.ranking`),
            over all edges of the graph; NaN without scores.
        kendall_all: Kendall's tau-b of the same.
        spearman_kept: Over the edges that one of the circuits keeps.
        kendall_kept: Likewise.
    """

    first: str
    second: str
    edges_first: int
    edges_second: int
    edges_both: int
    edge_jaccard: float
    node_jaccard: float
    share_of_first: float
    share_of_second: float
    weighted_overlap: float
    same_sign: float
    expected_both: float
    log10_p_value: float
    spearman_all: float
    kendall_all: float
    spearman_kept: float
    kendall_kept: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: json_number(value) if isinstance(value, float) else value for name, value in vars(self).items()}


def edge_weights(circuit: Circuit) -> Tensor:
    """What each edge weighs in a circuit, float64 `[reader, writer]`, in all 1 (0 for a circuit without weight).

    The absolute value of the score of a kept edge, so that an edge that pushes the other way is as important as one
    that helps; 1 for each kept edge of a circuit without scores; 0 for the others; then divided by the sum. Scores that
    are a location, such as the log-odds that Edge Pruning learns, have no meaningful size or zero: read their rank
    correlation instead.
    """
    weights = circuit.keep.double()
    if circuit.scores is not None:
        weights = circuit.scores.detach().cpu().double().abs().where(circuit.keep, 0.0)
    total = weights.sum()
    return weights / total if total > 0 else weights


def ruzicka(first: Tensor, second: Tensor) -> float:
    """Weighted overlap: sum over edges of the smaller weight / sum of the larger; NaN if all weights are 0.

    With equal weights in circuits of one size it is the Jaccard index.

    >>> ruzicka(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.25, 0.25]))
    0.6
    """
    larger = float(torch.maximum(first, second).sum())
    return float(torch.minimum(first, second).sum()) / larger if larger else math.nan


def pair_overlap(first: Circuit, second: Circuit, names: tuple[str, str] = ("first", "second")) -> PairOverlap:
    """Compare two circuits of one graph without running the model.

    Raises:
        EdgepruneError: The circuits are of different graphs.
    """
    _check_one_graph({names[0]: first, names[1]: second})
    shares = edge_overlap(first.keep, second.keep, first.graph.exists)
    sizes, both = (first.num_edges, second.num_edges), int(shares["both"])
    chance = by_chance(both, *sizes, first.graph.num_edges)
    return PairOverlap(
        *names,
        *sizes,
        edges_both=both,
        edge_jaccard=shares["jaccard"],
        node_jaccard=_jaccard(set(first.nodes()), set(second.nodes())),
        share_of_first=shares["precision"],
        share_of_second=shares["recall"],
        weighted_overlap=_weighted_overlap(first, second),
        same_sign=_same_sign(first, second),
        expected_both=chance["expected"],
        log10_p_value=chance["log10_p_value"],
        **_rank_correlations(first, second),
    )


def _check_one_graph(circuits: Mapping[str, Circuit]) -> None:
    reference = next(iter(circuits))
    for name, circuit in circuits.items():
        try:
            circuits[reference].check_fits(circuit.graph, repr(name))
        except EdgepruneError:
            raise EdgepruneError(
                f"circuits {reference!r} and {name!r} are of different graphs, whose edges have nothing in common; "
                "compare them by the roles of their heads: edgeprune.comparison.across.cross_model"
            ) from None


def _jaccard(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second) if first or second else 1.0


def _weighted_overlap(first: Circuit, second: Circuit) -> float:
    weights = [edge_weights(circuit) for circuit in (first, second)]
    if any(circuit.num_edges and not weight.any() for circuit, weight in zip((first, second), weights, strict=True)):
        return math.nan
    return ruzicka(*weights) if first.num_edges or second.num_edges else 1.0


def _same_sign(first: Circuit, second: Circuit) -> float:
    both = first.keep & second.keep
    if first.scores is None or second.scores is None or not both.any():
        return math.nan
    return float((first.scores.sign() == second.scores.sign())[both].double().mean())


def _rank_correlations(first: Circuit, second: Circuit) -> dict[str, float]:
    """By Spearman and Kendall, over all edges and over those that one of the circuits keeps."""
    places = {"all": first.graph.exists, "kept": first.keep | second.keep}
    functions = {"spearman": spearman, "kendall": kendall}
    left, right = first.ranking, second.ranking
    if left is None or right is None:
        return {f"{name}_{place}": math.nan for place in places for name in functions}
    return {
        f"{name}_{place}": function(left[edges], right[edges])
        for place, edges in places.items()
        for name, function in functions.items()
    }


# -------------------------------------------------------------------- several circuits
@final
@dataclass(frozen=True)
class CommonCore:
    """Edges that all of several circuits keep.

    Attributes:
        edges: Their names.
        union: How many edges at least one of the circuits keeps.
        expected: Edges in the core of as many random circuits of these sizes.
        deviation: Standard deviation of that number.
    """

    edges: tuple[str, ...]
    union: int
    expected: float
    deviation: float

    def to_dict(self) -> dict[str, Any]:
        """The attributes, and `num_edges`, `jaccard` (core / union; 1 for empty circuits), `z` (None if undefined).

        `z` is (num_edges - expected) / deviation. The number is not normal: read z as a size, not as a probability.
        """
        size = len(self.edges)
        return {
            "edges": list(self.edges),
            "num_edges": size,
            "union": self.union,
            "jaccard": size / self.union if self.union else 1.0,
            "expected": self.expected,
            "deviation": self.deviation,
            "z": (size - self.expected) / self.deviation if self.deviation else None,
        }


def common_core(circuits: Sequence[Circuit]) -> CommonCore:
    """Edges in all of several circuits of one graph, and how many chance gives.

    With E edges in the graph and n_i in circuit i, drawn at random, an edge is in all of them with probability
    p = prod n_i / E, and two edges are with q = prod n_i (n_i - 1) / (E (E - 1)). Hence a mean of E p and a variance of
    E p + E (E - 1) q - (E p)^2.
    """
    graph, keeps = circuits[0].graph, torch.stack([circuit.keep for circuit in circuits])
    existing, sizes = graph.num_edges, [circuit.num_edges for circuit in circuits]
    expected = existing * math.prod(size / existing for size in sizes)
    pairs = existing * (existing - 1)
    of_two = pairs * math.prod(size * (size - 1) / pairs for size in sizes) if pairs else 0.0
    variance = expected + of_two - expected**2
    core = Circuit(graph, keeps.all(0))
    noise = 1e-12 * expected**2  # rounding of the difference of large numbers, where nothing is left to chance
    return CommonCore(
        edges=tuple(core.edges()),
        union=int(keeps.any(0).sum()),
        expected=expected,
        deviation=math.sqrt(variance) if variance > noise else 0.0,
    )


@final
@dataclass(frozen=True)
class OverlapMatrix:
    """Circuits of one graph, every two of them compared.

    Attributes:
        names: Of the circuits.
        pairs: One for every two, in the order of `itertools.combinations`.
        core: Edges that all keep.
    """

    names: tuple[str, ...]
    pairs: tuple[PairOverlap, ...]
    core: CommonCore

    def pair(self, first: str, second: str) -> PairOverlap:
        """The comparison of two circuits, in either order."""
        found = next((item for item in self.pairs if {item.first, item.second} == {first, second}), None)
        if found is None:
            raise EdgepruneError(f"{first!r} and {second!r} are no pair of {', '.join(self.names)}")
        return found

    def matrix(self, figure: str) -> Tensor:
        """One figure of all pairs, float64 `[circuit, circuit]`, symmetric, with NaN on the diagonal.

        `figure` is an attribute of `PairOverlap`, or `"containment"`: row i, column j: the share of i that is in j.
        """
        square = torch.full((len(self.names),) * 2, math.nan, dtype=torch.float64)
        one_way = ("share_of_first", "share_of_second") if figure == "containment" else (figure, figure)
        for item in self.pairs:
            row, column = self.names.index(item.first), self.names.index(item.second)
            square[row, column], square[column, row] = (getattr(item, name) for name in one_way)
        return square

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `circuits` (names), `pairs` (see `PairOverlap`), `core` (see `CommonCore`)."""
        return {
            "circuits": list(self.names),
            "pairs": [item.to_dict() for item in self.pairs],
            "core": self.core.to_dict(),
        }


def overlap_matrix(circuits: Mapping[str, Circuit]) -> OverlapMatrix:
    """Compare every two of several circuits of one graph: seeds, fine-tunes, tasks, or ways of prompting.

    Args:
        circuits: By name.

    Raises:
        EdgepruneError: Fewer than two circuits, or circuits of different graphs.
    """
    if len(circuits) < 2:
        raise EdgepruneError(f"an overlap needs two circuits or more, got {len(circuits)}")
    _check_one_graph(circuits)
    pairs = [pair_overlap(circuits[one], circuits[other], (one, other)) for one, other in combinations(circuits, 2)]
    return OverlapMatrix(tuple(circuits), tuple(pairs), common_core(list(circuits.values())))
