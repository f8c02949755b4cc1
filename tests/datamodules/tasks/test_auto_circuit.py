"""auto-circuit's JSON files: answers, roles by token index, damaged files."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import AutoCircuitTask, PairDataModule
from datamodules.encode import encode_pairs
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import word_tokenizer

CLEAN = "When Mary and John went to the park, John gave a ring to"
CORRUPT = "When Kate and Paul went to the park, Emma gave a ring to"
PROMPT = {"clean": CLEAN, "corrupt": CORRUPT, "answers": [" Mary"], "wrong_answers": [" John"]}


def content(*prompts: Any, **more: Any) -> dict[str, Any]:
    return {"seq_labels": [], "word_idxs": {"IO": 1, "S1": 3, "S2": 9, "end": 13}, "prompts": list(prompts), **more}


def write(folder: Path, value: Any) -> str:
    path = folder / "pairs.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def only(path: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The pair of a file with a single one."""
    return AutoCircuitTask(path, validation_fraction=0, test_fraction=0).splits(tokenizer)["train"][0]


def test_a_prompt_becomes_a_pair(tmp_path: Path, gpt2: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, content(PROMPT))
    pair = only(path, gpt2)
    assert (pair.clean, pair.corrupted, pair.answer, pair.distractor) == (CLEAN, CORRUPT, " Mary", " John")
    assert pair.answer_ids == ((gpt2.convert_tokens_to_ids("ĠMary"),),)
    assert pair.wrong_ids == ((gpt2.convert_tokens_to_ids("ĠJohn"),),)
    assert pair.source == f"{path}: prompts[0]"


def test_all_answers_are_kept(tmp_path: Path, gpt2: PreTrainedTokenizerBase) -> None:
    many = PROMPT | {"answers": [" Mary", " Anna", " Mary"], "wrong_answers": [" John", " Paul", " Kate"]}
    pair = only(write(tmp_path, content(many)), gpt2)
    assert gpt2.convert_ids_to_tokens(list(pair.answer_ids[0])) == ["ĠMary", "ĠAnna"]
    assert gpt2.convert_ids_to_tokens(list(pair.wrong_ids[0])) == ["ĠJohn", "ĠPaul", "ĠKate"]
    none = {key: value for key, value in PROMPT.items() if key != "wrong_answers"}
    pair = only(write(tmp_path, content(none)), gpt2)
    assert (pair.distractor, pair.wrong_ids) == (None, ())


def test_token_indices_become_roles(tmp_path: Path, gpt2: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, content(PROMPT, word_idxs={"IO": 1, "place": [6, 7], "comma": 8, "end": 13}))
    pair = only(path, gpt2)
    words = {name: pair.clean[start:end] for name, (start, end) in pair.roles.items()}
    assert words == {"IO": "Mary", "place": "the park", "comma": ",", "end": "to"}
    start, end = pair.corrupted_roles["IO"]
    assert pair.corrupted[start:end] == "Kate"
    [tokens] = encode_pairs([pair], gpt2)
    assert tokens.roles == {"IO": (1, 2), "place": (6, 8), "comma": (8, 9), "end": (13, 14)}


def test_roles_move_on_behind_bos(tmp_path: Path) -> None:
    own = ["When", "Mary", "John", "Kate", "Paul", "Emma", "and", "went", "to", "the", "park", ",", "gave", "a", "ring"]
    with_bos = word_tokenizer(own, bos=True)
    path = write(tmp_path, content(PROMPT))
    data = PairDataModule(AutoCircuitTask(path, validation_fraction=0, test_fraction=0), cache=False, batch_size=1)
    data.tokenizer_object = with_bos
    [pair] = data.pairs("train")
    assert pair.clean[0] == with_bos.bos_token_id
    assert pair.roles == {"IO": (2, 3), "S1": (4, 5), "S2": (10, 11), "end": (14, 15)}
    batch = next(iter(data.train_dataloader()))
    assert batch.answers.shape == batch.wrong_answers.shape == (1, 1, 1)


def test_answers_after_a_final_space(tmp_path: Path, gpt2: PreTrainedTokenizerBase) -> None:
    sums = {"clean": "1 + 2 = ", "corrupt": "1 + 4 = ", "answers": ["3"], "wrong_answers": ["5"]}
    pair = only(write(tmp_path, content(sums, word_idxs={"first": 0})), gpt2)
    [tokens] = encode_pairs([pair], gpt2)
    assert gpt2.convert_ids_to_tokens(list(tokens.answers[0])) == ["Ġ3"]


def test_splits_are_drawn(tmp_path: Path, gpt2: PreTrainedTokenizerBase) -> None:
    prompts = [PROMPT | {"clean": CLEAN.replace("ring", word)} for word in ("ring", "book", "cup", "hat", "coin")]
    task = AutoCircuitTask(write(tmp_path, content(*prompts)), validation_fraction=0.2, test_fraction=0.2)
    splits = task.splits(gpt2)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 3, "validation": 1, "test": 1}
    assert len({pair.clean for pairs in splits.values() for pair in pairs}) == 5
    assert splits == task.splits(gpt2)


BAD_PROMPTS = [
    (PROMPT | {"answers": [" Annabelle"]}, r"answer ' Annabelle' is \d tokens after its prompt, one is needed"),
    (PROMPT | {"wrong_answers": ["o"]}, "answer 'o' changes the tokens of the prompt"),
    (PROMPT | {"answers": []}, '"answers" is empty'),
    (PROMPT | {"answers": " Mary"}, '"answers" must be a list'),
    (PROMPT | {"answers": [5335]}, "answers must be texts such as ' Mary', got 5335"),
    (PROMPT | {"clean": [1, 2]}, r'"clean" must be text, got \[1, 2\]; decode'),
    (PROMPT | {"answers": ["\ud800"]}, "'.ud800' holds half of a character"),
    ({"clean": CLEAN, "answers": []}, '"corrupt" is missing'),
    ("text", "expected an object with clean, corrupt and answers, got 'text'"),
    (PROMPT | {"corrupt": "When Kate"}, r'word_idxs\["S1"\] = 3, but the prompt has 2 tokens'),
]


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS)
def test_a_bad_prompt_is_named(tmp_path: Path, gpt2: PreTrainedTokenizerBase, prompt: Any, message: str) -> None:
    path = write(tmp_path, content(PROMPT, prompt))
    with pytest.raises(EdgepruneError, match=message) as caught:
        AutoCircuitTask(path).splits(gpt2)
    assert str(caught.value).startswith(f"{path}: prompts[1]")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", ":1: not JSON"),
        ("[" * 100_000, "brackets within brackets go on too far"),
        ('{"prompts": [],\n"prompts": []}', ":2: key 'prompts' comes twice, first on line 1; keep one of them"),
        ('{"prompts": ' + "9" * 10_000 + "}", "Exceeds the limit .*; write a shorter one"),
        ('{\n"prompts": [\n}', ":3: not JSON"),
        ([PROMPT], 'expected one JSON object with "prompts"'),
        ({"word_idxs": {}}, 'expected one JSON object with "prompts"'),
        (content(prompts={}), '"prompts" must be a list'),
        (content(), "holds no pairs"),
        (content(PROMPT, word_idxs=[1]), '"word_idxs" must be an object'),
        (content(PROMPT, word_idxs={"IO": "1"}), r"word_idxs\[\"IO\"\] must be a token index from 0, .* got '1'"),
        (content(PROMPT, word_idxs={"IO": -1}), "must be a token index from 0"),
        (content(PROMPT, word_idxs={"IO": True}), "must be a token index from 0"),
        (content(PROMPT, word_idxs={"IO": []}), "must be a token index from 0"),
        (content(PROMPT, word_idxs={"IO": 1.5}), "must be a token index from 0"),
        (content(PROMPT, word_idxs={"names": [1, 3]}), r"\[1, 3\] must be tokens that follow one another"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, gpt2: PreTrainedTokenizerBase, value: Any, message: str) -> None:
    path = write(tmp_path, value)
    with pytest.raises(EdgepruneError, match=message) as caught:
        AutoCircuitTask(path).splits(gpt2)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_an_answer_both_right_and_wrong_is_refused(tmp_path: Path, gpt2: PreTrainedTokenizerBase) -> None:
    pair = only(write(tmp_path, content(PROMPT | {"wrong_answers": [" John", " Mary"]})), gpt2)
    with pytest.raises(EdgepruneError, match=r"prompts\[0\]: token \d+ is both a right and a wrong answer"):
        encode_pairs([pair], gpt2)


def test_tokenizer_is_needed(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match=r"pairs\.json counts in tokens: give the data module a tokenizer"):
        AutoCircuitTask(write(tmp_path, content(PROMPT))).splits(None)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match=r"no pair file at .* for AutoCircuitTask"):
        AutoCircuitTask(str(tmp_path / "none.json"))
