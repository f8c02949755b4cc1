"""Hugging Face data sets on disk: nested columns, splits, damaged folders. Nothing here reaches the network."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict
from datasets.arrow_writer import ArrowWriter
from huggingface_hub import close_session
from transformers import PreTrainedTokenizerBase

from datamodules import HFDatasetTask, PairDataModule, PromptPair
from edgeprune.errors import EdgepruneError

datasets.disable_progress_bars()

NAMES = ("Mary", "John", "Anna", "Paul", "Kate", "Emma")
MIB_IOI: dict[str, Any] = {
    "clean": "prompt",
    "corrupted": "s2_io_flip_counterfactual.prompt",
    "answer": "choices.{answerKey}",
    "distractor": "metadata.subject",
    "corrupted_answer": "s2_io_flip_counterfactual.choices.{s2_io_flip_counterfactual.answerKey}",
    "answer_prefix": " ",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub name must not be looked up."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network\nin tests")

    monkeypatch.setattr("socket.create_connection", refuse)


def plain(i: int) -> dict[str, str]:
    return {"clean": f"1 + {i} =", "corrupted": f"2 + {i} =", "answer": f" {i + 1}", "distractor": f" {i + 2}"}


def mib_row(i: int) -> dict[str, Any]:
    """A row with the columns of MIB's sentences, in words of our own."""
    io, subject = NAMES[i % 6], NAMES[(i + 1) % 6]

    def text(first: str, second: str, third: str) -> str:
        return f"When {first} and {second} went to the park, {third} gave ring {i} to"

    choices = [io, subject] if i % 2 == 0 else [subject, io]
    return {
        "prompt": text(io, subject, subject),
        "template": "When {name_A} and {name_B} went to the {place}",
        "metadata": {"subject": subject, "indirect_object": io},
        "choices": choices,
        "answerKey": i % 2,
        "s2_io_flip_counterfactual": {"prompt": text(io, subject, io), "choices": choices, "answerKey": 1 - i % 2},
    }


def save(folder: Path, **splits: list[dict[str, Any]]) -> str:
    path = str(folder / "saved")
    DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(path)
    return path


def three(row: Any = plain) -> dict[str, list[dict[str, Any]]]:
    return {
        "train": [row(i) for i in range(4)],
        "validation": [row(i) for i in range(4, 6)],
        "test": [row(i) for i in range(6, 9)],
    }


def test_saved_splits_are_read_in_order(tmp_path: Path) -> None:
    path = save(tmp_path, **three())
    splits = HFDatasetTask(path, distractor="distractor").splits(None)
    assert [pair.clean for pair in splits["test"]] == ["1 + 6 =", "1 + 7 =", "1 + 8 ="]
    assert splits["train"][1] == PromptPair("1 + 1 =", "2 + 1 =", " 2", " 3", source=f"{path} train[1]")
    assert len(splits["validation"]) == 2


def test_rows_of_mib_are_understood(tmp_path: Path) -> None:
    splits = HFDatasetTask(save(tmp_path, **three(mib_row)), **MIB_IOI).splits(None)
    for pairs in splits.values():
        for pair in pairs:
            words = pair.clean.replace(",", "").split()
            io, subject = words[1], words[3]
            assert (pair.answer, pair.distractor, pair.corrupted_answer) == (f" {io}", f" {subject}", f" {subject}")
            head, _, tail = pair.clean.rpartition(f", {subject} ")
            assert pair.corrupted == f"{head}, {io} {tail}"


def test_mib_rows_become_batches(tmp_path: Path, words: PreTrainedTokenizerBase) -> None:
    data = PairDataModule(HFDatasetTask(save(tmp_path, **three(mib_row)), **MIB_IOI), batch_size=4, cache=False)
    data.tokenizer_object = words
    batch = next(iter(data.train_dataloader()))
    assert batch.clean.shape == batch.corrupted.shape
    assert (batch.targets != batch.distractors).all()


def test_unequal_lengths_are_refused_unless_asked_for(tmp_path: Path, words: PreTrainedTokenizerBase) -> None:
    rows = [{"clean": f"1 + 1 + {i} =", "corrupted": f"2 + {i} =", "answer": " 7"} for i in range(3)]
    task = HFDatasetTask(save(tmp_path, train=rows), validation_split=None, test_split=None)
    strict, lenient = (PairDataModule(task, cache=False, unequal_lengths=how) for how in ("error", "end"))
    strict.tokenizer_object = lenient.tokenizer_object = words
    with pytest.raises(EdgepruneError, match=r"train\[\d\]: the clean prompt has 6 tokens and the corrupted one 4"):
        strict.setup()
    assert [len(pair.corrupted) for pair in lenient.pairs("train")] == [4]
    assert lenient.pairs("train")[0].alignment[-4:] == (0, 1, 2, 3)


def test_numbers_and_labelled_choices_are_written_out(tmp_path: Path) -> None:
    row = {
        "prompt": "34 + 12 =", "label": 46, "random_counterfactual": {"prompt": "51 + 12 =", "label": 63},
        "choices": {"label": ["A", "B"], "text": ["red", "blue"]}, "answerKey": 1,
    }  # fmt: skip
    path = save(tmp_path, train=[{**row, "prompt": prompt} for prompt in ("34 + 12 =", "12 + 34 =", "40 + 6 =")])
    settings = {
        "validation_split": None,
        "test_split": None,
        "clean": "prompt",
        "corrupted": "random_counterfactual.prompt",
    }
    sums = HFDatasetTask(path, **settings, answer="label", distractor="random_counterfactual.label").splits(None)
    assert (sums["train"][0].answer, sums["train"][0].distractor) == ("46", "63")
    chosen = HFDatasetTask(path, **settings, answer="choices.label.{answerKey}", distractor="choices.label.0").splits(
        None
    )
    assert (chosen["train"][0].answer, chosen["train"][0].distractor) == ("B", "A")


def test_splits_have_names_of_their_own(tmp_path: Path) -> None:
    path = save(tmp_path, learn=[plain(0)], dev=[plain(1)], private=[plain(2)])
    splits = HFDatasetTask(path, train_split="learn", validation_split="dev", test_split="private").splits(None)
    assert [splits[name][0].clean for name in ("train", "validation", "test")] == ["1 + 0 =", "1 + 1 =", "1 + 2 ="]


def test_splits_that_share_a_prompt_are_warned_of(tmp_path: Path) -> None:
    path = save(tmp_path, train=[plain(0), plain(1)], dev=[plain(1)])
    with pytest.warns(UserWarning, match="1 clean prompts occur in more than one split, such as '1 [+] 1 ='"):
        HFDatasetTask(path, validation_split="dev", test_split=None, test_fraction=0.0).splits(None)


def test_splits_that_are_not_there_are_drawn_from_the_training_rows(tmp_path: Path) -> None:
    path = save(tmp_path, train=[plain(i) for i in range(10)], test=[plain(10)])
    task = HFDatasetTask(path, validation_split=None, validation_fraction=0.2)
    splits = task.splits(None)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 8, "validation": 2, "test": 1}
    assert len({pair.clean for pairs in splits.values() for pair in pairs}) == 11
    assert splits == task.splits(None)
    assert (
        splits["validation"]
        != HFDatasetTask(path, validation_split=None, validation_fraction=0.2, seed=1).splits(None)["validation"]
    )


def test_a_data_set_without_splits_is_all_training_rows(tmp_path: Path) -> None:
    Dataset.from_list([plain(i) for i in range(10)]).save_to_disk(str(tmp_path / "one"))
    splits = HFDatasetTask(str(tmp_path / "one"), validation_split=None, test_split=None).splits(None)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 8, "validation": 1, "test": 1}


def test_limit_holds_for_each_split(tmp_path: Path) -> None:
    splits = HFDatasetTask(save(tmp_path, **three()), limit=2).splits(None)
    assert [len(pairs) for pairs in splits.values()] == [2, 2, 2]
    assert [pair.clean for pair in splits["train"]] == ["1 + 0 =", "1 + 1 ="]


@pytest.mark.parametrize("kind", ["parquet", "json", "csv"])
def test_folders_of_data_files_are_read(tmp_path: Path, kind: str) -> None:
    for name, rows in three().items():
        getattr(Dataset.from_list(rows), f"to_{kind}")(str(tmp_path / f"{name}.{kind}"))
    splits = HFDatasetTask(str(tmp_path)).splits(None)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [4, 2, 3]
    assert splits["train"][3].clean == "1 + 3 ="


def test_incomplete_rows_are_refused_or_left_out(tmp_path: Path) -> None:
    rows = [{"clean": "a", "other": {"prompt": "b"}, "answer": " c"}, {"clean": "a", "other": None, "answer": " c"}]
    path = save(tmp_path, train=rows, test=[{**row, "clean": "d"} for row in rows])
    settings: dict[str, Any] = {"corrupted": "other.prompt", "validation_split": None, "validation_fraction": 0}
    with pytest.raises(EdgepruneError, match=r"train\[1\]: corrupted must be text, got None; set skip_incomplete"):
        HFDatasetTask(path, **settings).splits(None)
    splits = HFDatasetTask(path, **settings, skip_incomplete=True).splits(None)
    assert [len(splits[name]) for name in ("train", "test")] == [1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clean": "question"}, r"train\[0\]: path 'question': there is no 'question', only prompt, template,"),
        ({"corrupted": "metadata.prompt"}, "there is no 'prompt', only subject, indirect_object"),
        ({"answer": "choices.2"}, "'2' is no entry of a list of 2"),
        ({"answer": "choices.first"}, "'first' is no entry of a list of 2"),
        ({"answer": "choices.{template}"}, "is no entry of a list of 2; give a number from 0"),
        ({"answer": "choices.{key}"}, "path 'key': there is no 'key'"),
        ({"answer": "prompt.text"}, "'text' cannot be looked up in 'When Mary"),
        ({"answer": "choices"}, r"train\[0\]: answer must be text, got \['Mary', 'John'\]; correct its path"),
        ({"clean": "answerKey"}, r"train\[0\]: clean must be text, got 0"),
    ],
)
def test_a_wrong_path_is_named_with_its_row(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    path = save(tmp_path, **three(mib_row))
    with pytest.raises(EdgepruneError, match=message) as caught:
        HFDatasetTask(path, **{**MIB_IOI, **settings}).splits(None)
    assert str(caught.value).startswith(f"{path} train[0]: ")
    assert "\n" not in str(caught.value)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match="has no split 'validation', it has train, test; name one of these, or"):
        HFDatasetTask(save(tmp_path, train=[plain(0)], test=[plain(1)])).splits(None)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    rows = [{**plain(0), "answer": None}, plain(1)]
    path = save(tmp_path, train=rows, validation=rows[:1], test=rows)
    with pytest.raises(EdgepruneError, match="split 'validation' holds no usable rows"):
        HFDatasetTask(path, skip_incomplete=True).splits(None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is no readable data set folder"),
        ({"train.jsonl": "{not json"}, "is no readable data set folder"),
        ({"train.parquet": "no parquet"}, "is no readable data set folder"),
        ({"dataset_dict.json": "{}"}, "is no readable data set folder"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(EdgepruneError, match=message) as caught:
        HFDatasetTask(str(tmp_path), validation_split=None, test_split=None).splits(None)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_hub_names_go_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return DatasetDict({name: Dataset.from_list(rows) for name, rows in three().items()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    splits = HFDatasetTask("someone/sums", config="small", revision="v1").splits(None)
    assert len(splits["train"]) == 4
    assert asked == [(("someone/sums", "small"), {"revision": "v1", "streaming": False})]


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("cannot reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = r"someone/sums is no readable folder here, .*ConnectionError: cannot reach the hub: no network in tests"
    with pytest.raises(EdgepruneError, match=message + r"\); check the path"):
        HFDatasetTask("someone/sums").splits(None)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Connections that were tried; none is made."""
    tried: list[Any] = []

    def refuse(address: Any, *_: Any, **__: Any) -> None:
        tried.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    close_session()
    yield tried
    close_session()


@pytest.mark.parametrize("offline", [False, True])
def test_the_hub_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, attempts: list[Any], capfd: pytest.CaptureFixture[str], offline: bool
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", offline)
    with pytest.raises(EdgepruneError, match=r"^someone/sums is no readable folder here, [^\n]*Connection refused\); "):
        HFDatasetTask("someone/sums").splits(None)
    assert 1 <= len(attempts) <= 2  # once per process huggingface_hub has a question of its own
    assert capfd.readouterr() == ("", "")
    assert datasets.config.HF_HUB_OFFLINE is offline  # as it was


def test_what_the_library_has_kept_is_read_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: list[Any]
) -> None:
    folder = tmp_path / "someone___sums" / "default" / "0.0.0" / ("a" * 40)
    folder.mkdir(parents=True)
    rows = [plain(i) for i in range(9)]
    with ArrowWriter(path=str(folder / "sums-train.arrow"), features=Dataset.from_list(rows).features) as writer:
        for row in rows:
            writer.write(row)
        number, size = writer.finalize()
    split = {"name": "train", "num_bytes": size, "num_examples": number, "dataset_name": "sums"}
    info = {
        "builder_name": "parquet", "dataset_name": "sums", "config_name": "default",
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "features": {name: {"dtype": "string", "_type": "Value"} for name in rows[0]}, "splits": {"train": split},
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    splits = HFDatasetTask("someone/sums", validation_split=None, test_split=None).splits(None)
    assert sorted(pair.clean for pairs in splits.values() for pair in pairs) == [row["clean"] for row in rows]
    assert 1 <= len(attempts) <= 2


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EdgepruneError, match=r"library datasets, which is missing: pip install 'edgeprune\[data\]'"):
        HFDatasetTask(str(tmp_path)).splits(None)


def test_the_library_is_loaded_only_when_it_is_used() -> None:
    code = "import sys, datamodules; datamodules.HFDatasetTask('someone/sums'); print('datasets' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "/no/such/folder"}, "no folder at '/no/such/folder', and it is no hub name"),
        ({"path": "a/b/c"}, "no folder at 'a/b/c'"),
        ({"path": ""}, "no folder at ''"),
        ({"clean": ""}, "clean must be a path such as 'prompt'.* got ''"),
        ({"answer": "choices.{answerKey"}, "answer must be a path"),
        ({"answer": "choices..0"}, "answer must be a path"),
        ({"answer": "choices.{}"}, "answer must be a path"),
        ({"distractor": ".a"}, "distractor must be a path"),
        ({"limit": 0}, "limit must be at least 1, or null for all rows, got 0"),
        ({"test_fraction": 1.0}, "must leave something to train on"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        HFDatasetTask(**{"path": "someone/sums", **settings})


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    task = HFDatasetTask(save(tmp_path, train=[plain(0)]))
    before = task.fingerprint()
    assert before is not None
    assert before == task.fingerprint()
    (tmp_path / "saved" / "note.txt").write_text("new")
    assert task.fingerprint() != before


def test_what_may_change_on_the_hub_has_no_fingerprint() -> None:
    assert HFDatasetTask("someone/sums").fingerprint() is None
    assert HFDatasetTask("someone/sums", revision="main").fingerprint() is None
    fixed = [HFDatasetTask("someone/sums", revision=digit * 40).fingerprint() for digit in "ab"]
    assert None not in fixed
