import json
from pathlib import Path
from typing import Any

import pytest

from datamodules import JSONLTask, PromptPair
from edgeprune.errors import EdgepruneError


def line(i: int, **more: Any) -> dict[str, Any]:
    return {
        "clean": f"1 + {i} = <predict>{i + 1}</predict>",
        "corrupted": f"2 + {i} = <predict>{i + 2}</predict>",
        **more,
    }


def write(folder: Path, *rows: Any) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_named_splits_keep_their_lines(tmp_path: Path) -> None:
    names = ["train", "test", "train", "validation"]
    path = write(tmp_path, *(line(i, split=name) for i, name in enumerate(names)), "", "  ")
    splits = JSONLTask(path).splits(None)
    assert [pair.clean for pair in splits["train"]] == ["1 + 0 = ", "1 + 2 = "]
    assert splits["test"] == [PromptPair("1 + 1 = ", "2 + 1 = ", "2", "3", "3", source=f"{path}:2")]
    assert len(splits["validation"]) == 1


def test_splits_are_drawn_where_none_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, *(line(i) for i in range(50)))
    splits = JSONLTask(path, validation_fraction=0.2, test_fraction=0.1).splits(None)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 35, "validation": 10, "test": 5}
    assert len({pair.source for pairs in splits.values() for pair in pairs}) == 50
    assert splits == JSONLTask(path, validation_fraction=0.2, test_fraction=0.1).splits(None)
    assert splits != JSONLTask(path, validation_fraction=0.2, test_fraction=0.1, seed=1).splits(None)


def test_three_lines_make_three_splits(tmp_path: Path) -> None:
    splits = JSONLTask(write(tmp_path, line(1), line(2), line(3))).splits(None)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [1, 1, 1]


def test_the_other_answer_is_the_distractor_and_must_differ_if_it_is_used(tmp_path: Path) -> None:
    same = line(1) | {"corrupted": "2 + 0 = <predict>2</predict>"}
    path = write(tmp_path, line(2, split="train"), {**same, "split": "train"})
    with pytest.raises(EdgepruneError, match=r"jsonl:2: both prompts have the answer '2'; .* use_distractor to false"):
        JSONLTask(path).splits(None)
    unused = JSONLTask(path, use_distractor=False).splits(None)["train"]
    assert [(pair.distractor, pair.corrupted_answer) for pair in unused] == [(None, None), (None, None)]


def test_lines_with_the_same_clean_prompt_stay_in_one_split(tmp_path: Path) -> None:
    other = {"corrupted": "9 + 9 = <predict>18</predict>"}
    path = write(tmp_path, *(row for i in range(10) for row in (line(i), line(i, **other))))
    splits = JSONLTask(path, validation_fraction=0.2, test_fraction=0.1).splits(None)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 14, "validation": 4, "test": 2}
    prompts = [{pair.clean for pair in pairs} for pairs in splits.values()]
    assert len(set[str]().union(*prompts)) == sum(map(len, prompts)) == 10


def test_named_splits_that_share_a_prompt_are_warned_of(tmp_path: Path) -> None:
    path = write(tmp_path, *(line(1, split=name) for name in ("train", "validation")), line(2, split="test"))
    with pytest.warns(UserWarning, match=r"jsonl: 1 clean prompts occur in more than one split, such as '1 \+ 1 ="):
        JSONLTask(path).splits(None)


def test_text_is_taken_as_it_is(tmp_path: Path) -> None:
    row = {"clean": "Zürich\n→<predict> ja </predict>\n", "corrupted": "Genf\u2028→<predict> nein</predict>"}
    path = write(tmp_path, json.dumps({**row, "split": "test"}, ensure_ascii=False))
    [pair] = JSONLTask(path).splits(None)["test"]
    assert pair == PromptPair("Zürich\n→", "Genf\u2028→", " ja ", " nein", " nein", source=f"{path}:1")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{not json", ":2: not JSON"),
        ("[" * 100_000, ":2: not JSON"),
        ('{"clean": "a", "corrupted": "b", "clean": "c"}', ":2: key 'clean' comes twice, first on that line; keep one"),
        (f'{{"clean": {"9" * 10_000}}}', ":2: Exceeds the limit .*; write a shorter one"),
        ('["clean"]', ":2: expected an object .* got list"),
        ({"clean": "a<predict>b</predict>"}, ':2: "corrupted" is missing'),
        ({"corrupted": "a<predict>b</predict>"}, ':2: "clean" is missing'),
        (line(2, clean=3), ':2: "clean" must be a string, got 3'),
        (line(2, clean="1 + 2 = 3"), ':2: "clean" must have exactly one'),
        (line(2, clean="1 <predict>2"), ':2: "clean" must have exactly one'),
        (line(2, clean="</predict>1<predict>"), ':2: "clean" must have exactly one'),
        (line(2, corrupted="<predict>1</predict> <predict>1</predict>"), ':2: "corrupted" must have exactly'),
        (line(2, corrupted="1 = <predict>1</predict> yes"), ':2: "corrupted" goes on after .*yes'),
        (line(2, split="val"), ":2: \"split\" must be one of train, validation, test, got 'val'"),
        (line(2, split=["a"]), ':2: "split" must be one of'),
        (line(2, split="test"), ':1: "split" is missing'),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, second: Any, message: str) -> None:
    path = write(tmp_path, line(1), second)
    with pytest.raises(EdgepruneError, match=message) as caught:
        JSONLTask(path).splits(None)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_blank_lines_count_for_line_numbers(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match=r"pairs\.jsonl:4: not JSON"):
        JSONLTask(write(tmp_path, line(1), "", "", "oops")).splits(None)


def test_missing_file_is_refused_when_the_task_is_made(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match=r"no pair file at '.*none\.jsonl'"):
        JSONLTask(str(tmp_path / "none.jsonl"))
    with pytest.raises(EdgepruneError, match="no pair file"):
        JSONLTask(str(tmp_path))


def test_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match="holds no pairs"):
        JSONLTask(write(tmp_path, "", " ")).splits(None)


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EdgepruneError, match="is not UTF-8"):
        JSONLTask(str(path)).splits(None)


def test_fractions_must_leave_training_lines(tmp_path: Path) -> None:
    path = write(tmp_path, line(1))
    for validation, test in ((-0.1, 0.1), (0.5, 0.5)):
        with pytest.raises(EdgepruneError, match="must leave something to train on"):
            JSONLTask(path, validation_fraction=validation, test_fraction=test)


def test_fingerprint_follows_the_file(tmp_path: Path) -> None:
    task = JSONLTask(write(tmp_path, line(1)))
    before = task.fingerprint()
    assert before == task.fingerprint()
    write(tmp_path, line(2))
    assert task.fingerprint() != before
