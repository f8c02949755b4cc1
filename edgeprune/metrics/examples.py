"""Measures of several circuits, example by example: what means, intervals and tests are computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError


@dataclass(frozen=True, eq=False)
class ExampleValues:
    """Values of measures (`edgeprune.metrics.registry`) on every example, for one or several circuits.

    A figure is the sum of the values / the sum of the weights over the examples for which both are known. Weights are
    1 for a mean; those of a ratio of means are the denominators.

    Attributes:
        measures: Names of the measures.
        values: Float64 `[circuit, measure, example]`; NaN where a measure is not defined.
        weights: Float64, likewise.
        index: Number of each example in its split, long `[example]`.
    """

    measures: tuple[str, ...]
    values: Tensor
    weights: Tensor
    index: Tensor

    @property
    def num_circuits(self) -> int:
        """Circuits."""
        return self.values.shape[0]

    @property
    def num_examples(self) -> int:
        """Examples, whether a measure is defined for them or not."""
        return self.values.shape[2]

    @cached_property
    def known(self) -> Tensor:
        """Bool `[circuit, measure, example]`: where a measure is defined."""
        return ~(self.values.isnan() | self.weights.isnan())

    @cached_property
    def terms(self) -> tuple[Tensor, Tensor]:
        """Values and weights, `[circuit, measure, example]` each, 0 where not known: sum each, then divide."""
        return self.values.where(self.known, 0.0), self.weights.where(self.known, 0.0)

    def figures(self) -> Tensor:
        """The figure of every measure, float64 `[circuit, measure]`; NaN where no example has a value."""
        values, weights = self.terms
        return values.sum(-1) / weights.sum(-1)

    def defined(self) -> Tensor:
        """For how many examples a measure is defined, long `[circuit, measure]`."""
        return self.known.sum(-1)

    def figure(self, measure: str, circuit: int = 0) -> float:
        """One figure."""
        return float(self.figures()[circuit, self._place(measure)])

    def of(self, measure: str) -> Tensor:
        """One measure, float64 `[circuit, example]`; NaN where not defined."""
        return self.values[:, self._place(measure)]

    def as_dicts(self) -> list[dict[str, float]]:
        """For each circuit its figures by name, and `num_examples`."""
        rows: list[list[float]] = self.figures().tolist()
        return [dict(zip(self.measures, row, strict=True)) | {"num_examples": self.num_examples} for row in rows]

    def only(self, measures: Sequence[str]) -> "ExampleValues":
        """Some of the measures, in the given order."""
        places = [self._place(name) for name in measures]
        return ExampleValues(tuple(measures), self.values[:, places], self.weights[:, places], self.index)

    def circuits(self, numbers: Sequence[int] | slice) -> "ExampleValues":
        """Some of the circuits, in the given order."""
        return ExampleValues(self.measures, self.values[numbers], self.weights[numbers], self.index)

    def examples(self, chosen: Tensor) -> "ExampleValues":
        """Some of the examples: bool `[example]`, or long positions, which may repeat."""
        return ExampleValues(self.measures, self.values[..., chosen], self.weights[..., chosen], self.index[chosen])

    def groups(self, labels: Sequence[str]) -> Mapping[str, "ExampleValues"]:
        """The examples of each label, in the order in which labels first appear.

        Args:
            labels: One per example, in their order here.
        """
        if len(labels) != self.num_examples:
            raise EdgepruneError(f"{self.num_examples} examples need as many labels, got {len(labels)}")
        return {
            name: self.examples(torch.tensor([label == name for label in labels])) for name in dict.fromkeys(labels)
        }

    def _place(self, measure: str) -> int:
        if measure not in self.measures:
            raise EdgepruneError(f"measure {measure!r} was not taken; there are {', '.join(self.measures)}")
        return self.measures.index(measure)
