"""Boolean expressions, whose values Python itself confirms."""

import random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import BooleanExpressions, PairDataModule, PromptPair
from datamodules.encode import encode_pairs
from datamodules.tasks.boolean import MAX_OPERATORS, bucket, draw_form, draw_words, pattern, value
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import word_tokenizer

SMALL: dict[str, Any] = {"num_train": 60, "num_validation": 20, "num_test": 20}
PROMPTINGS = ("few_shot", "instruction")


def truth(expression: str) -> bool:
    """What Python says, with its own precedence of `not`, `and` and `or`."""
    return eval(expression, {"__builtins__": {}})


def asked(pairs: list[PromptPair]) -> list[tuple[str, str]]:
    return [(pair.labels["expression"], pair.labels["corrupted"]) for pair in pairs]


@pytest.mark.parametrize("num_operators", [1, 2, 5, MAX_OPERATORS])
def test_values_are_those_of_python(num_operators: int) -> None:
    rng = random.Random(num_operators)
    for _ in range(300):
        form = draw_form(num_operators, rng)
        words = draw_words(pattern(form).count("%s"), rng)
        text = pattern(form) % words
        assert value(form, iter(words)) is truth(text)
        assert sum(text.split().count(word) for word in ("and", "or", "not")) == num_operators


def test_forms_differ_in_everything() -> None:
    rng = random.Random(0)
    forms = {pattern(draw_form(3, rng)) for _ in range(3000)}
    assert len(forms) == 22  # unary-binary trees with three inner nodes: large Schroeder number


@pytest.mark.parametrize("prompting", PROMPTINGS)
def test_answers_are_right_and_corrupted_ones_the_opposite(words: PreTrainedTokenizerBase, prompting: str) -> None:
    for pairs in BooleanExpressions(**SMALL, prompting=prompting).splits(words).values():  # pyright: ignore
        for pair in pairs:
            clean, corrupted = pair.labels["expression"], pair.labels["corrupted"]
            assert (pair.answer, pair.distractor) == (f" {truth(clean)}", f" {not truth(clean)}")
            assert truth(corrupted) is not truth(clean)
            assert pair.corrupted_answer == f" {truth(corrupted)}"
            assert pair.clean.endswith(f"{clean} is")
            assert pair.clean.removesuffix(f"{clean} is") == pair.corrupted.removesuffix(f"{corrupted} is")


def test_the_two_expressions_have_one_form(words: PreTrainedTokenizerBase) -> None:
    for clean, corrupted in asked(BooleanExpressions(**SMALL).splits(words)["train"]):
        for old, new in zip(clean.split(), corrupted.split(), strict=True):
            assert old == new or {old, new} in ({"True", "False"}, {"and", "or"})


@pytest.mark.parametrize("entities", ["disjoint", "shared"])
def test_half_of_the_answers_are_true(words: PreTrainedTokenizerBase, entities: Any) -> None:
    task = BooleanExpressions(num_train=101, num_validation=50, num_test=33, entities=entities)
    for pairs in task.splits(words).values():
        true = sum(pair.answer == " True" for pair in pairs)
        assert abs(2 * true - len(pairs)) <= 1


@pytest.mark.parametrize("entities", ["disjoint", "shared"])
def test_both_ways_of_prompting_ask_the_same_in_the_same_order(words: PreTrainedTokenizerBase, entities: Any) -> None:
    few, instruction = (
        BooleanExpressions(**SMALL, prompting=prompting, entities=entities, seed=5).splits(words)
        for prompting in PROMPTINGS
    )  # pyright: ignore
    for split in few:
        assert asked(few[split]) == asked(instruction[split])
        assert [pair.answer for pair in few[split]] == [pair.answer for pair in instruction[split]]
        assert not {pair.clean for pair in few[split]} & {pair.clean for pair in instruction[split]}


def test_the_number_of_examples_does_not_touch_the_expressions(words: PreTrainedTokenizerBase) -> None:
    long = {**SMALL, "num_operators": 8}  # where no example turns up among them by chance
    two, eight = (BooleanExpressions(**long, num_examples=n).splits(words)["train"] for n in (2, 8))
    assert asked(two) == asked(eight)


def test_examples_are_right_fixed_and_never_asked_for(words: PreTrainedTokenizerBase) -> None:
    splits = BooleanExpressions(200, 50, 50, num_operators=3, num_examples=6).splits(words)
    everything = [pair for pairs in splits.values() for pair in pairs]
    openings = {pair.clean.rsplit("\n", 1)[0] for pair in everything}
    [opening] = openings
    examples = dict(line.split(" is ") for line in opening.split("\n"))
    assert len(examples) == 6
    assert {text: str(truth(text)) for text in examples} == examples
    assert list(examples.values()) == ["True", "False"] * 3
    assert not set(examples) & {text for both in asked(everything) for text in both}


def test_no_expression_occurs_in_two_splits(words: PreTrainedTokenizerBase) -> None:
    splits = BooleanExpressions(400, 100, 100).splits(words)
    clean = [pair.labels["expression"] for pairs in splits.values() for pair in pairs]
    assert len(set(clean)) == 600
    texts = [{text for both in asked(pairs) for text in both} for pairs in splits.values()]
    assert sum(map(len, texts)) == len(set().union(*texts))


def test_roles_lie_on_the_expression_and_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    for prompting in PROMPTINGS:
        pairs = BooleanExpressions(**SMALL, prompting=prompting).splits(tokenizer)["test"]  # pyright: ignore
        for pair, tokens in zip(pairs, encode_pairs(pairs, tokenizer), strict=True):
            found = {role: tokenizer.decode(list(tokens.clean[a:b])).strip() for role, (a, b) in tokens.roles.items()}
            assert found == {"expression": pair.labels["expression"], "END": "is"}
            start, end = pair.corrupted_roles["expression"]
            assert pair.corrupted[start:end] == pair.labels["corrupted"]


@pytest.mark.parametrize("prompting", PROMPTINGS)
def test_tokens_align_and_answers_are_one_token(tokenizer: PreTrainedTokenizerBase, prompting: str) -> None:
    task = BooleanExpressions(num_train=150, prompting=prompting)  # pyright: ignore
    pairs = task.splits(tokenizer)["train"]
    for pair, tokens in zip(pairs, encode_pairs(pairs, tokenizer, single_token_answers=True), strict=True):
        assert len(tokens.clean) == len(tokens.corrupted)
        assert tokenizer.decode([tokens.targets[0]]).strip() == pair.answer.strip()
        assert tokenizer.decode([tokens.distractors[0]]).strip() == str(pair.distractor).strip()


def test_smollm2_can_be_used(smollm2: PreTrainedTokenizerBase) -> None:
    pairs = BooleanExpressions(**SMALL).splits(smollm2)["train"]
    assert len(encode_pairs(pairs, smollm2, single_token_answers=True)) == 60


def test_an_instruction_of_ones_own(gpt2: PreTrainedTokenizerBase) -> None:
    task = BooleanExpressions(**SMALL, prompting="instruction", instruction="[INST] {expression} [/INST] It is")
    pair = task.splits(gpt2)["train"][0]
    assert pair.clean == f"[INST] {pair.labels['expression']} [/INST] It is"
    start, end = pair.roles["END"]
    assert pair.clean[start:end] == "s"


def test_seed_decides(words: PreTrainedTokenizerBase) -> None:
    assert BooleanExpressions(**SMALL, seed=3).splits(words) == BooleanExpressions(**SMALL, seed=3).splits(words)
    assert BooleanExpressions(**SMALL, seed=3).splits(words) != BooleanExpressions(**SMALL, seed=4).splits(words)


def test_buckets_are_the_same_everywhere() -> None:
    assert bucket("123456789") == 0xCBF43926 % 1000  # the check value of CRC-32


def test_batches_can_be_made(words: PreTrainedTokenizerBase) -> None:
    data = PairDataModule(BooleanExpressions(**SMALL), batch_size=4, cache=False)
    data.tokenizer_object = words
    batch = next(iter(data.train_dataloader()))
    assert set(batch.targets.unique().tolist()) <= set(words.convert_tokens_to_ids(["True", "False"]))
    assert (batch.targets != batch.distractors).all()
    assert set(batch.roles) == {"expression", "END"}


def test_too_few_expressions_are_refused(words: PreTrainedTokenizerBase) -> None:
    with pytest.raises(EdgepruneError, match=r"num_operators=1 gives too few .* for 50 pairs of one split: raise"):
        BooleanExpressions(50, 0, 0, num_operators=1, num_examples=1).splits(words)
    with pytest.raises(EdgepruneError, match=r"num_operators=1 gives too few .* 32 examples"):
        BooleanExpressions(**SMALL, num_operators=1, num_examples=32).splits(words)


def test_words_of_several_tokens_are_refused() -> None:
    known = ["When", "True", "False", "and", "or", "(", ")", "is"]
    with pytest.raises(EdgepruneError, match="'not' must be one token each after a space"):
        BooleanExpressions().splits(word_tokenizer(known))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompting": "chat"}, "prompting must be one of .* got 'chat'"),
        ({"num_operators": 0}, "num_operators must be 1..20, got 0"),
        ({"num_operators": 21}, "num_operators must be 1..20, got 21"),
        ({"num_examples": 0}, "num_examples must be 1..32, got 0"),
        ({"instruction": "true or false?"}, "instruction must have the slot {expression} once"),
        ({"instruction": "{expression} or {expression}"}, "instruction must have"),
        ({"instruction": "{expression} {other}"}, "no other braces"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        BooleanExpressions(**settings)
