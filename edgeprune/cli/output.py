"""What commands show: how far they are, and tables at the width that they need where no terminal says how wide."""

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SECONDS = 10.0  # between two lines
NARROW, NO_END = 80, 10_000  # characters of a line

Progress = Callable[[str, int, int], None]  # what, done, total


@contextmanager
def shown() -> Generator[Progress]:
    """A progress report on stderr: a bar that goes away at the end, or where there is no terminal a line now and then.

    A command of a few seconds has no lines at all.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task, last = bar.add_task("", total=None), ""

        def report(what: str, done: int, total: int) -> None:
            nonlocal last
            if what != last:
                bar.reset(task, description=what, total=total)
            last = what
            bar.update(task, completed=done, total=total)

        yield report


class _Lines:
    """Says what is done, and how far it is, unless something was said just before."""

    def __init__(self) -> None:
        self.next = time.monotonic() + SECONDS

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() >= self.next:
            print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)  # noqa: T201
            self.next = time.monotonic() + SECONDS


def console_for(tables: "Sequence[Table]") -> "Console":
    """For stdout: as wide as the terminal, or in a file or pipe as wide as the widest table."""
    from rich.console import Console
    from rich.measure import Measurement

    if sys.stdout.isatty():
        return Console()
    room = Console(width=NO_END)
    return Console(width=max([NARROW, *(Measurement.get(room, room.options, table).maximum for table in tables)]))
