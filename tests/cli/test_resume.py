"""A run that is killed anywhere and given again with `--ckpt_path last` leaves what an unbroken run leaves."""

import csv
import os
import pty
import random
import select
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edgeprune.checkpoint_files import load_checkpoint
from edgeprune.circuit import Circuit
from edgeprune.cli import main
from tests.cli.kills import ROOT, RUN, STEPS, fit, printed, start, status_of, write_config

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

KILL = "SIGKILL"
LAST = ("--ckpt_path", "last")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
# Where the runs of a chain are killed, each one step further: in every kind of file, before and after it is in place.
EVERYWHERE = [
    ("config", 0, KILL),
    ("step", 3, KILL),
    ("checkpoint", 5, KILL),
    ("new checkpoint", 5, KILL),
    ("circuit", 10, KILL),
    ("new circuit", 10, KILL),
    ("snapshot", 10, KILL),
    ("checkpoint", 10, KILL),
    ("new checkpoint", 10, KILL),
    ("validation", 12, KILL),
    ("metrics", 15, KILL),
    ("judge", 16, KILL),
    ("snapshot", 16, KILL),
    ("step", 19, KILL),
    ("end", STEPS, KILL),
    ("circuit", STEPS, KILL),
    ("frontier", STEPS, KILL),
    ("new frontier", STEPS, KILL),
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")
    write_config(folder, [])
    assert fit(folder) == 0, printed(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """All that a run leaves for its user."""
    run = folder / RUN
    found = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("checkpoints/")}


def state(folder: Path) -> dict[str, Any]:
    """Gates, optimizer, progress and place in the data at the end of a run."""
    checkpoint = load_checkpoint(folder / RUN / "checkpoints" / "last.ckpt")
    names = ("state_dict", "optimizer_states", "lr_schedulers", "edgeprune", "PairDataModule", "edgeprune_run")
    progress = ("epoch_loop.batch_progress", "epoch_loop.automatic_optimization.optim_progress", "epoch_progress")
    loop = checkpoint["loops"]["fit_loop"]
    return {name: checkpoint[name] for name in names} | {name: loop[name] for name in progress}


def equal(a: Any, b: Any) -> bool:
    """Equality of nested states, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same(folder: Path, unbroken: Path, *, any_order: bool = False) -> None:
    """Every file is the same, but for the rows of the log in another order if that is allowed."""
    assert not list(folder.rglob("*.partial"))
    ours, theirs = files(folder), files(unbroken)
    config = "config.yaml"  # its plan of kills, and its workers
    for found in (ours, theirs):
        del found[config]
        if any_order:
            found["metrics.csv"] = b"\n".join(sorted(found["metrics.csv"].splitlines()))
    assert sorted(ours) == sorted(theirs)
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    assert equal(state(folder), state(unbroken))
    checkpoints = [sorted(path.name for path in (run / RUN / "checkpoints").iterdir()) for run in (folder, unbroken)]
    assert checkpoints[0] == checkpoints[1]


def test_the_unbroken_run_takes_circuits_on_its_way(unbroken: Path) -> None:
    circuits = {path.stem: Circuit.load(path) for path in (unbroken / RUN / "circuits").iterdir()}
    assert set(circuits) == {"sparsity-0.5000", "sparsity-0.8000", "final"}
    assert [circuits[name].header["reached"] for name in sorted(circuits)] == [True, True, True]
    # one at a step that is saved, one at a step that is not
    assert [circuits[name].header["step"] for name in sorted(circuits)] == [STEPS, 10, 16]


def go_through(folder: Path, statuses: Sequence[int], *more: str) -> None:
    """Run, and go on as often as the run is to be stopped, each time with the exit status that is expected."""
    for number, status in enumerate([*statuses, 0]):
        assert fit(folder, *more, *(LAST if number else ())) == status, printed(folder)


def test_killed_at_every_place_one_after_the_other(tmp_path: Path, unbroken: Path) -> None:
    write_config(tmp_path, EVERYWHERE)
    go_through(tmp_path, [-signal.SIGKILL] * len(EVERYWHERE))
    assert_same(tmp_path, unbroken)
    said = [line for line in printed(tmp_path).splitlines() if "going on from" in line or "begins again" in line]
    assert len(said) == len(EVERYWHERE)
    assert said[0] == f"no checkpoint in {RUN}/checkpoints yet: the run begins again at step 0 in {RUN}"
    assert f"going on from {RUN}/checkpoints/epoch=0-step=5.ckpt after step 5, in {RUN}" in said  # there was no other
    assert f"going on from {RUN}/checkpoints/last.ckpt after step 15, in {RUN}" in said
    assert said[-1].endswith(f"after step {STEPS}, in {RUN}")


def test_a_steered_price_goes_on_exactly(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_config(whole, [], paced=True)
    assert fit(whole) == 0, printed(whole)
    write_config(broken, [("step", 8, KILL)], paced=True)
    go_through(broken, [-signal.SIGKILL])
    assert_same(broken, whole)
    prices = [row["train/price"] for row in csv.DictReader((whole / RUN / "metrics.csv").read_text().splitlines())]
    assert len({price for price in prices if price}) > 3


def test_killed_with_workers_that_run_ahead(tmp_path: Path, unbroken: Path) -> None:
    plan = [("step", 7, KILL), ("step", 12, KILL)]
    write_config(tmp_path, plan, workers=2)
    go_through(tmp_path, [-signal.SIGKILL] * len(plan))
    assert_same(tmp_path, unbroken)


def test_killed_from_outside_at_random_times(tmp_path: Path, unbroken: Path) -> None:
    write_config(tmp_path, [])
    draw, status = random.Random(0), -signal.SIGKILL
    for number in range(3):
        process = start(tmp_path, *(LAST if number else ()))
        begun = time.monotonic()
        while process.is_alive() and not (tmp_path / RUN / "config.yaml").exists():
            time.sleep(0.05)
        process.join(draw.uniform(0, max(1.0, time.monotonic() - begun)))
        process.kill()
        status = status_of(process)
    assert status in (0, -signal.SIGKILL)
    if status:
        assert fit(tmp_path, *LAST) == 0, printed(tmp_path)
    assert_same(tmp_path, unbroken)


# ---------------------------------------------------------------- signals and errors
def test_signals_save_the_step_and_leave_with_their_status(tmp_path: Path, unbroken: Path) -> None:
    plan = [
        ("step", 3, "SIGINT"),
        ("judge", 10, "SIGTERM"),
        ("validation", 12, "SIGINT"),
        ("judge", STEPS, "SIGTERM"),
    ]
    write_config(tmp_path, plan)
    go_through(tmp_path, [130, 143, 130, 143])
    assert_same(tmp_path, unbroken, any_order=True)
    (first, *rest) = [line for line in printed(tmp_path).splitlines() if line.startswith("edgeprune: stopped")]
    assert first == (
        f"edgeprune: stopped by SIGINT after step 3, {RUN}/checkpoints/last.ckpt is written; to go on, "
        "give the same command with --ckpt_path last"
    )
    assert [line.split(",")[0].split(" by ")[1] for line in rest] == [
        "SIGTERM after step 10",
        "SIGINT after step 12",
        f"SIGTERM after step {STEPS}",
    ]


def test_a_second_signal_is_answered_and_a_third_stops_at_once(tmp_path: Path, unbroken: Path) -> None:
    twice = [("begin", 7, "SIGINT"), ("begin", 7, "SIGTERM")]
    write_config(tmp_path, [*twice, *(("begin", 9, "SIGINT"),) * 3])
    assert fit(tmp_path) == 130, printed(tmp_path)
    assert load_checkpoint(tmp_path / RUN / "checkpoints" / "last.ckpt")["global_step"] == 7
    said = [line for line in printed(tmp_path).splitlines() if line.startswith("edgeprune: ")]
    assert [line.split(":")[1].strip() for line in said[:2]] == ["SIGINT", "SIGTERM again"]
    assert "saved" in said[1]
    assert "a third one stops at once" in said[1]
    assert said[2].startswith("edgeprune: stopped by SIGINT after step 7, ")

    assert fit(tmp_path, *LAST) == 130, printed(tmp_path)
    last = RUN / "checkpoints" / "last.ckpt"
    assert load_checkpoint(tmp_path / last)["global_step"] == 9  # without the step under way
    *_, line = printed(tmp_path).splitlines()
    assert line.startswith(f"edgeprune: stopped at once by SIGINT, {last} is written; to go on, ")
    assert "Traceback" not in printed(tmp_path)
    assert fit(tmp_path, *LAST) == 0, printed(tmp_path)
    assert_same(tmp_path, unbroken)


def test_signals_that_reach_the_workers_too_leave_the_run_time_to_save(tmp_path: Path, unbroken: Path) -> None:
    plan = [
        ("step", 8, "group SIGHUP"),
        ("step", 8, "SIGHUP"),
        ("step", 12, "group SIGINT"),
        ("step", 18, "group SIGTERM"),
    ]
    write_config(tmp_path, plan, workers=2)
    go_through(tmp_path, [129, 130, 143])
    assert_same(tmp_path, unbroken)
    assert "worker" not in printed(tmp_path)
    lines = [line for line in printed(tmp_path).splitlines() if line.startswith("edgeprune: ")]
    assert [line.split(",")[0] for line in lines] == [
        "edgeprune: SIGHUP: the run stops when the step under way is done and saved",
        "edgeprune: stopped by SIGHUP after step 8",
        "edgeprune: SIGINT: the run stops when the step under way is done and saved",
        "edgeprune: stopped by SIGINT after step 12",
        "edgeprune: SIGTERM: the run stops when the step under way is done and saved",
        "edgeprune: stopped by SIGTERM after step 18",
    ]


def test_a_terminal_that_goes_away_leaves_a_run_to_go_on_with(tmp_path: Path, unbroken: Path) -> None:
    write_config(tmp_path, [("begin", 8, "wait for SIGHUP")])
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "edgeprune", "fit", "--config", "run.yaml"], ENVIRONMENT)
    shown = b""
    while not (tmp_path / "markers" / "0").exists():
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), shown
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    assert load_checkpoint(tmp_path / RUN / "checkpoints" / "last.ckpt")["global_step"] == 8
    assert fit(tmp_path, *LAST) == 0, printed(tmp_path)
    assert_same(tmp_path, unbroken)


def test_a_full_disk_is_one_line_and_the_file_before_stays(tmp_path: Path, unbroken: Path) -> None:
    kinds = {"checkpoint": "last.ckpt", "circuit": "sparsity-0.8000.safetensors", "metrics": "metrics.csv"}
    write_config(tmp_path, [(kind, 11, "ENOSPC") for kind in kinds])
    go_through(tmp_path, [2, 2, 2])
    lines = [line for line in printed(tmp_path).splitlines() if line.startswith("edgeprune: error: ")]
    assert len(lines) == len(kinds)
    assert "Traceback" not in printed(tmp_path)
    for name in kinds.values():
        (line,) = [line for line in lines if name in line]
        assert "no room to write" in line
        assert "free some space" in line
    assert_same(tmp_path, unbroken)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("nan loss", "loss is not finite (kl nan"),
        ("nan gradient", "gradients are not finite"),
        ("inf gate", "gates or multipliers are not finite after the update"),
    ],
)
def test_numbers_that_are_not_finite_end_the_run_before_they_are_saved(tmp_path: Path, how: str, said: str) -> None:
    write_config(tmp_path, [("begin", 7, how)])
    assert fit(tmp_path) == 2
    (line,) = [line for line in printed(tmp_path).splitlines() if line.startswith("edgeprune: error: ")]
    assert said in line
    assert "at step 7 (batch 0 of the epoch, examples [" in line
    last = RUN / "checkpoints" / "last.ckpt"
    assert line.endswith(f"the last good checkpoint is {last}")
    saved = load_checkpoint(tmp_path / last)
    assert saved["global_step"] == 5
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_an_error_in_the_run_saves_its_last_whole_step(tmp_path: Path, unbroken: Path) -> None:
    write_config(tmp_path, [("begin", 8, "out of memory"), ("validation", 12, "out of memory")])
    go_through(tmp_path, [1, 1])
    going_on = [line for line in printed(tmp_path).splitlines() if line.startswith("going on")]
    # of a validation that fails, the step is not saved: its figures would be missing from the log
    assert [line.split(" after ")[1].split(",")[0] for line in going_on] == ["step 8", "step 10"]
    assert_same(tmp_path, unbroken)


# ---------------------------------------------------------------- what cannot go on
@pytest.fixture
def ended(tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the unbroken run, which is the working folder."""
    shutil.copytree(unbroken, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def refusal(capsys: pytest.CaptureFixture[str], *more: str, command: str = "fit") -> str:
    """The one line with which a command in the working folder is refused, without any change to the folder."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert main([command, "--config", "run.yaml", *more]) == 2
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.usefixtures("ended")
def test_a_run_that_has_ended_does_not_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"has ended, after {STEPS} steps: raise trainer.max_steps" in refusal(capsys, *LAST)


@pytest.mark.usefixtures("ended")
def test_where_no_run_is_none_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, *LAST, "--trainer.logger.init_args.name", "another")
    assert "no run with a checkpoint below runs/another: leave --ckpt_path out" in line
    assert "needs a logger with a save_dir" in refusal(capsys, *LAST, "--trainer.logger", "true")


@pytest.mark.usefixtures("ended")
def test_a_damaged_checkpoint_does_not_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    path = RUN / "checkpoints" / "last.ckpt"
    whole = path.read_bytes()
    for data in (whole[:-1], whole[: len(whole) // 2], flipped(whole, len(whole) // 3), b""):
        path.write_bytes(data)
        for more in (LAST, ("--ckpt_path", str(path))):
            line = refusal(capsys, *more)
            assert line.startswith(f"edgeprune: error: {path} is not a whole checkpoint: ")
            assert f"{path} is not a whole checkpoint" in refusal(capsys, *more, command="test")
    path.write_bytes(whole)


def test_a_damaged_circuit_of_the_first_part_does_not_go_on(ended: Path) -> None:
    (RUN / "checkpoints" / "last.ckpt").unlink()  # the one of step 20 is left
    path = RUN / "circuits" / "sparsity-0.5000.safetensors"
    path.write_bytes(flipped(path.read_bytes(), 3000))
    before = files(ended)
    assert fit(ended, *LAST) == 2, printed(ended)
    (*_, line) = printed(ended).splitlines()
    assert line.startswith("edgeprune: error: ")
    assert "sparsity-0.5000.safetensors is not a whole circuit file" in line
    assert files(ended) == before


def test_a_prolonged_run_takes_the_circuits_of_its_new_end(ended: Path) -> None:
    assert fit(ended, *LAST, "--trainer.max_steps", str(STEPS + 3)) == 0, printed(ended)
    assert "the config is not the one that the run began with: trainer.max_steps was 22, is 25" in printed(ended)
    assert Circuit.load(RUN / "circuits" / "final.safetensors").header["step"] == STEPS + 3
    assert Circuit.load(RUN / "circuits" / "sparsity-0.8000.safetensors").header["step"] == 16
    (*_, last) = (RUN / "metrics.csv").read_text().splitlines()
    assert f",{STEPS + 3}," in last


RECIPE = "--model.recipe.init_args"
AGAIN = [
    *(f"{RECIPE}.learning_rate", "0.5", f"{RECIPE}.betas", "[0.8, 0.7]", f"{RECIPE}.weight_decay", "0.25"),
    *(f"{RECIPE}.learning_rate_warmup", "0.8", f"{RECIPE}.sparsity_term.init_args.learning_rate", "0.125"),
]


def test_rates_that_are_given_anew_are_those_of_the_steps_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config: Any = yaml.safe_load((ROOT / "configs" / "reverse_lagrangian.yaml").read_text())
    monitor = {"class_path": "LearningRateMonitor", "init_args": {"logging_interval": "step"}}
    config["trainer"] |= {"callbacks": [monitor], "log_every_n_steps": 1, "enable_progress_bar": False}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    fit_on = ["fit", "--config", "run.yaml", "--trainer.max_steps"]
    assert main([*fit_on, "4"]) == 0
    assert main([*fit_on, "8", *LAST, *AGAIN]) == 0
    run = Path("runs") / "reverse_lagrangian" / "version_0"
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    for name, old, new in (("lr-AdamW/pg1", 0.05, 0.5), ("lr-AdamW/pg2", 0.05, 0.125)):
        rates = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert rates == {step: old if step < 4 else new * min(1, step / 8 / 0.8) for step in range(8)}
    saved = load_checkpoint(run / "checkpoints" / "last.ckpt")
    gates, multipliers = saved["optimizer_states"][0]["param_groups"]
    assert (gates["lr"], gates["betas"], gates["weight_decay"]) == (0.5, (0.8, 0.7), 0.25)
    assert (multipliers["lr"], multipliers["maximize"], multipliers["weight_decay"]) == (0.125, True, 0.0)
    written = yaml.safe_load((run / "config.yaml").read_text())["model"]["recipe"]["init_args"]
    assert (written["learning_rate"], written["sparsity_term"]["init_args"]["learning_rate"]) == (0.5, 0.125)


@pytest.mark.usefixtures("ended")
def test_another_start_of_gates_under_way_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--trainer.max_steps", str(STEPS + 3), f"{RECIPE}.init_mean", "3")
    for checkpoint in (LAST, ("--ckpt_path", str(RUN / "checkpoints" / "last.ckpt"))):
        line = refusal(capsys, *checkpoint, *more)
        assert "init_mean is 3.0, but the run to go on with began with 2.5" in line


def test_a_checkpoint_s_path_begins_a_folder_of_its_own(ended: Path) -> None:
    before = files(ended)
    more = ("--ckpt_path", str(RUN / "checkpoints" / "last.ckpt"), "--trainer.max_steps", str(STEPS + 1))
    assert fit(ended, *more) == 0, printed(ended)
    assert files(ended) == before
    new = RUN.with_name("version_1")
    names = ["final.safetensors", "sparsity-0.5000.safetensors", "sparsity-0.8000.safetensors"]
    assert sorted(path.name for path in (new / "circuits").iterdir()) == names
    assert (new / "circuits" / names[1]).read_bytes() == (RUN / "circuits" / names[1]).read_bytes()


def test_the_newest_checkpoint_is_judged_by_name(ended: Path) -> None:
    assert fit(ended, *LAST, command="test") == 0, printed(ended)
    assert "test/kl" in printed(ended)


def test_the_wandb_run_goes_on_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_config(tmp_path, [("step", 3, "SIGINT")])
    config = yaml.safe_load((tmp_path / "run.yaml").read_text())
    tracker = {"class_path": "WandbTracker", "init_args": {"save_dir": "runs", "offline": True, "name": None}}
    config["trainer"] |= {"logger": [config["trainer"]["logger"], tracker], "max_steps": 4}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    go_through(tmp_path, [130])
    runs = [path.name.split("-")[-1] for path in (tmp_path / "runs" / "wandb").glob("offline-run-*")]
    assert len(runs) == 2
    assert len(set(runs)) == 1


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
