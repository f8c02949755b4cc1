from collections import Counter
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import Capitals, PromptPair
from datamodules.encode import encode_pairs
from datamodules.tasks.capitals import CAPITALS, TO_CAPITAL, TO_COUNTRY
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import word_tokenizer, words_in
from tests.datamodules.tasks.conformance import check_task, clean_prompts, role_text

CAPITAL_OF = dict(CAPITALS)
COUNTRY_OF = {capital: country for country, capital in CAPITALS}
SHORT = [country for country, capital in CAPITALS if " " not in country and capital.isalpha()]
LONG = [country for country, capital in CAPITALS if " " in country and capital.isalpha()]


def countries(pair: PromptPair) -> set[str]:
    subjects = role_text(pair, "subject"), role_text(pair, "subject", corrupted=True)
    return {COUNTRY_OF.get(subject, subject) for subject in subjects}


def knowing(*known: str) -> PreTrainedTokenizerBase:
    """A word tokenizer for some countries and their capitals."""
    texts = (*TO_CAPITAL, *TO_COUNTRY, *known, *(CAPITAL_OF[country] for country in known))
    return word_tokenizer(["When", *words_in(texts)])


@pytest.mark.parametrize("direction", ["country_to_capital", "capital_to_country"])
@pytest.mark.parametrize("entities", ["disjoint", "shared"])
def test_conforms(task_tokenizer: PreTrainedTokenizerBase, direction: Any, entities: Any) -> None:
    answers = CAPITAL_OF if direction == "country_to_capital" else COUNTRY_OF
    splits = check_task(Capitals(direction=direction, entities=entities), task_tokenizer, countries)
    for pair in (pair for pairs in splits.values() for pair in pairs):
        subject, other = role_text(pair, "subject"), role_text(pair, "subject", corrupted=True)
        assert (pair.labels["subject"], pair.labels["other"]) == (subject, other)
        assert pair.answer == f" {answers[subject]}"
        assert pair.distractor == pair.corrupted_answer == f" {answers[other]}"
        assert pair.corrupted == pair.clean.replace(subject, other)


@pytest.mark.parametrize("entities", ["disjoint", "shared"])
def test_all_other_answers_may_be_wrong(gpt2: PreTrainedTokenizerBase, entities: Any) -> None:
    splits = Capitals(answer_set="all", entities=entities).splits(gpt2)
    known = {ids[0] for _, capital in CAPITALS if len(ids := gpt2(f" {capital}")["input_ids"]) == 1}
    for pairs in splits.values():
        for pair, tokens in zip(pairs, encode_pairs(pairs, gpt2), strict=True):
            (wrong,) = pair.wrong_ids
            assert {*wrong, *tokens.targets} == known  # of all splits
            assert len(wrong) == len(known) - 1
            assert tokens.distractors[0] in wrong


def test_lists_are_long_and_without_repetition() -> None:
    assert len(set(CAPITALS)) == len(CAPITAL_OF) == len(COUNTRY_OF) == len(CAPITALS) >= 60
    for forms in (TO_CAPITAL, TO_COUNTRY):
        assert len(set(forms)) == len(forms) == 10
        assert all(form.count(" {subject}") == 1 for form in forms)
    assert not {"Georgia", "England", "Philippines", "Netherlands"} & CAPITAL_OF.keys()  # ambiguous, or with an article


def test_subjects_of_several_tokens_are_used(gpt2: PreTrainedTokenizerBase) -> None:
    pairs = Capitals(direction="capital_to_country").splits(gpt2)["test"]
    lengths: set[int] = set()
    for ids in encode_pairs(pairs, gpt2):
        start, end = ids.roles["subject"]
        lengths.add(end - start)
    assert len(lengths) > 1


def test_lengths_with_too_few_countries_are_left_out() -> None:
    tokenizer = knowing(*SHORT[:8], *LONG[:3])
    assert len(LONG) >= 3
    options: dict[str, Any] = {"num_train": 20, "num_validation": 15, "num_test": 15}
    disjoint = Capitals(**options).splits(tokenizer)
    assert {pair.labels["subject"] for pairs in disjoint.values() for pair in pairs} == set(SHORT[:8])
    shared = Capitals(num_train=110, num_validation=0, num_test=0, entities="shared").splits(tokenizer)["train"]
    assert {pair.labels["subject"] for pair in shared} == {*SHORT[:8], *LONG[:3]}
    alone = Capitals(num_train=80, num_validation=0, num_test=0).splits(knowing(*SHORT[:8], LONG[0]))["train"]
    assert {pair.labels["subject"] for pair in alone} == set(SHORT[:8])


def test_every_split_is_balanced(words: PreTrainedTokenizerBase) -> None:
    for pairs in Capitals(num_train=77, num_validation=33, num_test=50).splits(words).values():
        templates = Counter(pair.labels["template"] for pair in pairs)
        assert len(templates) == len(TO_CAPITAL)
        assert max(templates.values()) - min(templates.values()) <= 1


def test_seed_decides(words: PreTrainedTokenizerBase) -> None:
    assert clean_prompts(Capitals(seed=1), words) != clean_prompts(Capitals(seed=2), words)


def test_too_few_countries_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="5 countries cannot be shared out among 3 splits of at least 2"):
        Capitals().splits(knowing(*SHORT[:5]))
    with pytest.raises(EdgepruneError, match=f"no two of the {len(CAPITALS)} answers of country_to_capital"):
        Capitals().splits(knowing(SHORT[0]))


def test_too_many_pairs_are_refused() -> None:
    options: dict[str, Any] = {"num_validation": 0, "num_test": 0, "templates": 3}
    tokenizer = knowing(*SHORT[:4])
    assert len(set(clean_prompts(Capitals(num_train=12, **options), tokenizer))) == 12
    with pytest.raises(EdgepruneError, match=r"13 different Capitals prompts .* give 12: ask for fewer"):
        Capitals(num_train=13, **options).splits(tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "both"}, "direction must be one of .* got 'both'"),
        ({"templates": 11}, "templates must be 1..10, or null for all, got 11"),
        ({"num_train": -1}, "must not be negative"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        Capitals(**options)
