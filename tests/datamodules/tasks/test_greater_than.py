"""Greater-than with a token for two digits, a token for each digit, and neither."""

import re
from collections import Counter
from typing import Any

import pytest
import torch
from tokenizers import Regex
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.pre_tokenizers import Digits, Metaspace, Sequence, Split, Whitespace
from transformers import PreTrainedTokenizerBase

from datamodules import GreaterThan, PairDataModule
from datamodules.encode import encode_pairs
from datamodules.tasks.base import PromptPair
from datamodules.tasks.greater_than import NOUNS, VERBS, NounsAndYears
from edgeprune.batch import IGNORE
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.greater_than import probability_difference, probability_difference_two_digit
from tests.datamodules.conftest import TASK_WORDS, shared_tokenizer, word_tokenizer
from tests.datamodules.tasks.conformance import check_task, clean_prompts, role_text

SMALL: dict[str, Any] = {"num_train": 60, "num_validation": 30, "num_test": 30}
TWO_DIGIT, ONE_DIGIT = ("gpt2", "pythia", "pairs"), ("smollm2", "digits", "marked")


def digit_tokenizer(width: int, *, nouns: tuple[str, ...] = ()) -> PreTrainedTokenizerBase:
    """Words, and numbers in pieces of `width` digits."""
    words = [word for word in TASK_WORDS if not nouns or word not in NOUNS]
    numerals = [f"{i:0{width}d}" for i in range(10**width)]
    tokenizer = word_tokenizer(["When", "year", *words, *nouns, *numerals])
    cut = Digits(individual_digits=True) if width == 1 else Split(Regex(r"\d" * width), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Whitespace(), cut])
    return tokenizer


def marked_tokenizer() -> PreTrainedTokenizerBase:
    """Marks the start of each word, as SentencePiece does: a digit by itself is two tokens, inside a year it is one."""
    tokenizer = word_tokenizer(["▁", *(f"▁{word}" for word in ("When", "year", *TASK_WORDS)), *map(str, range(10))])
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Metaspace(), Digits(individual_digits=True)])
    tokenizer.backend_tokenizer.decoder = MetaspaceDecoder()
    return tokenizer


@pytest.fixture(scope="module", params=[*TWO_DIGIT, *ONE_DIGIT])
def numbers(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Each tokenizer that the task can work with."""
    if request.param in ("gpt2", "pythia"):
        return shared_tokenizer(request.param)
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2")
    if request.param == "marked":
        return marked_tokenizer()
    return digit_tokenizer(2 if request.param == "pairs" else 1)


def noun(pair: PromptPair) -> set[str]:
    return {pair.labels["noun"]}


@pytest.mark.parametrize("options", [{}, {"form": "short"}, {"verbs": 4}, {"entities": "shared"}], ids=str)
def test_conforms(numbers: PreTrainedTokenizerBase, options: dict[str, Any]) -> None:
    splits = check_task(GreaterThan(**SMALL, **options), numbers, noun, same_roles=("noun", "XX"))
    for pair in (pair for pairs in splits.values() for pair in pairs):
        assert role_text(pair, "noun") == pair.labels["noun"]
        assert role_text(pair, "XX") + role_text(pair, "YY") == pair.labels["century"] + pair.labels["year"]
        assert role_text(pair, "YY", corrupted=True) == "01"


@pytest.mark.parametrize(("form", "end"), [("year", "to the year"), ("short", "to")])
def test_prompts_have_the_standard_form(numbers: PreTrainedTokenizerBase, form: Any, end: str) -> None:
    pattern = re.compile(rf"The (\w+) lasted from the year (\d\d)(\d\d) {end} \2")
    for pair in GreaterThan(**SMALL, form=form).splits(numbers)["train"]:
        for text, year in ((pair.clean, pair.labels["year"]), (pair.corrupted, "01")):
            found = pattern.fullmatch(text)
            assert found is not None
            assert found.groups() == (pair.labels["noun"], pair.labels["century"], year)
        assert 11 <= int(pair.labels["century"]) <= 17
        assert 2 <= int(pair.labels["year"]) <= 98
        assert pair.distractor is not None
        assert int(pair.distractor) < int(pair.labels["year"]) < int(pair.answer)


@pytest.mark.parametrize("numbers", TWO_DIGIT, indirect=True)
def test_two_digits_are_scored_at_once(numbers: PreTrainedTokenizerBase) -> None:
    pairs = GreaterThan(**SMALL).splits(numbers)["train"]
    for pair, ids in zip(pairs, encode_pairs(pairs, numbers), strict=True):
        year = int(pair.labels["year"])
        [right], [wrong] = ids.answers, ids.wrong_answers
        assert [numbers.decode([token]) for token in (*wrong, *right)] == [f"{i:02d}" for i in range(100)]
        assert numbers.decode([wrong[-1]]) == f"{year:02d}"
        start, end = ids.roles["YY"]
        assert ids.clean[start:end] == (wrong[-1],)
        assert len(ids.positions) == 1


@pytest.mark.parametrize("numbers", ONE_DIGIT, indirect=True)
def test_digits_are_scored_one_after_the_other(numbers: PreTrainedTokenizerBase) -> None:
    pairs = GreaterThan(**SMALL).splits(numbers)["train"]
    for pair, ids in zip(pairs, encode_pairs(pairs, numbers), strict=True):
        a, b = map(int, pair.labels["year"])
        right, wrong = (
            [[int(numbers.decode([i])) for i in row] for row in sets] for sets in (ids.answers, ids.wrong_answers)
        )
        assert right == [list(range(a, 10)), list(range(b + 1, 10))]
        assert wrong == [list(range(a)), list(range(b + 1))]
        assert numbers.decode([ids.targets[0]]) == str(a) == numbers.decode([ids.clean[-1]])
        assert ids.clean[-1] == ids.corrupted[-1]
        assert ids.positions == (len(ids.clean) - 2, len(ids.clean) - 1)
        start, end = ids.roles["YY"]
        assert end - start == 2


def test_the_measures_read_the_batch(numbers: PreTrainedTokenizerBase) -> None:
    data = PairDataModule(GreaterThan(**SMALL), eval_batch_size=30, cache=False)
    data.tokenizer_object = numbers
    [batch] = list(data.test_dataloader())
    nothing = torch.full((*batch.targets.shape, len(numbers)), -40.0, dtype=torch.float64)
    greatest = (batch.answers != IGNORE).sum(-1, keepdim=True) - 1
    greater = nothing.scatter(-1, batch.answers.gather(-1, greatest), 40.0)
    smaller = nothing.scatter(-1, batch.wrong_answers[..., :1], 40.0)
    own = nothing.scatter(-1, batch.targets[..., None], 40.0)
    below = (batch.wrong_answers != IGNORE).sum(-1, keepdim=True) - 1
    own[:, -1] = nothing[:, -1].scatter(-1, batch.wrong_answers[:, -1].gather(-1, below[:, -1]), 40.0)
    one = torch.ones(len(batch), dtype=torch.float64)
    for measure in (probability_difference, probability_difference_two_digit):
        torch.testing.assert_close(measure(smaller, batch), -one, atol=1e-12, rtol=0)
        torch.testing.assert_close(measure(greater, batch), one, atol=1e-12, rtol=0)
    # The start year itself counts as wrong in the one and not at all in the other.
    torch.testing.assert_close(probability_difference(own, batch), -one, atol=1e-12, rtol=0)
    torch.testing.assert_close(probability_difference_two_digit(own, batch), 0 * one, atol=1e-12, rtol=0)


def test_years_are_those_that_the_tokenizer_cuts_in_two(gpt2: PreTrainedTokenizerBase) -> None:
    words = GreaterThan().vocabulary(gpt2)
    assert not words.by_digits
    ids = gpt2([f" {century}{tail:02d}" for century, tail in words.starts])["input_ids"]
    assert {len(row) for row in ids} == {2}
    assert (17, 32) in words.starts
    assert (11, 2) not in words.starts  # " 1102" is " 110" and "2"
    assert len(words.starts) > 500


def test_starts_leave_something_on_either_side() -> None:
    tails = tuple(range(100))
    digits = NounsAndYears(NOUNS, tuple(range(10)), {17: tails, 16: tails[2:]})
    assert digits.starts == tuple((17, tail) for tail in range(10, 99) if tail % 10 < 9)
    whole = NounsAndYears(NOUNS, tuple(range(100)), {17: (1, 50, 60), 16: (1, 60)})
    assert whole.starts == ((17, 50),)  # nothing is above 60, and only 01 and 60 are cut as needed in the 1600s


def test_verbs_are_balanced(gpt2: PreTrainedTokenizerBase) -> None:
    for pairs in GreaterThan(**SMALL, verbs=3).splits(gpt2).values():
        counts = Counter(pair.labels["verb"] for pair in pairs)
        assert set(counts) == set(VERBS[:3])
        assert max(counts.values()) - min(counts.values()) <= 1
        for pair in pairs:
            assert pair.clean.startswith(f"The {pair.labels['noun']} {pair.labels['verb']} from")


def test_seed_decides(gpt2: PreTrainedTokenizerBase) -> None:
    assert clean_prompts(GreaterThan(**SMALL, seed=1), gpt2) != clean_prompts(GreaterThan(**SMALL, seed=2), gpt2)


def test_all_nouns_can_be_used(gpt2: PreTrainedTokenizerBase) -> None:
    assert GreaterThan().vocabulary(gpt2).nouns == NOUNS
    assert len(set(NOUNS)) == len(NOUNS) >= 120


@pytest.mark.parametrize("width", [3, 4])
def test_other_numbers_are_refused(width: int) -> None:
    with pytest.raises(EdgepruneError, match=r"cuts the years 1102-1798 neither .*: choose another model") as caught:
        GreaterThan().splits(digit_tokenizer(width))
    assert "\n" not in str(caught.value)


def test_too_many_pairs_are_refused() -> None:
    tokenizer = digit_tokenizer(1, nouns=NOUNS[:4])
    most = 4 * 7 * 81
    sizes = {"num_validation": 0, "num_test": 0}
    assert len(set(clean_prompts(GreaterThan(num_train=most, **sizes), tokenizer))) == most
    with pytest.raises(EdgepruneError, match=f"{most + 1} different GreaterThan prompts .* give {most}: ask for fewer"):
        GreaterThan(num_train=most + 1, **sizes).splits(tokenizer)


def test_too_few_nouns_are_refused() -> None:
    tokenizer = digit_tokenizer(1, nouns=NOUNS[:11])
    with pytest.raises(EdgepruneError, match="11 nouns cannot be shared out among 3 splits of at least 4"):
        GreaterThan().splits(tokenizer)
    assert GreaterThan(entities="shared").splits(tokenizer)["train"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "long"}, "form must be one of .'year', 'short'., got 'long'"),
        ({"verbs": 0}, "verbs must be 1..4, got 0"),
        ({"verbs": 5}, "verbs must be 1..4, got 5"),
        ({"num_test": -1}, "must not be negative"),
        ({"entities": "both"}, "entities must be"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        GreaterThan(**options)


def test_tokenizer_is_needed() -> None:
    with pytest.raises(EdgepruneError, match="GreaterThan task makes text"):
        GreaterThan().splits(None)
