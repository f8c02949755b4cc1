"""A worker: takes trials from a sweep's folder and runs each as a process of its own."""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import final

from edgeprune.errors import EdgepruneError
from edgeprune.parsing import read_table
from edgeprune.sweeps.command import trial_command
from edgeprune.sweeps.parent_death import PARENT_VARIABLE
from edgeprune.sweeps.store import RENEW_SECONDS, Store, Trial

FOLDER_VARIABLE = "EDGEPRUNE_TRIAL"  # where a trial is to write
LOG, RUN, METRICS = "log.txt", "run", "metrics.csv"  # of a trial's folder; METRICS is inside RUN
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
POLL_SECONDS = 0.1
IDLE_SECONDS = 2.0  # between looks whether a trial of another worker was left
GRACE_SECONDS = 10.0  # from asking a trial to end to ending it


@final
class MetricMissingError(EdgepruneError):
    """The sweep's metric is not logged: no trial can succeed."""


def work(store: Store, stop: threading.Event) -> None:
    """Run trials until none is left, or `stop` is set.

    Raises:
        MetricMissingError: If a trial ended well but never logged the sweep's metric.
    """
    while not stop.is_set():
        trial = store.claim()
        if trial is not None:
            run_trial(store, trial, stop)
        elif store.finished():
            return
        else:
            stop.wait(IDLE_SECONDS)


def run_trial(store: Store, trial: Trial, stop: threading.Event) -> None:
    """Run one trial to its end and record it; when stopped, leave it to be run again."""
    folder = store.trial_folder(trial.number)
    command = trial_command(
        store.sweep.command, store.sweep.program, store.nested_values(trial), folder / "parameters.json"
    )
    started = time.monotonic()
    try:
        status = _execute(store, trial, command, stop)
    except OSError as error:
        store.finish(replace(trial, state="failed", reason=f"{command[0]}: {error.strerror}"))
        return
    seconds = round(time.monotonic() - started, 1)
    if status is None:
        store.give_back(trial)
        return
    if status != 0:
        store.finish(replace(trial, state="failed", reason=_failure(folder, status), seconds=seconds))
        return
    _record(store, replace(trial, seconds=seconds))


def _record(store: Store, trial: Trial) -> None:
    folder = store.trial_folder(trial.number)
    value, reason = None, None
    metric = store.sweep.metric
    if metric is not None:
        logged = last_values(folder / RUN / METRICS)
        if metric.name not in logged:
            reason = f"metric {metric.name!r} was never logged; logged are {', '.join(sorted(logged)) or 'none'}"
            store.finish(replace(trial, state="failed", reason=reason))
            raise MetricMissingError(f"{store.folder / 'sweep.yaml'}: {reason}")
        value = logged[metric.name]
        if not math.isfinite(value):
            reason, value = f"metric {metric.name} is {value}", None
    store.finish(replace(trial, state="failed" if reason else "done", value=value, reason=reason))


def last_values(file: Path) -> dict[str, float]:
    """The last value of everything that a trial logged."""
    values: dict[str, float] = {}
    for row in read_table(file):
        values |= {name: float(value) for name, value in row.items()}
    return {name: value for name, value in values.items() if name not in ("step", "epoch")}


def trial_environment(store: Store, trial: Trial) -> dict[str, str]:
    """Variables of a trial's process: where to write, and the W&B run that it is."""
    folder = store.trial_folder(trial.number).absolute()
    name = f"{store.plan.name}-{trial.number:04d}"
    tracked = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "WANDB_DATA_DIR": str(folder / "wandb-data"),
        "WANDB_RUN_GROUP": store.plan.name,
        "WANDB_JOB_TYPE": "trial",
        "WANDB_NAME": name,
        "WANDB_RUN_ID": f"{store.plan.ident}-{trial.number:04d}",
        "WANDB_PROJECT": store.sweep.project,
        "WANDB_ENTITY": store.sweep.entity,
    }
    ours = {
        FOLDER_VARIABLE: str(folder),
        PARENT_VARIABLE: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "160",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_SWEEP")}
    return inherited | ours | {key: value for key, value in tracked.items() if value is not None}


def _execute(store: Store, trial: Trial, command: list[str], stop: threading.Event) -> int | None:
    """The exit status of a command; None if it was stopped."""
    with (store.trial_folder(trial.number) / LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            env=trial_environment(store, trial),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the sweep, which then ends its trials
        )
        renewed = time.monotonic()
        while process.poll() is None:
            if stop.wait(POLL_SECONDS):
                _end(process)
                return None
            if time.monotonic() - renewed > RENEW_SECONDS:
                store.renew_lease(trial.number)
                renewed = time.monotonic()
        return process.returncode


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and those it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return


def _failure(folder: Path, status: int) -> str:
    """Why a trial failed: its last line."""
    if status < 0:
        return f"ended by signal {-status} ({signal.Signals(-status).name})"
    text = _COLOUR.sub("", (folder / LOG).read_text(encoding="utf-8", errors="replace"))
    lines = [line.strip() for line in text.split("\n")]
    printed = [line for line in lines if line and not line.startswith("wandb:")]  # W&B says goodbye after the error
    errors = [line for line in printed if line.startswith("edgeprune: error: ")]
    last = (errors or printed or ["no output"])[-1].removeprefix("edgeprune: error: ")
    return f"exit status {status}: {last}"
