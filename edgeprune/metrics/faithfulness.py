"""The same measures as `torchmetrics.Metric`s: sums over examples, so processes and batch sizes do not matter."""

from typing import Any, final

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from edgeprune.batch import PairBatch
from edgeprune.metrics import functional


class _ExampleMean(Metric):
    """Mean over examples of a function of (full, circuit, batch); examples without a value (NaN) are left out."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def values(self, full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
        """One value per example, `[batch]`."""
        raise NotImplementedError

    def update(self, full: Tensor, circuit: Tensor, batch: PairBatch) -> None:
        """Add a batch of logits `[batch, positions, vocab]`."""
        values = self.values(full, circuit, batch)
        known = ~values.isnan()
        self.total += values[known].double().sum()
        self.count += known.sum()

    def compute(self) -> Tensor:
        """The mean; NaN if no example had a value."""
        return self.total / self.count


@final
class KLDivergence(_ExampleMean):
    """KL(full || circuit) in nats."""

    higher_is_better = False

    def values(self, full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
        """One value per example, `[batch]`."""
        return functional.kl(full, circuit, batch)


@final
class SquaredError(_ExampleMean):
    """Squared error of the raw outputs."""

    higher_is_better = False

    def values(self, full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
        """One value per example, `[batch]`."""
        return functional.squared_error(full, circuit, batch)


@final
class LogitDifference(_ExampleMean):
    """Logit of the right answer minus that of the distractor."""

    higher_is_better = True

    def values(self, full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
        """One value per example, `[batch]`."""
        return functional.logit_difference(full, circuit, batch)


@final
class Accuracy(_ExampleMean):
    """Share of examples answered right."""

    higher_is_better = True

    def values(self, full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
        """One value per example, `[batch]`."""
        return functional.accuracy(full, circuit, batch)


@final
class ExactMatch(_ExampleMean):
    """Share of examples on which circuit and full model predict the same."""

    higher_is_better = True

    def values(self, full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
        """One value per example, `[batch]`."""
        return functional.exact_match(full, circuit, batch)


@final
class EdgeSparsity(Metric):
    """Closed edges / existing edges."""

    full_state_update = False
    kept: Tensor
    existing: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("kept", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("existing", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, keep: Tensor, exists: Tensor) -> None:
        """Add a circuit: bool matrices `[reader, writer]`."""
        self.kept += (keep & exists).sum()
        self.existing += exists.sum()

    def compute(self) -> Tensor:
        """The share."""
        return 1 - self.kept / self.existing


def faithfulness(prefix: str | None = None) -> MetricCollection:
    """KL, squared error, logit difference, accuracy and exact match together."""
    return MetricCollection(
        {
            "kl": KLDivergence(),
            "squared_error": SquaredError(),
            "logit_difference": LogitDifference(),
            "accuracy": Accuracy(),
            "exact_match": ExactMatch(),
        },
        prefix=prefix,
        compute_groups=False,
    )
