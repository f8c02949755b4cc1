"""Indirect-object identification: two people, one of whom acts; the answer is the other one.

Clean: "... Mary and John ... John gave the book to", answer " Mary" (IO), distractor " John" (S). The order
ABBA names IO first, BABA names S first. The task is that of Wang et al., arXiv 2211.00593; the sentences
are our own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal, final, get_args

from datamodules.tasks.base import PromptPair
from datamodules.tasks.generated import GeneratedTask, share_out
from datamodules.tasks.ioi_words import NAMES, OBJECTS, PLACES, TEMPLATES
from datamodules.tasks.wording import (
    END,
    Span,
    check_choice,
    check_templates,
    fill,
    fingerprint_with,
    rounds,
    single_token_words,
    token_after,
)
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Order = Literal["ABBA", "BABA"]
Corruption = Literal["abc", "s2_io_flip", "s2_random"]
MIN_NAMES = 8  # in every split: a pair uses up to five; fewer would make the corrupted names nearly predictable


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
class IOI(GeneratedTask[Words]):
    """Generated prompts that end before the indirect object; templates and orders are equally frequent.

    The entities are the names: with `entities="disjoint"` no name occurs in two splits, in clean or corrupted prompts.
    Every prompt of a template has the same number of tokens. Roles: `IO`, `S1` and `S2` (first and second mention of
    S), `S1+1` (the token after S1), `END` (the last token). The corrupted prompt has them in the same slots.

    Attributes:
        corruption: `"abc"`: the three mentions become three other, distinct names. `"s2_io_flip"`: the second
            mention of S becomes IO, so the right answer becomes S. `"s2_random"`: the second mention of S becomes a
            third name, so there is no right answer.
        orders: Which of `"ABBA"` (IO named first) and `"BABA"` (S named first) to use.
        templates: Use the first so many templates; None for all.
    """

    corruption: Corruption = "abc"
    orders: tuple[Order, ...] = ("ABBA", "BABA")
    templates: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("corruption", self.corruption, get_args(Corruption))
        if not self.orders or not set(self.orders) <= set(get_args(Order)) or len(set(self.orders)) < len(self.orders):
            raise EdgepruneError(f"orders must be one or both of {get_args(Order)}, each once, got {self.orders!r}")
        check_templates(self.templates, len(TEMPLATES))

    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> Words:
        """The words of one token."""
        return usable_words(tokenizer)

    def share_out(self, vocabulary: Words, rng: random.Random) -> list[Words]:
        """Names of each split; places and objects are common to all."""
        names = share_out(vocabulary.names, self.sizes, rng, minimum=MIN_NAMES, what="names")
        return [replace(vocabulary, names=own) for own in names]

    def generate(self, vocabulary: Words, count: int, rng: random.Random) -> list[PromptPair]:
        """Different pairs, going round the templates and orders."""
        cells = list(product(range(self.templates or len(TEMPLATES)), self.orders))
        drawn = rounds(cells, vocabulary.num_fillings, count, rng, "IOI")
        return [self._pair(*cell, vocabulary.filling(number), vocabulary.names, rng) for cell, number in drawn]

    def fingerprint(self) -> str | None:
        """Hash of the code and of all sentences and words."""
        return fingerprint_with(super().fingerprint(), TEMPLATES, NAMES, PLACES, OBJECTS)

    def _pair(
        self,
        template: int,
        order: Order,
        filling: tuple[str, str, str, str],
        names: Sequence[str],
        rng: random.Random,
    ) -> PromptPair:
        io, subject, place, item = filling
        mentions, answer = self._corrupt(io, subject, names, rng)
        clean, roles = _prompt(template, order, (io, subject, subject), place, item)
        corrupted, corrupted_roles = _prompt(template, order, mentions, place, item)
        return PromptPair(
            clean=clean,
            corrupted=corrupted,
            answer=f" {io}",
            distractor=f" {subject}",
            corrupted_answer=answer and f" {answer}",
            roles=roles,
            corrupted_roles=corrupted_roles,
            source=f"IOI template {template} {order}",
            labels={"template": str(template), "order": order, "io": io, "subject": subject},
        )

    def _corrupt(
        self, io: str, subject: str, names: Sequence[str], rng: random.Random
    ) -> tuple[tuple[str, str, str], str | None]:
        """The three names of the corrupted prompt (IO, S1, S2), and its answer if it has one."""
        if self.corruption == "s2_io_flip":
            return (io, subject, io), subject
        others = [name for name in rng.sample(names, 5) if name not in (io, subject)]
        if self.corruption == "s2_random":
            return (io, subject, others[0]), None
        return (others[0], others[1], others[2]), None


def _prompt(
    template: int, order: Order, mentions: tuple[str, str, str], place: str, item: str
) -> tuple[str, dict[str, Span]]:
    """Text and roles; `mentions` are the names for IO, S1 and S2."""
    io, first, second = mentions
    slots = ("first", "second") if order == "ABBA" else ("second", "first")  # of IO and S1
    words = {slots[0]: io, slots[1]: first, "subject": second, "place": place, "object": item}
    filled = fill(TEMPLATES[template], words)
    roles = {
        "IO": filled.spans[slots[0]],
        "S1": filled.spans[slots[1]],
        "S1+1": token_after(filled, slots[1]),
        "S2": filled.spans["subject"],
        "END": filled.spans[END],
    }
    return filled.text, roles


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
