"""`edgeprune sweep` from one end to the other: checks before the first trial, real trials, Ray, the summary."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from edgeprune.cli import main
from edgeprune.cli.sweep import probes, trial_table
from edgeprune.cli.trial import log_as_trial, trial_folder
from edgeprune.sweeps.file import SweepFile
from edgeprune.sweeps.store import Store
from tests.sweeps.trials import GRID, starts, write_sweep

pytest.importorskip("optuna", reason="sweeps need the extra `sweep`")

ROOT = Path(__file__).parents[2]
PARAMETERS = """parameters:
  model.recipe.init_args.learning_rate: {values: [0.05, 0.1]}
  seed_everything: {value: 0}
"""
REAL = f"""program: {sys.executable}
command: ['${{program}}', -m, edgeprune, fit, --config, {ROOT / "configs" / "quickstart.yaml"}, '${{args}}',
  --trainer.max_steps=2, --trainer.val_check_interval=2, --trainer.log_every_n_steps=1]
name: real
method: grid
metric: {{name: snapshot/kl, goal: minimize}}
{PARAMETERS}"""

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


@pytest.fixture(autouse=True)
def own_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGEPRUNE_TRIAL", "EDGEPRUNE_SWEEP_PID", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("edgeprune: error: ")
    return lines[0]


# ---------------------------------------------------------------- real trials
def run_record(folder: Path) -> dict[str, Any]:
    """What an offline run says of itself, read by W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (record,) = [item["run"] for item in map(json.loads, lines) if item["type"] == "run"]
    return record


@pytest.mark.slow  # a trial is a process that imports torch
def test_a_sweep_of_a_real_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "real.yaml"
    file.write_text(REAL)
    folder = tmp_path / "sweep"
    assert main(["sweep", str(file), "--folder", str(folder), "--trials", "1"]) == 0
    said = capsys.readouterr().out
    assert "trial 0 (learning_rate 0.05): done, snapshot/kl" in said
    trial = folder / "trials" / "0000"
    config = yaml.safe_load((trial / "run" / "config.yaml").read_text())
    assert config["model"]["recipe"]["init_args"]["learning_rate"] == 0.05
    assert len(list((trial / "run" / "circuits").glob("*.safetensors"))) == 3
    record = run_record(next((trial / "wandb").glob("offline-run-*")))
    assert (record["display_name"], record["run_group"], record["job_type"]) == ("real-0000", "real", "trial")
    assert main(["sweep", "--summary", str(folder)]) == 0
    rows = list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))
    assert {(row["trial"], row["method"], row["problem"]) for row in rows} == {
        ("0", "EdgePruning", "CompiledTask on compiled:reverse")
    }
    assert all((folder / row["file"]).is_file() for row in rows)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning_rate", "learnig_rate", "model.recipe has no option 'learnig_rate'"),
        ("model.recipe.init_args.learning_rate", "model.depth", "unrecognized arguments: --model.depth=0.05"),
        ("[0.05, 0.1]", "[0.05, fast]", "learning_rate"),
        ("${program}", "${programme}", "there is no macro ${programme}"),
        (" fit,", " discover,", "does not run `edgeprune fit`"),
    ],
)
def test_a_trial_that_would_fail_is_refused_before_any_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    file = tmp_path / "real.yaml"
    file.write_text(REAL.replace(old, new))
    assert main(["sweep", str(file), "--folder", str(tmp_path / "sweep")]) == 2
    line = error_line(capsys)
    assert said in line
    assert str(file) in line
    assert not (tmp_path / "sweep").exists()


# ---------------------------------------------------------------- with the stand-in program
@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's parameters are no config's."""
    monkeypatch.setattr("edgeprune.cli.sweep.check_trials", lambda path, sweep: None)


@pytest.mark.usefixtures("unchecked")
def test_the_same_command_goes_on_and_then_does_nothing(tmp_path: Path) -> None:
    command = ["sweep", str(write_sweep(tmp_path)), "--folder", str(tmp_path / "sweep")]
    assert main([*command, "--trials", "2"]) == 0
    assert len(starts(tmp_path)) == 2
    assert main([*command, "--workers", "3"]) == 0
    assert sorted(starts(tmp_path)) == [f"{number:04d}" for number in range(6)]
    assert main(command) == 0
    assert len(starts(tmp_path)) == 6


@pytest.mark.usefixtures("unchecked")
def test_failed_trials_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(tmp_path, GRID.replace("target: {values: [0.1, 0.2, 0.3]}", "fail: {values: [0, 1]}"))
    assert main(["sweep", str(file), "--folder", str(tmp_path / "sweep")]) == 2
    line = error_line(capsys)
    assert "2 of 4 trials failed" in line
    assert "told to fail" in line
    assert "--retry" in line


@pytest.mark.usefixtures("unchecked")
def test_a_metric_that_is_never_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(tmp_path, GRID.replace("val/kl", "val/kk"))
    assert main(["sweep", str(file), "--folder", str(tmp_path / "sweep"), "--workers", "2"]) == 2
    assert "metric 'val/kk' was never logged; logged are train/penalty, val/kl" in error_line(capsys)


@pytest.mark.usefixtures("unchecked")
def test_early_termination_has_no_effect_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(tmp_path, GRID + "early_terminate: {type: hyperband, min_iter: 3}\n")
    assert main(["sweep", str(file), "--folder", str(tmp_path / "sweep"), "--trials", "1"]) == 0
    assert "early_terminate has no effect here" in capsys.readouterr().err


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore")  # Ray's own, of the interpreter's and of its subprocesses
def test_two_workers_of_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    command = ["sweep", str(write_sweep(tmp_path)), "--folder", str(tmp_path / "sweep")]
    assert main([*command, "--executor", "ray", "--workers", "2", "--cpus", "0.5"]) == 0
    assert sorted(starts(tmp_path)) == [f"{number:04d}" for number in range(6)]
    trials = Store.open(tmp_path / "sweep").trials()
    assert {trial.state for trial in trials} == {"done"}
    seen = [json.loads(path.read_text())[1] for path in (tmp_path / "sweep").glob("trials/*/run/seen.json")]
    assert len({variables["EDGEPRUNE_SWEEP_PID"] for variables in seen}) == 2  # both took trials


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.yaml"], "no config file at none.yaml, and none of this name comes along"),
        ([], "give a sweep file"),
        (["x.yaml", "--summary", "y"], "not both"),
        (["x.yaml", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["--summary", "none"], "none holds no sweep"),
        (["x.yaml", "--executor", "cloud"], "invalid choice: 'cloud'"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *arguments]) == 2
    assert said in error_line(capsys)


def test_a_search_without_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(tmp_path, GRID.replace("grid", "random"))
    assert main(["sweep", str(file)]) == 2
    assert "method random has no end of its own; set run_cap, or give --trials N" in error_line(capsys)


# ---------------------------------------------------------------- parts
def test_every_value_is_probed_once_beside_the_first_of_the_others(tmp_path: Path) -> None:
    tried = [tuple(values.values()) for values in probes(SweepFile.read(write_sweep(tmp_path)))]
    assert tried == [(0.1, 0), (0.2, 0), (0.3, 0), (0.1, 1)]


def test_the_table_shows_what_varies(tmp_path: Path) -> None:
    store = Store.make(tmp_path / "sweep", SweepFile.read(write_sweep(tmp_path, GRID + "  depth: {value: 3}\n")), 6)
    trial = store.claim()
    assert trial is not None
    table = trial_table(store, [trial])
    assert [str(column.header) for column in table.columns][:4] == ["trial", "target", "seed_everything", "state"]
    assert table.title == "small: 0 of 6 trials ended"


def test_a_trial_of_an_agent_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial_folder() is None
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert trial_folder() is None
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    assert trial_folder() == Path("runs/sweeps/s/r")
    monkeypatch.setenv("EDGEPRUNE_TRIAL", "/x")
    assert trial_folder() == Path("/x")


def test_a_trial_keeps_the_configs_settings_of_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    given = Namespace(
        class_path="lit_modules.WandbTracker",
        init_args=Namespace(project="mine", tags=["a"], save_dir="runs", name="n", offline=None),
    )
    config = Namespace(trainer=Namespace(logger=[given]))
    log_as_trial(config, tmp_path)
    table, tracker = config.trainer.logger
    assert table.init_args.save_dir == str(tmp_path / "run")
    kept = tracker.init_args
    assert (kept.project, kept.tags, kept.save_dir, kept.name, kept.offline) == (
        "mine",
        ["a"],
        str(tmp_path),
        None,
        None,
    )
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = Namespace(trainer=Namespace(logger=False))
    log_as_trial(config, tmp_path)
    assert config.trainer.logger[1].init_args.project == "theirs"
    assert config.trainer.logger[1].init_args.offline is True
