"""Gendered pronoun: a statement about somebody and the start of a question that asks for "he" or "she".

Clean: "So Alice is very good at chess, isn't", answer " she", distractor " he". The corrupted prompt has a name of the
other gender. The task is that of Mathwin et al. (2023), used by Edge Pruning, arXiv 2406.16778; the sentences are our
own. Names stand for the gender that they are most often given to in English; the task asks what a model makes of it.
"""

import random
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal, final

from datamodules.tasks.base import PromptPair
from datamodules.tasks.generated import GeneratedTask, share_out
from datamodules.tasks.wording import (
    END,
    check_enough,
    check_templates,
    combination,
    fill,
    rounds,
    single_token_words,
    words_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Gender = Literal["female", "male"]
PRONOUNS: dict[Gender, str] = {"female": "she", "male": "he"}
MIN_NAMES = 6  # of each gender in every split


@dataclass(frozen=True)
class Names:
    """Names of one token each for the tokenizer in use."""

    female: tuple[str, ...]
    male: tuple[str, ...]

    def names(self, gender: Gender) -> tuple[str, ...]:
        """Names of one gender."""
        return self.female if gender == "female" else self.male


@final
@dataclass(frozen=True)
class GenderedPronoun(GeneratedTask[Names]):
    """Prompts that end before a pronoun; templates and genders are equally frequent.

    The entities are the names: with `entities="disjoint"` no name occurs in two splits, in clean or corrupted prompts.
    The right answer of the corrupted prompt is the distractor. Roles: `name`, `END` (the last token).

    Attributes:
        templates: Use the first so many templates; None for all.
    """

    templates: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_templates(self.templates, len(TEMPLATES))

    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> Names:
        """The names of one token."""
        words = Names(single_token_words(FEMALE, tokenizer), single_token_words(MALE, tokenizer))
        pronouns = single_token_words(list(PRONOUNS.values()), tokenizer)
        check_enough(
            "GenderedPronoun",
            ("female names", words.female, MIN_NAMES),
            ("male names", words.male, MIN_NAMES),
            ("pronouns", pronouns, len(PRONOUNS)),
        )
        return words

    def share_out(self, vocabulary: Names, rng: random.Random) -> list[Names]:
        """Names of each split."""
        female, male = (
            share_out(names, self.sizes, rng, minimum=MIN_NAMES, what=f"{gender} names")
            for gender, names in (("female", vocabulary.female), ("male", vocabulary.male))
        )
        return [replace(vocabulary, female=hers, male=his) for hers, his in zip(female, male, strict=True)]

    def generate(self, vocabulary: Names, count: int, rng: random.Random) -> list[PromptPair]:
        """Different pairs, going round the templates and genders."""
        cells = list(product(range(self.templates or len(TEMPLATES)), PRONOUNS))
        fewer = min(len(vocabulary.female), len(vocabulary.male))
        names: dict[Gender, list[str]] = {gender: rng.sample(vocabulary.names(gender), fewer) for gender in PRONOUNS}
        drawn = rounds(cells, fewer * len(OPENINGS) * len(TOPICS), count, rng, "GenderedPronoun")
        return [
            self._pair(template, gender, combination(number, names[gender], OPENINGS, TOPICS), vocabulary, rng)
            for (template, gender), number in drawn
        ]

    def _pair(
        self, template: int, gender: Gender, filling: list[str], vocabulary: Names, rng: random.Random
    ) -> PromptPair:
        name, opening, topic = filling
        other: Gender = "male" if gender == "female" else "female"
        words = {"name": name, "opening": opening, "topic": topic}
        clean = fill(TEMPLATES[template], words)
        corrupted = fill(TEMPLATES[template], {**words, "name": rng.choice(vocabulary.names(other))})
        wrong = f" {PRONOUNS[other]}"
        return PromptPair(
            clean=clean.text,
            corrupted=corrupted.text,
            answer=f" {PRONOUNS[gender]}",
            distractor=wrong,
            corrupted_answer=wrong,
            roles={role: clean.spans[role] for role in ("name", END)},
            corrupted_roles={role: corrupted.spans[role] for role in ("name", END)},
            source=f"GenderedPronoun template {template} {name}",
            labels={"template": str(template), "gender": gender, "name": name},
        )


# -------------------------------------------------------------------- sentences and words
# A statement and the start of the question that is hung on it; the pronoun follows the end.
TEMPLATES = (
    "{opening} {name} is very good at {topic}, isn't",
    "{opening} {name} was reading about {topic} all day, wasn't",
    "{opening} {name} has always liked {topic}, hasn't",
    "{opening} {name} does not care for {topic}, does",
    "{opening} {name} knows a lot about {topic}, doesn't",
    "{opening} {name} would rather talk about {topic}, wouldn't",
    "{opening} {name} could teach a class on {topic}, couldn't",
    "{opening} {name} will never be tired of {topic}, will",
)

OPENINGS = ("So", "Well", "Now", "Clearly", "Perhaps", "Surely", "Indeed")

FEMALE = words_of(
    """
    Alice Amanda Amy Angela Ann Anna Anne Barbara Bella Betty Carol Caroline Catherine Charlotte Christine Claire
    Clara Deborah Diana Eleanor Elizabeth Ellen Emily Emma Eva Grace Hannah Heather Helen Holly Isabel Jane Jennifer
    Jenny Jessica Joan Judith Julia Julie Karen Kate Katherine Kathleen Katie Laura Lauren Lily Linda Lisa Louise
    Lucy Margaret Maria Marie Martha Mary Melissa Michelle Molly Monica Nancy Nicole Nina Olivia Patricia Rachel
    Rebecca Rose Ruth Sandra Sara Sarah Sharon Sophie Stephanie Susan Victoria Wendy
    """
)

MALE = words_of(
    """
    Adam Alan Albert Andrew Anthony Arthur Ben Bill Bob Brian Bruce Carl Charles Craig Daniel Dave David Dennis
    Donald Doug Douglas Edward Eric Ernest Eugene Frank Fred Gary George Gordon Greg Harry Henry Howard Hugh Ian
    Ivan Jack Jacob James Jason Jeff Jerry Jim Joe John Jonathan Joseph Joshua Justin Keith Kenneth Kevin Larry
    Lawrence Leonard Louis Luke Mark Martin Matthew Michael Nathan Neil Nicholas Oscar Patrick Paul Peter Phil
    Philip Ralph Raymond Richard Robert Roger Ryan Samuel Scott Simon Stanley Stephen Steven Ted Thomas Tim Todd Tom
    Tony Victor Vincent Walter Wayne William
    """
)

TOPICS = words_of(
    """
    chess tennis music history football painting poetry physics gardening cooking mathematics geography swimming
    golf biology chemistry photography astronomy hockey cricket fishing art law dancing medicine politics literature
    theatre grammar rugby baseball computers
    """
)
