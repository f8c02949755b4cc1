"""Snapshots that are polished at the end of a run, also of one that was stopped meanwhile."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.errors import EdgepruneError
from edgeprune.methods.polish import Polisher
from lit_modules import Polish

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["edgeprune"])


def write(objective: str = "squared_error", program: str = "hist", **polish: Any) -> None:
    """The quickstart, in a few steps, with circuits that are polished."""
    config = yaml.safe_load(QUICKSTART.read_text())
    settings = {"limit": 16, "max_passes": 40, **polish}
    config["model"].update(name=f"compiled:{program}", objective=objective)
    config["model"]["recipe"]["init_args"]["sparsity_term"] = "GeometricPenalty"
    config["data"]["task"]["init_args"]["program"] = program
    config["trainer"]["max_steps"] = 4
    config["trainer"]["val_check_interval"] = 4
    config["trainer"]["enable_progress_bar"] = False
    config["trainer"]["callbacks"] = [
        {"class_path": "Polish", "init_args": settings},
        {"class_path": "SnapshotCircuits", "init_args": {"sparsities": [0.3, 0.5]}},
    ]
    Path("config.yaml").write_text(yaml.safe_dump(config))


def fit(*more: str) -> int:
    return main(["fit", "--config", "config.yaml", *more])


def circuits(kind: str) -> dict[str, Circuit]:
    folder = Path("runs/quickstart/version_0")
    return {path.name: Circuit.load(path) for path in sorted((folder / kind).glob("sparsity*.safetensors"))}


def test_snapshots_are_polished_when_training_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    write()
    assert fit() == 0
    taken, made = circuits("circuits"), circuits("polished")
    assert list(made) == list(taken) == ["sparsity-0.3000.safetensors", "sparsity-0.5000.safetensors"]
    for name, circuit in made.items():
        about = circuit.header["derived"][-1]["polished"]
        assert circuit.num_edges == taken[name].num_edges
        assert about["loss"] <= about["start"]
        assert (
            about["held_out"]
            <= about["held_out_start"]
            == pytest.approx(taken[name].header["metrics"]["squared_error"], rel=1e-4)
        )
        assert circuit.header["metrics"]["squared_error"] == pytest.approx(about["held_out"], rel=1e-4)
        assert circuit.header["model"] == "compiled:hist"
    assert any(not torch.equal(circuit.keep, taken[name].keep) for name, circuit in made.items())
    shown = " ".join(capsys.readouterr().out.split())
    assert "Polished circuits on the validation pairs" in shown
    assert not list(Path().rglob("*-state"))
    assert "polished/squared_error" in Path("runs/quickstart/version_0/metrics.csv").read_text()


def test_a_run_that_was_stopped_meanwhile_goes_on_with_the_circuit_that_it_was_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(sparsities=[0.5])
    assert fit("--trainer.logger.init_args.name", "whole") == 0
    one_round, rounds = Polisher._round, 0  # pyright: ignore[reportPrivateUsage]

    def stopped(self: Polisher) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            raise KeyboardInterrupt
        one_round(self)

    monkeypatch.setattr(Polisher, "_round", stopped)
    assert fit() == 130
    assert not circuits("polished")
    assert fit("--ckpt_path", "last") == 0
    (made,) = circuits("polished").values()
    whole = Circuit.load(Path("runs/whole/version_0/polished/sparsity-0.5000.safetensors"))
    assert torch.equal(made.keep, whole.keep)
    about, other = (circuit.header["derived"][-1]["polished"] for circuit in (made, whole))
    assert {**about, "seconds": 0} == {**other, "seconds": 0}


def test_mistakes_are_found_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    write(sparsities=[0.9])
    assert fit() == 2
    assert "sparsity 0.9 of Polish is none of those that SnapshotCircuits takes" in capsys.readouterr().err
    assert not list(Path().rglob("*.ckpt"))
    with pytest.raises(EdgepruneError, match="limit must be at least 1, got 0"):
        Polish(limit=0)


def test_an_objective_that_needs_another_run_is_refused_before_training() -> None:
    trainer, module = SimpleNamespace(world_size=1, callbacks=[]), SimpleNamespace(objective="cmd", recipe=None)
    with pytest.raises(EdgepruneError, match="objective 'cmd': leave it out"):
        Polish().setup(cast("Any", trainer), cast("Any", module), "fit")


def test_the_table_shows_kl_under_an_objective_that_is_no_measure(capsys: pytest.CaptureFixture[str]) -> None:
    write("nll", "trained_induction", limit=4, max_passes=4)
    assert fit() == 0
    assert "kl before" in capsys.readouterr().out
    assert len(circuits("polished")) == 2
