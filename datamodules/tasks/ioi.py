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
from datamodules.tasks.wording import (
    END,
    Span,
    check_choice,
    check_enough,
    check_templates,
    fill,
    rounds,
    single_token_words,
    token_after,
    words_of,
)
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Order = Literal["ABBA", "BABA"]
Corruption = Literal["abc", "s2_io_flip", "s2_random"]
MIN_NAMES = 8  # in every split: a pair uses up to five; fewer would make the corrupted names nearly predictable


@dataclass(frozen=True)
class IOIWords:
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
class IOI(GeneratedTask[IOIWords]):
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

    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> IOIWords:
        """The names, places and objects that `tokenizer` spells as one token after a space."""
        names, places, objects = (single_token_words(listed, tokenizer) for listed in (NAMES, PLACES, OBJECTS))
        check_enough("IOI", ("names", names, MIN_NAMES), ("places", places, 1), ("objects", objects, 1))
        return IOIWords(names, places, objects)

    def share_out(self, vocabulary: IOIWords, rng: random.Random) -> list[IOIWords]:
        """Names of each split; places and objects are common to all."""
        names = share_out(vocabulary.names, self.sizes, rng, minimum=MIN_NAMES, what="names")
        return [replace(vocabulary, names=part) for part in names]

    def generate(self, vocabulary: IOIWords, count: int, rng: random.Random) -> list[PromptPair]:
        """Different pairs, going round the templates and orders."""
        cells = list(product(range(self.templates or len(TEMPLATES)), self.orders))
        drawn = rounds(cells, vocabulary.num_fillings, count, rng, "IOI")
        return [self._pair(*cell, vocabulary.filling(number), vocabulary.names, rng) for cell, number in drawn]

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


# -------------------------------------------------------------------- sentences and words
# Every slot follows a space.
# Slots: two people in the opening, a place, an object, and the one who acts; the answer follows the end.
TEMPLATES = (
    "Once {first} and {second} had settled down near the {place}, {subject} handed the {object} to",
    "Early that morning {first} and {second} met outside the {place}, where {subject} gave the {object} to",
    "While {first} and {second} waited beside the {place}, {subject} offered the {object} to",
    "As soon as {first} and {second} arrived at the {place}, {subject} passed the {object} to",
    "Because {first} and {second} were both new at the {place}, {subject} kindly lent the {object} to",
    "Yesterday {first} and {second} came back from the {place}, and {subject} returned the {object} to",
    "Before {first} and {second} locked the {place} for the night, {subject} sold the {object} to",
    "During the storm {first} and {second} hid inside the {place}. Later {subject} brought the {object} to",
    "Soon {first} and {second} grew tired of the {place}, so {subject} threw the {object} to",
    "Last week {first} and {second} cleaned the whole {place}. Afterwards {subject} showed the {object} to",
    "Since {first} and {second} had time to spare at the {place}, {subject} decided to give the {object} to",
    "Next to the {place} stood {first} and {second}. Without a word {subject} slid the {object} to",
    "With the {object} in a bag, {first} and {second} reached the {place}, and {subject} gave it to",
    "On the road to the {place} {first} and {second} found the {object}, so {subject} chose to give it to",
    "Later that day {first} and {second} met at the {place}. Smiling, {subject} held out the {object} to",
)

NAMES = words_of(
    """
    Alice Amanda Amy Angela Anna Barbara Carol Charlotte Christine Claire Diana Elizabeth Emily Emma Grace Hannah
    Heather Helen Jane Jennifer Jessica Julia Karen Kate Laura Linda Lisa Lucy Margaret Maria Mary Michelle Nicole
    Nina Olivia Rachel Rebecca Ruth Sandra Sarah Sophie Susan Adam Alan Albert Andrew Anthony Arthur Brian Carl
    Charles Craig Daniel David Edward Eric Frank Fred George Henry Jack James Jason John Joseph Keith Kevin Luke
    Martin Matthew Michael Oscar Patrick Paul Peter Richard Robert Roger Ryan Scott Simon Thomas Victor Walter
    """
)

PLACES = words_of(
    """
    airport beach bridge castle church factory farm garden gym hospital hotel kitchen library market museum office
    park restaurant school station theatre zoo
    """
)

OBJECTS = words_of(
    """
    apple ball basket blanket book bottle bowl box cake camera candle coin cup guitar hammer hat key lamp letter map
    mirror painting phone ring
    """
)
