"""What every method is given: a model, pairs, an ablation and a metric."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, final, get_args

import torch
from torch import Tensor

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.metrics import losses, registry
from edgeprune.metrics.losses import Metric
from edgeprune.metrics.measure import logits_of_each
from edgeprune.models.loading import fingerprint
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from edgeprune.roles import role_of

FLAT: tuple[Metric, ...] = ("kl", "squared_error")  # smallest, and so without a slope, at the full model
MEASURES: dict[Metric, registry.Measure] = {  # of the circuit alone
    name: registry.MEASURES[name] for name in get_args(Metric) if name not in FLAT
}


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """A model, pairs, an ablation and a metric.

    Attributes:
        model: The masked model.
        batches: All pairs, in batches. Results of a method must not depend on how they are cut.
        runs: Full and ablated runs of the batches; holds the ablation.
        metric: What a loss is. Of the circuit against the full model: `"kl"`, or `"squared_error"` of the raw outputs.
            Of the circuit alone, the negative of: `"logit_difference"`; `"logit_difference_max"` (the right answer
            against the best wrong one, ACDC's docstring measure); `"probability_difference"` (of all right and all
            wrong answers); `"greater_than"` (of years above and not above, as in ACDC); `"nll"` (log-probability of the
            right answer); `"nll_answers"` (the same among the right and wrong answers).
        split: Which split the pairs are of.
    """

    model: MaskedModel
    batches: Sequence[PairBatch]
    runs: ReferenceRuns
    metric: Metric = "kl"
    split: str = "train"

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise EdgepruneError(f"metric must be one of {', '.join(get_args(Metric))}, got {self.metric!r}")
        if not self.batches:
            raise EdgepruneError(f"there are no {self.split} pairs to find a circuit on; give at least one")

    @property
    def num_examples(self) -> int:
        """Pairs in all batches."""
        return sum(len(batch) for batch in self.batches)

    def cut(self, parts: int) -> "list[Problem]":
        """The problem on each of so many nearly equal parts of its batches.

        Raises:
            EdgepruneError: There are fewer batches.
        """
        count = len(self.batches)
        if parts > count:
            raise EdgepruneError(
                f"the pairs are in {count} {'batch' if count == 1 else 'batches'}, which cannot be cut into {parts} "
                "parts: give more pairs, or fewer parts"
            )
        ends = [count * number // parts for number in range(parts + 1)]
        return [replace(self, batches=self.batches[begin:end]) for begin, end in pairwise(ends)]

    def identity(self) -> dict[str, Any]:
        """What a saved state must agree with: metric, ablation, model, dtype and pairs, as plain values."""
        return {
            "metric": self.metric,
            "ablation": self.runs.ablation,
            "model": fingerprint(self.model),
            "dtype": str(self.model.dtype),
            "data": self._data_hash(),
            **self._roles(),
        }

    def _roles(self) -> dict[str, Any]:
        """Names of the graph's roles and a hash of where each lies in the pairs; nothing without roles."""
        roles = self.model.graph.roles
        if roles is None:
            return {}
        digest = hashlib.sha256()
        for batch in self.batches:
            digest.update(role_of(batch, roles.names).cpu().contiguous().numpy().tobytes())
        return {"roles": list(roles.names), "role_of": digest.hexdigest()}

    def _data_hash(self) -> str:
        """SHA-256 of every tensor of the pairs: tokens, masks, alignment, answers, and the cut into batches."""
        digest = hashlib.sha256()
        for batch in self.batches:
            for item in fields(batch):
                value = getattr(batch, item.name)
                if isinstance(value, Tensor):
                    digest.update(f"{item.name} {tuple(value.shape)}".encode())
                    digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def batches_with_runs(self) -> Iterator[tuple[PairBatch, Tensor, WriterStates]]:
        """Batches on the model's device, full logits `[batch, positions, vocab]`, and what closed edges carry."""
        for batch in self.batches:
            moved = batch.to(self.model.device)
            yield moved, *self.runs(moved, self.split)

    def losses(self, full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
        """Loss of each example, `[batch]`, from logits `[batch, positions, vocab]`; low is faithful."""
        values = losses.losses(self.metric, full, circuit, batch)
        losses.require_defined(values, f"metric {self.metric!r}", "choose another metric")
        return values

    def mean_loss(self, gates: Tensor) -> float:
        """Mean loss over all examples of the model with these gates `[..., reader, writer]`."""
        return self.mean_losses([gates])[0]

    @torch.no_grad()
    def mean_losses(self, gates: Sequence[Tensor]) -> list[float]:
        """Mean loss over all examples of the model with each of several gates `[..., reader, writer]`, of any dtype."""
        totals = [0.0] * len(gates)
        for batch, full, ablated in self.batches_with_runs():
            each = logits_of_each(self.model, batch, gates, ablated, like_batch=self.runs.like_batch(batch))
            for place, circuit in enumerate(each):
                totals[place] += self.losses(full, circuit, batch).double().sum().item()
        return [total / self.num_examples for total in totals]
