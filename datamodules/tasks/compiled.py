"""Pairs for compiled programs (`edgeprune.compiled`): token ids at once, no text and no tokenizer."""

import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from datamodules.tasks.base import AbstractTask, TokenPair
from datamodules.tasks.generated import in_splits
from edgeprune.batch import IGNORE
from edgeprune.compiled import Case, cases, output_kind
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@final
@dataclass(frozen=True)
class CompiledTask(AbstractTask):
    """All valid inputs of a program, shared out among the splits at random; no input is clean in two splits.

    The corrupted prompt is another valid input of the same length, drawn at random. All positions where the program
    specifies an output are scored. Logits at position p are the program's output *for* p, so the target of p is the
    index of that output; a program with numerical outputs has no targets (`IGNORE`).

    `reverse` has 3, 9, 27, 81 and 243 inputs of length 1 to 5; by default 254, 54 and 55 of all 363 are shared out.

    Attributes:
        program: Name of the program.
        lengths: Input lengths to use, without BOS; None for all.
        num_train: Pairs to train on; None for 70 % of the inputs.
        num_validation: Pairs to validate on; None for 15 %.
        num_test: Pairs to test on; None for 15 %, rounded up.
        seed: Fixes the split and the corrupted prompts.
    """

    program: str = "reverse"
    lengths: tuple[int, ...] | None = None
    num_train: int | None = None
    num_validation: int | None = None
    num_test: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = self.num_train, self.num_validation, self.num_test
        if min(size or 0 for size in sizes) < 0:
            raise EdgepruneError(f"num_train, num_validation, num_test = {sizes} must not be negative")
        known = {len(outputs) for _, outputs in cases(self.program)}
        if self.lengths is not None and not (self.lengths and known.issuperset(self.lengths)):
            raise EdgepruneError(
                f"lengths must be some of {sorted(known)} for program {self.program!r}, got {self.lengths!r}"
            )
        found = self._cases()
        if sum(self._sizes(len(found))) > len(found):
            raise EdgepruneError(
                f"{sum(self._sizes(len(found)))} pairs asked for, {self.program!r} has {len(found)} inputs "
                f"of lengths {self.lengths or tuple(sorted(known))}: lower num_train, num_validation or num_test"
            )

    @property
    def needs_tokenizer(self) -> bool:
        """Never: the inputs are token ids."""
        return False

    def splits(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, list[TokenPair]]:
        """Pairs of each split; `tokenizer` is not used."""
        found = self._cases()
        rng = random.Random(self.seed)
        peers: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for ids, _ in found:
            peers[len(ids)].append(ids)
        rank = {ids: place for group in peers.values() for place, ids in enumerate(group)}
        numerical = output_kind(self.program) == "numerical"
        pairs: list[TokenPair] = []
        for ids, outputs in rng.sample(found, k=len(found)):
            other = rng.choice(range(len(peers[len(ids)]) - 1))
            corrupted = peers[len(ids)][other + (other >= rank[ids])]  # any but the input itself
            pairs.append(_pair(ids, corrupted, outputs, numerical))
        return in_splits(pairs, self._sizes(len(found)))

    def fingerprint(self) -> None:
        """Never cached: the pairs also depend on the program's code, and are made faster than read."""

    def _sizes(self, total: int) -> tuple[int, ...]:
        train, validation = total * 70 // 100, total * 15 // 100
        shares = train, validation, total - train - validation
        sizes = self.num_train, self.num_validation, self.num_test
        return tuple(share if size is None else size for size, share in zip(sizes, shares, strict=True))

    def _cases(self) -> list[Case]:
        return [case for case in cases(self.program) if self.lengths is None or len(case[1]) in self.lengths]


def _pair(clean: tuple[int, ...], corrupted: tuple[int, ...], outputs: tuple[float, ...], numerical: bool) -> TokenPair:
    scored = [(place, value) for place, value in enumerate(outputs, start=1) if value != IGNORE]
    return TokenPair(
        clean=clean,
        corrupted=corrupted,
        positions=tuple(place for place, _ in scored),
        targets=tuple(IGNORE if numerical else int(value) for _, value in scored),
        distractors=(IGNORE,) * len(scored),
    )
