"""Induction: a random sequence of tokens, and the same once more; what came after this token the first time?

    clean       [BOS] k r a x m | k r a x m      scored: second k -> r, r -> a, a -> x, x -> m
    random      [BOS] t w e g o | k r a x m      nothing to copy from
    shuffle     [BOS] x k m a r | k r a x m      something else to copy

No token occurs twice in the sequence, so what followed it before follows again. See Elhage et al., "A mathematical
framework for transformer circuits" (2021), and Olsson et al., arXiv 2209.11895.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal, cast, final, get_args

from datamodules.tasks import generated, wording
from datamodules.tasks.base import AbstractTask, TokenPair
from datamodules.tasks.generated import NewPairs, check_sizes, distinct, in_splits
from datamodules.tasks.wording import check_choice
from edgeprune.errors import EdgepruneError, NoTokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Corruption = Literal["random", "shuffle"]
MAX_VOCABULARY = 10_000_000  # more than any model has


@final
@dataclass(frozen=True)
class Induction(AbstractTask):
    """Repeated random tokens, scored in the second half from its second token on; no sequence occurs twice.

    Roles: `first` and `second`, the two halves, and `END`, the last token.

    Attributes:
        num_train: Pairs to train on.
        num_validation: Pairs to validate on.
        num_test: Pairs to test on.
        length: Tokens of one half, BOS not counted.
        corruption: What becomes of the first half; the second stays. `"random"`: as many other tokens; the distractor
            is the token that stands there in place of the answer. `"shuffle"`: its tokens in an order in which none is
            followed by what followed it; the distractor is what follows it then.
        num_scored: Score only the last so many of the `length - 1` answers; None for all.
        vocab_size: Draw token ids below this number, for models without a tokenizer; None: the tokenizer's ordinary
            words, which are the tokens that decode to a space and letters.
        first_token: With `vocab_size`, the lowest id to draw.
        add_bos: Put BOS in front, if there is one.
        bos_token: Its id; None: the tokenizer's, if there is a tokenizer and it has one.
        seed: Fixes every choice.
    """

    sources: ClassVar[tuple[ModuleType, ...]] = (generated, wording)

    num_train: int = 200
    num_validation: int = 100
    num_test: int = 200
    length: int = 20
    corruption: Corruption = "random"
    num_scored: int | None = None
    vocab_size: int | None = None
    first_token: int = 0
    add_bos: bool = True
    bos_token: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self._sizes())
        check_choice("corruption", self.corruption, get_args(Corruption))
        if self.length < 2:
            raise EdgepruneError(f"length must be at least 2, so that something can be repeated, got {self.length}")
        if self.num_scored is not None and not 1 <= self.num_scored < self.length:
            raise EdgepruneError(
                f"num_scored must be 1..{self.length - 1} with length={self.length}, or null for all, "
                f"got {self.num_scored}"
            )
        if self.vocab_size is None and self.first_token:
            raise EdgepruneError(f"first_token={self.first_token} goes with vocab_size; set that too")
        if self.vocab_size is not None:
            if not 1 <= self.vocab_size <= MAX_VOCABULARY:
                raise EdgepruneError(f"vocab_size must be 1..{MAX_VOCABULARY}, got {self.vocab_size}")
            if not 0 <= self.first_token < self.vocab_size:
                raise EdgepruneError(
                    f"first_token must lie in 0..{self.vocab_size - 1}, below vocab_size, got {self.first_token}"
                )
        if self.bos_token is not None and not 0 <= self.bos_token < MAX_VOCABULARY:
            raise EdgepruneError(f"bos_token must be a token id, 0 or more, got {self.bos_token}")

    @property
    def needs_tokenizer(self) -> bool:
        """Not with `vocab_size`."""
        return self.vocab_size is None

    def splits(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, list[TokenPair]]:
        """Pairs of each split; without `vocab_size` a tokenizer is needed."""
        pairs = self._generate(*self._alphabet(tokenizer), sum(self._sizes()), random.Random(self.seed))
        return in_splits(pairs, self._sizes())

    def stream(self, tokenizer: "PreTrainedTokenizerBase | None") -> NewPairs[TokenPair]:
        """What draws new training pairs."""
        return NewPairs.beside(self.splits(tokenizer), partial(self._generate, *self._alphabet(tokenizer)), self.seed)

    def _generate(
        self, tokens: Sequence[int], start: tuple[int, ...], count: int, rng: random.Random
    ) -> list[TokenPair]:
        return distinct(lambda _: self._pair(tokens, start, rng), count, "induction")

    def _alphabet(self, tokenizer: "PreTrainedTokenizerBase | None") -> tuple[Sequence[int], tuple[int, ...]]:
        """Tokens to draw from, and what stands in front."""
        if tokenizer is not None:
            self._check_ids(len(tokenizer))
        bos = self._bos(tokenizer)
        tokens = [token for token in self._tokens(tokenizer) if token != bos]
        needed = 2 * self.length if self.corruption == "random" else self.length
        if len(tokens) < needed:
            raise EdgepruneError(
                f"{len(tokens)} tokens to draw from are too few: corruption {self.corruption!r} with "
                f"length={self.length} needs {needed}; make sequences shorter or the vocabulary larger"
            )
        return tokens, () if bos is None else (bos,)

    def _check_ids(self, num_tokens: int) -> None:
        """Refuse ids that the tokenizer does not have."""
        for name, past in (("vocab_size", self.vocab_size or 0), ("bos_token", (self.bos_token or 0) + 1)):
            if past > num_tokens:
                raise EdgepruneError(
                    f"{name}={getattr(self, name)} asks for token ids beyond 0..{num_tokens - 1}, those of the "
                    "tokenizer; lower it, or give no tokenizer"
                )

    def _sizes(self) -> tuple[int, int, int]:
        return self.num_train, self.num_validation, self.num_test

    def _bos(self, tokenizer: "PreTrainedTokenizerBase | None") -> int | None:
        if not self.add_bos or self.bos_token is not None or tokenizer is None:
            return self.bos_token if self.add_bos else None
        return cast("int | None", tokenizer.bos_token_id)

    def _tokens(self, tokenizer: "PreTrainedTokenizerBase | None") -> Sequence[int]:
        if self.vocab_size is not None:
            return range(self.first_token, self.vocab_size)
        if tokenizer is None:
            raise NoTokenizerError(
                "the Induction task needs a vocabulary: give the data module a tokenizer, or set vocab_size"
            )
        return ordinary_words(tokenizer)

    def _pair(self, tokens: Sequence[int], start: tuple[int, ...], rng: random.Random) -> TokenPair:
        drawn = rng.sample(tokens, 2 * self.length if self.corruption == "random" else self.length)
        half = drawn[: self.length]
        if self.corruption == "random":
            other = drawn[self.length :]
            distractors = other[1:]
        else:
            other, followers = _shuffle(half, rng)
            distractors = [followers[token] for token in half[:-1]]
        scored = self.num_scored or self.length - 1
        second, end = len(start) + self.length, len(start) + 2 * self.length
        return TokenPair(
            clean=(*start, *half, *half),
            corrupted=(*start, *other, *half),
            positions=tuple(range(end - 1 - scored, end - 1)),
            targets=tuple(half[-scored:]),
            distractors=tuple(distractors[-scored:]),
            roles={"first": (len(start), second), "second": (second, end), "END": (end - 1, end)},
        )


def _shuffle(half: Sequence[int], rng: random.Random) -> tuple[list[int], dict[int, int]]:
    """Another order in which no token is followed by what followed it, and what follows each one in it.

    What follows the last one is the second half, which begins with the first token of `half`.
    """
    pairs = set(pairwise(half))
    while True:
        other = rng.sample(half, len(half))
        following = list(zip(other, (*other[1:], half[0]), strict=True))
        if pairs.isdisjoint(following):
            return other, dict(following)


def ordinary_words(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids of the tokens that are a word, or the beginning of one: special tokens, digits and signs left out.

    A word begins with a space where the tokenizer marks the beginning of words by one. What the tokenizer writes in
    place of that space (`Ġ` in byte-level vocabularies, `▁` in SentencePiece ones) is read as a space.
    """
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    marked = any(token[:1] in "Ġ▁" and token[1:].isalpha() for token in vocabulary if token)
    return sorted(
        number
        for token, number in vocabulary.items()
        if number not in special
        and (token[:1] in ("Ġ", "▁") or not marked)
        and (word := token.lstrip("Ġ▁")).isascii()
        and word.isalpha()
    )
