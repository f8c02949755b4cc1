"""What commands show: reports at the width they need, and how far the work is, in a terminal or in a log."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

SECONDS = 30.0  # between two lines of a log
WIDE = 1000  # characters; no table of ours is wider, and none is filled up to it
REDRAW = 0.1  # seconds between two looks at figures that a bar shows
MARKS = 10  # lines that the time left is worked out from

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is
Figures = Callable[[], Mapping[str, Any]]


def no_progress(what: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def counted(items: Iterable[T], what: str, progress: Progress, total: int) -> Iterator[T]:
    """The same items; `progress` gets how many of them are done."""
    for done, item in enumerate(items, start=1):
        yield item
        progress(what, done, total)


def report_console() -> Console:
    """For tables and lines on stdout: as wide as the terminal, or without one as wide as they are."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def print_report(*parts: Any) -> None:
    """Print tables and lines on stdout, at the width that they need."""
    console = report_console()
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=True, highlight=False, markup=False)
        else:
            console.print(part)


def warn(line: str) -> None:
    """Print a line on stderr about something that is not as a user may expect, and go on."""
    sys.stderr.write(f"edgeprune: warning: {line}\n")


@final
class ProgressReporter:
    """Bars in a terminal, which go away in the end; elsewhere a line every so many seconds.

    Args:
        stderr: Show it there, not on stdout.
        seconds: Between two lines where that is no terminal; None for `SECONDS`.
        quiet: Show nothing.
        in_bytes: Amounts are bytes.
    """

    def __init__(
        self, *, stderr: bool = False, seconds: float | None = None, quiet: bool = False, in_bytes: bool = False
    ) -> None:
        self._console = Console(stderr=stderr, quiet=quiet, soft_wrap=True, highlight=False)
        self._seconds = SECONDS if seconds is None else seconds
        self._amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
        self._bars: Bars | None = None
        self._tasks: dict[str, Any] = {}
        self._marks: dict[str, deque[tuple[float, int]]] = {}  # when how much was done
        self._last = time.monotonic()

    def report(
        self, what: str, done: int, total: int | None, figures: Figures = dict, *, at_once: bool = False
    ) -> None:
        """Show how far a thing is; one that is done is shown no longer.

        Args:
            what: Its name, such as `"step"`.
            done: How much of it.
            total: Of how much; None if nobody knows.
            figures: What else to show, by name; asked only when it is shown.
            at_once: Write this line of a log, however short the time since the last one.
        """
        if self._console.is_terminal:
            self._draw(what, done, total, figures)
        else:
            self._write(what, done, total, figures, at_once)
        if done == total:
            self.finish(what)

    def _write(self, what: str, done: int, total: int | None, figures: Figures, at_once: bool) -> None:
        now = time.monotonic()
        marks = self._marks.setdefault(what, deque([(now, done)], MARKS))
        if at_once or now - self._last >= self._seconds:
            self._last = now
            marks.append((now, done))
            parts = [f"{what} {done:,}{'' if total is None else f' of {total:,}'}"]
            parts += [f"{name} {_plain(value)}" for name, value in figures().items()]
            self.print(", ".join([*parts, *_left(marks, total)]))

    def print(self, line: str) -> None:
        """Write a line that stays."""
        console = self._console if self._bars is None else self._bars.console
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def finish(self, what: str) -> None:
        """Show a thing no longer; it may begin again."""
        self._marks.pop(what, None)
        task = self._tasks.pop(what, None)
        if task is not None and self._bars is not None:
            self._bars.remove_task(task)

    def stop(self) -> None:
        """Take the bars away, until something is reported again."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}

    def __enter__(self) -> "ProgressReporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _draw(self, what: str, done: int, total: int | None, figures: Figures) -> None:
        if self._bars is None:
            columns = (
                *(TextColumn("{task.description}"), BarColumn(bar_width=20), self._amount),
                *(TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[figures]}")),
            )
            self._bars = Bars(*columns, console=self._console, transient=True)
            self._bars.start()
        now = time.monotonic()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, completed=done, figures="")
        elif now - self._last < REDRAW and done != total:
            return
        self._last = now
        shown = ", ".join(f"{name} {_plain(value)}" for name, value in figures().items())
        self._bars.update(self._tasks[what], completed=done, total=total, figures=shown)


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _left(marks: deque[tuple[float, int]], total: int | None) -> list[str]:
    """How long the rest will take at the present speed, in words; nothing where that is not known yet."""
    (begun, before), (now, done) = marks[0], marks[-1]
    if total is None or done <= before or done == total:
        return []
    return [f"{duration((now - begun) / (done - before) * (total - done))} left"]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(3725.2)
    '1:02:05'
    """
    return str(timedelta(seconds=round(seconds)))
