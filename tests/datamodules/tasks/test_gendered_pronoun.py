from collections import Counter
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import GenderedPronoun, PromptPair
from datamodules.tasks.gendered_pronoun import FEMALE, MALE, OPENINGS, TEMPLATES, TOPICS, Names
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import TASK_WORDS, word_tokenizer
from tests.datamodules.tasks.conformance import check_task, clean_prompts, role_text

SMALL: dict[str, Any] = {"num_train": 64, "num_validation": 32, "num_test": 32}


def names(pair: PromptPair) -> set[str]:
    return {role_text(pair, "name"), role_text(pair, "name", corrupted=True)}


def few_names(num_female: int, num_male: int, *pronouns: str) -> PreTrainedTokenizerBase:
    known = [word for word in TASK_WORDS if word not in (*FEMALE, *MALE, "he", "she")]
    return word_tokenizer(["When", *known, *FEMALE[:num_female], *MALE[:num_male], *(pronouns or ("he", "she"))])


@pytest.mark.parametrize("options", [{}, {"templates": 1}, {"entities": "shared"}], ids=str)
def test_conforms(task_tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> None:
    splits = check_task(GenderedPronoun(**SMALL, **options), task_tokenizer, names)
    for pair in (pair for pairs in splits.values() for pair in pairs):
        name, other = role_text(pair, "name"), role_text(pair, "name", corrupted=True)
        assert pair.labels["name"] == name
        female = pair.labels["gender"] == "female"
        assert (name in FEMALE, other in MALE) == (female, female)
        assert (name in MALE, other in FEMALE) == (not female, not female)
        assert (pair.answer, pair.distractor) == ((" she", " he") if female else (" he", " she"))
        assert pair.corrupted_answer == pair.distractor
        assert pair.corrupted == pair.clean.replace(f" {name} ", f" {other} ")


def test_lists_are_long_and_disjoint() -> None:
    for listed, least in ((FEMALE, 60), (MALE, 60), (TEMPLATES, 6), (OPENINGS, 5), (TOPICS, 20)):
        assert len(set(listed)) == len(listed) >= least
    assert not set(FEMALE) & set(MALE)


def test_all_names_can_be_used(task_tokenizer: PreTrainedTokenizerBase) -> None:
    assert GenderedPronoun().vocabulary(task_tokenizer) == Names(FEMALE, MALE)


def test_every_split_is_balanced(words: PreTrainedTokenizerBase) -> None:
    for pairs in GenderedPronoun(num_train=100, num_validation=41, num_test=50).splits(words).values():
        cells = Counter((pair.labels["template"], pair.labels["gender"]) for pair in pairs)
        assert len(cells) == 2 * len(TEMPLATES)
        assert max(cells.values()) - min(cells.values()) <= 1


def test_every_split_has_names_of_both_genders() -> None:
    tokenizer = few_names(18, 30)
    for pairs in GenderedPronoun(num_train=300, num_validation=300, num_test=300).splits(tokenizer).values():
        for gender, listed in (("female", FEMALE), ("male", MALE)):
            own = {pair.labels["name"] for pair in pairs if pair.labels["gender"] == gender}
            assert len(own) == 6
            assert own <= set(listed)


def test_seed_decides(words: PreTrainedTokenizerBase) -> None:
    assert clean_prompts(GenderedPronoun(seed=1), words) != clean_prompts(GenderedPronoun(seed=2), words)


def test_too_few_names_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="17 female names cannot be shared out among 3 splits of at least 6"):
        GenderedPronoun().splits(few_names(17, 30))
    with pytest.raises(EdgepruneError, match=r"has 5 of 6 female names, 30 of 6 male names"):
        GenderedPronoun().splits(few_names(5, 30))
    with pytest.raises(EdgepruneError, match="1 of 2 pronouns"):
        GenderedPronoun().splits(few_names(18, 18, "she"))


def test_too_many_pairs_are_refused() -> None:
    most = 2 * 6 * len(OPENINGS) * len(TOPICS)
    options: dict[str, Any] = {"num_validation": 0, "num_test": 0, "templates": 1}
    assert len(set(clean_prompts(GenderedPronoun(num_train=most, **options), few_names(6, 9)))) == most
    with pytest.raises(EdgepruneError, match=f"{most + 1} different .* give {most}: ask for fewer"):
        GenderedPronoun(num_train=most + 1, **options).splits(few_names(6, 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": 0}, "templates must be 1..8, or null for all, got 0"),
        ({"templates": 9}, "templates must be 1..8"),
        ({"num_train": -1}, "must not be negative"),
        ({"entities": "both"}, "entities must be"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        GenderedPronoun(**options)
