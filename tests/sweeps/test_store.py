"""Claims, leases and resuming: every trial runs to its end exactly once, whoever dies on the way."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeprune.errors import EdgepruneError
from edgeprune.sweeps import store as store_module
from edgeprune.sweeps.file import SweepFile
from edgeprune.sweeps.store import LEASE, Store, Trial
from edgeprune.sweeps.worker import MetricMissingError, last_values, run_trial, trial_environment, work
from tests.sweeps.trials import GRID, HEAD, make_store, starts, write_sweep

pytest.importorskip("optuna", reason="sweeps need the extra `sweep`")
NEVER = threading.Event()
SEARCH = HEAD + (
    "method: random\nrun_cap: 5\nmetric: {name: val/kl}\n"
    "parameters: {target: {min: 0.1, max: 0.9}, lr: {distribution: log_uniform_values, min: 0.001, max: 1}}\n"
)


def until(ready: Callable[[], bool]) -> None:
    """Wait for another process; a minute is far more than it takes."""
    for _ in range(1200):
        if ready():
            return
        time.sleep(0.05)
    pytest.fail("nothing happened for a minute")


def values(store: Store) -> list[dict[str, object]]:
    return [trial.values for trial in store.trials()]


# ---------------------------------------------------------------- running
def test_a_grid_is_run_once_each(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    work(store, NEVER)
    assert starts(tmp_path) == [f"{number:04d}" for number in range(6)]
    trials = store.trials()
    assert [trial.state for trial in trials] == ["done"] * 6
    assert [trial.value for trial in trials] == pytest.approx([0.01, 0.01, 0.04, 0.04, 0.09, 0.09])
    work(Store.open(store.folder), NEVER)
    assert len(starts(tmp_path)) == 6


def test_two_workers_share_a_folder(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    workers = [threading.Thread(target=work, args=(Store.open(store.folder), NEVER)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(starts(tmp_path)) == [f"{number:04d}" for number in range(6)]
    assert len({json.dumps(item) for item in values(store)}) == 6


def test_a_random_search_does_not_depend_on_who_runs_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = make_store(tmp_path / "a", SEARCH)
    work(whole, NEVER)
    parts = make_store(tmp_path / "b", SEARCH)
    for _ in range(5):
        again = Store.open(parts.folder)
        trial = again.claim()
        assert trial is not None
        run_trial(again, trial, NEVER)
    assert values(whole) == values(parts)
    assert len({json.dumps(item) for item in values(whole)}) == 5


def test_bayes_learns_from_the_trials(tmp_path: Path) -> None:
    text = SEARCH.replace("random", "bayes").replace("run_cap: 5", "run_cap: 40")
    store = make_store(tmp_path, text)
    while (trial := store.claim()) is not None:
        store.finish(Trial(trial.number, trial.values, trial.latents, "done", (trial.values["target"] - 0.7) ** 2))
    tried = [abs(trial.values["target"] - 0.7) for trial in store.trials()]
    assert sum(tried[20:]) / 20 < sum(tried[:10]) / 10 / 2  # Optuna draws the first ten at random


def test_what_a_trial_is_told(tmp_path: Path) -> None:
    store = make_store(tmp_path, GRID + "project: circuits\n")
    trial = store.claim()
    assert trial is not None
    run_trial(store, trial, NEVER)
    words, seen = json.loads((store.trial_folder(0) / "run" / "seen.json").read_text())
    assert words == ["fit", "--target=0.1", "--seed_everything=0"]
    assert seen["WANDB_MODE"] == "offline"
    assert seen["WANDB_RUN_GROUP"] == "small"
    assert seen["WANDB_PROJECT"] == "circuits"
    assert seen["WANDB_RUN_ID"] == f"{store.plan.ident}-0000"
    assert seen["EDGEPRUNE_TRIAL"] == str(store.trial_folder(0))


def test_a_trial_of_a_sweep_inside_an_agent_is_no_run_of_that_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "outer")
    store = make_store(tmp_path)
    assert "WANDB_SWEEP_ID" not in trial_environment(store, Trial(0, {}, {}))


def test_nested_parameters_by_file(tmp_path: Path) -> None:
    text = (
        "command: ['${program}', fit, --config, '${args_json_file}']\nmethod: grid\n"
        "parameters: {model: {parameters: {lr: {values: [0.5]}}}, seed_everything: {value: 1}}\n"
    )
    store = make_store(tmp_path, text)
    work(store, NEVER)
    words, _ = json.loads((store.trial_folder(0) / "run" / "seen.json").read_text())
    assert json.loads(Path(words[-1]).read_text()) == {"model": {"lr": 0.5}, "seed_everything": 1}


# ---------------------------------------------------------------- failing
def test_a_failed_trial_says_why_and_runs_again_only_when_asked(tmp_path: Path) -> None:
    text = GRID.replace("target: {values: [0.1, 0.2, 0.3]}", "fail: {values: [0, 1]}")
    store = make_store(tmp_path, text)
    work(store, NEVER)
    assert [trial.state for trial in store.trials()] == ["done", "done", "failed", "failed"]
    assert store.trials()[2].reason == "exit status 1: told to fail"
    work(store, NEVER)
    assert len(starts(tmp_path)) == 4
    assert store.retry() == 2
    work(store, NEVER)
    assert starts(tmp_path)[4:] == ["0002", "0003"]
    assert [trial.attempts for trial in store.trials()] == [1, 1, 2, 2]


def test_a_metric_that_is_never_logged_ends_the_sweep(tmp_path: Path) -> None:
    store = make_store(tmp_path, GRID.replace("val/kl", "val/kk"))
    with pytest.raises(MetricMissingError, match="metric 'val/kk' was never logged; logged are train/penalty, val/kl"):
        work(store, NEVER)
    assert len(starts(tmp_path)) == 1


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    store = make_store(tmp_path, GRID.replace("'${env}', ", ""))
    (tmp_path / "bin" / "edgeprune").unlink()
    trial = store.claim()
    assert trial is not None
    run_trial(store, trial, NEVER)
    assert "No such file" in str(store.trials()[0].reason)


def test_a_target_ends_the_sweep(tmp_path: Path) -> None:
    store = make_store(tmp_path, GRID.replace("goal: minimize", "goal: maximize, target: 0.04"))
    work(store, NEVER)
    assert len(starts(tmp_path)) == 3
    assert store.finished()


# ---------------------------------------------------------------- dying
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL while trial 2 runs: trials 0 and 1 are not repeated, 2 is, and nothing of its first attempt is left."""
    store = make_store(tmp_path)
    (tmp_path / "block").write_text("0002")
    code = (
        "import sys, threading, pathlib; from edgeprune.sweeps.store import Store; "
        "from edgeprune.sweeps.worker import work; work(Store.open(pathlib.Path(sys.argv[1])), threading.Event())"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(store.folder)], cwd=Path(__file__).parents[2])
    until(lambda: len(starts(tmp_path)) == 3)
    assert store.trials()[2].state == "running"
    assert not store.finished()
    process.kill()
    process.wait()
    left = store.trial_folder(2) / "run" / "left"
    left.write_text("of the first attempt")
    (tmp_path / "block").write_text("")
    work(store, NEVER)
    assert starts(tmp_path) == ["0000", "0001", "0002", "0002", "0003", "0004", "0005"]
    assert [trial.attempts for trial in store.trials()] == [1, 1, 2, 1, 1, 1]
    assert {trial.state for trial in store.trials()} == {"done"}
    assert not left.exists()


def test_a_stopped_trial_is_left_to_the_next_worker(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (tmp_path / "block").write_text("0000")
    stop = threading.Event()
    worker = threading.Thread(target=work, args=(Store.open(store.folder), stop))
    worker.start()
    until(lambda: len(starts(tmp_path)) == 1)
    stop.set()
    worker.join()
    assert store.trials()[0].state == "waiting"
    (tmp_path / "block").unlink()
    work(store, NEVER)
    assert starts(tmp_path).count("0000") == 2
    assert len(starts(tmp_path)) == 7


def lease_of(store: Store, host: str, pid: int, born: str | None, age: float) -> None:
    file = store.trial_folder(0) / LEASE
    file.write_text(json.dumps({"host": host, "pid": pid, "born": born}))
    os.utime(file, (time.time() - age, time.time() - age))


def claimed(store: Store) -> int:
    trial = store.claim()
    assert trial is not None
    return trial.number


def test_a_lease_of_another_machine_holds_while_it_is_touched(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert claimed(store) == 0
    lease_of(store, "elsewhere", 1, None, age=store_module.LEASE_SECONDS / 2)
    assert claimed(store) == 1
    lease_of(store, "elsewhere", 1, None, age=store_module.LEASE_SECONDS * 2)
    store.renew_lease(0)
    assert claimed(store) == 2
    lease_of(store, "elsewhere", 1, None, age=store_module.LEASE_SECONDS * 2)
    assert claimed(store) == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells processes apart by /proc")
def test_another_process_with_the_number_of_a_dead_one_holds_no_lease(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert claimed(store) == 0
    lease_of(store, socket.gethostname(), os.getpid(), "1", age=0)  # born with the machine
    assert claimed(store) == 0


def test_a_worker_that_dies_between_drawing_and_writing_loses_no_trial(tmp_path: Path) -> None:
    store = make_store(tmp_path, SEARCH)
    first = store.claim()
    assert first is not None
    (store.trial_folder(0) / "trial.json").unlink()  # as if it had died before this was written
    assert store.claim() == first
    assert [claimed(store) for _ in range(4)] == [1, 2, 3, 4]
    assert store.claim() is None


def test_a_journal_whose_last_line_is_cut_is_mended(tmp_path: Path) -> None:
    store = make_store(tmp_path, SEARCH)
    assert claimed(store) == 0
    with (store.folder / "journal.log").open("a") as journal:
        journal.write('{"op_code":4,"wor')
    assert claimed(store) == 1
    assert claimed(store) == 2


# ---------------------------------------------------------------- folders
def test_a_folder_is_for_one_sweep(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    other = SweepFile.read(write_sweep(tmp_path, GRID.replace("0.3", "0.4")))
    with pytest.raises(EdgepruneError, match=r"holds another sweep .* choose another --folder"):
        Store.make(store.folder, other, 6)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(EdgepruneError, match="holds other things than a sweep"):
        Store.make(tmp_path / "full", other, 6)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    with pytest.raises(EdgepruneError, match="holds no sweep"):
        Store.open(tmp_path)


def test_a_search_can_be_made_longer_but_not_shorter(tmp_path: Path) -> None:
    store = make_store(tmp_path, SEARCH, 2)
    assert Store.make(store.folder, store.sweep, 4).plan.size == 4
    assert Store.open(store.folder).plan.size == 4
    with pytest.raises(EdgepruneError, match="fewer trials"):
        Store.make(store.folder, store.sweep, 3)


def test_last_values(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,a,b\n0,1,1.5,\n0,2,,2\n1,3,0.5,\n")
    assert last_values(file) == {"a": 0.5, "b": 2.0}
    assert last_values(tmp_path / "none.csv") == {}
