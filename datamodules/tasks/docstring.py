"""Docstring completion: which argument of a Python function is to be described next?

    def move(self, level, sensor, theme, price, ratio, owner):
        \"\"\"quiet marble lake

        :param theme: small wooden
        :param price: early bread
        :param

The arguments are described in the order in which the function takes them, so the answer is the next one, " ratio".
The task is that of Heimersheim and Janiak, "A circuit for Python docstrings in a 4-layer attention-only transformer"
(2023), in the form in which ACDC (arXiv 2304.14997) uses it: two arguments before the three that count and one after
them. Words and code are ours.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, final, get_args

from datamodules.tasks.base import PromptPair
from datamodules.tasks.generated import GeneratedTask, distinct, share_out
from datamodules.tasks.wording import (
    END,
    Filled,
    Span,
    check_choice,
    check_enough,
    fill,
    token_after,
    tokens_after_word,
    words_of,
)
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Corruption = Literal["random_random", "random_def", "random_doc", "random_answer"]
TEMPLATE = """def {function}(self{before}, {A_def}, {B_def}, {C_def}{after}):
    \"""{method}

    :param {A_doc}: {about_A}
    :param {B_doc}: {about_B}
    :param"""
ROLES = ("A_def", "B_def", "C_def", "A_doc", "B_doc", END)  # and B_comma
SPARE_NAMES = 8  # beyond those of one prompt; with fewer the names of a corrupted prompt would be nearly predictable
METHOD_WORDS, ARGUMENT_WORDS = 3, 2  # length of the descriptions, as in ACDC


@dataclass(frozen=True)
class DocstringWords:
    """Words that are one token each for the tokenizer in use."""

    arguments: Mapping[str, int]  # with their token ids
    functions: tuple[str, ...]
    descriptions: tuple[str, ...]


class Signature(NamedTuple):
    """The names that a prompt holds: those of the `def` line, and those that its docstring describes."""

    before: tuple[str, ...]
    matching: tuple[str, ...]  # A, B, C
    after: tuple[str, ...]
    documented: tuple[str, ...]  # A, B


@final
@dataclass(frozen=True)
class Docstring(GeneratedTask[DocstringWords]):
    """Generated functions whose docstring stops before the third of three arguments.

    The answer is that argument's name C, the wrong answers are all other names of the prompt but `self`. The distractor
    is B, the name described last. Entities are the argument names.

    Roles: `A_def`, `B_def`, `C_def` and the comma after B, `B_comma`, in the `def` line, `A_doc` and `B_doc` in the
    docstring, and `END`, the last token.

    Attributes:
        entities: `"disjoint"`: no argument name occurs in two splits. `"shared"`: all splits draw on all names.
        corruption: Which names become new ones. `"random_random"`: A, B and C in the `def` line, and A and B in the
            docstring, by others than there. `"random_def"`: A, B and C in the `def` line. `"random_doc"`: A and B in
            the docstring. `"random_answer"`: C, so that the right answer changes.
        num_before: Arguments of the `def` line, beside `self`, before A.
        num_after: Arguments after C.
    """

    corruption: Corruption = "random_random"
    num_before: int = 2
    num_after: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("corruption", self.corruption, get_args(Corruption))
        if not 0 <= min(self.num_before, self.num_after) <= max(self.num_before, self.num_after) <= 9:
            raise EdgepruneError(f"num_before and num_after must be 0..9, got {self.num_before} and {self.num_after}")

    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> DocstringWords:
        """Names and words that `tokenizer` spells as one token after a space."""
        arguments, functions, descriptions = (
            _single_tokens(listed, tokenizer) for listed in (ARGUMENTS, FUNCTIONS, DESCRIPTIONS)
        )
        check_enough(
            "the docstring task",
            ("argument names", arguments, self._names_needed),
            ("function names", functions, 1),
            ("describing words", descriptions, METHOD_WORDS),
        )
        return DocstringWords(arguments, tuple(functions), tuple(descriptions))

    def share_out(self, vocabulary: DocstringWords, rng: random.Random) -> list[DocstringWords]:
        """Vocabularies with different argument names."""
        parts = share_out(
            tuple(vocabulary.arguments), self.sizes, rng, minimum=self._names_needed, what="argument names"
        )
        return [replace(vocabulary, arguments={name: vocabulary.arguments[name] for name in part}) for part in parts]

    def generate(self, vocabulary: DocstringWords, count: int, rng: random.Random) -> list[PromptPair]:
        """`count` pairs whose clean prompts all differ."""
        names = tuple(vocabulary.arguments)
        return distinct(lambda _: self._pair(vocabulary, names, rng), count, "docstring")

    @property
    def _names_needed(self) -> int:
        return self.num_before + 3 + self.num_after + SPARE_NAMES

    def _pair(self, words: DocstringWords, names: Sequence[str], rng: random.Random) -> PromptPair:
        num_names = self.num_before + 3 + self.num_after
        drawn = tuple(rng.sample(names, num_names + 5))
        matching = drawn[self.num_before : self.num_before + 3]
        clean = Signature(drawn[: self.num_before], matching, drawn[self.num_before + 3 : num_names], matching[:2])
        corrupted = self._corrupt(clean, drawn[num_names:])
        about = rng.sample(words.descriptions, METHOD_WORDS + 2 * ARGUMENT_WORDS)
        function = rng.choice(words.functions)
        text, other = (_write(signature, function, about) for signature in (clean, corrupted))
        wrong = (*clean.before, *matching[:2], *clean.after)
        return PromptPair(
            clean=text.text,
            corrupted=other.text,
            answer=f" {matching[2]}",
            distractor=f" {matching[1]}",
            corrupted_answer=f" {corrupted.matching[2]}" if self.corruption == "random_answer" else None,
            wrong_ids=(tuple(words.arguments[name] for name in wrong),),
            roles=_roles(text),
            corrupted_roles=_roles(other),
            source=f"Docstring {function}({', '.join(drawn[:num_names])})",
            labels={"answer": matching[2], "function": function},
        )

    def _corrupt(self, clean: Signature, others: Sequence[str]) -> Signature:
        """The same with new names, `others`: three for the `def` line, two for the docstring."""
        if self.corruption == "random_answer":
            return clean._replace(matching=(*clean.matching[:2], others[0]))
        result = clean
        if self.corruption in ("random_random", "random_def"):
            result = result._replace(matching=tuple(others[:3]))
        if self.corruption in ("random_random", "random_doc"):
            result = result._replace(documented=tuple(others[3:]))
        return result


def _single_tokens(words: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Those `words` that are one token after a space, with its id."""
    added = tokens_after_word(words, tokenizer)
    return {word: ids[0] for word, ids in zip(words, added, strict=True) if len(ids) == 1}


def _write(names: Signature, function: str, about: Sequence[str]) -> Filled:
    """The prompt with these names and descriptions."""
    method, first, second = (
        about[:METHOD_WORDS],
        about[METHOD_WORDS : METHOD_WORDS + ARGUMENT_WORDS],
        about[METHOD_WORDS + ARGUMENT_WORDS :],
    )
    slots = {
        "function": function,
        "before": "".join(f", {name}" for name in names.before),
        "after": "".join(f", {name}" for name in names.after),
        "method": " ".join(method),
        "about_A": " ".join(first),
        "about_B": " ".join(second),
        **dict(zip(("A_def", "B_def", "C_def"), names.matching, strict=True)),
        **dict(zip(("A_doc", "B_doc"), names.documented, strict=True)),
    }
    return fill(TEMPLATE, slots)


def _roles(prompt: Filled) -> dict[str, Span]:
    return {**{name: prompt.spans[name] for name in ROLES}, "B_comma": token_after(prompt, "B_def")}


# -------------------------------------------------------------------- sentences and words
# Every word follows a space.
ARGUMENTS = words_of(
    """
    account action address angle area author balance batch block body branch budget camera canvas card category cell
    channel chapter city client code color column command content cost counter country course cursor data date delay
    depth device directory distance document domain driver edge email engine entry event factor family feature field
    figure file filter folder font frame gender grid group handle header height history host icon image index input
    item job key label language layer layout length letter level limit line link location margin mask matrix memory
    message method mode model module month name network node note number object offset option order output owner
    page panel parent password path pattern phase phone picture platform player point port position power price
    process product profile project quality query radius range rate ratio record region report request result role
    root rule sample scale schedule scope score screen section sensor server service session shape signal size
    source speed stage state status storage stream string style subject system table target task team theme thread
    ticket time title token topic track tree unit user value vector version video volume weight width window word
    worker year zone
    """
)

FUNCTIONS = words_of(
    """
    add apply build call change check clean close combine compare connect convert copy count create cut delete draw
    enter estimate expand export fetch fill find fit follow format get guess hide insert join load lock make mark
    match measure merge move open parse pick plan plot print publish push read receive register release remove
    render repeat replace reset run save search select send set share show sort split start stop store submit test
    train update upload validate visit wait write
    """
)

DESCRIPTIONS = words_of(
    """
    able ancient autumn bitter bread bright broken calm careful cheap coffee cold common cotton curious damp dark
    deep dense distant double dry early easy empty equal extra fair familiar fast final firm flat flower forest free
    fresh gentle golden grand green half happy harbor heavy hidden honest hot huge iron island juice kind lake large
    late lazy leather light little local loud lucky marble metal milk mixed modern mountain narrow neat new noble
    northern ocean odd open orange outer pale paper plain pleasant poor proud public pure quick quiet rapid rare raw
    ready river rough round royal safe salt sand secret sharp short silent silver simple single slow small smooth
    soft solid southern spare spring steady steel stone strange strong summer sweet tall thick thin tiny upper usual
    valley warm weak wet wheat white whole wide wild winter wise wooden yellow young
    """
)
