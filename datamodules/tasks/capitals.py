"""Capitals and countries: from one to the other.

Clean: "The capital of France is", answer " Paris". The corrupted prompt names another country, with as many tokens,
and its capital is the distractor. The list of countries and the sentences are our own.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final, get_args

from datamodules.tasks.base import PromptPair
from datamodules.tasks.capitals_words import CAPITALS, TO_CAPITAL, TO_COUNTRY
from datamodules.tasks.generated import GeneratedTask, share_out
from datamodules.tasks.wording import (
    check_choice,
    check_templates,
    fill,
    fingerprint_with,
    rounds,
    tokens_after_word,
)
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Direction = Literal["country_to_capital", "capital_to_country"]
Question = tuple[str, str]  # subject of the prompt, answer
MIN_QUESTIONS = 2  # of each length in every split: one to ask, one to corrupt with


@dataclass(frozen=True)
class Words:
    """Subjects with their answers, by the number of tokens of the subject; every answer is one token.

    Attributes:
        questions: All of them.
        partners: For each subject the other questions of the same length.
    """

    questions: tuple[Question, ...]
    partners: Mapping[str, Sequence[Question]]


@final
@dataclass(frozen=True)
class Capitals(GeneratedTask[Words]):
    """Prompts that end before the capital of a country, or before the country of a capital.

    Templates are equally frequent. The entities are the countries, each with its capital: with `entities="disjoint"`
    none occurs in two splits, in clean or corrupted prompts. Used are those whose answer is one token. A subject may
    have several, as long as there are others of that length to corrupt with: two at least in every split; lengths
    with fewer are left out. The right answer of the corrupted prompt is the distractor. Roles: `subject`, `END` (the
    last token).

    Attributes:
        num_train: Pairs to train on; fewer than for other tasks, for there are few countries.
        num_validation: Pairs to validate on.
        num_test: Pairs to test on.
        direction: `"country_to_capital"` or `"capital_to_country"`.
        templates: Use the first so many templates; None for all.
    """

    num_train: int = 80
    num_validation: int = 40
    num_test: int = 80
    direction: Direction = "country_to_capital"
    templates: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("direction", self.direction, get_args(Direction))
        check_templates(self.templates, len(self._forms))

    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> Words:
        """Questions whose answer is one token and whose subject has partners of its length."""
        to_capital = self.direction == "country_to_capital"
        questions: list[Question] = [pair if to_capital else (pair[1], pair[0]) for pair in CAPITALS]
        subjects, answers = (
            tokens_after_word([question[side] for question in questions], tokenizer) for side in (0, 1)
        )
        by_length: dict[int, list[Question]] = defaultdict(list)
        for question, subject, answer in zip(questions, subjects, answers, strict=True):
            if subject and len(answer) == 1:
                by_length[len(subject)].append(question)
        words = _words([by_length[length] for length in sorted(by_length)])
        if not words.questions:
            raise EdgepruneError(
                f"no two of the {len(CAPITALS)} answers of {self.direction} are single tokens for this tokenizer: "
                "choose a model with a larger vocabulary, or give your own pairs as JSONL"
            )
        return words

    def share_out(self, vocabulary: Words, rng: random.Random) -> list[Words]:
        """Countries of each split; a length with fewer than two for every split is left out."""
        num_splits = sum(size > 0 for size in self.sizes)
        groups = [group for group in _groups(vocabulary) if len(group) >= MIN_QUESTIONS * num_splits]
        shared = [share_out(group, self.sizes, rng, minimum=MIN_QUESTIONS, what="countries") for group in groups]
        if not shared:
            raise EdgepruneError(
                f"{len(vocabulary.questions)} countries cannot be shared out among {num_splits} splits of at least "
                f"{MIN_QUESTIONS}: set entities to 'shared', or use a model with a larger vocabulary"
            )
        return [_words(parts) for parts in zip(*shared, strict=True)]

    def generate(self, vocabulary: Words, count: int, rng: random.Random) -> list[PromptPair]:
        """Different pairs, going round the templates."""
        templates = range(self.templates or len(self._forms))
        drawn = rounds(templates, len(vocabulary.questions), count, rng, "Capitals")
        return [self._pair(template, vocabulary.questions[number], vocabulary, rng) for template, number in drawn]

    def fingerprint(self) -> str | None:
        """Hash of the code and of all sentences and words."""
        return fingerprint_with(super().fingerprint(), TO_CAPITAL, TO_COUNTRY, CAPITALS)

    @property
    def _forms(self) -> tuple[str, ...]:
        return TO_CAPITAL if self.direction == "country_to_capital" else TO_COUNTRY

    def _pair(self, template: int, question: Question, words: Words, rng: random.Random) -> PromptPair:
        subject, answer = question
        other, other_answer = rng.choice(words.partners[subject])
        clean = fill(self._forms[template], {"subject": subject})
        corrupted = fill(self._forms[template], {"subject": other})
        return PromptPair(
            clean=clean.text,
            corrupted=corrupted.text,
            answer=f" {answer}",
            distractor=f" {other_answer}",
            corrupted_answer=f" {other_answer}",
            roles=clean.spans,
            corrupted_roles=corrupted.spans,
            source=f"Capitals template {template} {subject}",
            labels={"template": str(template), "subject": subject, "other": other},
        )


def _words(groups: Sequence[Sequence[Question]]) -> Words:
    """Questions of several lengths, one group each; a question without a partner is left out."""
    kept = [group for group in groups if len(group) >= MIN_QUESTIONS]
    partners = {question[0]: [other for other in group if other != question] for group in kept for question in group}
    return Words(tuple(question for group in kept for question in group), partners)


def _groups(words: Words) -> list[list[Question]]:
    """The questions by length again: those that are partners of one another."""
    groups: list[list[Question]] = []
    for question in words.questions:
        if not any(question in group for group in groups):
            groups.append([question, *words.partners[question[0]]])
    return groups
