"""Tables for a terminal: every table that the project prints is made here, with one rule for its numbers."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table

MISSING = "-"
Value = str | int | float | None
_MIN_WIDTH = 10  # characters of a column of words that stay on one line


class Numbers(NamedTuple):
    """A column of numbers.

    Attributes:
        heading: Its heading.
        decimals: Of its floats.
        signed: Positive numbers have a plus sign.
    """

    heading: str
    decimals: int = 3
    signed: bool = False


def table(
    title: str | None, columns: Sequence[str | Numbers], rows: Iterable[Sequence[Value]], *, caption: str | None = None
) -> Table:
    """A table; what is too long for the terminal goes on in the next line.

    Args:
        title: Above it.
        columns: A heading alone is that of a column of words, which stand at the left; numbers stand at the right.
        rows: One value for each column, written as `number` does; texts are taken as they are, with rich's markup. An
            empty row is a line across.
        caption: Below it.
    """
    made = Table(title=title, title_justify="left", caption=caption)
    lines = list(rows)
    for place, column in enumerate(columns):
        if isinstance(column, Numbers):
            made.add_column(column.heading, justify="right", overflow="fold")
        else:
            longest = max((len(str(row[place])) for row in lines if row), default=0)
            made.add_column(column, overflow="fold", min_width=min(longest, _MIN_WIDTH))
    for row in lines:
        if row:
            made.add_row(*(_cell(value, column) for value, column in zip(row, columns, strict=True)))
        else:
            made.add_section()
    return made


def _cell(value: Value, column: str | Numbers) -> str:
    return number(value, *column[1:]) if isinstance(column, Numbers) else number(value)


def number(value: Value, decimals: int = 3, signed: bool = False) -> str:
    """A number with its thousands apart; a dash for None and NaN.

    >>> [number(value) for value in (0.25, 32491, None, float("nan"))], number(1.5, 1, signed=True)
    (['0.250', '32,491', '-', '-'], '+1.5')
    """
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:{'+' if signed else ''},{'d' if isinstance(value, int) else f'.{decimals}f'}}"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A number, and its interval if it has one."""
    return number(value) if low is None else number(value) + dim(f" \\[{number(low)}, {number(high)}]")


def spread(mean: float | None, deviation: float | None) -> str:
    """A mean, and the standard deviation if there is one."""
    return number(mean) if deviation is None else f"{number(mean)} ± {number(deviation)}"


def beside(value: float | None, other: Value) -> str:
    """A number, and another in brackets."""
    return number(value) + dim(f" ({number(other)})")


def dim(text: str) -> str:
    """The text in a weaker colour."""
    return f"[dim]{text}[/dim]" if text else ""
