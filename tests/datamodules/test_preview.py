"""The command `edgeprune data` and what it shows."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from datamodules import PromptPair, TokenPair
from datamodules.encode import encode_pairs
from datamodules.preview import MODIFIERS, overview, rich_preview, role_names
from edgeprune.cli import main
from tests.datamodules.conftest import word_tokenizer

ROWS = [
    {
        "clean": f"{name} and John met <predict>Kate</predict>",
        "corrupted": "Paul and John met <predict>foo</predict>",
        "split": split,
    }
    for name, split in (("Mary", "train"), ("Mary", "train"), ("John", "validation"), ("Kate", "test"))
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds a tokenizer, two tasks' configs and their pairs; nothing is cached elsewhere and nothing has colours."""
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    word_tokenizer(["Mary", "John", "Kate", "Paul", "and", "met", "foo"]).save_pretrained(tmp_path / "tokenizer")
    write_pairs(tmp_path, ROWS)
    write_config(tmp_path)
    return tmp_path


def write_pairs(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))


def write_config(folder: Path, **change: Any) -> str:
    task = {"class_path": "JSONLTask", "init_args": {"path": str(folder / "pairs.jsonl")}}
    data = {"task": task, "tokenizer": str(folder / "tokenizer"), **change}
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    return str(folder / "data.yaml")


def test_the_command_shows_pairs_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(folder / "data.yaml"), "-n", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"tokenizer  {folder / 'tokenizer'}",
        "pairs  2 train, 1 validation, 1 test",
        "train  4 to 4 tokens, 1 different lengths; roles: none",
        "legend  {text} a corrupted token that differs from the clean one",
        "",
        "train 0",
        "  clean       Mary and John met",
        "  corrupted   {Paul} and John met",
        "  scored at   3",
        "  answer      'Kate'",
        "  wrong       'foo'",
    ]


def test_ten_pairs_of_the_split_that_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(folder, ROWS + ROWS[-1:] * 20)
    assert main(["data", str(folder / "data.yaml"), "--split", "test"]) == 0
    out = capsys.readouterr().out
    assert "2 train, 1 validation, 21 test" in out
    assert "test 9\n" in out
    assert "test 10\n" not in out


def test_a_terminal_gets_colours_and_no_color_takes_them_away(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["data", str(folder / "data.yaml")])
    assert "\x1b[1;4mPaul\x1b[0m and John" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    main(["data", str(folder / "data.yaml")])
    assert "{Paul} and John" in capsys.readouterr().out


def test_tokens_without_a_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = {"class_path": "CompiledTask", "init_args": {"program": "reverse"}}
    assert main(["data", write_config(folder, task=task, tokenizer=None), "-n", "3"]) == 0
    out = capsys.readouterr().out
    assert "train 2\n  clean       3 " in out
    assert "{" in out.split("corrupted")[-1]


def test_shipped_configs_are_shown_with_the_own_small_model_or_another(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(name: str) -> PreTrainedTokenizerBase:
        asked.append(name)
        return word_tokenizer(["Mary", "John", "Kate", "Paul", "and", "met", "foo"])

    monkeypatch.setattr("edgeprune.models.loading.load_tokenizer", load)
    induction = {"class_path": "Induction", "init_args": {"vocab_size": 50}}
    assert main(["data", write_config(folder, task=induction, tokenizer=None)]) == 0
    assert main(["data", write_config(folder, tokenizer=None)]) == 0
    assert main(["data", write_config(folder), "--tokenizer", "other"]) == 0
    assert asked == ["smollm2", "other"]
    assert re.findall("tokenizer  (.*)", capsys.readouterr().out) == asked


# -------------------------------------------------------------------- mistakes
def missing(folder: Path) -> list[str]:
    return [str(folder / "nowhere.yaml")]


def unknown_key(folder: Path) -> list[str]:
    return [write_config(folder, colour="red")]


def unknown_setting(folder: Path) -> list[str]:
    task = {"class_path": "JSONLTask", "init_args": {"path": str(folder / "pairs.jsonl"), "shuffle": True}}
    return [write_config(folder, task=task)]


def wrong_setting(folder: Path) -> list[str]:
    task = {"class_path": "JSONLTask", "init_args": {"path": str(folder / "other.jsonl")}}
    return [write_config(folder, task=task)]


def unknown_choice(folder: Path) -> list[str]:
    return [write_config(folder, unequal_lengths="left")]


def unequal(folder: Path) -> list[str]:
    write_pairs(folder, [*ROWS, ROWS[0] | {"corrupted": "Paul met <predict>foo</predict>"}])
    return [str(folder / "data.yaml")]


def text(folder: Path, content: bytes) -> list[str]:
    (folder / "data.yaml").write_bytes(content)
    return [str(folder / "data.yaml")]


def no_pairs(folder: Path) -> list[str]:
    write_pairs(folder, ROWS[:3])
    return [str(folder / "data.yaml"), "--split", "test"]


MISTAKES: dict[str, tuple[Any, str]] = {
    "missing file": (missing, "no config file at .*nowhere.yaml"),
    "unknown key": (unknown_key, "colour"),
    "unknown setting of the task": (unknown_setting, "shuffle"),
    "wrong setting of the task": (wrong_setting, "no pair file at '.*other.jsonl'"),
    "unknown choice": (unknown_choice, "left"),
    "unequal lengths": (unequal, "pairs.jsonl:5: the clean prompt has 4 tokens and the corrupted one 2"),
    "no data section": (lambda folder: text(folder, b"model: gpt2"), "has no section 'data'"),
    "no such task": (
        lambda folder: text(folder, b"data: {task: CompiledTusk}"),
        r"data.yaml: data.task: there is no 'CompiledTusk' \(did you mean 'CompiledTask'\?\); known are Auto",
    ),
    "not a number": (
        lambda folder: text(folder, b"data: {task: CompiledTask, batch_size: .nan}"),
        "data.yaml: data.batch_size must be a whole number or auto, got nan$",
    ),
    "empty data section": (lambda folder: text(folder, b"data:"), "has no section 'data'"),
    "only a word": (
        lambda folder: text(folder, b"data"),
        "data.yaml must hold options by name .*, it holds only 'data'",
    ),
    "a list": (lambda folder: text(folder, b"- data"), "data.yaml must hold options by name .*, it holds a list"),
    "nothing": (lambda folder: text(folder, b"# data\n"), "data.yaml is empty; write options into it"),
    "a folder": (lambda folder: [str(folder)], "no config file at "),
    "no YAML": (lambda folder: text(folder, b"data: [1,\n"), "data.yaml:2 is no YAML: "),
    "no text": (lambda folder: text(folder, b"\xff\xfe\x00"), "data.yaml is not UTF-8 text"),
    "a key twice": (lambda folder: text(folder, b"data:\n  a: 1\n  a: 2\n"), "data.yaml:3: key 'a' comes twice"),
    "no such pairs": (no_pairs, "gives no test pairs; choose another --split"),
    "too few": (lambda folder: [str(folder / "data.yaml"), "-n", "0"], "-n must be at least 1, got 0"),
    "no number": (lambda folder: [str(folder / "data.yaml"), "-n", "ten"], "invalid int value: 'ten'"),
    "no such split": (lambda folder: [str(folder / "data.yaml"), "--split", "dev"], "invalid choice: 'dev'"),
    "no config": (lambda folder: [], "config; see edgeprune data --help"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], arguments: Any, message: str) -> None:
    assert main(["data", *arguments(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("edgeprune: error: ")
    assert re.search(message, line)


# -------------------------------------------------------------------- what is shown of a pair
def lines(pairs: list[TokenPair], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """The preview without colours."""
    shown = rich_preview(pairs, tokenizer, split="train", roles=role_names(pairs), colour=False)
    return "\n".join(text.plain for text in shown).splitlines()


def test_roles_answers_and_alignment_by_hand(words: PreTrainedTokenizerBase) -> None:
    right, wrong = (tuple(words.convert_tokens_to_ids(text.split())) for text in ("1 2 3", "4 5 6 7 8 9"))
    pair = PromptPair(
        "When Mary and John met",
        "When Kate Paul and foo met",
        " 1",
        " 4",
        answer_ids=(right,),
        wrong_ids=(wrong,),
        roles={"S+1": (10, 13), "both": (5, 18), "S": (14, 18)},
    )
    [encoded] = encode_pairs([pair], words, unequal_lengths="end")
    assert lines([encoded], words) == [
        "legend  [role:text] marks a role (both, S+1, S), {text} a corrupted token that differs from the clean one",
        "",
        "train 0",
        "  clean       When [both:Mary] [S+1/both:and] [S/both:John] met",
        "  corrupted   {When Kate Paul} and {foo} met",
        "  scored at   4",
        "  answer      '1'",
        "    all at 4  '1', '2', '3'",
        "  wrong       '4'",
        "    all at 4  '4', '5', '6', '7', '8', ... (6 in all)",
    ]


def test_answers_of_several_tokens(words: PreTrainedTokenizerBase) -> None:
    four = words.convert_tokens_to_ids("4")
    pair = PromptPair("Mary met", "John met", " 1 2", wrong_ids=((), (four,)))
    assert lines(encode_pairs([pair], words), words)[3:] == [
        "  clean       Mary met 1",
        "  corrupted   {John} met 1",
        "  scored at   1, 2",
        "  answer      '1 2'",
        "  wrong       -",
        "    all at 1  -",
        "    all at 2  '4'",
    ]


def test_every_role_has_its_own_look(words: PreTrainedTokenizerBase) -> None:
    names = [f"role {i}" for i in range(20)]
    text = " ".join(["Mary"] * 20)
    pair = PromptPair(
        text, text.replace("Mary", "John", 1), " met", roles={n: (5 * i, 5 * i + 4) for i, n in enumerate(names)}
    )
    encoded = encode_pairs([pair], words)
    assert role_names(encoded) == names
    legend, shown = rich_preview(encoded, words, split="train", roles=names, colour=True)
    styles = [str(span.style) for span in legend.spans]
    assert len(set(styles)) == 21
    assert any(modifier and modifier in style for style in styles for modifier in MODIFIERS)
    marked = [str(span.style) for span in shown.spans if shown.plain[span.start : span.end] == "Mary"]
    assert marked == styles[:20]


def test_text_that_tokens_spell_in_parts(gpt2: PreTrainedTokenizerBase) -> None:
    pair = PromptPair("I like\n🦄 and", "I like\n🦅 and", " you", roles={"animal": (7, 8)})
    shown = lines(encode_pairs([pair], gpt2), gpt2)
    assert shown[3] == "  clean       I like\\n[animal:🦄] and"
    assert shown[4].endswith(" and")
    assert "I like\\n" in shown[4]


def test_overview_counts(words: PreTrainedTokenizerBase) -> None:
    short, long = TokenPair((1,), (2,), (0,), (3,), (4,)), TokenPair((1, 2, 3), (2, 2, 3), (0,), (3,), (4,))
    shown = overview([short, long, long], {"train": 3, "test": 0}, "train", ["io"])
    assert shown == "pairs  3 train, 0 test\ntrain  1 to 3 tokens, 2 different lengths; roles: io"
