"""Slots, one-token words and rounds, by hand."""

import inspect
import random
from collections import Counter

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import IOI
from datamodules.tasks.wording import (
    Filled,
    combination,
    fill,
    pairs_of,
    rounds,
    single_token_words,
    token_after,
    tokens_after_word,
    words_of,
)
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import word_tokenizer


def test_slots_are_filled_and_found() -> None:
    assert fill("At {place} {who}, so", {"who": "Ada", "place": "home", "unused": "x"}) == Filled(
        "At home Ada, so", {"place": (3, 7), "who": (8, 11), "END": (14, 15)}
    )


def test_the_token_after_a_slot_begins_with_the_next_character_that_is_no_space() -> None:
    filled = fill("At {place} {who}, so", {"who": "Ada", "place": "home"})
    assert token_after(filled, "place") == (8, 9)
    assert token_after(filled, "who") == (11, 12)


def test_words_of_one_token_are_judged_after_a_space(gpt2: PreTrainedTokenizerBase) -> None:
    assert single_token_words(["Paris", "Phnom Penh", "Mary"], gpt2) == ("Paris", "Mary")
    assert [len(ids) for ids in tokens_after_word(["Paris", "South Korea"], gpt2)] == [1, 2]


def test_unknown_words_have_no_tokens() -> None:
    assert tokens_after_word(["Ada", "Eve"], word_tokenizer(["When", "Ada"])) == [(4,), ()]


def test_rounds_go_round_and_never_repeat() -> None:
    drawn = rounds("abc", 5, 11, random.Random(0), "some")
    assert [cell for cell, _ in drawn] == list("abcabcabcab")
    assert len(set(drawn)) == 11
    every = rounds("abc", 5, 15, random.Random(0), "some")
    assert Counter(cell for cell, _ in every) == {"a": 5, "b": 5, "c": 5}
    assert {number for _, number in every} == set(range(5))
    with pytest.raises(
        EdgepruneError, match=r"16 different some prompts .* 3 sentence forms x 5 fillings give 15: ask"
    ):
        rounds("abc", 5, 16, random.Random(0), "some")


def test_combinations_are_numbered() -> None:
    found = {tuple(combination(number, "ab", "cde", "f")) for number in range(6)}
    assert found == {(a, b, "f") for a in "ab" for b in "cde"}


def test_lists_of_words() -> None:
    assert words_of(" ab c\n  d ") == ("ab", "c", "d")
    assert pairs_of(" North Korea/Pyongyang,\n Italy/Rome ") == (("North Korea", "Pyongyang"), ("Italy", "Rome"))


def test_fingerprint_follows_the_code_of_task_bases_and_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    before, source = IOI().fingerprint(), inspect.getsource
    for name in ("ioi", "generated", "base", "wording"):
        module = f"datamodules.tasks.{name}"
        monkeypatch.setattr("inspect.getsource", lambda item, name=module: source(item) + "#" * (item.__name__ == name))
        assert IOI().fingerprint() not in (before, None)

    def unknown(item: object) -> str:
        raise OSError

    monkeypatch.setattr("inspect.getsource", unknown)
    assert IOI().fingerprint() is None
