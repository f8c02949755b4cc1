"""Pairs that a model cannot take: one line with the prompt, what is wrong and the limit, and nothing written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

import edgeprune as ep
from edgeprune.circuit import Circuit
from edgeprune.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

WORDS = ["[UNK]", "[PAD]", "a", "b", "c", "d", "e", "f"]
LONG = "a b c d e a b c d e"
TOO_LONG = f"train pair 1, '{LONG}' (PATH:2), has 10 tokens, model 'MODEL' has 8 positions: shorten the prompt, or"
UNKNOWN = "train pair 2, 'f a' (PATH:3), has input id 7, model 'MODEL' knows 0 to 6: they are made for another model"


def pair(clean: str, corrupted: str) -> dict[str, str]:
    return {"clean": f"{clean} <predict>a</predict>", "corrupted": f"{corrupted} <predict>b</predict>"}


FAULTS = {
    "too long": ([pair("a b", "b a"), pair(LONG, LONG.replace("a", "b"))], TOO_LONG),
    "no such token": ([pair("a b", "b a"), pair("b b", "b a"), pair("f a", "b b")], UNKNOWN),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny GPT-2 with 8 positions, and a tokenizer that knows one word more than the model."""
    folder = tmp_path / "model"
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=8, vocab_size=7, bos_token_id=1, eos_token_id=1)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


def config(folder: Path, model: Path, rows: list[dict[str, str]], **more: Any) -> Path:
    """An experiment: the rows for training, two others to validate and test on."""
    (folder / "pairs.jsonl").write_text(
        "".join(
            json.dumps({**row, "split": split}) + "\n"
            for split, own in (("train", rows), ("validation", [pair("c d", "d c")]), ("test", [pair("d e", "e d")]))
            for row in own
        )
    )
    task = {"class_path": "JSONLTask", "init_args": {"path": str(folder / "pairs.jsonl")}}
    values = {"model": {"name": str(model)}, "data": {"task": task, "cache": False}, **more}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command_lines(name: str, folder: Path, model: Path, rows: list[dict[str, str]]) -> list[str]:
    out = folder / "out"
    if name == "fit":
        recipe = {"class_path": "EdgePruning", "init_args": {"sparsity_term": {"class_path": "GeometricPenalty"}}}
        path = config(folder, model, rows, trainer={"max_steps": 2, "default_root_dir": str(out)})
        values = yaml.safe_load(path.read_text())
        values["model"]["recipe"] = recipe
        path.write_text(yaml.safe_dump(values))
        return ["fit", "--config", str(path), "--trainer.logger.init_args.save_dir", str(out)]
    path = config(folder, model, rows)
    if name == "discover":
        return ["discover", "--config", str(path), "--method", "EAPIG", "--out", str(out)]
    if name == "data":
        return ["data", str(path)]
    graph = ep.load_model(str(model)).graph
    circuit = Circuit.random(graph, 5, 0)
    circuit.header["model"] = str(model)
    circuit.save(folder / "circuit.safetensors")
    more = ["--json", str(folder / "out"), "--split", "train"]
    if name == "compare":
        return ["compare", *[str(folder / "circuit.safetensors")] * 2, "--config", str(path), "--split", "train"]
    return ["evaluate", str(folder / "circuit.safetensors"), "--config", str(path), *more]


@pytest.mark.parametrize("command", ["fit", "discover", "evaluate", "data", "compare"])
@pytest.mark.parametrize(("rows", "said"), FAULTS.values(), ids=FAULTS)
def test_a_pair_that_does_not_fit_is_one_line(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], command: str, rows: list[Any], said: str
) -> None:
    given = command_lines(command, tmp_path, model, rows)
    capsys.readouterr()
    assert main(given) == 2
    said_in_all = capsys.readouterr().err.splitlines()  # transformers shows how it loads weights
    (line,) = [line for line in said_in_all if line.strip() and "Loading weights" not in line]
    expected = said.replace("PATH", str(tmp_path / "pairs.jsonl")).replace("MODEL", str(model))
    assert line.startswith("edgeprune: error: ")
    assert expected in line
    assert not (tmp_path / "out").exists()


def test_pairs_that_fit_are_shown(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(config(tmp_path, model, [pair("a b c d e a b c", "b b c d e a b c")]))]) == 0
    assert "1 train" in capsys.readouterr().out


def test_a_model_that_is_not_here_is_not_asked(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, tmp_path / "elsewhere", FAULTS["too long"][0])
    assert main(["data", str(path), "--tokenizer", str(model)]) == 0
    assert "2 train" in capsys.readouterr().out
