"""Two processes do what one process with their batches together does, and one goes on where they stopped."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edgeprune.checkpoint_files import load_checkpoint
from edgeprune.circuit import Circuit
from tests.cli.kills import ROOT, RUN, STEPS, TIMEOUT, fit, printed, write_config

STOP = 20
# Log-alphas, which move over a range of 10, differ as the order of float32 sums does: 2e-6 here.
TOLERANCE = 1e-4
LAST = Path(RUN) / "checkpoints" / "last.ckpt"
TWO = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu", "--data.batch_size", "16"]


def fit_on_two(folder: Path, *more: str, command: str = "fit") -> int:
    """Run `edgeprune fit` with two gloo processes; a dead one cannot leave the other waiting."""
    words = [sys.executable, "-m", "edgeprune", command, "--config", "run.yaml", *TWO, *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            return process.wait(TIMEOUT)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on one process, and one on two that a signal to one of them stopped, whose files are kept as `stopped`."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    write_config(one, [])
    assert fit(one) == 0, printed(one)
    write_config(two, [("step", STOP, "SIGTERM")])
    assert fit_on_two(two) == 143, printed(two)
    return one, two


def rows(folder: Path, name: str) -> dict[int, float]:
    """A figure of the log, by step."""
    table = csv.DictReader((folder / RUN / "metrics.csv").read_text().splitlines())
    return {int(row["step"]): float(row[name]) for row in table if row[name]}


def gates(path: Path) -> torch.Tensor:
    return load_checkpoint(path)["state_dict"]["recipe.edges.log_alpha"]


def test_two_processes_have_the_gates_circuits_and_figures_of_one(runs: tuple[Path, Path]) -> None:
    one, two = runs
    (theirs,) = (one / RUN / "checkpoints").glob(f"*step={STOP}.ckpt")
    ours = gates(two / RUN / "checkpoints" / "last.ckpt")
    assert (ours - gates(theirs)).abs().max() < TOLERANCE
    for name in ("sparsity-0.5000", "sparsity-0.8000"):
        a, b = (Circuit.load(folder / RUN / "circuits" / f"{name}.safetensors") for folder in runs)
        assert torch.equal(a.keep, b.keep)
        assert a.header["step"] == b.header["step"]
        for measures in ("metrics", "random_control"):
            figures: dict[str, Any] = a.header[measures]
            assert b.header[measures] == pytest.approx(figures, abs=1e-4, nan_ok=True)
    for name in ("kl", "train/penalty", "val/kl", "val/accuracy", "snapshot/kl", "reference/jaccard"):
        figures = {step: value for step, value in rows(one, name).items() if step < STOP}
        assert {s: v for s, v in rows(two, name).items() if s < STOP} == pytest.approx(figures, abs=1e-3), name
    log = printed(two)
    assert log.count("stopped by SIGTERM") == 1
    assert "Traceback" not in log


def test_one_process_goes_on_where_two_stopped(runs: tuple[Path, Path]) -> None:
    one, two = runs
    assert fit(two, "--ckpt_path", "last") == 0, printed(two)
    assert f"after step {STOP}" in printed(two)
    found = [gates(folder / RUN / "checkpoints" / "last.ckpt") for folder in runs]
    assert (found[0] - found[1]).abs().max() < TOLERANCE
    a, b = (Circuit.load(folder / RUN / "circuits" / "final.safetensors") for folder in runs)
    assert torch.equal(a.keep, b.keep)
    assert a.header["step"] == b.header["step"] == STEPS
    assert list(rows(one, "kl")) == list(rows(two, "kl"))


def test_two_processes_reach_their_end_with_every_file_and_table(runs: tuple[Path, Path], tmp_path: Path) -> None:
    one, _ = runs
    write_config(tmp_path, [])
    config: Any = yaml.safe_load((tmp_path / "run.yaml").read_text())
    tracker = {"class_path": "WandbTracker", "init_args": {"save_dir": "runs", "offline": True, "name": None}}
    config["trainer"]["logger"] = [config["trainer"]["logger"], tracker]
    config["trainer"]["callbacks"] = config["trainer"]["callbacks"][1:]  # nothing hurts this run
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert fit_on_two(tmp_path) == 0, printed(tmp_path)
    ours, theirs = (sorted(path.name for path in (folder / RUN).rglob("*")) for folder in (tmp_path, one))
    assert ours == theirs
    a, b = (Circuit.load(folder / RUN / "circuits" / "final.safetensors") for folder in (tmp_path, one))
    assert torch.equal(a.keep, b.keep)
    saved = load_checkpoint(tmp_path / RUN / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == STEPS
    assert saved["edgeprune_run"]["finished"]
    log = printed(tmp_path)
    assert log.count("Circuits on the validation pairs") == log.count("Against the reference") == 1
    assert log.count("of 11 edges") == 1
    (wandb,) = (tmp_path / "runs" / "wandb").glob("offline-run-*")
    assert any(wandb.glob("*.wandb"))
    last = str(RUN / "checkpoints" / "last.ckpt")
    assert fit_on_two(tmp_path, "--ckpt_path", last, command="test") == 0, printed(tmp_path)
    assert "test/kl" in printed(tmp_path)


def test_a_steered_price_is_the_same_on_every_rank(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        write_config(folder, [], paced=True)
    assert fit(one) == 0, printed(one)
    assert fit_on_two(two) == 0, printed(two)
    theirs, ours = (rows(folder, "train/price") for folder in (one, two))
    assert ours == pytest.approx(theirs, rel=0.01)  # the mean over ranks: equal only if both have that of one process
    assert (gates(two / LAST) - gates(one / LAST)).abs().max() < 0.02


def test_gates_that_open_again_are_the_same_on_every_rank(tmp_path: Path) -> None:
    """Slopes are averaged over ranks before any gate is chosen by them."""
    recipe, found = "--model.recipe.init_args", list[dict[str, Any]]()
    more = [f"{recipe}.sparsity_term=Pace", f"{recipe}.sparsity_term.init_args.hold=0.7", f"{recipe}.regrow.share=1"]
    for number in (1, 2):
        folder = tmp_path / str(number)
        write_config(folder, [], paced=True)
        run = fit if number == 1 else fit_on_two
        assert run(folder, "--trainer.max_steps=120", *more) == 0, printed(folder)
        found.append(load_checkpoint(folder / LAST)["state_dict"])
    one, two = found
    assert int(two["recipe.regrowth.opened"]) == int(one["recipe.regrowth.opened"]) > 0
    for name in ("edges.log_alpha", "regrowth.mean"):
        torch.testing.assert_close(two[f"recipe.{name}"], one[f"recipe.{name}"], atol=0.02, rtol=0.02)
