"""The check of a model on one's own machine: it passes on models that are right, and notices those that are not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeprune.cli import main
from edgeprune.models import masked
from edgeprune.models.families.gpt2 import GPT2
from edgeprune.models.family import registry
from edgeprune.selfcheck import SelfCheck, selfcheck
from tests.models.test_conformance import build


def checked(model: Any, **options: Any) -> list[SelfCheck]:
    return list(selfcheck(model, ("float32",), ("eager",), **options))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "edgeprune_compiled"])
def test_models_that_are_right_pass(name: str) -> None:
    (found,) = checked(build(registry()[name], 0, torch.float32).hf)
    assert found.ok
    assert found.exact
    assert [item.padding for item in found.opened] == ["none", "left", "right"]
    assert all(error is not None for error in found.errors.values())
    assert found.ratio > 0


def test_a_last_bit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT2, "finish", lambda self, stream: self.hf.lm_head(self.body.ln_f(stream * (1 + 2e-7))))
    (found,) = checked(build(registry()["gpt2"], 0, torch.float32).hf)
    assert not found.exact
    assert not found.ok
    worst = found.opened[0]
    assert 0 < worst.differing <= worst.total
    assert 0 < worst.largest < 1e-4


def test_a_wrong_treatment_of_writers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of heads that are not those of the model: both ends are blind to it, sum and gradient are not."""
    block = type(build(registry()["gemma3_text"], 0).blocks[0])
    weight = block.output_weight
    monkeypatch.setattr(block, "output_weight", lambda self: 1.5 * weight(self))
    (found,) = checked(build(registry()["gemma3_text"], 0, torch.float32).hf)
    assert found.exact
    assert not found.passes("writers")
    assert not found.ok


def test_a_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = masked.attend

    def cut(*arguments: Any) -> torch.Tensor:
        return attend(*arguments).detach()

    monkeypatch.setattr(masked, "attend", cut)
    (found,) = checked(build(registry()["llama"], 0, torch.float32).hf)
    assert found.exact
    assert not found.passes("gradient")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "model", tmp_path / "found.json"
    build(registry()["llama"], 1, torch.float32).hf.save_pretrained(folder)
    assert main(["selfcheck", str(folder), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "every check passes" in printed
    assert printed.count("bit for bit") == 4
    found = json.loads(out.read_text())
    assert found["ok"]
    assert [(row["dtype"], row["attention"]) for row in found["checks"]] == [
        (dtype, kernel) for dtype in ("float32", "bfloat16") for kernel in ("eager", "sdpa")
    ]


def test_the_command_fails_where_a_check_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GPT2, "finish", lambda self, stream: 2 * self.hf.lm_head(self.body.ln_f(stream)))
    build(registry()["gpt2"], 0, torch.float32).hf.save_pretrained(tmp_path)
    assert main(["selfcheck", str(tmp_path), "--dtype", "float32", "--attn", "eager"]) == 1
    printed = capsys.readouterr().out
    assert "some checks FAILED" in printed
    assert "differ, by" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at-all-of-that"], "nowhere/at-all-of-that"),
        (["compiled:reverse", "--dtype", "float8"], "--dtype float8: choose among"),
        (["compiled:reverse", "--attn", "slow"], "this family has no attention 'slow'"),
        (["compiled:reverse", "--json", "no/such/folder/x.json"], "there is no folder"),
        (["compiled:reverse", "--kv-readers", "both"], "kv_readers"),
        (["compiled:reverse", "--device", "abacus"], "cannot use device 'abacus'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["selfcheck", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().count("\n") == 0


def test_an_unknown_architecture_is_refused_with_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import BloomConfig

    AutoModelForCausalLM.from_config(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=30)).save_pretrained(
        tmp_path
    )
    assert main(["selfcheck", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "bloom" in message
    assert "gpt2" in message
