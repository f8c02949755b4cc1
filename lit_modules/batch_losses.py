"""The losses of a training step on one batch, as functions of the gates alone."""

from typing import Any, final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.methods.base import differentiated
from edgeprune.metrics.functional import uniform_cross_entropy
from edgeprune.metrics.losses import TrainingObjective, cmd, losses, require_defined
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.states import WriterStates
from edgeprune.objectives import OBJECTIVES
from lit_modules.ranks import sample_of_groups


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
        self.model, self.objective, self.batch, self.place = model, objective, batch, place
        self.full, self.ablated = runs
        self._empty: Tensor | None = None
        if objective == "cmd":
            with torch.no_grad():
                self._empty = gated_logits(model, batch, torch.zeros(model.graph.shape), self.ablated)
        if objective not in OBJECTIVES:
            require_defined(self._objective(self.full), f"objective {objective!r}", "choose another objective")

    def _objective(self, circuit: Tensor) -> Tensor:
        """Loss of each pair `[batch]`."""
        if self.objective != "cmd":
            return losses(self.objective, self.full, circuit, self.batch)
        assert self._empty is not None
        return cmd(self.full, circuit, self._empty, self.batch)

    def _logits(self, gates: Tensor) -> Tensor:
        if gates.ndim == 3:
            before, share = self.place
            gates = gates[sample_of_groups(len(gates), before, len(self.batch), share)]
        return gated_logits(self.model, self.batch, gates, self.ablated)

    def error(self, gates: Tensor) -> Tensor:
        """The objective (scalar) of gates `[reader, writer]`, or `[group, reader, writer]` for groups of the batch."""
        return self._objective(self._logits(gates)).mean()

    def complement(self, gates: Tensor) -> Tensor:
        """How much the answers without the circuit of these gates say (scalar): see `uniform_cross_entropy`."""
        values = uniform_cross_entropy(self.full, self.batch)
        require_defined(values, "the complement's loss", "leave complement_weight out")

        def loss_of(own: Tensor) -> Tensor:
            return uniform_cross_entropy(self._logits(1 - own), self.batch).mean()

        return differentiated(loss_of, gates)
