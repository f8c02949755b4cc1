"""Greater-than: a span of years, of which the end lacks its last two digits.

Clean: "The war lasted from the year 1732 to the year 17"; right is every number above YY = 32. Corrupted: the same
with the start year 1701, so that every number above 01 fits. The task is that of Hanna et al., arXiv 2305.00586;
nouns and further sentences are our own. The measures are in `edgeprune.metrics.greater_than`.

How the numbers are scored depends on the tokenizer (a = tens digit of YY, b = ones digit):

    two digits one token   1 position    answers YY+1 ... 99   wrong 00 ... YY   target: one of the answers
    each digit one token   2 positions   answers a ... 9       wrong 0 ... a-1   target: a
                                         answers b+1 ... 9     wrong 0 ... b     target: one of the answers

With digits the model predicts the tens digit, is then given a, and predicts the ones digit. A tens digit other than a
decides alone and a leaves it open, so P(end > YY) = P1(d > a) + P1(a) P2(d > b): two positions hold all that is needed.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, final, get_args

from datamodules.tasks.base import PromptPair
from datamodules.tasks.generated import GeneratedTask, share_out
from datamodules.tasks.wording import (
    END,
    Span,
    check_choice,
    fill,
    rounds,
    single_token_words,
    words_of,
)
from datamodules.texts import has_unknown
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["year", "short"]
FORMS: Mapping[Form, str] = {
    "year": "The {noun} {verb} from the year {century}{tail} to the year {end}",
    "short": "The {noun} {verb} from the year {century}{tail} to {end}",
}
CENTURIES = range(11, 18)  # as in the published data: years 1102 to 1798
TAILS = range(2, 99)
START = 1  # YY of the corrupted start year
MIN_NOUNS = 4


@dataclass(frozen=True)
class NounsAndYears:
    """What the tokenizer in use can spell.

    Attributes:
        nouns: Nouns of one token.
        ids: Token ids of the numbers 00 to 99 or of the digits 0 to 9.
        tails: For each century all YY whose year is cut into the century and those tokens, in order.
    """

    nouns: tuple[str, ...]
    ids: tuple[int, ...]
    tails: Mapping[int, tuple[int, ...]]

    @property
    def by_digits(self) -> bool:
        """Whether every digit is a token."""
        return len(self.ids) == 10

    @cached_property
    def starts(self) -> tuple[tuple[int, int], ...]:
        """All start years as (century, YY) that leave something to say on either side."""
        return tuple(
            (century, tail)
            for century, tails in self.tails.items()
            if START in tails
            for tail in tails
            if tail in TAILS and self.above(century, tail) and self.below(century, tail)
        )

    def above(self, century: int, tail: int) -> list[int]:
        """Ends to ask for: greater, and with digits of the same ten, for its digit is given to the model."""
        if self.by_digits:
            return list(range(tail + 1, tail // 10 * 10 + 10))
        return [end for end in self.tails[century] if end > tail]

    def below(self, century: int, tail: int) -> list[int]:
        """Wrong ends to compare with: smaller, and with digits of a smaller ten."""
        if self.by_digits:
            return list(range(tail // 10 * 10))
        return [end for end in self.tails[century] if end < tail]

    def answer_ids(self, tail: int) -> tuple[tuple[int, ...], ...]:
        """Right tokens at each position, in order of size; a tens digit may be that of YY."""
        *tens, last = self._numerals(tail)
        return (*(self.ids[digit:] for digit in tens), self.ids[last + 1 :])

    def wrong_ids(self, tail: int) -> tuple[tuple[int, ...], ...]:
        """Wrong tokens at each position, in order of size; the last of the last position belongs to YY."""
        *tens, last = self._numerals(tail)
        return (*(self.ids[:digit] for digit in tens), self.ids[: last + 1])

    def _numerals(self, tail: int) -> tuple[int, ...]:
        return divmod(tail, 10) if self.by_digits else (tail,)


@final
@dataclass(frozen=True)
class GreaterThan(GeneratedTask[NounsAndYears]):
    """Prompts that end before the last two digits of a year; the verbs are equally frequent.

    The entities are the nouns. Start years are those that the tokenizer cuts into century and YY, of the centuries 11
    to 17 with YY from 02 to 98; where digits are tokens, with the first above 0 and the second below 9, so that each
    position has right and wrong answers. All prompts of a verb have the same number of tokens. Roles: `noun`,
    `XX` and `YY` (century and rest of the start year), `END` (the last token). No right answer is given for the
    corrupted prompt, for there are many.

    Attributes:
        form: `"year"`: "... from the year 1732 to the year 17". `"short"`: "... from the year 1732 to 17".
        verbs: Use the first so many verbs; 1: "lasted" alone, the standard form.
    """

    single_token_answers: ClassVar[bool] = False  # two tokens where digits are tokens

    form: Form = "year"
    verbs: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("form", self.form, get_args(Form))
        if not 1 <= self.verbs <= len(VERBS):
            raise EdgepruneError(f"verbs must be 1..{len(VERBS)}, got {self.verbs}")

    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> NounsAndYears:
        """Nouns of one token and the years that are cut as needed."""
        nouns = single_token_words(NOUNS, tokenizer)
        for width in (2, 1):
            words = _words(nouns, width, tokenizer)
            if words is not None and words.starts:
                return words
        raise EdgepruneError(
            f"this tokenizer cuts the years {CENTURIES[0]}02-{CENTURIES[-1]}98 neither into century and two digits nor "
            "into single digits, so ends of a span cannot be compared: choose another model, or give your own pairs "
            "as JSONL"
        )

    def share_out(self, vocabulary: NounsAndYears, rng: random.Random) -> list[NounsAndYears]:
        """Nouns of each split; years are common to all."""
        nouns = share_out(vocabulary.nouns, self.sizes, rng, minimum=MIN_NOUNS, what="nouns")
        return [replace(vocabulary, nouns=part) for part in nouns]

    def generate(self, vocabulary: NounsAndYears, count: int, rng: random.Random) -> list[PromptPair]:
        """Different pairs, going round the verbs."""
        num_fillings = len(vocabulary.nouns) * len(vocabulary.starts)
        drawn = rounds(VERBS[: self.verbs], num_fillings, count, rng, "GreaterThan")
        return [self._pair(verb, number, vocabulary, rng) for verb, number in drawn]

    def _pair(self, verb: str, number: int, words: NounsAndYears, rng: random.Random) -> PromptPair:
        noun, start = divmod(number, len(words.starts))
        century, tail = words.starts[start]
        clean, roles = self._prompt(words.nouns[noun], verb, century, tail)
        corrupted, corrupted_roles = self._prompt(words.nouns[noun], verb, century, START)
        return PromptPair(
            clean=clean,
            corrupted=corrupted,
            answer=f"{rng.choice(words.above(century, tail)):02d}",
            distractor=f"{rng.choice(words.below(century, tail)):02d}",
            answer_ids=words.answer_ids(tail),
            wrong_ids=words.wrong_ids(tail),
            roles=roles,
            corrupted_roles=corrupted_roles,
            source=f"GreaterThan {words.nouns[noun]} {century}{tail:02d}",
            labels={"noun": words.nouns[noun], "verb": verb, "century": str(century), "year": f"{tail:02d}"},
        )

    def _prompt(self, noun: str, verb: str, century: int, tail: int) -> tuple[str, dict[str, Span]]:
        slots = {"noun": noun, "verb": verb, "century": str(century), "tail": f"{tail:02d}", "end": str(century)}
        text, spans = fill(FORMS[self.form], slots)
        return text, {"noun": spans["noun"], "XX": spans["century"], "YY": spans["tail"], END: spans[END]}


def _words(nouns: tuple[str, ...], width: int, tokenizer: "PreTrainedTokenizerBase") -> NounsAndYears | None:
    """Years whose last two digits are tokens of `width` digits each; None if not all such numerals are tokens."""
    ids = [_numeral(f"{i:0{width}d}", tokenizer) for i in range(10**width)]
    known = tuple(token for token in ids if token is not None)
    if len(known) < len(ids):
        return None
    return NounsAndYears(nouns, known, {century: _tails(century, width, known, tokenizer) for century in CENTURIES})


def _numeral(text: str, tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The token of `text` inside a year, or by itself where no year of these centuries is cut before it."""
    centuries = _tokens([f"year {century}" for century in CENTURIES], tokenizer)
    years = _tokens([f"year {century}{text}" for century in CENTURIES], tokenizer)
    inside = [year[-1] for start, year in zip(centuries, years, strict=True) if year[:-1] == start]
    [alone] = _tokens([text], tokenizer)
    found = [*inside, *(alone if len(alone) == 1 else ())]
    return found[0] if found and not has_unknown(found, tokenizer) else None


def _tails(century: int, width: int, numerals: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """All YY for which the year is the tokens of the century and then those of YY."""
    start, *years = _tokens([f"year {century}", *(f"year {century}{tail:02d}" for tail in range(100))], tokenizer)
    tails = [(tail,) if width == 2 else divmod(tail, 10) for tail in range(100)]
    return tuple(
        tail
        for tail, (year, parts) in enumerate(zip(years, tails, strict=True))
        if year == [*start, *(numerals[part] for part in parts)]
    )


def _tokens(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]


# -------------------------------------------------------------------- sentences and words
# What stands between the noun and the start year; the first is the standard form.
VERBS = ("lasted", "ran", "continued", "went on")

NOUNS = words_of(
    """
    absence affair agreement alliance arrest assignment attempt ban battle blockade boom boycott campaign career
    case celebration ceremony chase colony competition conflict construction contest contract controversy course
    crisis cycle debate decline deployment depression detention dispute drought dynasty eclipse effort embargo
    empire engagement enterprise epidemic era eruption exchange exhibition exile expansion expedition experiment
    famine festival fight fire flood friendship holiday hostility hunt imprisonment inquiry invasion investigation
    journey kingdom lawsuit league lease march marriage migration mission monopoly mourning movement negotiation
    occupation operation outbreak partnership peace period persecution phase plague presence process program project
    pursuit quarrel race raid rebellion recession regime reign renovation repair republic research restoration
    retreat revolt revolution riot rivalry romance rule search season series service settlement show siege silence
    stay storm strike struggle study survey tension tour tournament trade tradition training treaty trial union
    unrest uprising venture visit voyage war work
    """
)
