from collections import Counter
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import PromptPair, SubjectVerb
from datamodules.tasks.subject_verb import ADJECTIVES, NOUNS, RELATIONS, SIMPLE, VERBS, WITH_ATTRACTOR
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import TASK_WORDS, word_tokenizer
from tests.datamodules.tasks.conformance import check_task, clean_prompts, role_text

SMALL: dict[str, Any] = {"num_train": 60, "num_validation": 24, "num_test": 36}
SINGULAR = {noun: forms for forms in NOUNS for noun in forms}


def nouns(pair: PromptPair) -> set[str]:
    return {SINGULAR[role_text(pair, role)][0] for role in pair.roles if role != "END"}


def few_nouns(number: int, without: tuple[str, ...] = ()) -> PreTrainedTokenizerBase:
    left = {form for forms in NOUNS[number:] for form in forms} | set(without)
    return word_tokenizer(["When", *(word for word in TASK_WORDS if word not in left)])


@pytest.mark.parametrize(
    "options", [{}, {"attractor": True}, {"entities": "shared", "attractor": True}, {"answer_set": "pair"}], ids=str
)
def test_conforms(task_tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> None:
    task = SubjectVerb(**SMALL, **options)
    roles = ("attractor", "END") if task.attractor else ()
    splits = check_task(task, task_tokenizer, nouns, same_roles=roles)
    for pair in (pair for pairs in splits.values() for pair in pairs):
        number = ("singular", "plural").index(pair.labels["number"])
        forms = SINGULAR[role_text(pair, "subject")]
        assert forms[0] == pair.labels["subject"]
        assert (role_text(pair, "subject"), role_text(pair, "subject", corrupted=True)) == (
            forms[number],
            forms[1 - number],
        )
        verb = next(forms for forms in VERBS if forms[0] == pair.labels["verb"])
        assert (pair.answer, pair.distractor) == (f" {verb[number]}", f" {verb[1 - number]}")
        assert pair.corrupted_answer == pair.distractor


def test_the_attractor_has_the_other_number(words: PreTrainedTokenizerBase) -> None:
    relations = {form: number for forms in RELATIONS for number, form in enumerate(forms)}
    for pair in SubjectVerb(**SMALL, attractor=True).splits(words)["train"]:
        number = ("singular", "plural").index(pair.labels["number"])
        attractor = role_text(pair, "attractor")
        assert attractor == SINGULAR[attractor][1 - number]
        assert pair.labels["attractor"] == SINGULAR[attractor][0] != pair.labels["subject"]
        last = pair.clean.split()[-1]
        assert last == attractor or relations[last] == 1 - number


def test_only_the_subject_is_changed(words: PreTrainedTokenizerBase) -> None:
    for pair in SubjectVerb(**SMALL, attractor=True).splits(words)["train"]:
        clean, corrupted = pair.clean.split(), pair.corrupted.split()
        changed = [(a, b) for a, b in zip(clean, corrupted, strict=True) if a != b]
        assert changed == [(role_text(pair, "subject"), role_text(pair, "subject", corrupted=True))]


def test_answers_are_all_verbs_of_the_number(gpt2: PreTrainedTokenizerBase) -> None:
    for pair in SubjectVerb(**SMALL).splits(gpt2)["train"]:
        number = ("singular", "plural").index(pair.labels["number"])
        [right], [wrong] = pair.answer_ids, pair.wrong_ids
        assert [gpt2.decode([token]) for token in right] == [f" {verb[number]}" for verb in VERBS]
        assert [gpt2.decode([token]) for token in wrong] == [f" {verb[1 - number]}" for verb in VERBS]
    for pair in SubjectVerb(**SMALL, answer_set="pair").splits(gpt2)["train"]:
        assert not pair.answer_ids
        assert not pair.wrong_ids


def test_lists_are_long_and_without_repetition() -> None:
    for listed, least in ((NOUNS, 60), (VERBS, 10), (RELATIONS, 5), (ADJECTIVES, 10)):
        forms = [form for item in listed for form in ((item,) if isinstance(item, str) else item)]
        assert len(listed) >= least
        assert len(set(forms)) == len(forms)
    assert all(form.count("{subject}") == 1 for form in (*SIMPLE, *WITH_ATTRACTOR))
    assert all(form.index("{subject}") < form.index("{attractor}") for form in WITH_ATTRACTOR)


def test_all_words_can_be_used(task_tokenizer: PreTrainedTokenizerBase) -> None:
    found = SubjectVerb().vocabulary(task_tokenizer)
    assert (found.nouns, found.verbs, found.adjectives, found.relations) == (NOUNS, VERBS, ADJECTIVES, RELATIONS)


@pytest.mark.parametrize("attractor", [False, True])
def test_every_split_is_balanced(words: PreTrainedTokenizerBase, attractor: bool) -> None:
    for pairs in SubjectVerb(num_train=100, num_validation=41, num_test=50, attractor=attractor).splits(words).values():
        cells = Counter((pair.labels["template"], pair.labels["number"]) for pair in pairs)
        assert len(cells) == 2 * len(SIMPLE) == 2 * len(WITH_ATTRACTOR)
        assert max(cells.values()) - min(cells.values()) <= 1


def test_seed_decides(words: PreTrainedTokenizerBase) -> None:
    assert clean_prompts(SubjectVerb(seed=1), words) != clean_prompts(SubjectVerb(seed=2), words)


def test_too_few_words_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="17 nouns cannot be shared out among 3 splits of at least 6"):
        SubjectVerb().splits(few_nouns(17))
    with pytest.raises(EdgepruneError, match=r"SubjectVerb needs .* has 5 of 6 nouns"):
        SubjectVerb().splits(few_nouns(5))
    with pytest.raises(EdgepruneError, match="20 of 6 nouns, 0 of 1 verbs"):
        SubjectVerb().splits(few_nouns(20, without=tuple(verb[1] for verb in VERBS)))


@pytest.mark.parametrize(("attractor", "each"), [(False, 1), (True, 6)])
def test_too_many_pairs_are_refused(attractor: bool, each: int) -> None:
    most = 2 * 7 * each * len(ADJECTIVES)
    options: dict[str, Any] = {"num_validation": 0, "num_test": 0, "templates": 1, "attractor": attractor}
    assert len(set(clean_prompts(SubjectVerb(num_train=most, **options), few_nouns(7)))) == most
    with pytest.raises(EdgepruneError, match=f"{most + 1} different .* give {most}: ask for fewer"):
        SubjectVerb(num_train=most + 1, **options).splits(few_nouns(7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": 7}, "templates must be 1..6, or null for all, got 7"),
        ({"answer_set": "all"}, "answer_set must be one of .'verbs', 'pair'., got 'all'"),
        ({"num_train": -1}, "must not be negative"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        SubjectVerb(**options)
