"""What generated tasks share: sizes, seed, and splits that have neither prompts nor entities in common."""

import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar, final

from datamodules.tasks import continuations, wording
from datamodules.tasks.base import SPLITS, AbstractTask, PromptPair, TokenPair
from edgeprune.errors import EdgepruneError, NoTokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Entities = Literal["disjoint", "shared"]
MAX_PAIRS = 5_000_000  # of all splits; they are made in memory, at some 2 kB each
ROUNDS = 50  # of drawing as many new pairs as are asked for, before the task gives up
T = TypeVar("T")
Pair = TypeVar("Pair", PromptPair, TokenPair)
Vocabulary = TypeVar("Vocabulary")


@dataclass(frozen=True)
class GeneratedTask(AbstractTask, Generic[Vocabulary]):
    """Prompts made from sentence forms and words; no clean prompt occurs twice, in one split or in two.

    A subclass gives the words that the tokenizer can use (`vocabulary`), shares them out among the splits (`share_out`)
    and makes prompts from them (`generate`).

    Attributes:
        num_train: Pairs to train on.
        num_validation: Pairs to validate on.
        num_test: Pairs to test on.
        entities: `"disjoint"`: no entity (each task has its kind) occurs in two splits. `"shared"`: all splits
            draw on all of them.
        seed: Fixes every choice.
    """

    single_token_answers: ClassVar[bool] = True
    sources: ClassVar[tuple[ModuleType, ...]] = (wording, continuations)

    num_train: int = 200
    num_validation: int = 100
    num_test: int = 200
    entities: Entities = "disjoint"
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self.sizes)
        if self.entities not in ("disjoint", "shared"):
            raise EdgepruneError(f"entities must be 'disjoint' or 'shared', got {self.entities!r}")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Pairs of each split, in the order of `SPLITS`."""
        return self.num_train, self.num_validation, self.num_test

    @abstractmethod
    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> Vocabulary:
        """The words in use: those that `tokenizer` can spell as the task needs."""

    @abstractmethod
    def share_out(self, vocabulary: Vocabulary, rng: random.Random) -> Sequence[Vocabulary]:
        """One vocabulary for each split, without a common entity; see `share_out`."""

    @abstractmethod
    def generate(self, vocabulary: Vocabulary, count: int, rng: random.Random) -> list[PromptPair]:
        """`count` pairs whose clean prompts all differ; see `distinct`."""

    def splits(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, list[PromptPair]]:
        """Pairs of each split."""
        vocabulary, rng = self._vocabulary(tokenizer), random.Random(self.seed)
        if self.entities == "shared":
            splits = in_splits(self.generate(vocabulary, sum(self.sizes), rng), self.sizes)
            for part in splits.values():
                rng.shuffle(part)
            return splits
        parts = zip(SPLITS, self.share_out(vocabulary, rng), self.sizes, strict=True)
        return {split: self.generate(part, size, rng) if size else [] for split, part, size in parts}

    def stream(self, tokenizer: "PreTrainedTokenizerBase | None") -> "NewPairs[PromptPair]":
        """What draws new training pairs, of the training split's words."""
        vocabulary = self._vocabulary(tokenizer)
        if self.entities == "disjoint":
            vocabulary = self.share_out(vocabulary, random.Random(self.seed))[0]
        return NewPairs.beside(self.splits(tokenizer), partial(self.generate, vocabulary), self.seed)

    def _vocabulary(self, tokenizer: "PreTrainedTokenizerBase | None") -> Vocabulary:
        if tokenizer is None:
            raise NoTokenizerError(f"the {type(self).__name__} task makes text: give the data module a tokenizer")
        return self.vocabulary(tokenizer)


@final
@dataclass(frozen=True)
class NewPairs(Generic[Pair]):
    """Draws training pairs whose clean prompts are none of the validation and test pairs'.

    Attributes:
        generate: Makes so many pairs whose clean prompts differ.
        held_out: Clean prompts that must not occur.
        seed: Of the task.
    """

    generate: Callable[[int, random.Random], list[Pair]]
    held_out: frozenset[str | tuple[int, ...]]
    seed: int

    @classmethod
    def beside(
        cls, splits: Mapping[str, Sequence[Pair]], generate: Callable[[int, random.Random], list[Pair]], seed: int
    ) -> "NewPairs[Pair]":
        """For a task with these splits."""
        held_out = chain.from_iterable(splits[split] for split in SPLITS[1:])
        return cls(generate, frozenset(pair.clean for pair in held_out), seed)

    def __call__(self, count: int, name: str) -> list[Pair]:
        """`count` pairs whose clean prompts differ, in random order; other ones for every `name`.

        Raises:
            EdgepruneError: New prompts no longer turn up.
        """
        rng = random.Random(f"{self.seed} {name}")
        found: dict[str | tuple[int, ...], Pair] = {}
        for _ in range(ROUNDS):
            drawn = self.generate(count, rng)
            rng.shuffle(drawn)
            for pair in drawn:
                if pair.clean not in self.held_out:
                    found.setdefault(pair.clean, pair)
            if len(found) >= count:
                return list(found.values())[:count]
        raise EdgepruneError(
            f"{count} new training prompts were asked for at once, only {len(found)} turned up that are no validation "
            "or test prompts: set entities to 'disjoint', lower num_train, or leave stream out"
        )


def check_sizes(sizes: tuple[int, int, int]) -> None:
    """Refuse numbers of pairs that are negative, all 0, or more than memory holds.

    Raises:
        EdgepruneError: They are.
    """
    if min(sizes) < 0 or not 0 < sum(sizes) <= MAX_PAIRS:
        raise EdgepruneError(
            f"num_train, num_validation, num_test = {sizes} must not be negative, and 1 to {MAX_PAIRS} in all"
        )


def in_splits(pairs: Sequence[Pair], sizes: Iterable[int]) -> dict[str, list[Pair]]:
    """The first pairs to the first split, as many as its size, and so on."""
    rest = iter(pairs)
    return {split: list(islice(rest, size)) for split, size in zip(SPLITS, sizes, strict=True)}


def share_out(
    words: Sequence[T], sizes: Sequence[int], rng: random.Random, *, minimum: int, what: str
) -> tuple[tuple[T, ...], ...]:
    """Deal `words` out at random, one part per entry of `sizes`, without overlap.

    Parts are proportional to `sizes` but at least `minimum` words each; an entry of size 0 gets none.

    Raises:
        EdgepruneError: There are too few words.
    """
    wanted = [size > 0 for size in sizes]
    if len(words) < minimum * sum(wanted):
        raise EdgepruneError(
            f"{len(words)} {what} cannot be shared out among {sum(wanted)} splits of at least {minimum}: "
            "set entities to 'shared', or use a model with a larger vocabulary"
        )
    spare = len(words) - minimum * sum(wanted)
    shuffled = rng.sample(list(words), len(words))
    parts: list[tuple[T, ...]] = []
    for i, size in enumerate(sizes):
        share = spare * sum(sizes[: i + 1]) // max(1, sum(sizes)) - spare * sum(sizes[:i]) // max(1, sum(sizes))
        length = (minimum if size > 0 else 0) + share
        parts.append(tuple(shuffled[:length]))
        shuffled = shuffled[length:]
    return tuple(parts)


def distinct(draw: Callable[[int], Pair], count: int, what: str) -> list[Pair]:
    """`count` pairs with different clean prompts from `draw(number)`, which is random.

    `number` counts the pairs that were found, so that a draw can go round its sentence forms evenly.

    Raises:
        EdgepruneError: New prompts no longer turn up.
    """
    found: dict[str | tuple[int, ...], Pair] = {}
    misses = 0
    while len(found) < count:
        pair = draw(len(found))
        misses = misses + 1 if pair.clean in found else 0
        found.setdefault(pair.clean, pair)
        if misses > 1000:
            raise EdgepruneError(
                f"{count} different {what} prompts were asked for, only about {len(found)} exist with these words: "
                "ask for fewer, allow more sentence forms, or set entities to 'shared'"
            )
    return list(found.values())
