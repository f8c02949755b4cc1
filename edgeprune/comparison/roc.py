"""How well edges or nodes are told apart that are in a known circuit and that are not.

From one score per edge, every threshold gives a point: true positive rate against false positive rate, equal scores
together. From several circuits (ACDC's, one per tau), each is a point; (0, 0) and (1, 1) are added, and points go that
another one beats in both rates. The area below is taken twice:

- `auc` joins the points by straight lines: for scores, the probability that a true edge is above a false one (half for
  ties); a random order has 0.5.
- `pessimistic_auc` is the staircase below them, so that nothing between two points is taken for granted: the sum of
  (1 - fpr_i) (tpr_i - tpr_(i-1)), as ACDC's tables have it. For scores, ties then count as wrong.

`average_precision` is the area of precision over recall, in steps: the sum of precision_i (recall_i - recall_(i-1)).
A random order has the share of true edges.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.comparison.conventions import LEVELS, Level, convention_of
from edgeprune.errors import EdgepruneError


@dataclass(frozen=True)
class Curve:
    """Points of a ROC curve, from nothing kept to everything.

    Attributes:
        true_positives: True things kept, int64 `[points]`, rising.
        false_positives: False things kept, likewise.
    """

    true_positives: Tensor
    false_positives: Tensor

    @property
    def num_true(self) -> int:
        """Things in the known circuit."""
        return int(self.true_positives[-1])

    @property
    def num_false(self) -> int:
        """Things that are not."""
        return int(self.false_positives[-1])

    @property
    def tpr(self) -> Tensor:
        """True positive rate (recall), float64 `[points]`."""
        return self.true_positives.double() / self.num_true

    @property
    def fpr(self) -> Tensor:
        """False positive rate, float64 `[points]`."""
        return self.false_positives.double() / self.num_false

    @property
    def precision(self) -> Tensor:
        """Share of what is kept that is true, float64 `[points]`; 1 where nothing is kept."""
        kept = self.true_positives + self.false_positives
        return torch.where(kept > 0, self.true_positives / kept.clamp(min=1).double(), 1.0)

    @property
    def auc(self) -> float:
        """Area below straight lines between the points."""
        return float(torch.trapezoid(self.tpr, self.fpr))

    @property
    def pessimistic_auc(self) -> float:
        """Area of the staircase below the points."""
        return float(((1 - self.fpr[1:]) * self.tpr.diff()).sum())

    @property
    def average_precision(self) -> float:
        """Area of precision over recall, in steps."""
        return float((self.precision[1:] * self.tpr.diff()).sum())

    def measures(self) -> dict[str, float]:
        """The three areas, and how many things are true and false."""
        return {
            "auc": self.auc,
            "pessimistic_auc": self.pessimistic_auc,
            "average_precision": self.average_precision,
            "num_true": self.num_true,
            "num_false": self.num_false,
        }


# -------------------------------------------------------------------- curves
def curve_of_scores(scores: Tensor, truth: Tensor) -> Curve:
    """The curve of one score per thing; things with equal scores are kept together.

    Args:
        scores: `[things]`, the higher the sooner kept.
        truth: Bool `[things]`.

    Raises:
        EdgepruneError: All things are true, or none.
    """
    _check(truth)
    values, order = scores.sort(descending=True)
    last = torch.cat((values[1:] != values[:-1], torch.tensor([True])))  # of those with the same score
    kept = truth[order]
    hits, misses = (counts.cumsum(0)[last] for counts in (kept, ~kept))
    start = torch.zeros(1, dtype=torch.int64)
    return Curve(torch.cat((start, hits)), torch.cat((start, misses)))


def curve_of_sets(sets: Iterable[Tensor], truth: Tensor) -> Curve:
    """The curve of several sets of kept things, bool `[things]` each; nothing and everything are added.

    Raises:
        EdgepruneError: All things are true, or none.
    """
    _check(truth)
    points = {(int((kept & ~truth).sum()), int((kept & truth).sum())) for kept in sets}
    points |= {(0, 0), (int((~truth).sum()), int(truth.sum()))}
    best = sorted(point for point in points if not any(x < point[0] and y > point[1] for x, y in points))
    false_positives, true_positives = torch.tensor(best).T
    return Curve(true_positives, false_positives)


def _check(truth: Tensor) -> None:
    if truth.all() or not truth.any():
        raise EdgepruneError(
            f"{int(truth.sum())} of {truth.numel()} edges or nodes are in the known circuit: rates need some that are "
            "and some that are not; take another counting convention"
        )


# -------------------------------------------------------------------- circuits
def roc(
    found: Circuit | Sequence[Circuit], truth: Circuit, convention: str | None = None, level: Level = "edges"
) -> Curve:
    """Hold a ranking, or several circuits, against a known circuit.

    Args:
        found: A circuit whose scores rank the edges (`Circuit.ranking`); or several, each of which is a point.
        truth: The known circuit, on the same graph.
        convention: Which edges count, one of `edgeprune.comparison.conventions.CONVENTIONS`; None: those of the graph.
        level: `"edges"`, or `"nodes"`: embeddings, heads and MLPs by their best edge.

    Raises:
        EdgepruneError: A circuit of another graph, one without scores, no such convention or level, or nothing to tell
            apart.
    """
    if level not in LEVELS:
        raise EdgepruneError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    graph, counted, values = truth.graph, convention_of(truth.graph, convention), LEVELS[level]
    circuits = [found] if isinstance(found, Circuit) else list(found)
    for circuit in circuits:
        circuit.check_fits(graph, "the known one")
    true = values(graph, truth.keep, counted) > 0
    if not isinstance(found, Circuit):
        return curve_of_sets((values(graph, circuit.keep, counted) > 0 for circuit in circuits), true)
    ranking = found.ranking
    if ranking is None:
        raise EdgepruneError("the circuit has no scores to rank its edges by; give it in a list, as a single point")
    return curve_of_scores(values(graph, ranking, counted), true)
