"""Runs in processes of their own, and a callback that kills or hurts them at a given place."""

import errno
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

import edgeprune.cli.training  # noqa: F401  (imported once, in the server that runs are forked from)
from edgeprune.cli import main
from lit_modules import snapshots
from lit_modules.checkpoints import run_checkpoint

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
TIMEOUT = 600  # seconds, after which a run hangs
STEPS = 22
RUN = Path("runs") / "quickstart" / "version_0"
KINDS = {"last.ckpt": "checkpoint", "metrics.csv": "metrics", "frontier.csv": "frontier", "config.yaml": "config"}

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.cli.kills"])


class Hurt(pl.Callback):
    """Hurt a run, once at each of some places.

    A signal reaches this process, or with `group ` before it the workers too; `wait for ` waits until one comes.

    Places: `begin` (of a step), `step` (done, before its circuits are taken), `snapshot` (one was taken), `judge` (in
    the middle of judging one), `validation`, `end` (of training), and for files `checkpoint`, `circuit`, `metrics`,
    `frontier`, `config`: half written, or with `new ` before it, a moment after it took its place.

    Args:
        plan: Place, steps done by then at the least, and what happens: the name of a signal or of an error of the
            system (`ENOSPC`), `nan loss`, `nan gradient`, `inf gate`, else the text of an exception.
        markers: Folder that remembers what was done.
    """

    def __init__(self, plan: list[tuple[str, int, str]], markers: str = "markers") -> None:
        super().__init__()
        self.plan, self.markers = plan, Path(markers)
        self.trainer: pl.Trainer | None = None

    def hurt(self, place: str, half: Path | None = None) -> None:
        step = 0 if self.trainer is None else self.trainer.global_step
        for number, (where, least, how) in enumerate(self.plan):
            marker = self.markers / str(number)
            if where != place or step < least or marker.exists():
                continue
            self.markers.mkdir(exist_ok=True)
            marker.write_text(str(step))
            if half is not None:
                half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
            self._do(how)

    def _do(self, how: str) -> None:
        if how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[how])
        elif how.startswith("group SIG"):
            os.killpg(os.getpgrp(), signal.Signals[how.removeprefix("group ")])
        elif how.startswith("wait for SIG"):
            came = run_checkpoint(self.trainer).stop_requested  # type: ignore[arg-type, union-attr]
            for _ in range(6000):
                if came():
                    return
                time.sleep(0.01)
            raise TimeoutError(how)
        elif hasattr(errno, how):
            raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)))
        elif how in ("nan loss", "nan gradient", "inf gate"):
            assert self.trainer is not None
            gates: Any = self.trainer.lightning_module.recipe.edges.log_alpha
            if how == "nan loss":
                gates.data[0] = torch.nan
            elif how == "nan gradient":
                gates.register_hook(lambda gradient: gradient * torch.nan)
            else:
                self.trainer.optimizers[0].param_groups[0]["lr"] = torch.inf
        else:
            raise RuntimeError(how)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.trainer = trainer
        replace, until_stopped = Path.replace, snapshots._until_stopped

        def watched_replace(path: Path, target: Path) -> Path:
            kind = "circuit" if target.suffix == ".safetensors" else KINDS.get(target.name, "")
            self.hurt(kind, half=path)
            done = replace(path, target)
            self.hurt(f"new {kind}")
            return done

        def watched_batches(*args: Any) -> Iterator[Any]:
            for batch in until_stopped(*args):
                self.hurt("judge")
                yield batch

        Path.replace, snapshots._until_stopped = watched_replace, watched_batches  # type: ignore[method-assign]

    def on_train_batch_start(self, *_: Any) -> None:
        self.hurt("begin")

    def on_train_batch_end(self, *_: Any) -> None:
        self.hurt("step")

    def on_snapshot(self, *_: Any) -> None:
        self.hurt("snapshot")

    def on_validation_batch_start(self, *_: Any) -> None:
        self.hurt("validation")

    def on_train_end(self, *_: Any) -> None:
        self.hurt("end")


def write_config(folder: Path, plan: list[tuple[str, int, str]], workers: int = 0, *, paced: bool = False) -> None:
    """A short run of the quickstart, in `folder`, whose gates move: its learning rate is high. Its price is set."""
    config: Any = yaml.safe_load(QUICKSTART.read_text())
    recipe = config["model"]["recipe"]["init_args"]
    recipe |= {"learning_rate": 0.3, "init_mean": 2.5, "init_std": 1.5}  # edges close one by one
    if not paced:
        recipe["sparsity_term"] = {"class_path": "GeometricPenalty", "init_args": {"start": 0.02, "end": 5.0}}
    config["data"] |= {"num_workers": workers, "eval_batch_size": 8}  # several batches to judge a circuit on
    config["checkpoint"] = {"every_n_train_steps": 5}
    trainer = config["trainer"]
    trainer |= {"max_steps": STEPS, "val_check_interval": 4, "log_every_n_steps": 2, "enable_progress_bar": False}
    hurt = {"class_path": "tests.cli.kills.Hurt", "init_args": {"plan": [list(item) for item in plan]}}
    trainer["callbacks"] = [hurt, *trainer["callbacks"]]
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


def start(folder: Path, *more: str, command: str = "fit") -> Any:
    """Begin `edgeprune fit` in `folder`; what it prints goes to `log.txt` there."""
    process = _processes.Process(target=_run, args=(str(folder), [command, "--config", "run.yaml", *more]))
    process.start()
    return process


def status_of(process: Any) -> int:
    """Exit status of a process, minus the signal if one ended it."""
    process.join(TIMEOUT)
    hangs = process.is_alive()
    if hangs:
        process.kill()
        process.join()
    assert not hangs
    return process.exitcode


def fit(folder: Path, *more: str, command: str = "fit") -> int:
    """Run `edgeprune fit`, or another command, in `folder` to its end."""
    return status_of(start(folder, *more, command=command))


def printed(folder: Path) -> str:
    """What the runs in `folder` printed."""
    return (folder / "log.txt").read_text()


def _run(folder: str, arguments: list[str]) -> None:
    os.chdir(folder)
    os.setpgid(0, 0)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.argv = ["edgeprune"]
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a process that was started by hand
    sys.exit(main(arguments))
