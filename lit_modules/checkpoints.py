"""Checkpoints from which a run goes on exactly as if it had never stopped, and signals that stop it."""

import os
import signal
import stat
import threading
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, final

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from edgeprune.checkpoint_files import load_checkpoint, write_checkpoint
from edgeprune.errors import EdgepruneError
from lit_modules.metrics_log import MetricsTable
from lit_modules.ranks import first_rank

RUN = "edgeprune_run"  # the part of a checkpoint that says how its run goes on
SIGNALS = (signal.SIGINT, signal.SIGTERM)
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # the terminal is gone; Windows has none
FORCE = 3  # that many of SIGNALS end a run at once


class StoppedBySignalError(Exception):
    """A signal ended the run between two steps, after `step` of them; `checkpoint` is the newest, if there is one."""

    def __init__(self, number: signal.Signals, step: int, checkpoint: Path | None) -> None:
        super().__init__(f"stopped by {number.name} after step {step}")
        self.signal, self.step, self.checkpoint = number, step, checkpoint


@final
class StoppedAtOnceError(KeyboardInterrupt):
    """Signals, `signal` the last of them, ended the run where it was; `checkpoint` is the newest, if there is one."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.signal = number
        self.checkpoint: Path | None = None


@final
class SealedCheckpoints(TorchCheckpointIO):
    """Reads and writes checkpoints by way of `edgeprune.checkpoint_files`: whole, sealed, refused when altered."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read one, to the CPU; what it holds is copied to where it is needed."""
        return load_checkpoint(path)


@final
class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, at a moment from which nothing is lost.

    Lightning saves inside a step's last hook, when the step's row of the log and the validation after it are still to
    come; a run that goes on from there never makes them. Here a checkpoint that is due waits for the next step to begin
    (or the last epoch to end), logs are written out first, and the loops' state is that of the step's end, from which
    Lightning resumes with the next step. Ctrl-C, SIGTERM and SIGHUP are obeyed at the same place.
    """

    _loops: dict[str, Any] | None = None  # of the fit loop, at the end of the last step
    _step: int = 0  # steps done by then
    _between: bool = True  # no step is half done, accumulated gradients included
    _updating: bool = False  # the optimizer is at work
    _stop_signal: signal.Signals | None = None
    _signals: int = 0  # of Ctrl-C and SIGTERM that came
    _pid: int = 0  # workers that load data inherit the handlers
    _finished: bool = False

    # ---------------------------------------------------------------- when
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the folder, which marks a run that was begun."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero and not _dry(trainer):
            Path(str(self.dirpath)).mkdir(parents=True, exist_ok=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to signals; a run that goes on in another folder than its checkpoint's has one there at once."""
        super().on_train_start(trainer, pl_module)
        self._stop_signal = signal.SIGTERM if trainer.received_sigterm else None
        if threading.current_thread() is threading.main_thread():
            self._listen()
        self._step = self._last_global_step_saved = trainer.global_step
        if trainer.ckpt_path and Path(trainer.ckpt_path).absolute().parent != Path(str(self.dirpath)).absolute():
            self._save_now(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save what became due with the step before; stop if a signal asked for it."""
        if self._between:
            self._save_if_due(trainer, pl_module)
            self.stop_if_asked(trainer)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """From here to the end of the step, parameters and loops do not belong together."""
        self._updating = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note where the loops are; nothing is saved yet."""
        self._updating = False
        self._between = trainer.global_step > self._step
        if self._between:
            self._step, self._loops = trainer.global_step, trainer.fit_loop.state_dict()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what is due, and in any case the last step."""
        self._save_if_due(trainer, pl_module)
        super().on_train_epoch_end(trainer, pl_module)
        if _at_end(trainer):
            self._save_now(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Every file is written: say so in the last checkpoint."""
        self._finished = True
        self._save_now(trainer, again=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save the last whole step, unless it is a mistake of the user's or the gates that ended the run."""
        known = isinstance(exception, EdgepruneError | StoppedBySignalError)
        # of a step whose validation fails, figures would be missing from the log
        if known or self._updating or trainer.validating or trainer.world_size > 1 or not self.save_on_exception:
            return
        with suppress(Exception):  # what ended the run is to be reported, not this
            self._save_now(trainer)
        if isinstance(exception, StoppedAtOnceError):
            exception.checkpoint = last_good(trainer)
        elif self._stop_signal is not None and _a_worker_died(exception):  # of the same signal
            raise StoppedBySignalError(self._stop_signal, trainer.global_step, last_good(trainer)) from None

    # ---------------------------------------------------------------- how
    def _save_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._step == trainer.global_step != self._last_global_step_saved:
            super().on_train_batch_end(trainer, pl_module, None, None, 0)

    def _save_now(self, trainer: pl.Trainer, again: bool = False) -> None:
        """Write `last.ckpt` for the last whole step, unless it is there."""
        saved = self._last_global_step_saved == trainer.global_step and self._last_checkpoint_saved
        if _dry(trainer) or self._loops is None or self._step != trainer.global_step or (saved and not again):
            return
        path = self.format_checkpoint_name(self._monitor_candidates(trainer), self.CHECKPOINT_NAME_LAST)
        self.last_model_path = path
        self._save_checkpoint(trainer, path)

    def _should_remove_checkpoint(self, trainer: pl.Trainer, previous: str, current: str) -> bool:
        """Remove an older one of the folder also if the run went on from it: Lightning would let it lie."""
        return previous != current and Path(str(self.dirpath)).absolute() in Path(previous).absolute().parents

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the logs out; add where the loops were at the end of the step, and how far the logs are."""
        for logger in trainer.loggers:
            logger.save()
        if self._loops is not None and self._step == trainer.global_step:
            checkpoint["loops"]["fit_loop"] = self._loops
        checkpoint[RUN] = {
            "rows": next((len(table.metrics) for table in _tables(trainer)), 0),
            "finished": self._finished,
            "limits": [trainer.max_steps, trainer.max_epochs],
            "wandb": [logger.version for logger in trainer.loggers if isinstance(logger, WandbLogger)],
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Until the first step ends, the loops are where the checkpoint has them."""
        self._loops, self._step = deepcopy(checkpoint["loops"]["fit_loop"]), checkpoint["global_step"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best checkpoints over; in a folder that was moved, or is named otherwise, they have moved along."""
        former, present = Path(str(state_dict["dirpath"])), Path(str(self.dirpath))
        if former != present and _same_run(former, present):
            state_dict = _moved(state_dict, present)
        super().load_state_dict(state_dict)

    # ---------------------------------------------------------------- signals
    def stop_requested(self) -> bool:
        """Whether a signal came; only this process knows of it."""
        return self._stop_signal is not None

    def stop_if_asked(self, trainer: pl.Trainer) -> None:
        """Save and stop, on all ranks, if a signal came to any of them.

        Raises:
            StoppedBySignalError: One came.
        """
        requested = self._stop_signal is not None
        if trainer.world_size > 1:
            requested = trainer.strategy.reduce_boolean_decision(requested, all=False)
        if requested:
            self._save_now(trainer)
            raise StoppedBySignalError(self._stop_signal or signal.SIGTERM, trainer.global_step, last_good(trainer))

    def _listen(self) -> None:
        """Lightning restores the former handlers in the end."""
        self._pid = os.getpid()
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(HANGUP, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            return  # the run ends its workers itself, when it has saved
        received = signal.Signals(number)
        if received is HANGUP:
            _let_go_of_dead_terminals()
        self._signals += received in SIGNALS  # a terminal that goes may send several of the other
        if self._signals >= FORCE:
            raise StoppedAtOnceError(received)
        if self._stop_signal is None:
            _print_at_once(f"{received.name}: the run stops when the step under way is done and saved")
        elif received in SIGNALS:
            _print_at_once(
                f"{received.name} again: still at that step, which is saved then; a third one stops at once, without it"
            )
        self._stop_signal = self._stop_signal or received


def _a_worker_died(exception: BaseException) -> bool:
    """Whether data could not be loaded since a worker is gone, perhaps while it handed over a batch."""
    return isinstance(exception, ConnectionError | EOFError) or "DataLoader worker" in str(exception)


def _print_at_once(line: str) -> None:
    """A line on stderr, from within a signal's handler: `print` may be at work already."""
    if first_rank():
        with suppress(OSError):
            os.write(2, f"{chr(10) * os.isatty(2)}edgeprune: {line}\n".encode())


def _let_go_of_dead_terminals() -> None:
    """Let what would be printed on a terminal that is gone go nowhere: it would be an error."""
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def run_checkpoint(trainer: pl.Trainer) -> RunCheckpoint | None:
    """The trainer's `RunCheckpoint`, if it has one."""
    found = trainer.checkpoint_callbacks
    return next((callback for callback in found if isinstance(callback, RunCheckpoint)), None)


def last_good(trainer: pl.Trainer) -> Path | None:
    """The newest checkpoint of the run: that which it wrote last, else that which it goes on from."""
    callback = trainer.checkpoint_callback
    written = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
    for path in (written, trainer.ckpt_path):
        if path and Path(path).is_file():
            return Path(path)
    return None


def _tables(trainer: pl.Trainer) -> list[MetricsTable]:
    logs = [logger.experiment for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    return [log for log in logs if isinstance(log, MetricsTable)]


def _dry(trainer: pl.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # pyright: ignore[reportAttributeAccessIssue] (set by a helper of Lightning's)


def _at_end(trainer: pl.Trainer) -> bool:
    """Whether the epoch that ends is the last; asked in its last hooks."""
    epochs: int = trainer.fit_loop.epoch_progress.current.processed  # pyright: ignore[reportAttributeAccessIssue]
    return (
        trainer.should_stop
        or 0 <= trainer.max_steps <= trainer.global_step
        or (trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs)
    )


def _same_run(former: Path, present: Path) -> bool:
    """Whether both are the folder of the checkpoint being loaded: named in another way, or moved since."""
    if former.exists():
        return former.resolve() == present.resolve()
    return present.is_dir() and any(present.glob("*.ckpt"))


def _moved(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    def here(path: str) -> str:
        return str(folder / Path(path).name) if path else path

    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    best = {here(path): score for path, score in state["best_k_models"].items()}
    return {**state, "dirpath": str(folder), "best_k_models": best, **{name: here(state[name]) for name in names}}
