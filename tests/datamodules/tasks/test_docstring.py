"""Docstring completion: form of the prompts, what each corruption changes, roles, splits."""

import ast
import re
from keyword import iskeyword

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import Docstring, PairDataModule, PromptPair
from datamodules.encode import encode_pairs
from datamodules.tasks.docstring import ARGUMENTS, DESCRIPTIONS, FUNCTIONS
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import DOCSTRING_MARKS, word_tokenizer

SMALL = {"num_train": 40, "num_validation": 20, "num_test": 20}
CORRUPTIONS = ("random_random", "random_def", "random_doc", "random_answer")


def parse(prompt: str) -> tuple[list[str], list[str]]:
    """Arguments of the function and of the docstring, as Python's own parser sees them."""
    [function] = ast.parse(prompt + ' x:\n    """').body
    assert isinstance(function, ast.FunctionDef)
    described = re.findall(r":param (\w+):", ast.get_docstring(function) or "")
    return [argument.arg for argument in function.args.args], described


def named(pair: PromptPair) -> dict[str, str]:
    return {name: pair.clean[start:end] for name, (start, end) in pair.roles.items()}


def test_words_are_many_and_without_repetition() -> None:
    for listed, least in ((ARGUMENTS, 150), (FUNCTIONS, 60), (DESCRIPTIONS, 100)):
        assert len(set(listed)) == len(listed) >= least
    assert not any(iskeyword(word) for word in (*ARGUMENTS, *FUNCTIONS))


def test_all_listed_words_can_be_used(tokenizer: PreTrainedTokenizerBase) -> None:
    words = Docstring().vocabulary(tokenizer)
    assert tuple(words.arguments) == ARGUMENTS
    assert (words.functions, words.descriptions) == (FUNCTIONS, DESCRIPTIONS)


def test_clean_prompts_are_python_and_ask_for_the_third_argument(words: PreTrainedTokenizerBase) -> None:
    for pair in Docstring(**SMALL).splits(words)["train"]:
        arguments, described = parse(pair.clean)
        assert arguments[0] == "self"
        assert len(arguments) == len(set(arguments)) == 7
        assert described == [*arguments[3:5], "x"]
        assert pair.clean.endswith("\n    :param")
        assert (pair.answer, pair.distractor) == (f" {arguments[5]}", f" {arguments[4]}")


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_changes_its_names_and_nothing_else(words: PreTrainedTokenizerBase, corruption: str) -> None:
    changed = {
        "random_random": ([3, 4, 5], [0, 1]),
        "random_def": ([3, 4, 5], []),
        "random_doc": ([], [0, 1]),
        "random_answer": ([5], []),
    }[corruption]
    for pair in Docstring(**SMALL, corruption=corruption).splits(words)["train"]:  # pyright: ignore
        (old, old_doc), (new, new_doc) = parse(pair.clean), parse(pair.corrupted)
        assert [i for i in range(len(old)) if old[i] != new[i]] == changed[0]
        assert [i for i in range(len(old_doc)) if old_doc[i] != new_doc[i]] == changed[1]
        fresh = [new[i] for i in changed[0]] + [new_doc[i] for i in changed[1]]
        assert len(set(fresh)) == len(fresh)
        assert not set(fresh) & {*old, *old_doc}
        blank = re.compile(r"\b(" + "|".join({*old, *new, *new_doc} - {"self", "x"}) + r")\b(?=[,):])")
        assert blank.sub("_", pair.clean) == blank.sub("_", pair.corrupted)
        known = f" {new[5]}" if corruption == "random_answer" else None
        assert pair.corrupted_answer == known


def test_wrong_answers_are_all_other_names(tokenizer: PreTrainedTokenizerBase) -> None:
    for pair in Docstring(**SMALL).splits(tokenizer)["train"]:
        [ids] = pair.wrong_ids
        arguments = parse(pair.clean)[0]
        others = [name for name in arguments[1:] if f" {name}" != pair.answer]
        assert tokenizer.decode(list(ids)).split() == others


def test_roles_lie_on_their_words(tokenizer: PreTrainedTokenizerBase) -> None:
    pairs = Docstring(**SMALL).splits(tokenizer)["test"]
    for pair in pairs:
        arguments, described = parse(pair.clean)
        first, second, third = arguments[3:6]
        expected = {"A_def": first, "B_def": second, "C_def": third, "A_doc": described[0], "B_doc": described[1]}
        assert named(pair) == {**expected, "B_comma": ",", "END": "m"}
        start, end = pair.corrupted_roles["C_def"]
        assert pair.corrupted[start:end] == parse(pair.corrupted)[0][5]
    for pair, tokens in zip(pairs, encode_pairs(pairs, tokenizer), strict=True):
        text = {role: tokenizer.decode(list(tokens.clean[a:b])).strip() for role, (a, b) in tokens.roles.items()}
        assert text == {**named(pair), "END": "param"}
        assert tokens.roles["END"] == (len(tokens.clean) - 1, len(tokens.clean))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_tokens_align(tokenizer: PreTrainedTokenizerBase, corruption: str) -> None:
    pairs = Docstring(num_train=100, corruption=corruption).splits(tokenizer)["train"]  # pyright: ignore
    differing = {"random_random": 5, "random_def": 3, "random_doc": 2, "random_answer": 1}[corruption]
    for tokens in encode_pairs(pairs, tokenizer, single_token_answers=True):
        assert sum(a != b for a, b in zip(tokens.clean, tokens.corrupted, strict=True)) == differing
        assert tokens.positions == (len(tokens.clean) - 1,)
        assert len(tokens.wrong_answers[0]) == 5


def test_smollm2_can_be_used(smollm2: PreTrainedTokenizerBase) -> None:
    assert tuple(Docstring().vocabulary(smollm2).arguments) == ARGUMENTS
    pairs = Docstring(**SMALL).splits(smollm2)["train"]
    assert len(encode_pairs(pairs, smollm2, single_token_answers=True)) == 40


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 2)])
def test_the_number_of_arguments_can_be_chosen(words: PreTrainedTokenizerBase, before: int, after: int) -> None:
    for pair in Docstring(**SMALL, num_before=before, num_after=after).splits(words)["train"]:
        arguments = parse(pair.clean)[0]
        assert len(arguments) == 1 + before + 3 + after
        assert pair.answer == f" {arguments[before + 3]}"
        assert len(pair.wrong_ids[0]) == before + 2 + after


def test_no_prompt_occurs_twice_and_no_name_in_two_splits(words: PreTrainedTokenizerBase) -> None:
    splits = Docstring(num_train=500, num_validation=100, num_test=200).splits(words)
    prompts = [pair.clean for pairs in splits.values() for pair in pairs]
    assert len(set(prompts)) == 800
    names = [
        {name for pair in pairs for text in (pair.clean, pair.corrupted) for part in parse(text) for name in part}
        - {"self", "x"}
        for pairs in splits.values()
    ]
    assert all(names)
    assert sum(map(len, names)) == len(set().union(*names))


def test_names_can_be_shared(words: PreTrainedTokenizerBase) -> None:
    splits = Docstring(num_train=500, num_validation=100, num_test=200, entities="shared").splits(words)
    answers = {name: {pair.answer for pair in pairs} for name, pairs in splits.items()}
    assert answers["train"] & answers["test"]
    assert len({pair.clean for pairs in splits.values() for pair in pairs}) == 800


def test_seed_decides(words: PreTrainedTokenizerBase) -> None:
    assert Docstring(**SMALL, seed=3).splits(words) == Docstring(**SMALL, seed=3).splits(words)
    assert Docstring(**SMALL, seed=3).splits(words) != Docstring(**SMALL, seed=4).splits(words)


def test_batches_hold_the_wrong_answers(words: PreTrainedTokenizerBase) -> None:
    data = PairDataModule(Docstring(**SMALL), batch_size=4, cache=False)
    data.tokenizer_object = words
    batch = next(iter(data.train_dataloader()))
    assert batch.wrong_answers.shape == (4, 1, 5)
    assert set(batch.roles) == {"A_def", "B_def", "B_comma", "C_def", "A_doc", "B_doc", "END"}
    first = batch.roles["C_def"][:, 0]
    answers = batch.clean.gather(1, first[:, None])
    assert answers.tolist() == batch.targets.tolist()


def few_words(num_arguments: int) -> PreTrainedTokenizerBase:
    return word_tokenizer(["When", *DOCSTRING_MARKS, *FUNCTIONS, *DESCRIPTIONS, *ARGUMENTS[:num_arguments]])


def test_too_few_names_are_refused() -> None:
    with pytest.raises(EdgepruneError, match=r"13 of 14 argument names.* of 1 function names.* of 3 describing words"):
        Docstring().splits(few_words(13))
    with pytest.raises(EdgepruneError, match="20 argument names cannot be shared out among 3 splits"):
        Docstring().splits(few_words(20))
    assert len(Docstring(entities="shared").splits(few_words(20))["train"]) == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption": "random"}, "corruption must be one of .* got 'random'"),
        ({"num_before": -1}, "num_before and num_after must be 0..9, got -1 and 1"),
        ({"num_after": 10}, "must be 0..9, got 2 and 10"),
        ({"num_test": -1}, "must not be negative"),
        ({"entities": "new"}, "entities must be"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        Docstring(**settings)


def test_tokenizer_is_needed() -> None:
    with pytest.raises(EdgepruneError, match="give the data module a tokenizer"):
        Docstring().splits(None)
