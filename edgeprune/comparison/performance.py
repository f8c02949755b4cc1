"""Whether two circuits, of any two models, do well on the same examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.json_numbers import json_fields
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.normalise import normalise
from edgeprune.statistics.correlation import pearson, spearman

Labels = tuple[Sequence[str], Sequence[str]]  # of the examples of the one model, and of the other


@final
@dataclass(frozen=True)
class PerformanceAlignment:
    """Whether two circuits, of any two models, do well on the same examples.

    `to_dict` has the same keys, None where undefined. Correlations are NaN where fewer than two values are defined in
    both, or where one circuit gives the same value everywhere.

    Attributes:
        measure: Name in `edgeprune.metrics.registry`.
        unit: What is correlated: `example`, values of single examples, or `label`, figures of groups of examples.
        num_units: Examples or labels for which both have a value.
        figures: Of the circuits over all their examples.
        pearson: Correlation of the circuits' values.
        spearman: Correlation of their ranks.
        pearson_full: Correlation of the full models' values: what there is to find. NaN without ends.
        spearman_full: Likewise of the ranks.
        faithfulness: Normalised faithfulness of each circuit; NaN without ends.
        faithfulness_difference: That of the first - that of the second.
    """

    measure: str
    unit: str
    num_units: int
    figures: tuple[float, float]
    pearson: float
    spearman: float
    pearson_full: float
    spearman_full: float
    faithfulness: tuple[float, float]
    faithfulness_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return json_fields(self)


def align_performance(
    first: ExampleValues,
    second: ExampleValues,
    measure: str = "logit_difference",
    *,
    ends: tuple[ExampleValues, ExampleValues] | None = None,
    labels: Labels | None = None,
) -> PerformanceAlignment:
    """Compare two circuits by how well they do, example by example.

    Args:
        first: Values of one circuit (circuit 0).
        second: Of the other, on the same examples in the same order; only their numbers are checked.
        measure: Which value is compared; both must have it.
        ends: Of the full model and the empty circuit, for each model: `Evaluator.ends`.
        labels: Where the models' examples differ: for each model the label of every example, such as its template.
            Figures of labels that both know are compared instead of examples.

    Raises:
        EdgepruneError: The examples differ and there are no labels, or the labels have none in common.
    """
    if labels is None:
        _check_same_examples(first, second)

    def values_of(one: ExampleValues, other: ExampleValues) -> tuple[Tensor, Tensor]:
        if labels is None:
            return one.of(measure)[0], other.of(measure)[0]
        return _by_label(one, other, measure, labels)

    left, right = values_of(first, second)
    full = values_of(*ends) if ends is not None else (left[:0], right[:0])
    figures = first.figure(measure), second.figure(measure)
    faithful = math.nan, math.nan
    if ends is not None:
        faithful = _normalised(figures[0], ends[0], measure), _normalised(figures[1], ends[1], measure)
    return PerformanceAlignment(
        measure=measure,
        unit="example" if labels is None else "label",
        num_units=int((~(left.isnan() | right.isnan())).sum()),
        figures=figures,
        pearson=pearson(left, right),
        spearman=spearman(left, right),
        pearson_full=pearson(*full),
        spearman_full=spearman(*full),
        faithfulness=faithful,
        faithfulness_difference=faithful[0] - faithful[1],
    )


def _check_same_examples(first: ExampleValues, second: ExampleValues) -> None:
    remedy = "evaluate both on the same pairs, or give the labels of the examples"
    if first.num_examples != second.num_examples:
        raise EdgepruneError(f"{first.num_examples} examples against {second.num_examples}; {remedy}")
    differ = (first.index != second.index).nonzero().flatten().tolist()
    if differ:
        place = differ[0]
        numbers = int(first.index[place]), int(second.index[place])
        raise EdgepruneError(f"example {place} is number {numbers[0]} in one and {numbers[1]} in the other; {remedy}")


def _by_label(first: ExampleValues, second: ExampleValues, measure: str, labels: Labels) -> tuple[Tensor, Tensor]:
    """Figures of the labels that both have, float64 `[label]` each."""
    groups = first.groups(labels[0]), second.groups(labels[1])
    common = [name for name in groups[0] if name in groups[1]]
    if not common:
        raise EdgepruneError(
            f"no example of the one has a label of the other: {', '.join(groups[0])} against {', '.join(groups[1])}"
        )
    left, right = (
        torch.tensor([group[name].figure(measure) for name in common], dtype=torch.float64) for group in groups
    )
    return left, right


def _normalised(figure: float, ends: ExampleValues, measure: str) -> float:
    both = torch.tensor([[ends.figure(measure, 0)], [ends.figure(measure, 1)]], dtype=torch.float64)
    return float(normalise(torch.tensor([[figure]], dtype=torch.float64), both))
