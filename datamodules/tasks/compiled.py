"""Pairs for compiled programs (`edgeprune.compiled`): token ids at once, no text and no tokenizer."""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from datamodules.tasks.base import SPLITS, AbstractTask, TokenPair
from edgeprune.batch import IGNORE
from edgeprune.compiled import Case, cases
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@final
@dataclass(frozen=True)
class CompiledTask(AbstractTask):
    """All valid inputs of a program, shared out among the splits at random; no input is clean in two splits.

    The corrupted prompt is another valid input of the same length, drawn at random. All positions after BOS
    are scored. A compiled program is no next-token predictor: logits at position p are its output *for* p, so
    the target of p is the index of that output.

    `reverse` has 3, 9, 27, 81 and 243 inputs of length 1 to 5; the defaults use all 363 as 70, 15 and 15 %.

    Attributes:
        program: Name of the program.
        lengths: Input lengths to use, without BOS.
        num_train: Pairs to train on.
        num_validation: Pairs to validate on.
        num_test: Pairs to test on.
        seed: Fixes the split and the corrupted prompts.
    """

    program: str = "reverse"
    lengths: tuple[int, ...] = (1, 2, 3, 4, 5)
    num_train: int = 254
    num_validation: int = 54
    num_test: int = 55
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self._sizes()) < 0:
            raise EdgepruneError(f"num_train, num_validation, num_test = {self._sizes()} must not be negative")
        known = {len(outputs) for _, outputs in cases(self.program)}
        if not self.lengths or not known.issuperset(self.lengths):
            raise EdgepruneError(
                f"lengths must be some of {sorted(known)} for program {self.program!r}, got {self.lengths!r}"
            )
        if sum(self._sizes()) > len(self._cases()):
            raise EdgepruneError(
                f"{sum(self._sizes())} pairs asked for, {self.program!r} has {len(self._cases())} inputs "
                f"of lengths {self.lengths}: lower num_train, num_validation or num_test"
            )

    def splits(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, list[TokenPair]]:
        """Pairs of each split; `tokenizer` is not used."""
        rng = random.Random(self.seed)
        shuffled = rng.sample(self._cases(), k=len(self._cases()))
        pairs = [self._pair(case, rng) for case in shuffled]
        splits: dict[str, list[TokenPair]] = {}
        for name, size in zip(SPLITS, self._sizes(), strict=True):
            splits[name], pairs = pairs[:size], pairs[size:]
        return splits

    def fingerprint(self) -> None:
        """Never cached: the pairs also depend on the program's code, and are made faster than read."""

    def _sizes(self) -> tuple[int, int, int]:
        return self.num_train, self.num_validation, self.num_test

    def _cases(self) -> list[Case]:
        return [case for case in cases(self.program) if len(case[1]) in self.lengths]

    def _pair(self, case: Case, rng: random.Random) -> TokenPair:
        clean, outputs = case
        others = [ids for ids, _ in self._cases() if len(ids) == len(clean) and ids != clean]
        return TokenPair(
            clean=clean,
            corrupted=rng.choice(others),
            positions=tuple(range(1, len(clean))),
            targets=outputs,
            distractors=(IGNORE,) * len(outputs),
        )
