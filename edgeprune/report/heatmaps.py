"""Heat maps of attention as geometry: two square maps side by side, circuit and full model, that share their labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from edgeprune.report.plots import Tick
from edgeprune.report.text import finite

CELL, GAP = 11, 14  # of a map, and between the two
CHARACTER = 5.2  # width of a letter of a label
SMALLEST = 0.01  # weights below it are not drawn
MOST_CHARACTERS = 16  # of a label that is not cut


class Square(NamedTuple):
    """A cell: where, how strong (0 to 1), and what it says when pointed at."""

    x: float
    y: float
    strength: float
    title: str


class Panel(NamedTuple):
    """One of the two maps: its left edge, its title, its cells, and its columns."""

    left: float
    title: str
    cells: Sequence[Square]
    columns: Sequence[Tick]


@final
@dataclass(frozen=True)
class Heatmaps:
    """A drawing of `width` by `height` units, y downwards. Rows attend, columns are attended to."""

    title: str
    label: str  # for those who do not see it
    panels: Sequence[Panel]
    rows: Sequence[Tick]  # labels at the left of the first map
    side: float  # width and height of a map
    top: float  # upper edge of the maps
    width: float
    height: float


def draw_heatmaps(title: str, maps: Sequence[tuple[str, Sequence[Sequence[Any]]]], labels: Sequence[str]) -> Heatmaps:
    """Lay out square maps side by side.

    Args:
        title: Above them.
        maps: Name and weights `[row][column]` of each, 0 to 1; what is no number is not drawn.
        labels: Of rows and of columns.
    """
    short = [label if len(label) <= MOST_CHARACTERS else f"{label[: MOST_CHARACTERS - 1]}…" for label in labels]
    margin, side, top = 8 + CHARACTER * max(map(len, short), default=0), CELL * len(labels), 18.0
    panels = [
        _panel(round(margin + place * (side + GAP), 1), top, name, weights, labels, short)
        for place, (name, weights) in enumerate(maps)
    ]
    rows = [Tick(top + CELL * (row + 0.5), text) for row, text in enumerate(short)]
    width = round(margin + len(maps) * (side + GAP), 1)
    names = " and ".join(name for name, _ in maps)
    about = f"{title}: attention from each of {len(labels)} tokens to each, in {names}; the table below has the numbers"
    return Heatmaps(title, about, panels, rows, side, top, width, round(top + side + margin, 1))


def _panel(
    left: float, top: float, name: str, weights: Sequence[Sequence[Any]], labels: Sequence[str], short: Sequence[str]
) -> Panel:
    cells = [
        Square(round(left + CELL * column, 1), top + CELL * row, min(weight, 1.0), _title(labels, row, column, weight))
        for row, line in enumerate(weights)
        for column, value in enumerate(line)
        if (weight := finite(value)) is not None and weight >= SMALLEST
    ]
    return Panel(left, name, cells, [Tick(round(left + CELL * (at + 0.5), 1), text) for at, text in enumerate(short)])


def _title(labels: Sequence[str], row: int, column: int, weight: float) -> str:
    return f"{weight:.2f} from {row} {labels[row]} to {column} {labels[column]}"
