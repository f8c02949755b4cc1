"""The losses of a training step on one batch, as functions of the gates alone; and which pairs they are defined for."""

from typing import Any, final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.methods.base import differentiated
from edgeprune.methods.flips import GatedError
from edgeprune.metrics.functional import uniform_cross_entropy
from edgeprune.metrics.losses import TrainingObjective, cmd, losses, require_defined
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.states import WriterStates
from edgeprune.objectives import OBJECTIVES
from lit_modules.ranks import every_batch, sample_of_groups

PAIRS = 8  # that are checked at once
ATTENTION_AXES = 4  # of the gates of attention edges


def check_pairs(module: Any, data: Any) -> None:
    """Refuse training pairs that an ablation cannot take values from, or without the answers that a loss compares.

    All pairs are looked at once only, however often this is called. Of a stream, those of its training split are.

    Args:
        module: The module that trains, with its model loaded.
        data: Its data module, if it has one.

    Raises:
        EdgepruneError: A pair has no right or no wrong answer, or the model a single output; or pairs that are drawn
            anew shall take values from one another.
    """
    if getattr(data, "stream", False) and module.runs is not None and module.runs.spec.kind == "resample":
        raise EdgepruneError(
            f"ablation {module.ablation!r} takes values from another pair of the split, and stream: true has no such "
            "split: choose another ablation, or leave stream out"
        )
    if data is None or (module.objective in OBJECTIVES and not module.complement_weight):
        return
    losses_of = module.objective, bool(module.complement_weight)
    if getattr(data, "checked_for", None) == losses_of:
        return
    for batch in every_batch(data.pairs("train"), data.ordered_dataloader("train").collate_fn, PAIRS):
        logits = torch.zeros(*batch.positions.shape, module.masked.num_outputs)
        values = _losses(module.objective, logits, logits, logits, batch)
        require_defined(values, f"objective {module.objective!r}", "choose another objective")
        if module.complement_weight:
            values = uniform_cross_entropy(logits, batch)
            require_defined(values, "the complement's loss", "leave complement_weight out")
    data.checked_for = losses_of


def _losses(
    objective: TrainingObjective, full: Tensor, circuit: Tensor, empty: Tensor | None, batch: PairBatch
) -> Tensor:
    """The objective of each pair `[batch]`; `empty` is needed for `cmd` alone."""
    if objective != "cmd":
        return losses(objective, full, circuit, batch)
    assert empty is not None
    return cmd(full, circuit, empty, batch)


@final
class BatchLosses:
    """What gates cost on a batch.

    Args:
        model: The masked model.
        objective: Of the circuit.
        batch: The pairs.
        runs: Full logits `[batch, positions, vocab]`, and what closed edges carry.
        place: Pairs of this rank's share of the step that come before the batch, and pairs of the share.
    """

    def __init__(
        self,
        model: Any,
        objective: TrainingObjective,
        batch: PairBatch,
        runs: tuple[Tensor, WriterStates],
        place: tuple[int, int],
    ) -> None:
        self.model, self.batch, self.place = model, batch, place
        self.objective: TrainingObjective = objective
        self.full, self.ablated = runs
        self._empty: Tensor | None = None
        if objective == "cmd":
            with torch.no_grad():
                self._empty = gated_logits(model, batch, torch.zeros(model.graph.shape), self.ablated)

    def _logits(self, gates: Tensor, attention_gates: Tensor | None = None) -> Tensor:
        gates = self._of_groups(gates, len(self.model.graph.shape))
        inside = None if attention_gates is None else self._of_groups(attention_gates, ATTENTION_AXES)
        return gated_logits(self.model, self.batch, gates, self.ablated, attention_gates=inside, sampled=True)

    def _of_groups(self, samples: Tensor, axes: int) -> Tensor:
        """The one sample `[...]` that has so many axes, or one for each group of the batch, `[group, ...]`."""
        if samples.ndim == axes:
            return samples
        before, share = self.place
        return samples[sample_of_groups(len(samples), before, len(self.batch), share)]

    def error(self, gates: Tensor, attention_gates: Tensor | None = None) -> Tensor:
        """The objective (scalar) of gates of the graph's shape, or `[group, ...]` of them for groups of the batch.

        Of attention edges likewise, `[layer, head, query role, key role]`; None: they are open.
        """
        return self._error_of(self._logits(gates, attention_gates))

    def _error_of(self, logits: Tensor) -> Tensor:
        return _losses(self.objective, self.full, logits, self._empty, self.batch).mean()

    def flippable(self) -> GatedError:
        """`error`, which also knows what flips of gates do."""
        return GatedError(self.error, self._error_of, self.model, self.batch, self.ablated)

    def complement(self, gates: Tensor) -> Tensor:
        """How much the answers without the circuit of these gates say (scalar): see `uniform_cross_entropy`."""

        def loss_of(own: Tensor) -> Tensor:
            return uniform_cross_entropy(self._logits(1 - own), self.batch).mean()

        return differentiated(loss_of, gates)
