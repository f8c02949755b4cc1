"""CSV tables of attribution-patching repositories: token ids, lists of them, year labels, damaged tables."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import EAPCSVTask, PairDataModule, PromptPair
from datamodules.encode import encode_pairs
from edgeprune.errors import EdgepruneError

CLEAN = "When Mary and John went to the park, John gave a ring to"
CORRUPTED = "When Mary and John went to the park, Paul gave a ring to"
COLUMNS = ("clean", "corrupted", "correct_idx", "incorrect_idx")
YEARS = ("The war lasted from the year 1732 to the year 17", "The war lasted from the year 1701 to the year 17")


def write(folder: Path, columns: Sequence[str], *rows: Sequence[object]) -> str:
    path = folder / "pairs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


def read(path: str, tokenizer: PreTrainedTokenizerBase, **settings: str) -> list[PromptPair]:
    task = EAPCSVTask(path, validation_fraction=0, test_fraction=0, **settings)
    return sorted(task.splits(tokenizer)["train"], key=lambda pair: int(pair.source.rsplit(":", 1)[1]))


@pytest.fixture
def ids(gpt2: PreTrainedTokenizerBase) -> dict[str, int]:
    return {name: gpt2.convert_tokens_to_ids(f"Ġ{name}") for name in ("Mary", "John", "Paul", "Kate")}


def test_ids_become_answers(tmp_path: Path, gpt2: PreTrainedTokenizerBase, ids: dict[str, int]) -> None:
    path = write(tmp_path, ("", *COLUMNS), (0, CLEAN, CORRUPTED, ids["Mary"], ids["John"]))
    [pair] = read(path, gpt2)
    expected = PromptPair(CLEAN, CORRUPTED, " Mary", " John", source=f"{path}:2")
    assert (pair.clean, pair.corrupted, pair.answer, pair.distractor, pair.source) == (
        expected.clean, expected.corrupted, " Mary", " John", expected.source,
    )  # fmt: skip
    [tokens] = encode_pairs([pair], gpt2)
    assert (tokens.targets, tokens.distractors) == ((ids["Mary"],), (ids["John"],))


def test_lists_of_ids_become_sets(tmp_path: Path, gpt2: PreTrainedTokenizerBase, ids: dict[str, int]) -> None:
    path = write(tmp_path, COLUMNS, (CLEAN, CORRUPTED, f"[{ids['Mary']}]", f"[{ids['John']}, {ids['Paul']}]"))
    [tokens] = encode_pairs(read(path, gpt2), gpt2)
    assert tokens.answers == ((ids["Mary"],),)
    assert tokens.wrong_answers == ((ids["John"], ids["Paul"]),)


def test_another_column_can_be_the_corrupted_one(
    tmp_path: Path, gpt2: PreTrainedTokenizerBase, ids: dict[str, int]
) -> None:
    row = (CLEAN, CORRUPTED, "hard", ids["Mary"], ids["John"])
    path = write(tmp_path, ("clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx"), row)
    assert [pair.corrupted for pair in read(path, gpt2, corrupted="corrupted_hard")] == ["hard"]


def test_named_splits_are_kept(tmp_path: Path, gpt2: PreTrainedTokenizerBase, ids: dict[str, int]) -> None:
    names = ("test", "train", "test")
    rows = [(f"{name} {CLEAN}", f"{name} {CORRUPTED}", ids["Mary"], ids["John"], name) for name in names]
    splits = EAPCSVTask(write(tmp_path, (*COLUMNS, "split"), *rows)).splits(gpt2)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 1, "validation": 0, "test": 2}


def test_lines_are_counted_across_line_breaks_in_texts(
    tmp_path: Path, gpt2: PreTrainedTokenizerBase, ids: dict[str, int]
) -> None:
    row = (f"One\ntwo\nthree. {CLEAN}", CORRUPTED, ids["Mary"], ids["John"])
    path = write(tmp_path, COLUMNS, row, row)
    assert [pair.source for pair in read(path, gpt2)] == [f"{path}:2", f"{path}:5"]


def test_labels_mean_the_years_after_them(tmp_path: Path, gpt2: PreTrainedTokenizerBase) -> None:
    [pair] = read(write(tmp_path, ("clean", "corrupted", "label"), (*YEARS, 32)), gpt2)
    assert (pair.answer, pair.distractor) == ("33", "32")
    right, wrong = (gpt2.convert_ids_to_tokens(list(sets[0])) for sets in (pair.answer_ids, pair.wrong_ids))
    assert right == [f"{year:02d}" for year in range(33, 100)]
    assert wrong == [f"{year:02d}" for year in range(33)]


@pytest.mark.parametrize(
    ("label", "answer", "distractor"),
    [
        ("2", "03", "02"),
        ("87", "91", "87"),  # and 1886, 1888 to 1890
        ("61", "64", "59"),  # GPT-2 has 1860 to 1863 and 1865 as one token each
        ("64", "66", "64"),
    ],
)
def test_target_and_distractor_are_the_nearest_that_are_tokens(
    tmp_path: Path, gpt2: PreTrainedTokenizerBase, label: str, answer: str, distractor: str
) -> None:
    century = [text.replace("17", "18") for text in YEARS]
    [pair] = read(write(tmp_path, ("clean", "corrupted", "label"), (*century, label)), gpt2)
    assert (pair.answer, pair.distractor) == (answer, distractor)
    assert [len(ids) for ids in (*pair.answer_ids, *pair.wrong_ids)] == [99 - int(label), int(label) + 1]
    [tokens] = encode_pairs([pair], gpt2)
    assert gpt2.decode([tokens.targets[0]]) == answer


def test_a_label_without_a_year_of_one_token_below_is_refused(tmp_path: Path, gpt2: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, ("clean", "corrupted", "label"), (*YEARS, 0))  # 1700 is one token
    with pytest.raises(EdgepruneError, match=r"csv:2: after this prompt no year above the label, or none up to it"):
        read(path, gpt2)


def test_digits_as_tokens_are_refused(tmp_path: Path, smollm2: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, ("clean", "corrupted", "label"), (*YEARS, 32))
    with pytest.raises(EdgepruneError, match=":2: a label needs 00 to 99 to be one token each"):
        read(path, smollm2)


def test_batches_hold_the_sets(tmp_path: Path, gpt2: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, ("clean", "corrupted", "label"), *((*YEARS, label) for label in (10, 20, 30, 40)))
    data = PairDataModule(EAPCSVTask(path, 0, 0), batch_size=4, cache=False)
    data.tokenizer_object = gpt2
    batch = next(iter(data.train_dataloader()))
    assert batch.answers.shape == (4, 1, 89)
    assert batch.wrong_answers.shape == (4, 1, 41)


BAD_ROWS = [
    ((CLEAN, CORRUPTED, "Mary", "1757"), r"correct_idx must be a token id such as 5335, .* got 'Mary'"),
    ((CLEAN, CORRUPTED, "5335.0", "1757"), "correct_idx must be a token id .* got '5335.0'"),
    ((CLEAN, CORRUPTED, "5335", ""), "incorrect_idx must be a token id .* got ''"),
    ((CLEAN, CORRUPTED, "[]", "1757"), "correct_idx must be"),
    ((CLEAN, CORRUPTED, "[5335, true]", "1757"), "correct_idx must be"),
    ((CLEAN, CORRUPTED, "50257", "1757"), "token id 50257 is outside 0..50256"),
    ((CLEAN, CORRUPTED, "5335", "[1757, -1]"), "token id -1 is outside"),
    ((CLEAN, CORRUPTED, "5335"), "the row does not have the 4 fields"),
    ((CLEAN, CORRUPTED, "5335", "1757", "x"), "the row does not have the 4 fields"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_is_named(tmp_path: Path, gpt2: PreTrainedTokenizerBase, row: tuple[str, ...], message: str) -> None:
    path = write(tmp_path, COLUMNS, (CLEAN, CORRUPTED, 5335, 1757), row)
    with pytest.raises(EdgepruneError, match=message) as caught:
        EAPCSVTask(path).splits(gpt2)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)


def test_an_id_that_no_text_becomes_is_refused(tmp_path: Path, gpt2: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, COLUMNS, (CLEAN, CORRUPTED, gpt2.convert_tokens_to_ids("tal"), 1757))
    with pytest.raises(EdgepruneError, match=r":2: token id \d+ \('tal'\) is not what any text becomes"):
        EAPCSVTask(path).splits(gpt2)


@pytest.mark.parametrize("label", ["99", "-1", "1732", "later", "", "3.0"])
def test_a_bad_label_is_named(tmp_path: Path, gpt2: PreTrainedTokenizerBase, label: str) -> None:
    path = write(tmp_path, ("clean", "corrupted", "label"), (*YEARS, 5), (*YEARS, label))
    with pytest.raises(EdgepruneError, match=rf"{path}:3: label must be the two digits of a year, .* got '{label}'"):
        EAPCSVTask(path).splits(gpt2)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("clean", "correct_idx", "incorrect_idx"), "column 'corrupted' is missing, the table has clean, correct_idx"),
        (("clean", "corrupted"), "column 'correct_idx' is missing"),
        (("clean", "corrupted", "correct_idx"), 'without "incorrect_idx" may hold token ids or years: rename it'),
        (("corrupted", "label"), "column 'clean' is missing"),
    ],
)
def test_a_missing_column_is_named(
    tmp_path: Path, gpt2: PreTrainedTokenizerBase, columns: tuple[str, ...], message: str
) -> None:
    path = write(tmp_path, columns, ["1"] * len(columns))
    with pytest.raises(EdgepruneError, match=message) as caught:
        EAPCSVTask(path).splits(gpt2)
    assert str(caught.value).startswith(f"{path}:1: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 'clean' is missing, the table has none"),
        ("clean,corrupted,label\n", "holds no pairs"),
        ('clean,corrupted,label\n"a" b,c,3\n', ":2: not CSV"),
        ('clean,corrupted,label\n"a,c,3\n', r":\d: not CSV"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, gpt2: PreTrainedTokenizerBase, text: str, message: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(EdgepruneError, match=message) as caught:
        EAPCSVTask(str(path)).splits(gpt2)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_tokenizer_is_needed(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match=r"pairs\.csv holds token ids: give the data module a tokenizer"):
        EAPCSVTask(write(tmp_path, COLUMNS)).splits(None)
