"""Pairs of words with one relation, asked for by instruction or by examples: the plural of cat is cats.

Clean: "Write the plural. Singular: cat. Plural:", or some examples ("* tree: trees") and then "* cat:"; answer " cats".
The corrupted prompt asks about another word, and its answer is the distractor. Lists and sentences are our own.
"""

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal, final, get_args

from datamodules.tasks import capitals, word_lists
from datamodules.tasks.base import PromptPair
from datamodules.tasks.generated import GeneratedTask, share_out
from datamodules.tasks.word_lists import RELATIONS, SENTENCES
from datamodules.tasks.wording import Filled, check_choice, fill, rounds, tokens_after_word
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Relation = Literal["capital", "nationality", "opposite", "past", "plural", "sum"]
Prompting = Literal["instruction", "few_shot"]
Question = tuple[str, str]  # word asked about, answer
SLOT = "{subject}"
MAX_EXAMPLES = 5  # so many words are kept for examples, whatever the prompting: both ways ask about the same words
MIN_QUESTIONS = 4  # of each length in every split: one to ask, one to corrupt with, and answers may repeat


@dataclass(frozen=True)
class Words:
    """Questions in use, and those kept for examples; every answer is one token.

    Attributes:
        groups: Questions whose subjects have the same number of tokens.
        examples: Questions that no prompt asks, `MAX_EXAMPLES` of them.
    """

    groups: tuple[tuple[Question, ...], ...]
    examples: tuple[Question, ...]

    @property
    def questions(self) -> list[Question]:
        """All of them."""
        return [question for group in self.groups for question in group]

    @cached_property
    def partners(self) -> dict[str, list[Question]]:
        """For each subject the other questions of its length that have another answer."""
        return {
            subject: [other for other in group if other[1] != answer]
            for group in self.groups
            for subject, answer in group
        }


@final
@dataclass(frozen=True)
class WordPairs(GeneratedTask[Words]):
    """Prompts that end before the answer, a word that stands in one relation to the word asked about.

    Both ways of prompting ask the same questions in the same order, in the same splits, with the same corrupted words:
    pairs of both can be matched one by one, by place or by their labels. Questions depend on `seed`, sizes, `entities`
    and `relation` alone. The entities are the words asked about: with `entities="disjoint"` none occurs in two splits,
    in clean or corrupted prompts. Words of the examples are asked about in none. Used are answers of one token, and
    subjects of any length of which every split has enough to corrupt with.

    Roles: `subject`; `instruction`, what comes before it in the sentence, or `examples`; `END`, the last token.

    Attributes:
        relation: Which words; see `word_lists`.
        prompting: `"instruction"`: a sentence says what is wanted. `"few_shot"`: examples show it.
        num_examples: Examples of a few-shot prompt, the same in every prompt.
        instruction: A sentence of your own with the slot `{subject}` after a space, such as one with a chat model's
            marks; None for ours. With `prompting="instruction"` only, and not with the slot first.
    """

    sources: ClassVar[tuple[ModuleType, ...]] = (*GeneratedTask.sources, capitals, word_lists)

    num_train: int = 48
    num_validation: int = 16
    num_test: int = 32
    relation: Relation = "plural"
    prompting: Prompting = "instruction"
    num_examples: int = 3
    instruction: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("relation", self.relation, get_args(Relation))
        check_choice("prompting", self.prompting, get_args(Prompting))
        if not 1 <= self.num_examples <= MAX_EXAMPLES:
            raise EdgepruneError(f"num_examples must be 1..{MAX_EXAMPLES}, got {self.num_examples}")
        if self.instruction is not None:
            self._check_instruction(self.instruction)

    def _check_instruction(self, given: str) -> None:
        if self.prompting == "few_shot":
            raise EdgepruneError(
                f"prompting 'few_shot' uses no instruction, got {given!r}: leave it out, or prompt by instruction"
            )
        if given.count(SLOT) != 1 or f" {SLOT}" not in given or set("{}") & set(given.replace(SLOT, "")):
            raise EdgepruneError(
                f"instruction must have the slot {SLOT} once, after a space, and no other braces, got {given!r}"
            )
        if given.startswith(f" {SLOT}"):
            raise EdgepruneError(
                f"instruction must have words before the slot {SLOT}, which are the role 'instruction', got {given!r}"
            )

    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> Words:
        """Questions whose answer is one token, by the number of tokens of their subject.

        Raises:
            EdgepruneError: There are too few.
        """
        questions = RELATIONS[self.relation]
        subjects, answers = (
            tokens_after_word([question[side] for question in questions], tokenizer) for side in (0, 1)
        )
        by_length: dict[int, list[Question]] = defaultdict(list)
        for question, subject, answer in zip(questions, subjects, answers, strict=True):
            if subject and len(answer) == 1:
                by_length[len(subject)].append(question)
        most = max(by_length.values(), key=len, default=[])
        if len(most) < MAX_EXAMPLES + MIN_QUESTIONS:
            raise EdgepruneError(
                f"relation {self.relation!r} has {len(most)} words of one length with answers of one token for this "
                f"tokenizer, and needs {MAX_EXAMPLES + MIN_QUESTIONS}: choose another relation, or a model with a "
                "larger vocabulary"
            )
        examples = tuple(random.Random(f"examples {self.seed}").sample(most, MAX_EXAMPLES))
        groups = [[question for question in group if question not in examples] for group in by_length.values()]
        return Words(tuple(tuple(group) for group in groups if len(group) >= MIN_QUESTIONS), examples)

    def share_out(self, vocabulary: Words, rng: random.Random) -> list[Words]:
        """Questions of each split; a length with too few for every split is left out."""
        num_splits = sum(size > 0 for size in self.sizes)
        groups = [group for group in vocabulary.groups if len(group) >= MIN_QUESTIONS * num_splits]
        if not groups:
            raise EdgepruneError(
                f"{len(vocabulary.questions)} words of {self.relation!r} cannot be shared out among {num_splits} "
                f"splits of at least {MIN_QUESTIONS}: set entities to 'shared', or choose another relation"
            )
        shared = [share_out(group, self.sizes, rng, minimum=MIN_QUESTIONS, what="words") for group in groups]
        return [Words(tuple(filter(None, parts)), vocabulary.examples) for parts in zip(*shared, strict=True)]

    def generate(self, vocabulary: Words, count: int, rng: random.Random) -> list[PromptPair]:
        """Pairs that ask about different words."""
        questions = vocabulary.questions
        drawn = rounds([0], len(questions), count, rng, f"{self.relation} WordPairs")
        return [self._pair(questions[number], vocabulary, rng) for _, number in drawn]

    def _pair(self, question: Question, words: Words, rng: random.Random) -> PromptPair:
        subject, answer = question
        partners = words.partners[subject]
        if not partners:
            raise EdgepruneError(
                f"all words of a split have the answer {answer!r}, and none is left to corrupt {subject!r} with: "
                "set entities to 'shared', raise the sizes, or choose another seed"
            )
        other, other_answer = rng.choice(partners)
        clean, corrupted = (self._write(word, words.examples) for word in (subject, other))
        return PromptPair(
            clean=clean.text,
            corrupted=corrupted.text,
            answer=f" {answer}",
            distractor=f" {other_answer}",
            corrupted_answer=f" {other_answer}",
            roles=clean.spans,
            corrupted_roles=corrupted.spans,
            source=f"WordPairs {self.relation} {self.prompting} {subject}",
            labels={"relation": self.relation, "subject": subject, "other": other},
        )

    def _write(self, word: str, examples: tuple[Question, ...]) -> Filled:
        """The prompt, with a role on all that comes before the word asked about, or before its line."""
        if self.prompting == "few_shot":
            lines = "\n".join(f"* {subject}: {answer}" for subject, answer in examples[: self.num_examples])
            before, filled = "examples", fill(f"{lines}\n* {SLOT}:", {"subject": word})
            end = len(lines)
        else:
            before, filled = "instruction", fill(self.instruction or SENTENCES[self.relation], {"subject": word})
            end = filled.spans["subject"][0] - 1
        return Filled(filled.text, {before: (0, end), **filled.spans})
