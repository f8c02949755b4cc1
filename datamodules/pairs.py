"""The LightningDataModule of clean/corrupted pairs: task -> tokens -> batches."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from datamodules.cache import cache_folder, cache_key, content_hash, load_or_build
from datamodules.collate import Example, collate
from datamodules.encode import UnequalLengths, gc_paused
from datamodules.loader import Examples, ResumableLoader, ignore_terminal_signals
from datamodules.preview import plain_preview
from datamodules.sampler import PairBatchSampler
from datamodules.stream import Encoder, PairStream
from datamodules.tasks.base import SPLITS, AbstractTask, PromptPair, TokenPair
from datamodules.texts import warn_of_two_bos
from edgeprune.ablations.fixed_batches import FixedBatches
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError, NoTokenizerError
from edgeprune.metrics.measure import TOKENS_AT_ONCE
from edgeprune.models.limits import Limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPLITS_OF_STAGE = {"fit": SPLITS[:2], "validate": SPLITS[1:2], "test": SPLITS[2:]}


class PairDataModule(pl.LightningDataModule):
    """Clean/corrupted pairs of one task as batches.

    The Trainer must be built with `use_distributed_sampler=False`: the sampler here shards by rank itself.

    Args:
        task: Where the pairs come from.
        tokenizer: Model name or folder whose tokenizer to use; None for tasks that give tokens.
        batch_size: Training pairs per batch and process; a step has one batch, or as many as the Trainer's
            `accumulate_grad_batches` says. `"auto"`: `edgeprune fit` takes as many as memory allows, and accumulates.
        target_batch_size: With `batch_size: auto`, training pairs per step and process.
        eval_batch_size: Validation and test pairs per batch and process; `"auto"`: as many as make a run fastest, and
            no more than memory allows.
        length_windows: Steps in a row whose training pairs are shared out by length, so that batches need less padding;
            0 does not. See `PairBatchSampler`.
        num_workers: Processes that put batches together; 0 is fastest for short prompts.
        seed: Fixes the order of training pairs in every epoch.
        cache: Keep the tokens on disk.
        cache_dir: Where; None for `$EDGEPRUNE_CACHE` or else `~/.cache/edgeprune`.
        add_special_tokens: Add what the tokenizer puts around a text, such as BOS; None for its own default.
        stream: Train on new pairs in every step, of generated tasks; none is a validation or test pair. An epoch has as
            many steps as the training split gives, which serves all but training steps: ablations that take values from
            pairs, methods that do not train.
        unequal_lengths: What to do with a corrupted prompt of another length than the clean one. `"error"`: refuse it.
            `"end"`: compare positions counted from the end. `"roles"`: compare roles with roles; see `encode_pairs`.

    Attributes:
        tokenizer_object: The tokenizer in use; set it to use one that is already loaded.
    """

    def __init__(
        self,
        task: AbstractTask,
        tokenizer: str | None = None,
        *,
        batch_size: int | Literal["auto"] = 8,
        target_batch_size: int = 8,
        eval_batch_size: int | Literal["auto"] = 32,
        length_windows: int = 0,
        num_workers: int = 0,
        seed: int = 0,
        cache: bool = True,
        cache_dir: str | None = None,
        add_special_tokens: bool | None = None,
        unequal_lengths: UnequalLengths = "error",
        stream: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "target_batch_size": target_batch_size, "eval_batch_size": eval_batch_size}
        for name, size in sizes.items():
            if not (size == "auto" and name != "target_batch_size") and (not isinstance(size, int) or size < 1):
                raise EdgepruneError(f"{name}={size} must be a number of pairs, at least 1, or (not the target) 'auto'")
        for name, value in (("length_windows", length_windows), ("num_workers", num_workers)):
            if value < 0:
                raise EdgepruneError(f"{name} must be 0 or more, got {value}")
        if unequal_lengths not in (known := get_args(UnequalLengths)):
            raise EdgepruneError(f"unequal_lengths must be one of {', '.join(known)}, got {unequal_lengths!r}")
        self.task = task
        self.tokenizer = tokenizer
        self._sizes: dict[str, int | str] = {**sizes}
        self.length_windows = length_windows
        self.num_workers = num_workers
        self.seed = seed
        self.cache = cache
        self.cache_dir = cache_dir
        self.add_special_tokens = add_special_tokens
        self.unequal_lengths: UnequalLengths = unequal_lengths
        self.stream = stream
        self.tokenizer_object: PreTrainedTokenizerBase | None = None
        self._pairs: Mapping[str, Sequence[TokenPair]] | None = None
        self._resume_at = (0, 0)

    # ---------------------------------------------------------------- sizes
    @property
    def batch_size(self) -> int:
        """Training pairs per batch and process.

        Raises:
            EdgepruneError: It is still `"auto"`.
        """
        size = self._sizes["batch_size"]
        if size == "auto":
            raise EdgepruneError("batch_size auto is for `edgeprune fit`, which knows the memory; give a number")
        return cast("int", size)

    @property
    def target_batch_size(self) -> int:
        """Training pairs per step and process, where `batch_size` is `"auto"`."""
        return cast("int", self._sizes["target_batch_size"])

    @property
    def eval_batch_size(self) -> int:
        """Pairs per batch and process of evaluations; where it is `"auto"`, as many as make a run fastest."""
        size = self._sizes["eval_batch_size"]
        if size == "auto":
            longest = max(self.extent(split)[0] for split in SPLITS if self.pairs(split))
            return max(1, TOKENS_AT_ONCE // longest)
        return cast("int", size)

    @property
    def open_sizes(self) -> tuple[str, ...]:
        """Names of the sizes that were left open."""
        return tuple(name for name, size in self._sizes.items() if size == "auto")

    def settle(self, **sizes: int) -> None:
        """Set `batch_size` or `eval_batch_size`."""
        self._sizes = self._sizes | sizes

    def extent(self, split: str) -> tuple[int, int]:
        """Tokens of the longest clean prompt of a split, and scored positions of the pair that has most."""
        pairs = self.pairs(split)
        return max(len(pair.clean) for pair in pairs), max(len(pair.positions) for pair in pairs)

    # ---------------------------------------------------------------- pairs
    def setup(self, stage: str | None = None) -> None:
        """Encode all splits, once, and check that those which `stage` needs hold something."""
        for split in _SPLITS_OF_STAGE.get(stage or "", SPLITS):
            if not self.pairs(split):
                raise EdgepruneError(
                    f"{type(self.task).__name__} gives no {split} pairs; raise the number or fraction of the "
                    f"{split} split"
                )

    def pairs(self, split: str) -> Sequence[TokenPair]:
        """All pairs of `split`."""
        if split not in SPLITS:
            raise EdgepruneError(f"no split named {split!r}; there are {', '.join(SPLITS)}")
        if self._pairs is None:
            self._pairs = self._load()
        return self._pairs[split]

    def check(self, limits: Limits, split: str, count: int | None = None) -> None:
        """Refuse pairs that a model cannot take.

        Args:
            limits: What it takes.
            split: Which pairs.
            count: Look at the first so many only.

        Raises:
            EdgepruneError: A pair does not fit; the first is named.
        """
        for number, pair in enumerate(islice(self.pairs(split), count)):
            parts = pair.clean, pair.corrupted, pair.targets, pair.distractors, pair.answers, pair.wrong_answers
            fault = limits.fault(*parts)
            if fault is not None:
                raise EdgepruneError(f"{split} pair {number}, {self._prompt(split, number)}, {fault}")

    def _prompt(self, split: str, number: int) -> str:
        """The clean prompt of a pair, shortened, and where it comes from if that is known."""
        pair = self.task.splits(self.tokenizer_object)[split][number]
        if isinstance(pair, TokenPair):
            return f"tokens {textwrap.shorten(' '.join(map(str, pair.clean)), 60)}"
        return repr(textwrap.shorten(pair.clean, 60)) + (f" ({pair.source})" if pair.source else "")

    def labels(self, split: str) -> dict[str, tuple[str, ...]]:
        """What is known about the pairs of `split`, such as their template: by name one value per pair, in order.

        `""` stands where a pair lacks a label. Pairs given as tokens have none.
        """
        pairs = self.task.splits(self.tokenizer_object).get(split, ())
        known = [pair.labels if isinstance(pair, PromptPair) else {} for pair in pairs]
        names = dict.fromkeys(name for labels in known for name in labels)
        return {name: tuple(labels.get(name, "") for labels in known) for name in names}

    def _load(self) -> Mapping[str, Sequence[TokenPair]]:
        missing = self._find_tokenizer()
        tokenizer = self.tokenizer_object
        options = self.add_special_tokens, self.unequal_lengths
        key = cache_key(self.task, tokenizer, *options) if self.cache else None
        try:
            splits = load_or_build(cache_folder(self.cache_dir), key, self._encode) if key else self._encode()
        except NoTokenizerError as error:
            raise missing or error from None
        if tokenizer is not None:
            warn_of_two_bos(splits.values(), tokenizer, self.add_special_tokens)
        return splits

    def _find_tokenizer(self) -> NoTokenizerError | None:
        """Load the tokenizer that was named; without one that is there, the task may still give tokens."""
        if self.tokenizer_object is None and self.tokenizer is not None:
            from edgeprune.models.loading import load_tokenizer

            try:
                self.tokenizer_object = load_tokenizer(self.tokenizer)
            except NoTokenizerError as error:
                return error
        return None

    def _encode(self) -> Mapping[str, Sequence[TokenPair]]:
        with gc_paused():
            splits, encoder = self.task.splits(self.tokenizer_object), self._encoder
            return {split: encoder(splits.get(split, ())) for split in SPLITS}

    @property
    def _encoder(self) -> Encoder:
        return Encoder(self.task, self.tokenizer_object, self.add_special_tokens, self.unequal_lengths)

    # ---------------------------------------------------------------- batches
    def train_dataloader(self) -> DataLoader[Example]:
        """Shuffled batches; a resumed run goes on with the batch after its last one."""
        return self._loader("train", shuffled=True)

    def val_dataloader(self) -> DataLoader[Example]:
        """All validation pairs in order."""
        return self.ordered_dataloader("validation")

    def test_dataloader(self) -> DataLoader[Example]:
        """All test pairs in order."""
        return self.ordered_dataloader("test")

    def ordered_dataloader(self, split: str) -> DataLoader[Example]:
        """All pairs of any split in order, in batches of `eval_batch_size`."""
        return self._loader(split, shuffled=False)

    def transfer_batch_to_device(self, batch: PairBatch, device: torch.device, dataloader_idx: int) -> PairBatch:
        """Move a batch to `device`."""
        return batch.to(device)

    def fixed_batches(self, split: str) -> FixedBatches:
        """Fixed batches of a split: of training pairs as epoch 0 meets them (none of a stream), else as evaluated."""
        pairs, shuffled = self.pairs(split), split == "train"

        def lengths(number: int) -> tuple[int, int]:
            return len(pairs[number].clean), len(pairs[number].positions)

        def batch_of(numbers: Sequence[int]) -> PairBatch:
            return self._collate([(number, pairs[number]) for number in numbers])

        batches = [] if shuffled and self.stream else self._sampler(split, shuffled=shuffled).fixed_batches()
        return FixedBatches(batches, batch_of, lengths)

    @property
    def _collate(self) -> Callable[[Sequence[Example]], PairBatch]:
        return partial(collate, pad_id=getattr(self.tokenizer_object, "pad_token_id", None) or 0)

    def place_in_step(self, number: int) -> tuple[int, int]:
        """Of this process's share of a step: pairs before training batch `number` of an epoch, and all pairs."""
        return self._sampler("train", shuffled=True).place_in_step(number)

    def _sampler(self, split: str, *, shuffled: bool) -> PairBatchSampler:
        pairs = self.pairs(split)
        ranks = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {}

        def length(number: int) -> int:
            return len(pairs[number].clean)

        training: dict[str, Any] = {
            "seed": self.seed,
            "parts": getattr(self.trainer, "accumulate_grad_batches", 1),
            "window": self.length_windows,
            "length": length,
            "anew": self.stream,
            "position": self._position,
        }
        return PairBatchSampler(
            len(pairs),
            self.batch_size if shuffled else self.eval_batch_size,
            rank=ranks.get("rank", 0),
            world_size=ranks.get("num_replicas", 1),
            **(training if shuffled else {}),
        )

    def _loader(self, split: str, *, shuffled: bool) -> DataLoader[Example]:
        sampler = self._sampler(split, shuffled=shuffled)
        pairs: Any = self.pairs(split)
        if shuffled and self.stream:
            draw, steps = self.task.stream(self.tokenizer_object), len(sampler) // sampler.parts
            pairs = PairStream(draw, self._encoder, self.seed, sampler.step_size, steps, self.length_windows)
        return ResumableLoader(
            Examples(pairs),
            batch_sampler=sampler,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            worker_init_fn=ignore_terminal_signals,
        )

    # ---------------------------------------------------------------- resuming
    def state_dict(self) -> dict[str, Any]:
        """Epoch and batch at which training would go on."""
        epoch, batch = self._position()
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the saved epoch and batch."""
        self._resume_at = state_dict["epoch"], state_dict["batch"]

    def _position(self) -> tuple[int, int]:
        """Epoch and batch of the next training step.

        Counts the batches that the training loop has processed since the very first one. They are not those
        drawn from the loader, for workers run ahead, and not `current.ready`, which counts a batch whose step
        was interrupted and is reset only when the next epoch begins. As long as the loop does not know the
        length of an epoch, nothing has run since the resume.
        """
        per_epoch = self.trainer.num_training_batches if self.trainer else 0
        if not 0 < per_epoch < float("inf"):
            return self._resume_at
        total = cast("pl.Trainer", self.trainer).fit_loop.epoch_loop.batch_progress.total
        done: int = total.processed  # pyright: ignore[reportAttributeAccessIssue] (a subclass at run time)
        return divmod(done, int(per_epoch))

    # ---------------------------------------------------------------- for people and records
    def describe(self) -> dict[str, Any]:
        """Task, tokenizer, and of every split the number of pairs and the hash of their tokens."""
        return {
            **self.task.description(),
            **({"stream": True} if self.stream else {}),
            "tokenizer": self.tokenizer or getattr(self.tokenizer_object, "name_or_path", None),
            "add_special_tokens": self.add_special_tokens,
            "num_pairs": {split: len(self.pairs(split)) for split in SPLITS},
            "sha256": {split: content_hash(self.pairs(split)) for split in SPLITS},
        }

    def preview(self, n: int = 10, split: str = "train") -> str:
        """The first `n` pairs of `split` as the model sees them, with answer and distractor."""
        return plain_preview(self.pairs(split)[:n], self.tokenizer_object, split)
