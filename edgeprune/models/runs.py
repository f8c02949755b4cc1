"""The two frozen runs that every comparison needs, made once per example where they fit in memory.

Neither depends on the gates: the full model's logits at the scored positions, and what closed edges carry.
"""

from typing import Literal, NamedTuple, final, get_args

import torch
from torch import Tensor

from edgeprune import ablations
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates

Ablation = Literal["interchange", "zero"]


class _Kept(NamedTuple):
    logits: Tensor  # [positions, vocab]
    states: WriterStates | None  # batch of one, without padding; None where they do not depend on the example


@final
class ReferenceRuns:
    """Full and ablated runs of batches, kept per example up to a budget.

    Args:
        model: The model.
        ablation: `"interchange"`: closed edges carry the corrupted prompt's values. `"zero"`: nothing.
        budget_gb: Memory for kept runs, in 1e9 bytes; 0 makes them anew each time.
    """

    def __init__(self, model: MaskedModel, ablation: Ablation, budget_gb: float = 0.0) -> None:
        if ablation not in get_args(Ablation):
            raise EdgepruneError(f"ablation must be one of {', '.join(get_args(Ablation))}, got {ablation!r}")
        self.model, self.ablation = model, ablation
        self.free_bytes = int(budget_gb * 1e9)
        self._kept: dict[tuple[str, int], _Kept] = {}
        self._zero: WriterStates | None = None

    @torch.no_grad()
    def __call__(self, batch: PairBatch, split: str) -> tuple[Tensor, WriterStates]:
        """Full logits `[batch, positions, vocab]` (float32) and the states that closed edges carry.

        Args:
            batch: Pairs; `index` is their number in `split`. Examples padded on the left are not kept.
            split: Which numbering `index` belongs to.
        """
        kept = [self._kept.get((split, int(index))) for index in batch.index]
        found = [item for item in kept if item is not None]
        if len(found) == len(kept):
            return self._assemble(found, batch)
        self.check(batch)
        full = self.model.full(batch.clean, batch.attention_mask, batch.positions).float()
        states = self._states(batch)
        self._keep(batch, split, full, None if self.ablation == "zero" else states)
        return full, states

    def check(self, batch: PairBatch) -> None:
        """Refuse pairs made for another model; an index out of bounds says less, and on a GPU it ends the process.

        Raises:
            EdgepruneError: A token id that the model does not know.
        """
        config = self.model.hf.config
        num_inputs = self.model.hf.get_input_embeddings().num_embeddings
        num_outputs = getattr(config, "d_out", num_inputs)
        for name, ids, size in (
            ("input", batch.clean, num_inputs),
            ("corrupted input", batch.corrupted, num_inputs),
            ("target", batch.targets, num_outputs),
            ("distractor", batch.distractors, num_outputs),
        ):
            if int(ids.max()) >= size:
                raise EdgepruneError(
                    f"the pairs have {name} id {int(ids.max())}, model {config.name_or_path!r} knows 0 to {size - 1}: "
                    "they are made for another model; change the model or the task"
                )

    def _states(self, batch: PairBatch) -> WriterStates:
        if self.ablation == "interchange":
            states = self.model.record(batch.corrupted, batch.corrupted_mask)
            return states if batch.alignment is None else _aligned(states, batch.alignment)
        if self._zero is None or self._zero.heads.device != self.model.device:
            self._zero = ablations.zero(self.model)
        return self._zero

    def _keep(self, batch: PairBatch, split: str, full: Tensor, states: WriterStates | None) -> None:
        for row, (index, length) in enumerate(
            zip(batch.index.tolist(), batch.attention_mask.sum(1).tolist(), strict=True)
        ):
            num_positions = int(batch.position_mask[row].sum())
            one = None if states is None else _row(states, row, length)
            item = _Kept(full[row, :num_positions].cpu().clone(), one)
            size = _bytes(item)
            padded_left = not batch.attention_mask[row, :length].all()
            if padded_left or size > self.free_bytes or (split, index) in self._kept:
                continue
            self.free_bytes -= size
            self._kept[split, index] = item

    def _assemble(self, items: list[_Kept], batch: PairBatch) -> tuple[Tensor, WriterStates]:
        device = self.model.device
        last = batch.positions.shape[1] - 1
        full = torch.stack([item.logits[torch.arange(last + 1).clamp(max=len(item.logits) - 1)] for item in items])
        states = [item.states for item in items if item.states is not None]
        if not states:
            return full.to(device), self._states(batch)
        return full.to(device), _stack(states, batch.clean.shape[1]).to(device)


def _aligned(states: WriterStates, alignment: Tensor) -> WriterStates:
    """States of the corrupted prompts, moved to the clean positions `[batch, seq]` that they are compared with."""
    rows = torch.arange(len(alignment), device=alignment.device)[:, None]
    return states.map(lambda field: field[:, rows, alignment])


def _row(states: WriterStates, row: int, length: int) -> WriterStates:
    return states.map(lambda field: field[:, row : row + 1, :length].cpu().clone())


def _stack(rows: list[WriterStates], seq: int) -> WriterStates:
    """Examples one below the other, right-padded with zeros to `seq`."""

    def join(fields: list[Tensor]) -> Tensor:
        first = fields[0]
        out = first.new_zeros((first.shape[0], len(fields), seq, *first.shape[3:]))
        for index, field in enumerate(fields):
            out[:, index, : field.shape[2]] = field[:, 0]
        return out

    mlps = [row.mlps for row in rows if row.mlps is not None]
    return WriterStates(
        embeddings=join([row.embeddings for row in rows]),
        heads=join([row.heads for row in rows]),
        mlps=join(mlps) if mlps else None,
    )


def _bytes(item: _Kept) -> int:
    fields = [item.logits]
    if item.states is not None:
        fields += [item.states.embeddings, item.states.heads]
        fields += [] if item.states.mlps is None else [item.states.mlps]
    return sum(field.numel() * field.element_size() for field in fields)
