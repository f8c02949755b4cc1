"""What the page is made of: sections of tables, lists of facts and figures. The template knows these and no more."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from edgeprune.report.heatmaps import Heatmaps
from edgeprune.report.plots import Key, Plot

RowKind = Literal["circuit", "end", "control"]


@final
@dataclass(frozen=True)
class Cell:
    """One value of a table.

    Attributes:
        text: What is read first.
        small: Below it: an interval, a number of examples.
        title: All of it in words, shown when pointed at.
        sort: What the column is sorted by; None (not defined) comes last.
        heat: Strength of the background, 0 to 1; below 0, to -1, in the colour of the other sign; None for none.
        bar: Length of a bar below the text, to the right of its middle, or below 0 to the left, -1 to 1; None for none.
    """

    text: str
    small: str = ""
    title: str = ""
    sort: float | str | None = None
    heat: float | None = None
    bar: float | None = None


@final
@dataclass(frozen=True)
class Column:
    """The head of a column: heading, unit and direction below it, definition when pointed at."""

    heading: str
    small: str = ""
    title: str = ""
    numeric: bool = True

    @classmethod
    def words(cls, heading: str, title: str = "") -> "Column":
        """The head of a column of texts."""
        return cls(heading, title=title, numeric=False)


CIRCUIT = Column.words("circuit")


@final
@dataclass(frozen=True)
class Row:
    """A line of a table: its head, then one cell per further column."""

    head: str
    cells: Sequence[Cell] = ()
    kind: RowKind = "circuit"
    title: str = ""


@final
@dataclass(frozen=True)
class Table:
    """A table. `columns` has the column of row heads first; a folded one is shown when asked for."""

    block: ClassVar = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    folded: bool = False


@final
@dataclass(frozen=True)
class Facts:
    """Terms, each with a text; `code` names the terms whose text is typed into a terminal."""

    block: ClassVar = "facts"
    items: Sequence[tuple[str, str]]
    code: Sequence[str] = ()


@final
@dataclass(frozen=True)
class Plots:
    """Plots side by side that share a legend."""

    block: ClassVar = "plots"
    caption: str
    plots: Sequence[Plot]
    keys: Sequence[Key] = ()

    @classmethod
    def of(cls, caption: str, plots: Iterable[Plot | None], keys: Iterable[Key] = ()) -> "Plots":
        """Those plots that could be drawn."""
        return cls(caption, [plot for plot in plots if plot is not None], list(keys))


@final
@dataclass(frozen=True)
class Maps:
    """Heat maps of one prompt, one pair for each head."""

    block: ClassVar = "maps"
    caption: str
    drawings: Sequence[Heatmaps]


Block = Table | Facts | Plots | Maps


@final
@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two that say how to read what follows, and the blocks; `name` is its anchor."""

    name: str
    title: str
    intro: str
    blocks: Sequence[Block]

    @classmethod
    def of(cls, name: str, title: str, intro: str, blocks: Iterable[Block]) -> "Section | None":
        """A section without its empty blocks; None where nothing is left."""
        shown = [block for block in blocks if _content(block)]
        return cls(name, title, intro, shown) if shown else None


def _content(block: Block) -> Sequence[object]:
    match block:
        case Table():
            return block.rows
        case Facts():
            return block.items
        case Plots():
            return block.plots
        case Maps():
            return block.drawings
