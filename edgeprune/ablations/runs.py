"""The two reference runs that every comparison needs, made once per example where there is room.

Neither depends on the gates: the full model's logits at the scored positions, and what closed edges carry.
"""

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, final, get_args

import torch
from torch import Tensor

from edgeprune.ablations.constants import LearningOptions, learn_constants
from edgeprune.ablations.files import load_states
from edgeprune.ablations.fixed_batches import FixedBatches, KeepingPlan
from edgeprune.ablations.means import mean_of_pairs, zero
from edgeprune.ablations.positions import aligned, merged
from edgeprune.ablations.reference_cache import ALIGNMENT, PLACES, Place, ReferenceCache, Values
from edgeprune.ablations.resampling import SourceExamples
from edgeprune.ablations.same_weights import SameWeights
from edgeprune.ablations.spec import Ablation
from edgeprune.batch import PairBatch, at_positions
from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.models.limits import Limits
from edgeprune.models.masked import MaskedModel
from edgeprune.models.places import position_ids
from edgeprune.models.sharding import Whole
from edgeprune.models.states import WriterStates
from edgeprune.objectives import Objective
from edgeprune.paths import cache_root

TRAIN = "train"  # the split from which means and constants come
OTHERS = 4  # splits that are not trained on get one part in so many of the room at most
CacheDtype = Literal["float32", "bfloat16"]


@final
class ReferenceRuns:
    """Full and ablated runs of batches, kept per example as far as there is room.

    Called with batches as they come, it keeps the first examples for which there is room, each as the batch in which it
    came first gave it. After `plan`, which examples are kept and in which batch each is computed depends on their split
    alone, so that a resumed run sees the same values to the last bit. Of a sharded model nothing is kept: its processes
    must run the same layers, whatever each of them has met before.

    Args:
        model: The model.
        ablation: What closed edges carry: an `Ablation` or its text, such as `"interchange"` (the corrupted prompt's
            values), `"zero"` (nothing), `"mean:positional"`, `"resample"`. Some take values from pairs: see `prepare`.
        budget_gb: Memory for kept runs, in 1e9 bytes; 0 makes them anew each time.
        disk_gb: Room on disk for planned runs that do not fit in memory, in 1e9 bytes.
        disk_folder: Where their file lies; None: `frozen` in the folder of caches.
        cache_dtype: Of what closed edges carry; `"bfloat16"` rounds, at half the room of float32; None: as it is.

    Attributes:
        spec: The ablation.
        ablation: Its text, as it stands in headers and records.
        store: What is kept.
    """

    def __init__(
        self,
        model: MaskedModel,
        ablation: str | Ablation,
        budget_gb: float = 0.0,
        *,
        disk_gb: float = 0.0,
        disk_folder: str | Path | None = None,
        cache_dtype: CacheDtype | None = None,
    ) -> None:
        finite = all(0 <= size < float("inf") for size in (budget_gb, disk_gb))
        if not finite or cache_dtype not in (None, *get_args(CacheDtype)):
            raise EdgepruneError(
                f"kept runs need room of at least 0 GB and a dtype among {', '.join(get_args(CacheDtype))}, got "
                f"{budget_gb} GB in memory, {disk_gb} GB on disk and dtype {cache_dtype!r}"
            )
        self.spec = Ablation.parse(ablation) if isinstance(ablation, str) else ablation
        self.model, self.ablation = model, str(self.spec)
        if not isinstance(model.sharding, Whole):
            budget_gb = disk_gb = 0.0
        room: dict[Place, int] = {"memory": int(budget_gb * 1e9), "disk": int(disk_gb * 1e9)}
        self._dtype = None if cache_dtype is None else getattr(torch, cache_dtype)
        self.store = ReferenceCache(room, cache_root(disk_folder) / "frozen", self._dtype)
        self._weights = SameWeights(model)
        self._plans: dict[str, KeepingPlan] = {}
        self._sources: dict[str, SourceExamples] = {}
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
            return split not in self._sources
        return self.spec.kind in ("mean", "optimal") and self._shared is None and split == TRAIN

    def prepare(
        self,
        batches: Iterable[PairBatch],
        split: str = TRAIN,
        report: Progress = no_progress,
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
        self._weights.check(kept=len(self.store) > 0)
        with torch.inference_mode(False):  # what is kept must serve later steps that need gradients
            if self.spec.kind == "resample":
                assert self.spec.source != "both"
                self._sources[split] = SourceExamples(batches, self.spec.source, self.spec.seed)
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

    # ---------------------------------------------------------------- which examples are kept
    def plan(self, splits: Mapping[str, FixedBatches]) -> None:
        """Decide, before the first run, which examples are kept and where: whole fixed batches in their order.

        Splits other than the training split choose first, from a quarter of the room, or from all of it where no
        training pair has a fixed batch; training pairs get all that is left. Fixed batches go to memory as long as
        there is room, then to disk, up to the first for which there is none. Examples that are not kept are run
        whenever they are met. A split that has a plan keeps it.

        Args:
            splits: Fixed batches by split.
        """
        new = {split: fixed for split, fixed in splits.items() if split not in self._plans}
        free = self.store.free
        parts = OTHERS if TRAIN not in new or new[TRAIN].batches else 1
        share: dict[Place, int] = {place: num_bytes // parts for place, num_bytes in free.items()}
        for split in sorted(new, key=lambda split: split == TRAIN):
            plan = KeepingPlan(new[split], self.bytes_of, dict(free) if split == TRAIN else share)
            self._reserve(split, plan)
            self._plans[split] = plan

    def _reserve(self, split: str, plan: KeepingPlan) -> None:
        for place in PLACES:
            try:
                if plan.taken[place]:
                    self.store.reserve(split, place, plan.taken[place])
            except OSError as error:
                plan.without(place)
                warnings.warn(
                    f"no room on {place} for kept runs of {split} pairs ({error}), which are made anew each time: "
                    "lower disk_gb, or set another disk_folder",
                    stacklevel=4,
                )

    def bytes_of(self, num_tokens: int, num_positions: int) -> int:
        """Room that one example takes at most, from the tokens of its clean prompt and its scored positions."""
        total = num_positions * self.model.num_outputs * min(self.model.dtype.itemsize, torch.float32.itemsize)
        if self._per_example:
            total += num_tokens * self.model.layer_states * (self._dtype or self.model.dtype).itemsize
        return total + len(Values._fields) * ALIGNMENT

    @property
    def _per_example(self) -> bool:
        """Whether closed edges carry other values in every example."""
        return self.spec.kind in ("interchange", "resample")

    # ---------------------------------------------------------------- runs
    @torch.no_grad()
    def __call__(self, batch: PairBatch, split: str) -> tuple[Tensor, WriterStates]:
        """Full logits `[batch, positions, vocab]` (float32) and the states that closed edges carry.

        Args:
            batch: Pairs; `index` is their number in `split`. Those of a batch that is padded on the left are not kept.
            split: Which numbering `index` belongs to.

        Raises:
            EdgepruneError: The pairs or what is kept are of another model or weight mask, or `prepare` was forgotten.
        """
        learned = self._shared is not None and self.spec.kind in ("mean", "optimal")
        self._weights.check(kept=len(self.store) > 0 or learned)
        if not bool(batch.attention_mask[:, 0].all()):
            return self._run(batch, split)
        if split not in self._plans:
            return self._first_come(batch, split)
        plan = self._plans[split]
        kept = [number in plan for number in batch.index.tolist()]
        self._run_fixed(batch, split, plan)
        if all(kept):
            return self._read(batch, split)
        if not any(kept):
            return self._run(batch, split)
        return self._mixed(batch, split, torch.tensor(kept, device=batch.clean.device))

    def _first_come(self, batch: PairBatch, split: str) -> tuple[Tensor, WriterStates]:
        """Of a split without a plan: each batch is its own fixed batch, and examples are kept while there is room."""
        keys = [(split, number) for number in batch.index.tolist()]
        if not all(key in self.store for key in keys):
            full, states = self._run(batch, split)
            for key, values in zip(keys, self._values(batch, full, states), strict=True):
                self.store.put_if_room(key, values)
            if not all(key in self.store for key in keys):
                return full, states
        return self._read(batch, split)

    def _run_fixed(self, batch: PairBatch, split: str, plan: KeepingPlan) -> None:
        """Run the fixed batches of those examples of a batch that are to be kept and are not yet."""
        for number in batch.index.tolist():
            if number not in plan or (split, number) in self.store:
                continue
            numbers = plan.batch_of(number)
            own = list(numbers) == batch.index.tolist()
            fixed = batch if own else plan.fixed.collate(numbers).to(self.model.device)
            values = self._values(fixed, *self._run(fixed, split))
            for member, kept in zip(numbers, values, strict=True):
                self.store.put((split, member), kept, plan.place(number))

    def _values(self, batch: PairBatch, full: Tensor, states: WriterStates) -> list[Values]:
        """What is kept of each example of a batch that was run."""
        lengths, counts = batch.attention_mask.sum(1).tolist(), batch.position_mask.sum(1).tolist()
        full = full if self.model.dtype.itemsize >= full.element_size() else full.to(self.model.dtype)
        kept = (states.heads, states.mlps) if self._per_example else (None, None)
        return [
            Values(full[row, :count], *(None if field is None else field[:, row, :length] for field in kept))
            for row, (length, count) in enumerate(zip(lengths, counts, strict=True))
        ]

    def _run(self, batch: PairBatch, split: str) -> tuple[Tensor, WriterStates]:
        """The runs of a batch, nothing kept."""
        self.check(batch)
        full = self.model.full(batch.clean, batch.attention_mask, batch.positions).float()
        if not self._per_example:
            return full, self._common_states(batch)
        ids, mask, alignment = self._prompts(batch, split)
        states = self.model.record(ids, mask)
        return full, states if alignment is None else aligned(states, alignment)

    def _read(self, batch: PairBatch, split: str) -> tuple[Tensor, WriterStates]:
        """The runs of a batch all of whose examples are kept. Embeddings are looked up again."""
        keys = [(split, number) for number in batch.index.tolist()]
        full, heads, mlps = self.store.get(keys, batch.clean.shape[1], batch.positions.shape[1])
        device = self.model.device
        if heads is None:
            return full.to(device), self._common_states(batch)
        ids, mask, alignment = self._prompts(batch, split)
        parts = self.model.embeddings(ids, mask)
        if alignment is not None:
            parts = [at_positions(part, alignment) for part in parts]
        states = WriterStates(embeddings=torch.stack(parts), heads=heads, mlps=mlps)
        return full.to(device), states.to(device)

    def _mixed(self, batch: PairBatch, split: str, kept: Tensor) -> tuple[Tensor, WriterStates]:
        """The runs of a batch of which the examples `kept`, bool `[batch]`, are read and the others are run."""
        old, new = kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]
        full, states = self._read(batch.rows(old), split)
        other_full, other = self._run(batch.rows(new), split)
        places = torch.cat([old, new]).argsort()  # of each example among those that were read, then those that were run
        full = merged(full, other_full, places, axis=0)
        if not self._per_example:
            return full, self._common_states(batch)
        return full, states.combine(partial(merged, places=places, axis=1), other)

    def like_batch(self, batch: PairBatch) -> bool:
        """Whether closed edges carry a run of the model on prompts laid out like the clean ones; see `EmptyRun`."""
        same = torch.equal(batch.corrupted_mask, batch.attention_mask) and batch.alignment is None
        return same and self.spec.kind == "interchange"

    def check(self, batch: PairBatch) -> None:
        """Refuse pairs that the model or the ablation cannot take.

        Raises:
            EdgepruneError: A token id that the model does not know, or a prompt that is longer than its position table
                or all of which means of positions were taken.
        """
        Limits.of(self.model).check_batch(batch)
        longest = int(batch.attention_mask.sum(1).max())
        if self._positional and longest > self.states().heads.shape[2]:
            raise EdgepruneError(
                f"a prompt has {longest} tokens, ablation {self.ablation!r} knows the first "
                f"{self.states().heads.shape[2]} positions, as many as the longest training prompt has: use ablation "
                "'mean', or training prompts as long"
            )

    def _prompts(self, batch: PairBatch, split: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Prompts that give each example's values, their mask, and where the values of each position lie in them."""
        if self.spec.kind == "interchange":
            return batch.corrupted, batch.corrupted_mask, batch.alignment
        self._require_prepared(split)
        return self._sources[split].prompts(batch)

    def _common_states(self, batch: PairBatch) -> WriterStates:
        """Values that all examples share, laid out for a batch."""
        self._require_prepared(TRAIN)
        if self.states().heads.device != self.model.device:
            self._shared = self.states().to(self.model.device)
        return self._at_positions(batch.attention_mask) if self._positional else self.states()

    @property
    def _positional(self) -> bool:
        """Whether the values, the same for every example, differ between positions; those of a file may."""
        return self._shared is not None and (self.spec.positional or self._shared.heads.shape[2] > 1)

    def _at_positions(self, mask: Tensor) -> WriterStates:
        """Means of positions, laid out as the tokens of a batch `[batch, seq]`."""
        states, alike = self.states(), bool(mask[:, 0].all())  # no padding on the left: one row for all, not copied
        places = position_ids(mask, None if alike else mask).clamp(max=states.heads.shape[2] - 1)  # of padding alone
        return states.map(lambda field: field[:, 0, places].expand(-1, len(mask), *[-1] * (field.dim() - 2)))
