"""Words in one relation: both ways of prompting ask the same, and examples give no answer away."""

import random
from typing import Any, get_args

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import PairDataModule, PromptPair, WordPairs
from datamodules.encode import encode_pairs
from datamodules.tasks.word_lists import NUMBERS, OPPOSITES, RELATIONS, SENTENCES, SUMS
from datamodules.tasks.word_pairs import MAX_EXAMPLES, Relation, Words
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import word_tokenizer, words_in
from tests.datamodules.tasks.conformance import check_task, clean_prompts, role_text

SMALL: dict[str, Any] = {"num_train": 20, "num_validation": 6, "num_test": 8}
FEW: dict[str, Any] = {"num_train": 6, "num_validation": 4, "num_test": 4}  # of the shortest list, for any tokenizer
PROMPTINGS = ("instruction", "few_shot")


def asked(pair: PromptPair) -> tuple[str, str]:
    return pair.labels["subject"], pair.labels["other"]


def knowing(number: int) -> PreTrainedTokenizerBase:
    """A word tokenizer for so many plurals."""
    pairs = RELATIONS["plural"][:number]
    return word_tokenizer(["When", "*", *words_in(tuple(SENTENCES.values())), *words_in(pairs)])


@pytest.mark.parametrize("relation", get_args(Relation))
@pytest.mark.parametrize("prompting", PROMPTINGS)
@pytest.mark.parametrize("entities", ["disjoint", "shared"])
def test_conforms(task_tokenizer: PreTrainedTokenizerBase, relation: Any, prompting: Any, entities: Any) -> None:
    task = WordPairs(**FEW, relation=relation, prompting=prompting, entities=entities)
    before = "examples" if prompting == "few_shot" else "instruction"
    answers = dict(RELATIONS[relation])
    for pairs in check_task(task, task_tokenizer, lambda pair: set(asked(pair)), (before, "END")).values():
        for pair in pairs:
            subject, other = role_text(pair, "subject"), role_text(pair, "subject", corrupted=True)
            assert asked(pair) == (subject, other)
            assert pair.answer == f" {answers[subject]}"
            assert pair.distractor == pair.corrupted_answer == f" {answers[other]}"
            start, end = pair.roles["subject"]
            assert pair.corrupted == pair.clean[:start] + other + pair.clean[end:]
            assert pair.roles.keys() == {"subject", before, "END"}


@pytest.mark.parametrize("entities", ["disjoint", "shared"])
@pytest.mark.parametrize("num_examples", [1, MAX_EXAMPLES])
def test_both_ways_ask_the_same_in_the_same_order(
    task_tokenizer: PreTrainedTokenizerBase, entities: Any, num_examples: int
) -> None:
    options: dict[str, Any] = {**SMALL, "entities": entities, "num_examples": num_examples, "seed": 4}
    first, second = (
        WordPairs(**options, prompting=way).splits(task_tokenizer)  # pyright: ignore[reportArgumentType]
        for way in PROMPTINGS
    )
    for split, pairs in first.items():
        assert [asked(pair) for pair in pairs] == [asked(pair) for pair in second[split]]
        assert [pair.answer for pair in pairs] == [pair.answer for pair in second[split]]
        assert not {pair.clean for pair in pairs} & {pair.clean for pair in second[split]}


def test_streams_ask_the_same_too(words: PreTrainedTokenizerBase) -> None:
    first, second = (
        WordPairs(**SMALL, prompting=way).stream(words)(12, "epoch 3")  # pyright: ignore[reportArgumentType]
        for way in PROMPTINGS
    )
    assert [asked(pair) for pair in first] == [asked(pair) for pair in second]


@pytest.mark.parametrize("relation", get_args(Relation))
def test_examples_are_right_and_never_asked_for(words: PreTrainedTokenizerBase, relation: Any) -> None:
    task = WordPairs(**FEW, relation=relation, prompting="few_shot", num_examples=MAX_EXAMPLES)
    pairs = [pair for pairs in task.splits(words).values() for pair in pairs]
    [shown] = {role_text(pair, "examples") for pair in pairs}
    examples = [line.removeprefix("* ").split(": ") for line in shown.split("\n")]
    assert len(examples) == MAX_EXAMPLES
    assert {(word, answer) for word, answer in examples} <= set(RELATIONS[relation])
    assert not {word for word, _ in examples} & {word for pair in pairs for word in asked(pair)}


def test_fewer_examples_are_the_first_ones(words: PreTrainedTokenizerBase) -> None:
    few, more = (
        role_text(WordPairs(**SMALL, prompting="few_shot", num_examples=number).splits(words)["test"][0], "examples")
        for number in (2, 4)
    )
    assert more.startswith(f"{few}\n")
    assert more.count("\n") == 3


def test_what_prompts_look_like(words: PreTrainedTokenizerBase) -> None:
    pair = WordPairs(**SMALL).splits(words)["train"][0]
    subject = pair.labels["subject"]
    assert pair.clean == f"Write the plural. Singular: {subject}. Plural:"
    assert role_text(pair, "instruction") == "Write the plural. Singular:"
    pair = WordPairs(**SMALL, prompting="few_shot").splits(words)["train"][0]
    assert pair.clean == f"{role_text(pair, 'examples')}\n* {subject}:"


def test_a_pair_never_has_one_answer_twice(words: PreTrainedTokenizerBase) -> None:
    pairs = WordPairs(60, 5, 5, relation="sum", entities="shared").splits(words)["train"]
    values = {f" {word}": number for number, word in enumerate(NUMBERS, 1)}
    for pair in pairs:
        first, _, second = pair.labels["subject"].split()
        assert values[pair.answer] == values[f" {first}"] + values[f" {second}"]
        assert pair.distractor != pair.answer


def test_lists_are_without_repetition() -> None:
    for relation, pairs in RELATIONS.items():
        assert len({word for word, _ in pairs}) == len(pairs)
        assert all(word != answer for word, answer in pairs)
        if relation != "sum":
            assert len({answer for _, answer in pairs}) == len(pairs)
    words = [word for pair in OPPOSITES for word in pair]
    assert len(set(words)) == len(words)  # no word has two opposites
    assert len(SUMS) == 81
    assert SENTENCES.keys() == RELATIONS.keys() == set(get_args(Relation))
    assert all(sentence.count(" {subject}") == 1 for sentence in SENTENCES.values())


def test_an_instruction_of_ones_own(smollm2: PreTrainedTokenizerBase) -> None:
    chat = "<|im_start|>user\nPlural of {subject}?<|im_end|>\n<|im_start|>assistant\nPlural:"
    pairs = WordPairs(**SMALL, instruction=chat).splits(smollm2)["test"]
    for pair, tokens in zip(pairs, encode_pairs(pairs, smollm2, single_token_answers=True), strict=True):
        assert pair.clean == chat.format(subject=pair.labels["subject"])
        assert smollm2.decode(list(tokens.clean[slice(*tokens.roles["subject"])])).strip() == pair.labels["subject"]


def test_smollm2_has_words_enough(smollm2: PreTrainedTokenizerBase) -> None:
    found = {name: len(WordPairs(relation=name).vocabulary(smollm2).questions) for name in get_args(Relation)}
    assert found["plural"] >= 172  # of the case study
    assert min(found.values()) >= 24


def test_seed_decides(words: PreTrainedTokenizerBase) -> None:
    assert clean_prompts(WordPairs(**SMALL, seed=1), words) != clean_prompts(WordPairs(**SMALL, seed=2), words)


def test_batches_have_the_roles(words: PreTrainedTokenizerBase) -> None:
    data = PairDataModule(WordPairs(**SMALL, prompting="few_shot"), batch_size=4, cache=False)
    data.tokenizer_object = words
    assert set(next(iter(data.train_dataloader())).roles) == {"subject", "examples", "END"}


def test_words_of_one_answer_are_refused() -> None:
    task = WordPairs(relation="sum")
    alike = tuple(pair for pair in SUMS if pair[1] == "five")
    assert len(alike) == 4
    with pytest.raises(EdgepruneError, match="all words of a split have the answer 'five'"):
        task.generate(Words((alike,), ()), 2, random.Random(0))


def test_too_few_words_are_refused() -> None:
    with pytest.raises(EdgepruneError, match=r"'plural' has 8 words of one length .* needs 9: choose another relation"):
        WordPairs(**SMALL).splits(knowing(8))
    with pytest.raises(EdgepruneError, match="5 words of 'plural' cannot be shared out among 3 splits of at least 4"):
        WordPairs(**SMALL).splits(knowing(10))
    with pytest.raises(EdgepruneError, match=r"34 different plural WordPairs prompts were asked for, .* give 25: ask"):
        WordPairs(**SMALL, entities="shared").splits(knowing(30))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relation": "rhyme"}, "relation must be one of .* got 'rhyme'"),
        ({"prompting": "chat"}, "prompting must be one of .* got 'chat'"),
        ({"num_examples": 0}, "num_examples must be 1..5, got 0"),
        ({"num_examples": 6}, "num_examples must be 1..5, got 6"),
        ({"instruction": "The plural is"}, "instruction must have the slot {subject} once, after a space"),
        ({"instruction": "{subject} has the plural"}, "after a space"),
        ({"instruction": "The plural of {subject} or {subject} is"}, "once"),
        ({"instruction": "{subject} or {subject} has the plural"}, "once"),
        ({"instruction": "The {relation} of {subject} is"}, "no other braces"),
        ({"instruction": " {subject} has the plural"}, "must have words before the slot {subject}"),
        (
            {"instruction": "Plural of {subject}:", "prompting": "few_shot"},
            "'few_shot' uses no instruction, got 'Plural",
        ),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        WordPairs(**settings)
