"""The two frozen runs that every comparison needs, made once per example where they fit in memory.

Neither depends on the gates: the full model's logits at the scored positions, and what closed edges carry.
"""

from collections.abc import Iterable
from typing import NamedTuple, final

import torch
from torch import Tensor

from edgeprune.ablations import Ablation, Donors, LearningOptions, learn_constants, load_states, mean_of_pairs, zero
from edgeprune.ablations.constants import Progress
from edgeprune.ablations.positions import aligned, positions
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from edgeprune.objectives import Objective

TRAIN = "train"  # the split from which means and constants come


class _Kept(NamedTuple):
    logits: Tensor  # [positions, vocab]
    states: WriterStates | None  # batch of one, without padding; None where they do not depend on the example


@final
class ReferenceRuns:
    """Full and ablated runs of batches, kept per example up to a budget.

    Args:
        model: The model.
        ablation: What closed edges carry: an `Ablation` or its text, such as `"interchange"` (the corrupted prompt's
            values), `"zero"` (nothing), `"mean:positional"`, `"resample"`. Some take their values from pairs: see
            `prepare`.
        budget_gb: Memory for kept runs, in 1e9 bytes; 0 makes them anew each time.

    Attributes:
        spec: The ablation.
        ablation: Its text, as it stands in headers and records.
    """

    def __init__(self, model: MaskedModel, ablation: str | Ablation, budget_gb: float = 0.0) -> None:
        self.spec = Ablation.parse(ablation) if isinstance(ablation, str) else ablation
        self.model, self.ablation = model, str(self.spec)
        self.free_bytes = int(budget_gb * 1e9)
        self._kept: dict[tuple[str, int], _Kept] = {}
        self._donors: dict[str, Donors] = {}
        self._shared: WriterStates | None = None  # what closed edges carry in every example
        if self.spec.kind == "zero":
            self._shared = zero(model)
        elif self.spec.path is not None:
            self._shared = load_states(self.spec.path, model)

    # ---------------------------------------------------------------- values from pairs
    def wants(self, split: str) -> bool:
        """Whether `prepare` must still be given the pairs of `split` before batches of some split can be run.

        Means and constants come from the training pairs, whatever split is run; with resample ablation every split that
        is run takes its values from itself.
        """
        if self.spec.kind == "resample":
            return split not in self._donors
        return self.spec.kind in ("mean", "optimal") and self._shared is None and split == TRAIN

    def prepare(
        self,
        batches: Iterable[PairBatch],
        split: str = TRAIN,
        report: Progress = lambda what, done, total: None,
        objective: Objective | None = None,
    ) -> None:
        """Take from pairs the values that closed edges carry; does nothing, and reads none, unless `wants(split)`.

        Args:
            batches: All pairs of the split; neither their order nor how they are batched matters.
            split: Which split they are.
            report: Gets the progress where constants are learned.
            objective: What constants are learned to lower; None: see `LearningOptions`.

        Raises:
            EdgepruneError: There are no pairs, or too few.
        """
        if not self.wants(split):
            return
        with torch.inference_mode(False):  # what is kept must serve later steps that need gradients
            if self.spec.kind == "resample":
                assert self.spec.source != "both"
                self._donors[split] = Donors(batches, self.spec.source, self.spec.seed)
            elif self.spec.kind == "mean":
                self._shared = mean_of_pairs(
                    self.model, self._checked(batches), source=self.spec.source, positional=self.spec.positional
                )
            else:
                options = LearningOptions(objective=objective)
                self._shared = learn_constants(self.model, self._checked(batches), options, report).states

    def _checked(self, batches: Iterable[PairBatch]) -> Iterable[PairBatch]:
        for batch in batches:
            self.check(batch)
            yield batch

    def states(self) -> WriterStates:
        """What closed edges carry in every example, `[..., 1, 1 or seq, ...]`.

        Raises:
            EdgepruneError: It depends on the example, or `prepare` was forgotten.
        """
        if self._shared is None:
            self._require_prepared(TRAIN)
            raise EdgepruneError(f"under ablation {self.ablation!r} closed edges carry other values in every example")
        return self._shared

    def _require_prepared(self, split: str) -> None:
        if self.wants(split):
            raise EdgepruneError(
                f"ablation {self.ablation!r} takes its values from the {split} pairs, which it was not given: call "
                f"runs.prepare(batches, {split!r}) first"
            )

    # ---------------------------------------------------------------- runs
    @torch.no_grad()
    def __call__(self, batch: PairBatch, split: str) -> tuple[Tensor, WriterStates]:
        """Full logits `[batch, positions, vocab]` (float32) and the states that closed edges carry.

        Args:
            batch: Pairs; `index` is their number in `split`. Examples padded on the left are not kept.
            split: Which numbering `index` belongs to.

        Raises:
            EdgepruneError: The pairs are made for another model, or `prepare` was forgotten.
        """
        kept = [self._kept.get((split, int(index))) for index in batch.index]
        found = [item for item in kept if item is not None]
        if len(found) == len(kept):
            return self._assemble(found, batch, split)
        self.check(batch)
        full = self.model.full(batch.clean, batch.attention_mask, batch.positions).float()
        states = self._states(batch, split)
        self._keep(batch, split, full, states if self._shared is None else None)
        return full, states

    def check(self, batch: PairBatch) -> None:
        """Refuse pairs made for another model; an index out of bounds says less, and on a GPU it ends the process.

        Raises:
            EdgepruneError: A token id that the model does not know, or a prompt that is longer than all of which means
                of positions were taken.
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
        longest = int(batch.attention_mask.sum(1).max())
        if self._positional and longest > self.states().heads.shape[2]:
            raise EdgepruneError(
                f"a prompt has {longest} tokens, ablation {self.ablation!r} knows the first "
                f"{self.states().heads.shape[2]} positions, as many as the longest training prompt has: use ablation "
                "'mean', or training prompts as long"
            )

    def _states(self, batch: PairBatch, split: str) -> WriterStates:
        if self.spec.kind == "interchange":
            states = self.model.record(batch.corrupted, batch.corrupted_mask)
            return states if batch.alignment is None else aligned(states, batch.alignment)
        self._require_prepared(split if self.spec.kind == "resample" else TRAIN)
        if self.spec.kind == "resample":
            ids, mask, alignment = self._donors[split].prompts(batch)
            return aligned(self.model.record(ids, mask), alignment)
        if self.states().heads.device != self.model.device:
            self._shared = self.states().to(self.model.device)
        return self._at_positions(batch.attention_mask) if self._positional else self.states()

    @property
    def _positional(self) -> bool:
        """Whether the values, the same for every example, differ between positions; those of a file may."""
        return self._shared is not None and (self.spec.positional or self._shared.heads.shape[2] > 1)

    def _at_positions(self, mask: Tensor) -> WriterStates:
        """Means of positions, laid out as the tokens of a batch `[batch, seq]`."""
        states, places = self.states(), positions(mask)
        places = places.clamp(max=states.heads.shape[2] - 1)  # padding only: see `check`
        if bool(mask[:, 0].all()):  # no padding on the left: one row for all, which is not copied
            places = places[:1]
        return states.map(lambda field: field[:, 0, places].expand(-1, len(mask), *[-1] * (field.dim() - 2)))

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

    def _assemble(self, items: list[_Kept], batch: PairBatch, split: str) -> tuple[Tensor, WriterStates]:
        device = self.model.device
        last = batch.positions.shape[1] - 1
        full = torch.stack([item.logits[torch.arange(last + 1).clamp(max=len(item.logits) - 1)] for item in items])
        states = [item.states for item in items if item.states is not None]
        if not states:
            return full.to(device), self._states(batch, split)
        return full.to(device), _stack(states, batch.clean.shape[1]).to(device)


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
