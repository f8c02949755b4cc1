"""A sweep's folder: the one place where workers, on one machine or several, learn what is left to do.

    sweep.yaml  plan.json  journal.log (Optuna)  lock  trials/0000/{trial.json, lease, log.txt, circuits/, wandb/, ...}

A trial belongs to the worker whose lease lies in its folder. A lease ends with its process on the same machine, and
elsewhere when nobody has touched it for `LEASE_SECONDS`; then the next worker runs that trial again, from the start.
"""

import json
import os
import random
import shutil
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, final

from filelock import FileLock, Timeout

from edgeprune.errors import EdgepruneError
from edgeprune.paths import write_whole_text
from edgeprune.sweeps.file import SweepFile
from edgeprune.sweeps.parameters import nested
from edgeprune.sweeps.sampling import sample

LEASE_SECONDS = 120.0  # a worker touches its lease every RENEW_SECONDS: six may be missed
RENEW_SECONDS = 20.0
LOCK_SECONDS = 60.0  # a lock is held for milliseconds; who holds it longer hangs
SWEEP, PLAN, LEASE, TRIAL = "sweep.yaml", "plan.json", "lease", "trial.json"

State = Literal["waiting", "running", "done", "failed"]


@final
@dataclass(frozen=True)
class Trial:
    """One trial as `trial.json` has it."""

    number: int  # from 0
    values: dict[str, Any]  # parameters by dotted name
    latents: dict[str, float]  # what the sampler drew for them
    state: State = "running"  # waiting: to be run again
    value: float | None = None  # the metric, once done
    reason: str | None = None  # why it failed
    host: str = ""  # where it runs or ran
    seconds: float | None = None  # it ran
    attempts: int = 1  # times it was started


@final
@dataclass(frozen=True)
class Plan:
    """What is fixed for a sweep's folder."""

    ident: str  # part of the ids of its W&B runs
    name: str  # of the group of these runs
    size: int  # trials
    seed: int  # of the sampler


@final
@dataclass
class Store:
    """A sweep's folder, made or opened, on a disk that all workers share."""

    folder: Path
    sweep: SweepFile
    plan: Plan
    _lock: FileLock = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._lock = FileLock(self.folder / "lock", timeout=LOCK_SECONDS)

    # ---------------------------------------------------------------- making and opening
    @classmethod
    def make(cls, folder: Path, sweep: SweepFile, size: int, seed: int = 0) -> "Store":
        """Open a folder for a sweep, and make it if it is not there.

        Raises:
            EdgepruneError: If the folder holds another sweep, or other things.
        """
        if not (folder / PLAN).exists():
            if folder.exists() and any(path.name != "lock" for path in folder.iterdir()):
                raise EdgepruneError(f"folder {folder} holds other things than a sweep; choose another --folder")
            folder.mkdir(parents=True, exist_ok=True)
        with _held(FileLock(folder / "lock", timeout=LOCK_SECONDS), folder):
            if not (folder / PLAN).exists():
                ident = f"{random.SystemRandom().getrandbits(32):08x}"
                write_whole_text(folder / SWEEP, sweep.text)
                write_whole_text(folder / PLAN, json.dumps(asdict(Plan(ident, sweep.name, size, seed)), indent=1))
        store = cls.open(folder)
        if store.sweep.text != sweep.text or store.plan.size > size or store.plan.seed != seed:
            raise EdgepruneError(
                f"folder {folder} holds another sweep (another file, fewer trials, or another seed); "
                "choose another --folder"
            )
        if size > store.plan.size:
            store = cls(folder, store.sweep, replace(store.plan, size=size))
            write_whole_text(folder / PLAN, json.dumps(asdict(store.plan), indent=1))
        return store

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Open a folder that `make` made.

        Raises:
            EdgepruneError: If it holds no sweep.
        """
        try:
            plan = Plan(**json.loads((folder / PLAN).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise EdgepruneError(f"{folder} holds no sweep; give the --folder of one") from None
        return cls(folder, replace(SweepFile.read(folder / SWEEP), name=plan.name), plan)

    # ---------------------------------------------------------------- trials
    def trial_folder(self, number: int) -> Path:
        """Where a trial's files are."""
        return self.folder / "trials" / f"{number:04d}"

    def trials(self) -> list[Trial]:
        """All trials that were ever started, by number."""
        files = sorted((self.folder / "trials").glob(f"*/{TRIAL}"))
        return [Trial(**json.loads(file.read_text(encoding="utf-8"))) for file in files]

    def claim(self) -> Trial | None:
        """A trial to run now: one that a dead worker left, or a new one; None if there is none."""
        with self.held():
            trials = self.trials()
            for trial in trials:
                if trial.state == "waiting" or (trial.state == "running" and not self._leased(trial.number)):
                    self._clear(trial.number)
                    return self._start(replace(trial, attempts=trial.attempts + 1))
            if len(trials) >= self.plan.size or self._reached(trials):
                return None
            results = {
                trial.number: trial.value for trial in trials if trial.state == "done" and trial.value is not None
            }
            latents = sample(self.folder, self.sweep, self.plan.seed, len(trials), results)
            values = {
                parameter.name: parameter.distribution.value(latents[parameter.name])
                for parameter in self.sweep.parameters
            }
            return self._start(Trial(len(trials), values, latents))

    def renew_lease(self, number: int) -> None:
        """Note that the worker of a trial is alive."""
        os.utime(self.trial_folder(number) / LEASE)

    def finish(self, trial: Trial) -> None:
        """Record how a trial ended; it will not be run again."""
        with self.held():
            self._record(trial)
            (self.trial_folder(trial.number) / LEASE).unlink(missing_ok=True)

    def give_back(self, trial: Trial) -> None:
        """Leave a trial that was stopped to the next worker."""
        with self.held():
            self._record(replace(trial, state="waiting"))
            (self.trial_folder(trial.number) / LEASE).unlink(missing_ok=True)

    def retry(self) -> int:
        """Let failed trials run again; returns how many."""
        with self.held():
            failed = [trial for trial in self.trials() if trial.state == "failed"]
            for trial in failed:
                self._record(replace(trial, state="waiting", reason=None))
        return len(failed)

    def finished(self) -> bool:
        """Whether nothing is left to do, here or elsewhere."""
        trials = self.trials()
        over = len(trials) >= self.plan.size or self._reached(trials)
        return over and all(trial.state in ("done", "failed") for trial in trials)

    def nested_values(self, trial: Trial) -> dict[str, Any]:
        """Parameters of a trial as its command gets them."""
        return nested(self.sweep.parameters, trial.values)

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold the folder's lock, which every change of its files needs."""
        with _held(self._lock, self.folder):
            yield

    def _reached(self, trials: list[Trial]) -> bool:
        metric = self.sweep.metric
        return metric is not None and any(trial.value is not None and metric.reached(trial.value) for trial in trials)

    def _start(self, trial: Trial) -> Trial:
        started = replace(trial, state="running", host=socket.gethostname(), value=None, reason=None, seconds=None)
        folder = self.trial_folder(trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        lease = {"host": started.host, "pid": os.getpid(), "born": _born(os.getpid())}
        write_whole_text(folder / LEASE, json.dumps(lease))
        self._record(started)
        return started

    def _record(self, trial: Trial) -> None:
        write_whole_text(self.trial_folder(trial.number) / TRIAL, json.dumps(asdict(trial), indent=1))

    def _clear(self, number: int) -> None:
        """Remove what a broken attempt left, its W&B run included, so that a trial is one whole run."""
        for path in self.trial_folder(number).iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != TRIAL:
                path.unlink()

    def _leased(self, number: int) -> bool:
        file = self.trial_folder(number) / LEASE
        try:
            lease: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            renewed = file.stat().st_mtime
        except (OSError, ValueError):
            return False
        if lease["host"] == socket.gethostname():
            return _alive(cast("int", lease["pid"]), lease["born"])
        return self._now() - renewed < LEASE_SECONDS

    def _now(self) -> float:
        """The time by the clock of the shared disk, which also stamps the leases."""
        file = self.folder / "clock"
        file.touch()
        return file.stat().st_mtime


@contextmanager
def _held(lock: FileLock, folder: Path) -> Generator[None]:
    try:
        lock.acquire()
    except Timeout:
        raise EdgepruneError(
            f"folder {folder} is locked for {LOCK_SECONDS:.0f} s; end the process that hangs, or check that its disk "
            "supports file locks"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _born(pid: int) -> str | None:
    """When a process started, in the system's own count; tells it from a later one with its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _alive(pid: int, born: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _born(pid) == born
