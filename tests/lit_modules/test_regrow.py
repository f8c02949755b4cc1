"""Snapshots from whose size a run trains on, also one that was stopped meanwhile."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.errors import EdgepruneError
from lit_modules import PruningModule, RegrowCircuits

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
STEPS = 30
FOLDER = Path("runs/quickstart/version_0")

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["edgeprune"])


def config() -> dict[str, Any]:
    """The quickstart in a few steps, without its recipe's settings."""
    found = yaml.safe_load(QUICKSTART.read_text())
    found["model"].update(name="compiled:hist", objective="squared_error", recipe="EdgePruning")
    found["data"]["task"]["init_args"]["program"] = "hist"
    found["data"]["batch_size"] = 8
    found["trainer"].update(max_steps=STEPS, val_check_interval=STEPS, enable_progress_bar=False)
    return found


def write(asked: list[float], **options: Any) -> None:
    """With circuits that are regrown."""
    found = config()
    found["trainer"]["callbacks"] = [
        {"class_path": "RegrowCircuits", "init_args": {"steps": STEPS, "learning_rate": 0.2, **options}},
        {"class_path": "SnapshotCircuits", "init_args": {"sparsities": asked}},
    ]
    Path("config.yaml").write_text(yaml.safe_dump(found))


def fit(*more: str) -> int:
    return main(["fit", "--config", "config.yaml", *more])


def circuits(kind: str, folder: Path = FOLDER) -> dict[str, Circuit]:
    return {path.name: Circuit.load(path) for path in sorted((folder / kind).glob("sparsity*.safetensors"))}


def test_every_snapshot_is_regrown_when_training_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    write([0.3, 0.5])
    assert fit() == 0
    taken, made = circuits("circuits"), circuits("regrown")
    assert list(made) == list(taken) == ["sparsity-0.3000.safetensors", "sparsity-0.5000.safetensors"]
    for name, circuit in made.items():
        assert circuit.num_edges == taken[name].num_edges
        assert circuit.header["model"] == "compiled:hist"
        assert circuit.header["regrown"]["from"] == name
        assert circuit.header["task"] == taken[name].header["task"]
        assert (FOLDER / "regrown" / name.removesuffix(".safetensors") / "metrics.csv").is_file()
    shown = " ".join(capsys.readouterr().out.split())
    assert "Regrown circuits on the validation pairs" in shown
    assert "regrown/squared_error" in (FOLDER / "metrics.csv").read_text()


def test_a_regrown_circuit_is_that_of_a_run_that_starts_from_the_snapshot() -> None:
    write([0.5], batch_size=4)
    assert fit() == 0
    other, recipe = config(), "model.recipe.init_args"
    other["trainer"]["callbacks"] = [{"class_path": "SnapshotCircuits", "init_args": {"sparsities": [0.5]}}]
    other["data"]["batch_size"] = 4
    Path("other.yaml").write_text(yaml.safe_dump(other))
    options = {
        f"{recipe}.masks_per_batch": 8,
        f"{recipe}.betas": [0.9, 0.99],
        f"{recipe}.learning_rate": 0.2,
        f"{recipe}.init_mean": 3,
        f"{recipe}.warm_start.path": FOLDER / "circuits" / "sparsity-0.5000.safetensors",
        f"{recipe}.warm_start.closed_at": -6,
        f"{recipe}.regrow.share": 0.03,
        f"{recipe}.sparsity_term": "Pace",
        f"{recipe}.sparsity_term.init_args.end": 0.5,
        f"{recipe}.sparsity_term.init_args.hold": 0.9,
        "trainer.logger.init_args.name": "other",
    }
    assert main(["fit", "--config", "other.yaml", *(f"--{key}={value}" for key, value in options.items())]) == 0
    (made,) = circuits("regrown").values()
    (found,) = circuits("circuits", Path("runs/other/version_0")).values()
    assert torch.equal(made.keep, found.keep)
    assert made.scores is not None
    assert found.scores is not None
    torch.testing.assert_close(made.scores, found.scores, atol=1e-3, rtol=1e-3)  # runs are kept in other batches
    assert made.header["warm_start"] == found.header["warm_start"]


def test_a_run_that_was_stopped_meanwhile_goes_on_with_the_step_that_it_was_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write([0.3, 0.5])
    assert fit("--trainer.logger.init_args.name", "whole") == 0
    step = PruningModule.training_step
    steps: list[int] = []

    def stopped(self: PruningModule, batch: Any, batch_idx: int) -> Any:
        steps.append(self.global_step)
        if len(steps) == 2 * STEPS + 10:  # of the second circuit
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PruningModule, "training_step", stopped)
    with pytest.raises(SystemExit):
        fit()
    assert "the same command with --ckpt_path last" in capsys.readouterr().err
    assert list(circuits("regrown")) == ["sparsity-0.3000.safetensors"]
    done = len(steps)
    assert fit("--ckpt_path", "last") == 0
    assert steps[done:] == list(range(10, STEPS))
    whole = circuits("regrown", Path("runs/whole/version_0"))
    assert all(torch.equal(circuit.keep, whole[name].keep) for name, circuit in circuits("regrown").items())
    assert len((FOLDER / "regrown" / "sparsity-0.5000" / "metrics.csv").read_text().splitlines()) == 1 + STEPS // 10


def test_snapshots_of_another_recipe_are_regrown() -> None:
    write([0.5])
    assert fit("--model.recipe", "SubnetworkProbing", "--model.recipe.init_args.granularity", "edges") == 0
    (made,) = circuits("regrown").values()
    assert made.header["method"] == "edge_pruning"


def test_mistakes_are_found_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    write([0.5], sparsities=[0.9])
    assert fit() == 2
    assert "sparsity 0.9 of RegrowCircuits is none of those that SnapshotCircuits takes" in capsys.readouterr().err
    assert not list(Path().rglob("*.ckpt"))
    with pytest.raises(EdgepruneError, match="steps of RegrowCircuits must be at least 1, got 0"):
        RegrowCircuits(steps=0)
    with pytest.raises(EdgepruneError, match="batch_size of RegrowCircuits must be at least 1, got 0"):
        RegrowCircuits(batch_size=0)


def test_it_needs_snapshots() -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    module = PruningModule("compiled:hist", recipe=config_recipe())
    with pytest.raises(EdgepruneError, match="RegrowCircuits has no circuits to work on: add the callback Snapshot"):
        RegrowCircuits().setup(trainer, module, "fit")


def config_recipe() -> Any:
    from edgeprune.methods import EdgePruning

    return EdgePruning()
