"""The measures of `edgeprune.metrics.registry` as `torchmetrics.Metric`s.

They hold sums over examples, so processes and batch sizes do not matter.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from edgeprune.batch import PairBatch
from edgeprune.metrics.registry import STANDARD, Measure, measure_named


@final
class Faithfulness(Metric):
    """One measure over examples; those for which it is not defined (NaN) are left out.

    Args:
        measure: Name in the registry.
        options: Of every `torchmetrics.Metric`.

    Raises:
        EdgepruneError: No measure has this name.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, measure: str, **options: Any) -> None:
        super().__init__(**options)
        self.measure_name = measure_named(measure).name
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def measure(self) -> Measure:
        """What is measured; looked up by name, so that the metric can be pickled."""
        return measure_named(self.measure_name)

    @property
    def higher_is_better(self) -> bool | None:  # pyright: ignore[reportIncompatibleVariableOverride] (torchmetrics forbids setting it)
        """Which way is good; None where neither is."""
        return self.measure.higher_is_better

    def update(self, full: Tensor, circuit: Tensor, batch: PairBatch) -> None:
        """Add a batch of logits `[batch, positions, vocab]`."""
        values, weights = (of(full, circuit, batch) for of in (self.measure.values, self.measure.weights))
        known = ~(values.isnan() | weights.isnan())
        self.total += values[known].double().sum()
        self.weight += weights[known].double().sum()

    def compute(self) -> Tensor:
        """The figure (scalar); NaN if no example had a value."""
        return self.total / self.weight


def faithfulness(prefix: str | None = None, measures: Sequence[str] = STANDARD) -> MetricCollection:
    """Several measures together.

    Args:
        prefix: Before each name in the result.
        measures: Names in the registry. By default KL, squared error, logit difference, accuracy and exact match.
    """
    metrics: dict[str, Metric | MetricCollection] = {name: Faithfulness(name) for name in measures}
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
