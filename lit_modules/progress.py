"""How far a run is: bars of steps in a terminal, a line every so many seconds in a log."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from functools import cached_property
from typing import Any, TypeVar, final

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from edgeprune.console import ProgressReporter, duration, print_report
from edgeprune.errors import EdgepruneError

STEP, VALIDATION, TEST = "step", "validation batch", "test batch"
T = TypeVar("T")


@final
class RunProgress(ProgressBar):
    """Shows steps done, sparsity, divergence and time left; each circuit that is taken has a line that stays.

    In a terminal they are bars. Elsewhere (a pipe, a file, a batch system's log) nothing is drawn over: there is a line
    after the first step, then one every so many seconds. `--trainer.enable_progress_bar false` leaves all of it out.

    Args:
        seconds: Seconds between two lines where the output is no terminal.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        if not 0 < seconds < math.inf:
            raise EdgepruneError(f"seconds between two lines must be a number above 0, got {seconds}")
        self.seconds = seconds
        self._enabled = True
        self._first: int | None = None  # steps done before this process began
        self._begun = 0.0

    @cached_property
    def _reporter(self) -> ProgressReporter:
        """Made by the process that shows it: a terminal cannot be handed to another one."""
        return ProgressReporter(seconds=self.seconds)

    # ---------------------------------------------------------------- what Lightning asks of a progress bar
    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown."""
        return self._enabled

    def enable(self) -> None:
        """Show."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Write a line that stays."""
        if self._enabled:
            self._reporter.print(" ".join(map(str, args)))

    # ---------------------------------------------------------------- for others
    def report(self, what: str, done: int, total: int | None) -> None:
        """Show how far something beside the steps is."""
        if self._enabled:
            self._reporter.report(what, done, total)

    def stop(self) -> None:
        """Take bars away, so that other things can be printed."""
        self._reporter.stop()

    # ---------------------------------------------------------------- training
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where this process begins."""
        self._first, self._begun = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show how far the steps are."""
        step, begins = trainer.global_step, self._first is not None and trainer.global_step == self._first + 1
        if self._enabled:
            steps = trainer.estimated_stepping_batches
            total = int(steps) if math.isfinite(steps) else None
            self._reporter.report(STEP, step, total, lambda: self._figures(trainer, pl_module), at_once=begins)

    def _figures(self, trainer: pl.Trainer, module: pl.LightningModule) -> Mapping[str, Any]:
        """What the module logs for the bar; sparsity first."""
        found = self.get_metrics(trainer, module)
        found.pop("v_num", None)
        first = {"sparsity": found.pop("sparsity")} if "sparsity" in found else {}
        return first | found

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show how long it took."""
        done = trainer.global_step - (self._first or 0)
        self.stop()
        self.print(f"{done:,} steps in {duration(time.monotonic() - self._begun)}")

    # ---------------------------------------------------------------- evaluation
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show how far a validation is."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self.report(VALIDATION, batch_idx + 1, _total(batches, dataloader_idx))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show how far a test is."""
        self.report(TEST, batch_idx + 1, _total(trainer.num_test_batches, dataloader_idx))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bars away before the table of a command that only evaluates."""
        if trainer.state.fn != "fit":
            self.stop()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bars away before the table."""
        self.stop()

    # ---------------------------------------------------------------- the end
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the bars away."""
        self.stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the bars away."""
        self.stop()


def _total(batches: Any, number: int) -> int | None:
    count = batches[number] if isinstance(batches, list) else batches
    return int(count) if math.isfinite(count) else None


def run_progress(trainer: pl.Trainer) -> RunProgress | None:
    """The trainer's `RunProgress`, if it has one."""
    found = trainer.progress_bar_callback
    return found if isinstance(found, RunProgress) else None


def counted(trainer: pl.Trainer, what: str, batches: Iterable[T]) -> Iterator[T]:
    """The same batches; the run's progress, if there is one, shows how many of them are done."""
    progress, total = run_progress(trainer), len(batches) if isinstance(batches, Sized) else None
    for done, batch in enumerate(batches, start=1):
        yield batch
        if progress is not None:
            progress.report(what, done, total)


def show(trainer: pl.Trainer, *parts: Any) -> None:
    """Print tables and lines of a run's report, at the width that they need."""
    progress = run_progress(trainer)
    if progress is not None:
        progress.stop()
    print_report(*parts)
