"""`edgeprune plan`: its tables and figures, and mistakes in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from edgeprune.cli import main
from edgeprune.costs import CARDS

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 90}


@pytest.fixture
def shape(tmp_path: Path) -> str:
    """A file like a model's `config.json`."""
    LlamaConfig(**TINY).save_pretrained(tmp_path)  # pyright: ignore[reportArgumentType]
    return str(tmp_path / "config.json")


def figures(tmp_path: Path, *words: str) -> dict[str, Any]:
    path = tmp_path / "plan.json"
    assert main(["plan", *words, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_a_shape_is_planned(tmp_path: Path, shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(tmp_path, "--model-config", shape, "--tokens", "9", "--positions", "2", "--batch-size", "5")
    assert (found["batch"], found["tokens"], found["positions"], found["dtype"]) == (5, 9, 2, "float32")
    assert list(found["cards"]) == list(CARDS)
    training = found["memory"]["training"]
    assert training["stack"] == training["its gradient"] == (1 + 2 * 5) * 45 * 32 * 4
    assert training["together"] == sum(training.values()) - training["together"]
    layer = 4 * 32 * 32 + 3 * 32 * 48
    assert found["multiply_adds_per_token"]["layers once"] == 2 * layer
    printed = capsys.readouterr().out
    assert "batches of 5 x 9 tokens, scored at 2" in printed
    for name in (*CARDS, "activations", "its gradient", "optimizer", "plain step"):
        assert name in printed


def test_a_config_is_planned(tmp_path: Path) -> None:
    """Its pairs say how long prompts are; nothing of the model but its shape is made."""
    found = figures(tmp_path, "--config", "quickstart")
    assert found["model_type"] == "edgeprune_compiled"
    assert found["tokens"] > 1
    given = figures(tmp_path, "--config", "quickstart", "--tokens", "3", "--dtype", "bfloat16", "--device", "cpu")
    assert (given["tokens"], given["dtype"], given["cards"]) == (3, "bfloat16", {})


INDUCTION = """
model: {{name: "compiled:trained_induction", roles: {roles}}}
data:
  task:
    class_path: Induction
    init_args: {{num_train: 4, num_validation: 2, num_test: 2, length: 6, vocab_size: 65, first_token: 1, bos_token: 0}}
"""


@pytest.mark.parametrize(
    ("roles", "number"), [("null", 0), ("[first, second]", 3), ("true", 4), ("positions", 13)], ids=str
)
def test_edges_and_gates_are_those_at_roles(
    roles: str, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many times the gates; a token still has the products of one."""
    config = tmp_path / "fit.yaml"
    made = list[dict[str, Any]]()
    for given in ("null", roles):
        config.write_text(INDUCTION.format(roles=given))
        made.append(figures(tmp_path, "--config", str(config)))
    plain, found = made
    assert found["roles"] == number
    assert found["edges"] == max(1, number) * plain["edges"]
    for part in ("gates", "optimizer"):
        assert found["memory"]["training"][part] == max(1, number) * plain["memory"]["training"][part]
    assert found["multiply_adds_per_token"] == plain["multiply_adds_per_token"]
    assert (f"at {number} roles" in capsys.readouterr().out) == (number > 0)


def test_an_open_batch_size_is_the_largest_that_fits(
    tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "fit.yaml"
    config.write_text("data: {batch_size: auto, target_batch_size: 4096, eval_batch_size: 1}\n")
    words = ("--config", str(config), "--model-config", shape, "--tokens", "9", "--device", "rtx4090-24gb")
    assert figures(tmp_path, *words)["batch"] == 4096
    most = figures(tmp_path, *words, "--batch-size", "512")["memory"]["training"]["together"]
    monkeypatch.setitem(CARDS, "rtx4090-24gb", CARDS["rtx4090-24gb"]._replace(memory_gb=most / 1e9 + 1e-6))
    found = figures(tmp_path, *words)
    assert (found["batch"], found["accumulate"]) == (512, 8)


def test_what_does_not_fit_comes_with_remedies(tmp_path: Path, shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model-config", shape, "--tokens", "60", "--batch-size", "65536", "--device", "rtx4090-24gb")
    found = figures(tmp_path, *words)
    assert not found["cards"]["rtx4090-24gb"]["fits"]
    printed = capsys.readouterr().out
    assert found["shortfall"] in printed
    assert found["remedies"]
    for change, size in found["remedies"].items():
        assert size <= 24e9
        assert f"  {change}: {size / 1e9:.1f} GB" in printed


def test_several_cards_have_columns_of_their_own(tmp_path: Path, shape: str) -> None:
    found = figures(tmp_path, "--model-config", shape, "--tokens", "4", "--world-size", "2")["memory"]
    assert list(found) == ["training", "evaluation", "training, sharded", "evaluation, sharded"]
    assert found["training, sharded"]["weights"] == found["training"]["weights"] / 2


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        ([], "", "nothing to plan: give --config X.yaml, or --model-config with --tokens"),
        (["--model-config", "SHAPE"], "", "length of prompts is not known: give --tokens N"),
        (["--model-config", "SHAPE", "--tokens", "0"], "", "--tokens must be at least 1, got 0"),
        (["--model-config", "SHAPE", "--tokens", "2", "--positions", "3"], "", "--positions 3 are more than --tokens"),
        (["--model-config", "SHAPE", "--tokens", "2", "--device", "h1"], "", "no figures of device 'h1'; choose among"),
        (["--model-config", "SHAPE", "--tokens", "2", "--dtype", "int8"], "", "dtype must be one of auto, float32"),
        (["--model-config", "gpt2", "--tokens", "1025"], "", "longer than the model's 1024 positions"),
        (["--model-config", "none.json", "--tokens", "2"], "", "is no file and no known shape; give a config.json, or"),
        (["--model-config", "FILE", "--tokens", "2"], "{}", "names no model_type"),
        (["--model-config", "FILE", "--tokens", "2"], "{", "not JSON"),
        (["--model-config", "FILE", "--tokens", "2"], '{"model_type": "bert"}', "no adapter for model_type 'bert'"),
        (
            ["--model-config", "FILE", "--tokens", "2"],
            '{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4, "vocab_size": 9}',
            "mend",
        ),
        (["--config", "FILE", "--tokens", "2"], "model: {ablation: zero}", "names no model with a config.json"),
        (["--config", "FILE", "--tokens", "2"], "model: {name: /nowhere}", "or give its shape with --model-config"),
        (
            ["--config", "FILE", "--model-config", "SHAPE", "--tokens", "2"],
            "data: {batch_size: 0}",
            "data.batch_size must be a whole number of at least 1, got 0",
        ),
        (
            ["--config", "FILE", "--model-config", "SHAPE"],
            "data: {task: {class_path: IOI}, tokenizer: /nowhere}",
            "or give --tokens N, the length of prompts",
        ),
        (
            ["--config", "FILE", "--model-config", "SHAPE", "--tokens", "2"],
            "model: {kv_readers: heads}",
            "model.kv_readers must be one of group, head, got 'heads'",
        ),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], text: str, message: str, tmp_path: Path, shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "given"
    file.write_text(text)
    places = {"SHAPE": shape, "FILE": str(file)}
    assert main(["plan", *(places.get(word, word) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
