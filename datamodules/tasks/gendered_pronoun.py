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
from datamodules.tasks.gendered_pronoun_words import FEMALE, MALE, OPENINGS, TEMPLATES, TOPICS
from datamodules.tasks.generated import GeneratedTask, share_out
from datamodules.tasks.wording import (
    END,
    check_templates,
    combination,
    fill,
    fingerprint_with,
    rounds,
    single_token_words,
)
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Gender = Literal["female", "male"]
PRONOUNS: dict[Gender, str] = {"female": "she", "male": "he"}
MIN_NAMES = 6  # of each gender in every split


@dataclass(frozen=True)
class Words:
    """Names of one token each for the tokenizer in use."""

    female: tuple[str, ...]
    male: tuple[str, ...]

    def names(self, gender: Gender) -> tuple[str, ...]:
        """Names of one gender."""
        return self.female if gender == "female" else self.male


@final
@dataclass(frozen=True)
class GenderedPronoun(GeneratedTask[Words]):
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

    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> Words:
        """The names of one token."""
        words = Words(single_token_words(FEMALE, tokenizer), single_token_words(MALE, tokenizer))
        pronouns = single_token_words(list(PRONOUNS.values()), tokenizer)
        if min(len(words.female), len(words.male)) < MIN_NAMES or len(pronouns) < len(PRONOUNS):
            raise EdgepruneError(
                f"only {len(words.female)} female and {len(words.male)} male names and the pronouns {pronouns} are "
                f"single tokens for this tokenizer; GenderedPronoun needs {MIN_NAMES} of each and both pronouns: "
                "choose a model with a larger vocabulary, or give your own pairs as JSONL"
            )
        return words

    def share_out(self, vocabulary: Words, rng: random.Random) -> list[Words]:
        """Names of each split."""
        female, male = (
            share_out(names, self.sizes, rng, minimum=MIN_NAMES, what=f"{gender} names")
            for gender, names in (("female", vocabulary.female), ("male", vocabulary.male))
        )
        return [replace(vocabulary, female=hers, male=his) for hers, his in zip(female, male, strict=True)]

    def generate(self, vocabulary: Words, count: int, rng: random.Random) -> list[PromptPair]:
        """Different pairs, going round the templates and genders."""
        cells = list(product(range(self.templates or len(TEMPLATES)), PRONOUNS))
        fewer = min(len(vocabulary.female), len(vocabulary.male))
        names: dict[Gender, list[str]] = {gender: rng.sample(vocabulary.names(gender), fewer) for gender in PRONOUNS}
        drawn = rounds(cells, fewer * len(OPENINGS) * len(TOPICS), count, rng, "GenderedPronoun")
        return [
            self._pair(template, gender, combination(number, names[gender], OPENINGS, TOPICS), vocabulary, rng)
            for (template, gender), number in drawn
        ]

    def fingerprint(self) -> str | None:
        """Hash of the code and of all sentences and words."""
        return fingerprint_with(super().fingerprint(), TEMPLATES, OPENINGS, FEMALE, MALE, TOPICS)

    def _pair(
        self, template: int, gender: Gender, filling: list[str], vocabulary: Words, rng: random.Random
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
