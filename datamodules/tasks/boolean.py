"""Boolean expressions: is `( not True or False ) and True` true or false?

The case study of Edge Pruning (arXiv 2406.16778) on CodeLlama-13B asks for the value of the same expressions in two
ways, by examples and by instruction, and compares the two circuits. Expressions, examples and sentences are our own.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, final, get_args

from datamodules.tasks.base import PromptPair
from datamodules.tasks.generated import GeneratedTask, distinct, share_out
from datamodules.tasks.wording import check_choice, fill, tokens_after_word
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompting = Literal["few_shot", "instruction"]
# What remains of an expression without its words: (), a literal; (operand,), a `not`; (left, right), `and` or `or`.
Form = tuple["Form", ...]
LITERALS = "False", "True"
OPERATORS = "and", "or"
WORDS = (*LITERALS, *OPERATORS, "not", "(", ")", "is")
INSTRUCTION = "Work out whether this Boolean expression is True or False.\n{expression} is"
NUM_BUCKETS = 1000  # into which expressions fall by their checksum; the splits share out the buckets
TRIES = 500  # to find an expression of the wanted kind before the task gives up
MAX_OPERATORS = 20


class Question(NamedTuple):
    """An expression and its value."""

    text: str
    value: bool


@dataclass(frozen=True)
class Supply:
    """Which expressions a split may use."""

    buckets: frozenset[int]
    examples: tuple[Question, ...]  # which no prompt asks for

    def allows(self, text: str) -> bool:
        """Whether the expression falls to this split and is no example."""
        return bucket(text) in self.buckets and text not in (example.text for example in self.examples)


@final
@dataclass(frozen=True)
class BooleanExpressions(GeneratedTask[Supply]):
    """Generated expressions, half of them true; the corrupted one has the same form and the opposite value.

    The two expressions of a pair have the same `not`s and parentheses; their literals, `and`s and `or`s are drawn anew.
    Entities are the expressions: with `entities="disjoint"` none occurs in two splits, clean or corrupted.
    Expressions depend on `seed`, sizes, `entities` and `num_operators` alone: both ways of prompting ask for the same
    ones in the same order.

    Roles: `expression`, and `END`, the last token.

    Attributes:
        entities: `"disjoint"`: no expression occurs in two splits. `"shared"`: no clean expression does.
        prompting: `"few_shot"`: examples with their values come first. `"instruction"`: a sentence says what to do.
        num_operators: How many `and`, `or` and `not` an expression has.
        num_examples: Examples of a few-shot prompt, the same in every prompt, true and false in turn, and not
            asked for in any.
        instruction: Prompt of the other kind, with the slot `{expression}`; a chat model's marks can be put in.
    """

    prompting: Prompting = "few_shot"
    num_operators: int = 5
    num_examples: int = 4
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("prompting", self.prompting, get_args(Prompting))
        if not 1 <= self.num_operators <= MAX_OPERATORS:
            raise EdgepruneError(f"num_operators must be 1..{MAX_OPERATORS}, got {self.num_operators}")
        if not 1 <= self.num_examples <= 32:
            raise EdgepruneError(f"num_examples must be 1..32, got {self.num_examples}")
        others = self.instruction.replace("{expression}", "")
        if self.instruction.count("{expression}") != 1 or "{" in others or "}" in others:
            raise EdgepruneError(
                f"instruction must have the slot {{expression}} once and no other braces, got {self.instruction!r}"
            )

    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> Supply:
        """All buckets, and the examples.

        Raises:
            EdgepruneError: A word of the expressions is not one token after a space.
        """
        tokens = tokens_after_word(WORDS, tokenizer)
        bad = [word for word, ids in zip(WORDS, tokens, strict=True) if len(ids) != 1]
        if bad:
            raise EdgepruneError(
                f"{', '.join(map(repr, bad))} must be one token each after a space, and are not for this tokenizer: "
                "Boolean prompts could not be aligned; choose another model, or give your own pairs as JSONL"
            )
        return Supply(frozenset(range(NUM_BUCKETS)), self._examples())

    def share_out(self, vocabulary: Supply, rng: random.Random) -> list[Supply]:
        """Supplies without a common expression."""
        parts = share_out(sorted(vocabulary.buckets), self.sizes, rng, minimum=1, what="expressions")
        return [Supply(frozenset(part), vocabulary.examples) for part in parts]

    def generate(self, vocabulary: Supply, count: int, rng: random.Random) -> list[PromptPair]:
        """`count` pairs whose clean prompts all differ; true and false ones take turns."""
        try:
            return distinct(lambda number: self._pair(vocabulary, number % 2 == 0, rng), count, "Boolean")
        except EdgepruneError:
            raise self._exhausted(f"{count} pairs of one split") from None

    def _examples(self) -> tuple[Question, ...]:
        """Different expressions, drawn apart from those of the prompts."""
        rng = random.Random(f"examples {self.seed}")
        found: dict[str, Question] = {}
        for _ in range(TRIES * self.num_examples):
            question = next(expressions(draw_form(self.num_operators, rng), lambda _: True, rng))
            if question.value == (len(found) % 2 == 0):
                found.setdefault(question.text, question)
            if len(found) == self.num_examples:
                return tuple(found.values())
        raise self._exhausted(f"{self.num_examples} examples")

    def _pair(self, supply: Supply, wanted: bool, rng: random.Random) -> PromptPair:
        for _ in range(TRIES):
            of_value: dict[bool, str] = {}
            for text, truth in expressions(draw_form(self.num_operators, rng), supply.allows, rng):
                of_value.setdefault(truth, text)
                if len(of_value) == 2:
                    return self._write(of_value[wanted], of_value[not wanted], wanted, supply.examples)
        raise self._exhausted("the pairs of a split")

    def _exhausted(self, what: str) -> EdgepruneError:
        return EdgepruneError(
            f"num_operators={self.num_operators} gives too few different Boolean expressions for {what}: "
            "raise num_operators, ask for fewer, or set entities to 'shared'"
        )

    def _write(self, clean: str, corrupted: str, wanted: bool, examples: tuple[Question, ...]) -> PromptPair:
        template = self.instruction
        if self.prompting == "few_shot":
            template = "".join(f"{example.text} is {example.value}\n" for example in examples) + "{expression} is"
        filled, other = (fill(template, {"expression": expression}) for expression in (clean, corrupted))
        return PromptPair(
            clean=filled.text,
            corrupted=other.text,
            answer=f" {wanted}",
            distractor=f" {not wanted}",
            corrupted_answer=f" {not wanted}",
            roles=filled.spans,
            corrupted_roles=other.spans,
            source=f"BooleanExpressions {clean}",
            labels={"expression": clean, "corrupted": corrupted},
        )


# -------------------------------------------------------------------- expressions
def bucket(expression: str) -> int:
    """The bucket that an expression falls into: the same on every machine."""
    return zlib.crc32(expression.encode()) % NUM_BUCKETS


def draw_form(num_operators: int, rng: random.Random) -> Form:
    """A random form with so many operators; a third of them are `not`."""
    if num_operators == 0:
        return ()
    if rng.random() < 1 / 3:
        return (draw_form(num_operators - 1, rng),)
    left = rng.randrange(num_operators)
    return draw_form(left, rng), draw_form(num_operators - 1 - left, rng)


def pattern(form: Form) -> str:
    """The form as text, `%s` standing for literals and binary operators in turn; a space between any two words.

    Example:
        >>> pattern((((),), ((), ())))
        'not %s %s ( %s %s %s )'
    """
    if len(form) == 0:
        return "%s"
    if len(form) == 1:
        return f"not {_operand(form[0])}"
    return f"{_operand(form[0])} %s {_operand(form[1])}"


def _operand(form: Form) -> str:
    return f"( {pattern(form)} )" if len(form) == 2 else pattern(form)


def draw_words(num_words: int, rng: random.Random) -> tuple[str, ...]:
    """Literals and binary operators in turn."""
    bits = rng.getrandbits(num_words)
    return tuple((LITERALS, OPERATORS)[i % 2][bits >> i & 1] for i in range(num_words))


def value(form: Form, words: Iterator[str]) -> bool:
    """What the form is with these words in the places of `pattern`.

    Example:
        >>> value((((),), ((), ())), iter(("False", "and", "True", "or", "False")))  # not False and ( True or False )
        True
    """
    if len(form) == 0:
        return next(words) == "True"
    first = value(form[0], words)
    if len(form) == 1:
        return not first
    operator, second = next(words), value(form[1], words)
    return (first and second) if operator == "and" else (first or second)


def expressions(form: Form, allows: Callable[[str], bool], rng: random.Random) -> Iterator[Question]:
    """Random expressions of a form that `allows` lets through; a limited number of tries."""
    words = pattern(form)
    size = words.count("%s")
    for _ in range(TRIES):
        drawn = draw_words(size, rng)
        if allows(text := words % drawn):
            yield Question(text, value(form, iter(drawn)))
