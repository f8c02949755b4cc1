"""What readers of users' files share: where the file lies, its rows, and how they become splits."""

import random
import textwrap
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from datamodules.tasks import continuations
from datamodules.tasks.base import SPLITS, AbstractTask, PromptPair
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Row(NamedTuple):
    """One pair of a file and the split that it names, if it names one."""

    split: str | None
    pair: PromptPair


@dataclass(frozen=True)
class FileTask(AbstractTask):
    """Pairs from one file; a subclass reads its rows.

    Attributes:
        path: The file.
        validation_fraction: Share of the rows to validate on, if they name no split.
        test_fraction: Share of the rows to test on, if they name no split.
        seed: Fixes which row goes to which split.
    """

    sources: ClassVar[tuple[ModuleType, ...]] = (continuations,)

    path: str
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise EdgepruneError(f"no pair file at {self.path!r}; give the path of a file for {type(self).__name__}")
        check_fractions(self.validation_fraction, self.test_fraction)

    @abstractmethod
    def rows(self, tokenizer: "PreTrainedTokenizerBase | None") -> list[Row]:
        """Every pair of the file, in its order."""

    def splits(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, list[PromptPair]]:
        """Pairs of each split, in the order of the file where it names the splits."""
        rows = self.rows(tokenizer)
        if not rows:
            raise EdgepruneError(f"{self.path} holds no pairs; {type(self).__name__} needs at least one")
        unnamed = [row for row in rows if row.split is None]
        if not unnamed:
            named = {split: [row.pair for row in rows if row.split == split] for split in SPLITS}
            warn_of_shared_prompts(named, self.path)
            return named
        if len(unnamed) < len(rows):
            raise EdgepruneError(
                f'{unnamed[0].pair.source}: "split" is missing, but other rows have it; give it to all or none'
            )
        fractions = {"test": self.test_fraction, "validation": self.validation_fraction}
        return draw([row.pair for row in rows], fractions, self.seed)

    def input_files(self) -> list[Path]:
        """The file."""
        return [Path(self.path)]


def check_fractions(*fractions: float) -> None:
    """Refuse shares of the rows that are negative or leave nothing to train on."""
    if min(fractions) < 0 or sum(fractions) >= 1:
        raise EdgepruneError(
            f"validation_fraction and test_fraction = {fractions} must not be negative and must leave "
            "something to train on"
        )


def draw(pairs: Sequence[PromptPair], fractions: Mapping[str, float], seed: int) -> dict[str, list[PromptPair]]:
    """Deal pairs out at random: to each split its fraction, at least one prompt if that is not 0; the rest to `train`.

    Counted are clean prompts: pairs that share one stay together, so that no split holds a prompt of another.
    """
    by_prompt: dict[str, list[PromptPair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.clean, []).append(pair)
    left = random.Random(seed).sample(list(by_prompt.values()), len(by_prompt))
    parts: dict[str, list[list[PromptPair]]] = {}
    for split, fraction in fractions.items():
        size = max(1, round(len(by_prompt) * fraction)) if fraction else 0
        parts[split], left = left[:size], left[size:]
    return {split: [pair for group in groups for pair in group] for split, groups in {"train": left, **parts}.items()}


def warn_of_shared_prompts(splits: Mapping[str, Sequence[PromptPair]], path: str) -> None:
    """Warn of clean prompts that splits have in common where the file itself names the splits."""
    prompts = [{pair.clean for pair in pairs} for pairs in splits.values()]
    shared = set[str]().union(*(first & second for first, second in combinations(prompts, 2)))
    if shared:
        warnings.warn(
            f"{path}: {len(shared)} clean prompts occur in more than one split, such as "
            f"{textwrap.shorten(min(shared), 60)!r}: what is found on one is not tested by the other",
            stacklevel=2,
        )


def check_split(name: object, source: str) -> str | None:
    """The split that a row names, or None."""
    if name is None or (isinstance(name, str) and name in SPLITS):
        return name
    raise EdgepruneError(f'{source}: "split" must be one of {", ".join(SPLITS)}, got {name!r}')
