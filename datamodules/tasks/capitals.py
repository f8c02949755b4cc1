"""Capitals and countries: from one to the other.

Clean: "The capital of France is", answer " Paris". The corrupted prompt names another country, with as many tokens,
and its capital is the distractor. The list of countries and the sentences are our own.
"""

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, final, get_args

from datamodules.tasks.base import PromptPair
from datamodules.tasks.generated import GeneratedTask, share_out
from datamodules.tasks.wording import (
    check_choice,
    check_templates,
    fill,
    pairs_of,
    rounds,
    tokens_after_word,
)
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Direction = Literal["country_to_capital", "capital_to_country"]
AnswerSet = Literal["pair", "all"]
Question = tuple[str, str]  # subject of the prompt, answer
MIN_QUESTIONS = 2  # of each length in every split: one to ask, one to corrupt with


@dataclass(frozen=True)
class Countries:
    """Subjects with their answers; every answer is one token.

    Attributes:
        groups: Questions whose subjects have the same number of tokens; at least two each.
        answer_ids: Token of every answer, of all splits.
    """

    groups: tuple[tuple[Question, ...], ...]
    answer_ids: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def questions(self) -> list[Question]:
        """All of them."""
        return [question for group in self.groups for question in group]

    @cached_property
    def partners(self) -> dict[str, list[Question]]:
        """For each subject the other questions of the same length."""
        return {
            question[0]: [other for other in group if other != question] for group in self.groups for question in group
        }


@final
@dataclass(frozen=True)
class Capitals(GeneratedTask[Countries]):
    """Prompts that end before the capital of a country, or before the country of a capital.

    Templates are equally frequent. The entities are the countries, each with its capital: with `entities="disjoint"`
    none occurs in two splits, in clean or corrupted prompts. Used are those whose answer is one token. A subject may
    have several, as long as there are others of that length to corrupt with: two at least in every split; lengths
    with fewer are left out. The right answer of the corrupted prompt is the distractor. Roles: `subject`, `END` (the
    last token).

    Attributes:
        direction: `"country_to_capital"` or `"capital_to_country"`.
        templates: Use the first so many templates; None for all.
        answer_set: `"pair"`: the distractor is the only wrong answer. `"all"`: every other answer in use is
            wrong, those of other splits too.
    """

    num_train: int = 80
    num_validation: int = 40
    num_test: int = 80
    direction: Direction = "country_to_capital"
    templates: int | None = None
    answer_set: AnswerSet = "pair"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("direction", self.direction, get_args(Direction))
        check_choice("answer_set", self.answer_set, get_args(AnswerSet))
        check_templates(self.templates, len(self._forms))

    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> Countries:
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
        groups = [tuple(group) for _, group in sorted(by_length.items()) if len(group) >= MIN_QUESTIONS]
        ids = dict(zip((answer for _, answer in questions), answers, strict=True))
        used = {answer: ids[answer][0] for group in groups for _, answer in group}
        if not groups:
            raise EdgepruneError(
                f"no two of the {len(CAPITALS)} answers of {self.direction} are single tokens for this tokenizer: "
                "choose a model with a larger vocabulary, or give your own pairs as JSONL"
            )
        return Countries(tuple(groups), used)

    def share_out(self, vocabulary: Countries, rng: random.Random) -> list[Countries]:
        """Countries of each split; a length with fewer than two for every split is left out."""
        num_splits = sum(size > 0 for size in self.sizes)
        groups = [group for group in vocabulary.groups if len(group) >= MIN_QUESTIONS * num_splits]
        shared = [share_out(group, self.sizes, rng, minimum=MIN_QUESTIONS, what="countries") for group in groups]
        if not shared:
            raise EdgepruneError(
                f"{len(vocabulary.questions)} countries cannot be shared out among {num_splits} splits of at least "
                f"{MIN_QUESTIONS}: set entities to 'shared', or use a model with a larger vocabulary"
            )
        ids = vocabulary.answer_ids
        return [Countries(tuple(filter(None, groups)), ids) for groups in zip(*shared, strict=True)]

    def generate(self, vocabulary: Countries, count: int, rng: random.Random) -> list[PromptPair]:
        """Different pairs, going round the templates."""
        templates = range(self.templates or len(self._forms))
        questions = vocabulary.questions
        drawn = rounds(templates, len(questions), count, rng, "Capitals")
        return [self._pair(template, questions[number], vocabulary, rng) for template, number in drawn]

    @property
    def _forms(self) -> tuple[str, ...]:
        return TO_CAPITAL if self.direction == "country_to_capital" else TO_COUNTRY

    def _pair(self, template: int, question: Question, words: Countries, rng: random.Random) -> PromptPair:
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
            wrong_ids=self._wrong(answer, words),
            roles=clean.spans,
            corrupted_roles=corrupted.spans,
            source=f"Capitals template {template} {subject}",
            labels={"template": str(template), "subject": subject, "other": other},
        )

    def _wrong(self, answer: str, words: Countries) -> tuple[tuple[int, ...], ...]:
        if self.answer_set == "pair":
            return ()
        return (tuple(token for other, token in words.answer_ids.items() if other != answer),)


# -------------------------------------------------------------------- sentences and words
# Every slot follows a space.
# The capital follows the end.
TO_CAPITAL = (
    "The capital of {subject} is",
    "The capital city of {subject} is called",
    "The government of {subject} sits in the city of",
    "As every child knows, the capital of {subject} is",
    "Question: what is the capital of {subject}? Answer:",
    "On the map of {subject} a star marks the capital,",
    "Last year we flew to {subject} and saw its capital,",
    "In the atlas the capital of {subject} is given as",
    "The largest embassies in {subject} are in its capital,",
    "They moved to {subject} and now live in its capital,",
)

# The country follows the end.
TO_COUNTRY = (
    "The city of {subject} is the capital of",
    "As every child knows, {subject} is the capital of",
    "Question: which country has {subject} as its capital? Answer:",
    "The government that sits in {subject} is the government of",
    "A plane to {subject} takes you to the capital of",
    "The atlas gives {subject} as the capital of",
    "Our embassy in {subject} is the embassy in",
    "We visited {subject} because it is the capital of",
    "On the map {subject} is marked as the capital of",
    "They moved to {subject}, and now they live in",
)

CAPITALS = pairs_of(  # country/capital; no name that needs an article or is also that of a part of another country
    """
    Afghanistan/Kabul, Albania/Tirana, Algeria/Algiers, Angola/Luanda, Argentina/Buenos Aires, Armenia/Yerevan,
    Australia/Canberra, Austria/Vienna, Azerbaijan/Baku, Bahrain/Manama, Bangladesh/Dhaka, Belarus/Minsk,
    Belgium/Brussels, Bosnia/Sarajevo, Brazil/Brasília, Britain/London, Bulgaria/Sofia, Cambodia/Phnom Penh,
    Canada/Ottawa, Chile/Santiago, China/Beijing, Colombia/Bogotá, Croatia/Zagreb, Cuba/Havana, Cyprus/Nicosia,
    Denmark/Copenhagen, Ecuador/Quito, Egypt/Cairo, Estonia/Tallinn, Ethiopia/Addis Ababa, Fiji/Suva,
    Finland/Helsinki, France/Paris, Germany/Berlin, Ghana/Accra, Greece/Athens, Haiti/Port-au-Prince,
    Hungary/Budapest, Iceland/Reykjavik, India/New Delhi, Indonesia/Jakarta, Iran/Tehran, Iraq/Baghdad,
    Ireland/Dublin, Italy/Rome, Jamaica/Kingston, Japan/Tokyo, Jordan/Amman, Kazakhstan/Astana, Kenya/Nairobi,
    Laos/Vientiane, Latvia/Riga, Lebanon/Beirut, Libya/Tripoli, Lithuania/Vilnius, Malaysia/Kuala Lumpur,
    Mali/Bamako, Malta/Valletta, Mongolia/Ulaanbaatar, Morocco/Rabat, Mozambique/Maputo, Myanmar/Naypyidaw,
    Namibia/Windhoek, Nepal/Kathmandu, Nigeria/Abuja, North Korea/Pyongyang, Norway/Oslo, Oman/Muscat,
    Pakistan/Islamabad, Peru/Lima, Poland/Warsaw, Portugal/Lisbon, Qatar/Doha, Romania/Bucharest, Russia/Moscow,
    Rwanda/Kigali, Saudi Arabia/Riyadh, Senegal/Dakar, Serbia/Belgrade, Slovakia/Bratislava, Slovenia/Ljubljana,
    Somalia/Mogadishu, South Korea/Seoul, Spain/Madrid, Sudan/Khartoum, Sweden/Stockholm, Switzerland/Bern,
    Syria/Damascus, Thailand/Bangkok, Tunisia/Tunis, Turkey/Ankara, Uganda/Kampala, Ukraine/Kyiv,
    Uruguay/Montevideo, Uzbekistan/Tashkent, Venezuela/Caracas, Vietnam/Hanoi, Yemen/Sanaa, Zambia/Lusaka,
    Zimbabwe/Harare
    """
)
