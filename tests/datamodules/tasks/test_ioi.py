import hashlib
import re
from collections import Counter
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import IOI, PromptPair
from datamodules.encode import encode_pairs
from datamodules.tasks.ioi import NAMES, OBJECTS, PLACES, TEMPLATES, IOIWords
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import TEMPLATE_WORDS, word_tokenizer
from tests.datamodules.tasks.conformance import check_task, role_text

SMALL = {"num_train": 60, "num_validation": 30, "num_test": 30}


def names_in(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word in NAMES]


def test_lists_are_long_and_without_repetition() -> None:
    assert len(TEMPLATES) >= 12
    for listed, least in ((NAMES, 60), (PLACES, 15), (OBJECTS, 15), (TEMPLATES, 12)):
        assert len(set(listed)) == len(listed) >= least


def test_every_template_names_two_people_and_asks_for_one() -> None:
    for template in TEMPLATES:
        for slot in ("first", "second", "place", "object", "subject"):
            assert template.count(" {" + slot + "}") == 1
        assert template.index("{first}") < template.index("{second}") < template.index("{subject}")
        assert template.endswith(" to")


def test_pairs_have_the_form_of_their_order(tokenizer: PreTrainedTokenizerBase) -> None:
    for pair in IOI(**SMALL).splits(tokenizer)["train"]:
        io, subject = pair.labels["io"], pair.labels["subject"]
        opening = [io, subject] if pair.labels["order"] == "ABBA" else [subject, io]
        assert names_in(pair.clean) == [*opening, subject]
        assert (pair.answer, pair.distractor) == (f" {io}", f" {subject}")


def test_abc_brings_three_new_names_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    for pair in IOI(**SMALL, corruption="abc").splits(tokenizer)["train"]:
        old, new = names_in(pair.clean), names_in(pair.corrupted)
        assert len(set(new)) == 3
        assert not set(new) & set(old)
        blank = re.compile(r"\b(" + "|".join(NAMES) + r")\b")
        assert blank.sub("_", pair.clean) == blank.sub("_", pair.corrupted)


def test_flip_changes_the_last_name_to_io(tokenizer: PreTrainedTokenizerBase) -> None:
    for pair in IOI(**SMALL, corruption="s2_io_flip").splits(tokenizer)["train"]:
        opening, (_, answer, _) = names_in(pair.clean)[:2], ("", pair.labels["io"], "")
        assert names_in(pair.corrupted) == [*opening, answer]
        head, subject, tail = pair.clean.rpartition(pair.labels["subject"])
        assert subject
        assert pair.corrupted == head + answer + tail


def test_random_changes_the_last_name_to_a_third(tokenizer: PreTrainedTokenizerBase) -> None:
    for pair in IOI(**SMALL, corruption="s2_random").splits(tokenizer)["train"]:
        *opening, old = names_in(pair.clean)
        *corrupted_opening, new = names_in(pair.corrupted)
        assert corrupted_opening == opening
        assert new not in opening
        head, subject, tail = pair.clean.rpartition(old)
        assert subject == pair.labels["subject"]
        assert pair.corrupted == head + new + tail
        assert pair.corrupted_answer is None


# Hashes of the pairs from before names were shared out: what was measured on them stays comparable.
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "9b9dc32abfb2a10a9b96090e5a5bed54674ae3c2a74722829058e342a5934aa2"),
        ({"corruption": "s2_io_flip", "seed": 3}, "05356fe94c0cbe17e9c5e2d16c2a80abb7ff61b929908f18e7f42f3e9c9e0f0b"),
        (
            {"num_train": 400, "num_validation": 100, "num_test": 200, "templates": 1},
            "d4edef63bfe4741903cb10b3dff95876c7719e52b5213059d2c7e88bbfbdb8f9",
        ),
        (
            {"num_train": 70, "orders": ("BABA",), "templates": 4, "seed": 7},
            "d8ba29251f4ed2477979bd9bcdbec96e15703279d2d43239774e620fd31c963c",
        ),
    ],
    ids=str,
)
def test_shared_names_give_the_pairs_they_always_gave(
    words: PreTrainedTokenizerBase, options: dict[str, Any], expected: str
) -> None:
    splits = IOI(**options, entities="shared").splits(words)
    text = "\n".join(
        f"{name}|{pair.clean}|{pair.corrupted}|{pair.answer}|{pair.distractor}"
        for name, pairs in splits.items()
        for pair in pairs
    )
    assert hashlib.sha256(text.encode()).hexdigest() == expected


@pytest.mark.parametrize("corruption", ["abc", "s2_io_flip", "s2_random"])
@pytest.mark.parametrize("entities", ["disjoint", "shared"])
def test_conforms(tokenizer: PreTrainedTokenizerBase, corruption: Any, entities: Any) -> None:
    task = IOI(**SMALL, corruption=corruption, entities=entities)
    splits = check_task(task, tokenizer, lambda pair: {*names_in(pair.clean), *names_in(pair.corrupted)})
    for pair in (pair for pairs in splits.values() for pair in pairs):
        io, subject = pair.labels["io"], pair.labels["subject"]
        assert [role_text(pair, role) for role in ("IO", "S1", "S2")] == [io, subject, subject]
        slots = ("IO", "S1", "S2") if pair.labels["order"] == "ABBA" else ("S1", "IO", "S2")
        assert [role_text(pair, slot, corrupted=True) for slot in slots] == names_in(pair.corrupted)
        start, end = pair.roles["S1+1"]
        assert end == start + 1
        assert pair.clean[pair.roles["S1"][1] : start].strip() == ""
        if corruption == "s2_io_flip":
            assert pair.corrupted_answer == pair.distractor


def test_every_split_has_names_of_its_own() -> None:
    tokenizer = few_words(24)
    splits = IOI(num_train=1, num_validation=1, num_test=1).splits(tokenizer)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 1, "validation": 1, "test": 1}
    with pytest.raises(EdgepruneError, match="23 names cannot be shared out among 3 splits of at least 8"):
        IOI().splits(few_words(23))


def test_tokens_align_and_templates_have_one_length(tokenizer: PreTrainedTokenizerBase) -> None:
    pairs = IOI(num_train=300).splits(tokenizer)["train"]
    lengths: dict[str, set[int]] = {}
    for pair, tokens in zip(pairs, encode_pairs(pairs, tokenizer), strict=True):
        lengths.setdefault(pair.labels["template"], set()).add(len(tokens.clean))
        differing = [i for i, (a, b) in enumerate(zip(tokens.clean, tokens.corrupted, strict=True)) if a != b]
        assert len(differing) == 3
        assert len(tokens.targets) == 1
        assert tokens.positions == (len(tokens.clean) - 1,)
    assert len(lengths) == len(TEMPLATES)
    assert all(len(found) == 1 for found in lengths.values())


def test_all_listed_words_can_be_used(tokenizer: PreTrainedTokenizerBase) -> None:
    assert IOI().vocabulary(tokenizer) == IOIWords(NAMES, PLACES, OBJECTS)


def test_no_prompt_occurs_twice(words: PreTrainedTokenizerBase) -> None:
    splits = IOI(num_train=2000, num_validation=500, num_test=500).splits(words)
    prompts = [pair.clean for pairs in splits.values() for pair in pairs]
    assert {name: len(pairs) for name, pairs in splits.items()} == {
        "train": 2000,
        "validation": 500,
        "test": 500,
    }
    assert len(set(prompts)) == 3000


def test_every_split_is_balanced(words: PreTrainedTokenizerBase) -> None:
    for pairs in IOI(num_train=310, num_validation=65, num_test=40).splits(words).values():
        cells = Counter((pair.labels["template"], pair.labels["order"]) for pair in pairs)
        assert len(cells) == 2 * len(TEMPLATES)
        assert max(cells.values()) - min(cells.values()) <= 1


def test_templates_and_orders_can_be_chosen(words: PreTrainedTokenizerBase) -> None:
    pairs = IOI(**SMALL, templates=2, orders=("BABA",)).splits(words)["train"]
    assert {pair.labels["template"] for pair in pairs} == {"0", "1"}
    assert {pair.labels["order"] for pair in pairs} == {"BABA"}


def test_seed_decides(words: PreTrainedTokenizerBase) -> None:
    assert IOI(**SMALL, seed=3).splits(words) == IOI(**SMALL, seed=3).splits(words)
    assert IOI(**SMALL, seed=3).splits(words) != IOI(**SMALL, seed=4).splits(words)


def few_words(num_names: int = 8) -> PreTrainedTokenizerBase:
    return word_tokenizer(["When", *TEMPLATE_WORDS, *NAMES[:num_names], PLACES[0], OBJECTS[0], OBJECTS[1]])


def test_only_known_single_tokens_are_used() -> None:
    assert IOI().vocabulary(few_words()) == IOIWords(NAMES[:8], PLACES[:1], OBJECTS[:2])


def test_fillings_are_numbered_without_repetition() -> None:
    words = IOIWords(NAMES[:5], PLACES[:3], OBJECTS[:2])
    fillings = {words.filling(i) for i in range(words.num_fillings)}
    assert len(fillings) == words.num_fillings == 5 * 4 * 3 * 2
    assert all(io != subject for io, subject, _, _ in fillings)


def test_all_prompts_can_be_asked_for_but_not_one_more() -> None:
    most = 8 * 7 * 2  # fillings of one template in one order
    sizes = {"num_validation": 0, "num_test": 0, "templates": 1}
    pairs: list[PromptPair] = IOI(num_train=2 * most, **sizes).splits(few_words())["train"]
    assert len({pair.clean for pair in pairs}) == 2 * most
    with pytest.raises(EdgepruneError, match=f"{2 * most + 1} different .* give {2 * most}: ask for fewer"):
        IOI(num_train=2 * most + 1, **sizes).splits(few_words())


def test_too_few_names_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="has 7 of 8 names, 1 of 1 places, 2 of 1 objects"):
        IOI().splits(few_words(7))


def test_tokenizer_is_needed() -> None:
    with pytest.raises(EdgepruneError, match="give the data module a tokenizer"):
        IOI().splits(None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption": "xyz"}, "corruption must be one of .* got 'xyz'"),
        ({"orders": ()}, "orders must be"),
        ({"orders": ("ABBA", "ABBA")}, "orders must be"),
        ({"orders": ("AABB",)}, "orders must be .* got"),
        ({"templates": 0}, "templates must be 1..15"),
        ({"templates": 16}, "templates must be 1..15, or null for all, got 16"),
        ({"num_test": -1}, "must not be negative"),
        ({"num_train": 10**9}, "1 to 5000000 in all"),
        ({"num_train": 0, "num_validation": 0, "num_test": 0}, "1 to 5000000 in all"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        IOI(**settings)


def test_description_holds_every_setting() -> None:
    assert IOI(num_test=7, templates=3).description() == {
        "task": "IOI",
        "num_train": 200,
        "num_validation": 100,
        "num_test": 7,
        "entities": "disjoint",
        "corruption": "abc",
        "orders": ("ABBA", "BABA"),
        "templates": 3,
        "seed": 0,
    }
