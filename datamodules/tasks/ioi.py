"""Indirect-object identification: two people, one of whom acts; the answer is the other one.

Clean: "... Mary and John ... John gave the book to", answer " Mary" (IO), distractor " John" (S). The order
ABBA names IO first, BABA names S first. The task is that of Wang et al., arXiv 2211.00593; the sentences
are our own.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal, final, get_args

from datamodules.encode import has_unknown
from datamodules.tasks.base import SPLITS, AbstractTask, PromptPair
from datamodules.tasks.ioi_words import NAMES, OBJECTS, PLACES, TEMPLATES
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Order = Literal["ABBA", "BABA"]
Corruption = Literal["abc", "s2_io_flip"]
MIN_NAMES = 8  # a pair uses up to five; fewer than eight would make the corrupted names nearly predictable


@dataclass(frozen=True)
class Words:
    """Words that are one token each for the tokenizer in use."""

    names: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]

    @property
    def num_fillings(self) -> int:
        """In how many ways a template of one order can be filled."""
        return len(self.names) * (len(self.names) - 1) * len(self.places) * len(self.objects)

    def filling(self, number: int) -> tuple[str, str, str, str]:
        """IO, S, place and object of filling `number`, which runs from 0 to `num_fillings - 1`."""
        number, item = divmod(number, len(self.objects))
        number, place = divmod(number, len(self.places))
        first, other = divmod(number, len(self.names) - 1)
        second = other + (other >= first)  # skips the name already taken
        return self.names[first], self.names[second], self.places[place], self.objects[item]


@final
@dataclass(frozen=True)
class IOI(AbstractTask):
    """Generated prompts that end before the indirect object.

    No clean prompt occurs twice, within a split or across splits; templates and orders are equally frequent.

    Attributes:
        num_train: Pairs to train on.
        num_validation: Pairs to validate on.
        num_test: Pairs to test on.
        corruption: `"abc"`: the three mentions become three other, distinct names. `"s2_io_flip"`: the second
            mention of S becomes IO, so the right answer becomes S.
        orders: Which of `"ABBA"` (IO named first) and `"BABA"` (S named first) to use.
        templates: Use the first so many templates; None for all.
        seed: Fixes every choice.
    """

    num_train: int = 200
    num_validation: int = 100
    num_test: int = 200
    corruption: Corruption = "abc"
    orders: tuple[Order, ...] = ("ABBA", "BABA")
    templates: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self._sizes()) < 0:
            raise EdgepruneError(f"num_train, num_validation, num_test = {self._sizes()} must not be negative")
        if self.corruption not in get_args(Corruption):
            raise EdgepruneError(f"corruption must be one of {get_args(Corruption)}, got {self.corruption!r}")
        if not self.orders or not set(self.orders) <= set(get_args(Order)) or len(set(self.orders)) < len(self.orders):
            raise EdgepruneError(f"orders must be one or both of {get_args(Order)}, each once, got {self.orders!r}")
        if self.templates is not None and not 1 <= self.templates <= len(TEMPLATES):
            raise EdgepruneError(f"templates must be 1..{len(TEMPLATES)}, or null for all, got {self.templates}")

    def splits(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, list[PromptPair]]:
        """Pairs of each split; every prompt of a template has the same number of tokens."""
        if tokenizer is None:
            raise EdgepruneError("the IOI task makes text: give the data module a tokenizer")
        words = usable_words(tokenizer)
        rng = random.Random(self.seed)
        pairs = self._generate(words, rng)
        splits: dict[str, list[PromptPair]] = {}
        for name, size in zip(SPLITS, self._sizes(), strict=True):
            splits[name] = pairs[:size]
            rng.shuffle(splits[name])
            pairs = pairs[size:]
        return splits

    def fingerprint(self) -> str | None:
        """Hash of the code and of all sentences and words."""
        code = super().fingerprint()
        return code and hashlib.sha256(repr((code, TEMPLATES, NAMES, PLACES, OBJECTS)).encode()).hexdigest()

    def _sizes(self) -> tuple[int, int, int]:
        return self.num_train, self.num_validation, self.num_test

    def _generate(self, words: Words, rng: random.Random) -> list[PromptPair]:
        """As many different pairs as all splits need, going round the templates and orders."""
        cells = list(product(range(self.templates or len(TEMPLATES)), self.orders))
        total = sum(self._sizes())
        rounds = -(-total // len(cells))
        if rounds > words.num_fillings:
            raise EdgepruneError(
                f"{total} different IOI prompts were asked for, but {len(cells)} templates and orders x "
                f"{words.num_fillings} fillings give {len(cells) * words.num_fillings}: ask for fewer or "
                "allow more templates"
            )
        drawn = [rng.sample(range(words.num_fillings), rounds) for _ in cells]
        return [
            self._pair(
                *cells[i % len(cells)],
                words.filling(drawn[i % len(cells)][i // len(cells)]),
                words.names,
                rng,
            )
            for i in range(total)
        ]

    def _pair(
        self,
        template: int,
        order: Order,
        filling: tuple[str, str, str, str],
        names: Sequence[str],
        rng: random.Random,
    ) -> PromptPair:
        io, subject, place, item = filling

        def fill(io: str, first_subject: str, second_subject: str) -> str:
            opening = (io, first_subject) if order == "ABBA" else (first_subject, io)
            return TEMPLATES[template].format(
                first=opening[0], second=opening[1], subject=second_subject, place=place, object=item
            )

        if self.corruption == "abc":
            others = [name for name in rng.sample(names, 5) if name not in (io, subject)]
            corrupted = fill(*others[:3])
        else:
            corrupted = fill(io, subject, io)
        return PromptPair(
            clean=fill(io, subject, subject),
            corrupted=corrupted,
            answer=f" {io}",
            distractor=f" {subject}",
            source=f"IOI template {template} {order}",
            labels={"template": str(template), "order": order, "io": io, "subject": subject},
        )


def usable_words(tokenizer: "PreTrainedTokenizerBase") -> Words:
    """The names, places and objects that `tokenizer` spells as one token after a space."""
    words = Words(*(single_token_words(listed, tokenizer) for listed in (NAMES, PLACES, OBJECTS)))
    counts = len(words.names), len(words.places), len(words.objects)
    if counts[0] < MIN_NAMES or min(counts) < 1:
        raise EdgepruneError(
            f"only {counts[0]} names, {counts[1]} places and {counts[2]} objects are single tokens for this "
            f"tokenizer; IOI needs {MIN_NAMES}, 1 and 1: choose a model with a larger vocabulary, or give "
            "your own pairs as JSONL"
        )
    return words


def single_token_words(words: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Those `words` that add exactly one known token when they follow another word."""
    anchor = "When"
    texts = [anchor, *(f"{anchor} {word}" for word in words)]
    start, *rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return tuple(
        word
        for word, ids in zip(words, rows, strict=True)
        if len(ids) == len(start) + 1 and ids[:-1] == start and not has_unknown(ids[-1:], tokenizer)
    )
