import shutil
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.train_induction import accuracy, head_scores, main, train
from datamodules.collate import collate
from datamodules.tasks.induction import Induction
from edgeprune.batch import IGNORE
from edgeprune.compiled import cases, load_compiled, true_circuit
from edgeprune.compiled.trained_induction import LONGEST, VOCAB_SIZE, WEIGHTS, read_weights
from edgeprune.errors import EdgepruneError
from edgeprune.models.loading import load_model

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_weights_reach_the_accuracy_that_they_state() -> None:
    _, record = read_weights(ROOT / "edgeprune" / "compiled" / WEIGHTS)
    assert accuracy(load_compiled("trained_induction")) == pytest.approx(record["accuracy"], abs=1e-3)  # other kernels
    assert record["accuracy"] > 0.99
    assert record.keys() == {"seed", "steps", "accuracy", "versions"}


def test_it_continues_sequences_that_it_has_never_seen() -> None:
    """Own inputs: halves of every length, with symbols that stand in no training input's order."""
    model = load_compiled("trained_induction")
    generator = torch.Generator().manual_seed(7)
    for half in (4, 11, LONGEST):
        symbols = torch.stack([torch.randperm(VOCAB_SIZE - 1, generator=generator)[:half] + 1 for _ in range(50)])
        ids = torch.cat([torch.zeros(50, 1, dtype=torch.long), symbols, symbols], dim=1)
        found = model(ids).logits.argmax(-1)[:, half + 1 : -1]
        assert (found == symbols[:, 1:]).float().mean() > 0.95
        first_half = model(ids).logits.argmax(-1)[:, 1:half]
        assert (first_half == symbols[:, 1:]).float().mean() < 0.2  # nothing to copy yet: the guess is no better


def test_one_head_looks_back_by_one_and_the_next_layer_looks_behind_the_last_occurrence() -> None:
    scores = head_scores(load_compiled("trained_induction"))
    assert max(previous for name, (previous, _) in scores.items() if name.startswith("a0")) > 0.6
    assert min(after for name, (_, after) in scores.items() if name.startswith("a1")) > 0.8
    assert max(after for name, (_, after) in scores.items() if name.startswith("a0")) < 0.05


def test_the_induction_task_fits_it() -> None:
    splits = Induction(vocab_size=VOCAB_SIZE, first_token=1, bos_token=0, num_test=50).splits(None)
    batch = collate(list(enumerate(splits["test"])))
    model = load_model("compiled:trained_induction")
    found = model.full(batch.clean, batch.attention_mask, batch.positions).argmax(-1)
    assert (found == batch.targets).float().mean() > 0.95
    other = model.full(batch.corrupted, batch.attention_mask, batch.positions).argmax(-1)
    assert (other == batch.targets).float().mean() < 0.2


def test_its_cases_are_repeats_with_the_next_token_as_output() -> None:
    for ids, outputs in cases("trained_induction"):
        half = len(outputs) // 2
        assert ids[1 : half + 1] == ids[half + 1 :]
        assert len(set(ids)) == half + 1
        assert set(outputs[:half]) == {IGNORE} == {outputs[-1]}
        assert outputs[half:-1] == ids[half + 2 :]


def test_no_true_circuit_is_claimed() -> None:
    with pytest.raises(
        EdgepruneError, match="no true circuit of 'trained_induction' is known: its weights were learned"
    ):
        true_circuit("trained_induction", "zero")


def test_a_few_steps_lower_the_loss_and_a_seed_repeats_them() -> None:
    losses: list[float] = []
    state = torch.random.get_rng_state()
    model = train(250, seed=3, report=lambda step, loss: losses.append(loss))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(losses) == 250
    assert sum(losses[-20:]) / 20 < sum(losses[:20]) / 20 - 0.2  # nats; by 250 steps it begins to learn
    again = train(2, seed=3)
    repeated = train(2, seed=3)
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), repeated.parameters(), strict=True))
    assert not torch.equal(again.tok_embed.weight, train(2, seed=4).tok_embed.weight)
    assert not model.training


def test_training_that_does_not_learn_fails_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weights.safetensors"
    assert main(["--steps", "2", "--out", str(out)]) == 1
    shown = capsys.readouterr()
    assert "accuracy on held-out repeats: 0.0" in shown.out
    assert "it did not learn" in shown.err
    assert not out.exists()
    assert main(["--steps", "0"]) == 2
    assert "--steps must be at least 1" in capsys.readouterr().err


def test_weights_that_were_written_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.train_induction.LEARNED", 0.0)
    out = tmp_path / "new" / "weights.safetensors"
    assert main(["--steps", "2", "--seed", "5", "--out", str(out)]) == 0
    tensors, record = read_weights(out)
    assert (record["seed"], record["steps"]) == (5, 2)
    assert record["versions"]["torch"] == torch.__version__
    expected = train(2, 5).state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_what_cannot_be_is_one_line_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.train_induction.train", None)  # not called
    file = tmp_path / "file"
    file.touch()
    far = tmp_path / ("long" * 20) / "weights.safetensors"
    for arguments, named in (
        (["--steps", "0", "--out", str(far)], "--steps must be at least 1, got 0"),
        (["--seed", str(2**64)], "--seed must lie in 0 to 2^63 - 1, got 18446744073709551616"),
        (["--seed", "-1"], "--seed must lie in"),
        (["--out", str(tmp_path)], f"--out {tmp_path} is a folder; give a file name"),
        (["--out", str(file / "weights.safetensors")], f"cannot be written: {file} is a file; choose another place"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


def test_help_describes_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "Train the model `compiled:trained_induction` from scratch" in shown
    assert "Args:" not in shown


@pytest.mark.parametrize("damage", ["absent", "cut", "lost", "reshaped", "unlabelled"])
def test_damaged_weights_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    file = tmp_path / WEIGHTS
    tensors, metadata = dict(load_compiled("trained_induction").state_dict()), {"edgeprune": "{}"}
    if damage == "lost":
        del tensors["layers.0.attn.q_proj.bias"]
    if damage == "reshaped":
        tensors["tok_embed.weight"] = tensors["tok_embed.weight"][1:]
    if damage in ("lost", "reshaped", "unlabelled"):
        save_file(tensors, file, metadata=None if damage == "unlabelled" else metadata)
    if damage == "cut":
        shipped = resources.files("edgeprune.compiled") / WEIGHTS
        file.write_bytes(shipped.read_bytes()[:-100])
    not_whole = r"is not a whole file of weights of trained_induction .*; install the package again"
    with pytest.raises(EdgepruneError, match=not_whole):
        read_weights(file)


def test_the_wheel_contains_the_small_file(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="wheels are built with setuptools")
    size = (ROOT / "edgeprune" / "compiled" / WEIGHTS).stat().st_size
    assert size < 2**20
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in ("edgeprune", "lit_modules", "datamodules", "configs"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    wheel = zipfile.ZipFile(tmp_path / done.stdout.split()[-1])
    with wheel:
        assert wheel.getinfo(f"edgeprune/compiled/{WEIGHTS}").file_size == size
