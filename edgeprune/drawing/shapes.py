"""What a layout is made of, and the way of an edge in it, in units of about a pixel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from edgeprune.graph_roles import AT

HEAD_WIDTH, NODE_HEIGHT = 50.0, 20.0
READER = 10.0  # side of the square of a q, k or v reader
BOW, ROLE_BOW = 190.0, 70.0  # of edges, at most; where columns of roles stand side by side


class Node(NamedTuple):
    """A box: an embedding, a head, an MLP or `logits`; x and y are its middle, y runs downwards.

    The name has the role, if there are roles; the text of the box is `label`.
    """

    name: str
    kind: str
    layer: int
    x: float
    y: float
    width: float = HEAD_WIDTH
    height: float = NODE_HEIGHT
    part: int = 0  # its place in `Layout.parts`

    @property
    def label(self) -> str:
        """The name without the role."""
        return self.name.partition(AT)[0]


class Reader(NamedTuple):
    """Where edges into a reader end, and the nodes (places in `Layout.nodes`) that it is of.

    Only those of heads are seen: squares of side `READER` with their middle at x, y. Other readers are their node's
    lower side. `leads` are the nodes whose output depends on it directly: with roles, of k and v, also at other roles.
    """

    name: str
    kind: str
    x: float
    y: float
    nodes: tuple[int, ...]
    leads: tuple[int, ...] = ()


class Box(NamedTuple):
    """The frame around heads that share a k and a v reader, by its upper left corner."""

    x: float
    y: float
    width: float
    height: float


class RowLabel(NamedTuple):
    """The text at the left of a row."""

    text: str
    y: float


class Part(NamedTuple):
    """The column of one role, or the whole drawing without roles; `middle` is that of the heads' rows."""

    name: str
    left: float
    right: float
    middle: float


@final
@dataclass(frozen=True)
class Layout:
    """All places, in units of about a pixel; edges that must bow do so away from the middle of the heads' rows."""

    nodes: Sequence[Node]  # by layer
    readers: dict[int, Reader]  # by row of the graph
    boxes: Sequence[Box]
    rows: Sequence[RowLabel]  # at x = 0
    leaves: dict[int, int]  # from a column of the graph to the place in `nodes` of the node that writes
    parts: Sequence[Part]
    bow: float
    width: float
    height: float

    def curve(self, row: int, column: int) -> "Curve":
        """The way of an edge of the graph."""
        writer = self.nodes[self.leaves[column]]
        return curve(writer, self.readers[row], self.parts[writer.part].middle, self.bow)


class Curve(NamedTuple):
    """A cubic curve from a writer up to a reader: start, two control points, end."""

    x1: float
    y1: float
    cx1: float
    cy1: float
    cx2: float
    cy2: float
    x2: float
    y2: float


def curve(writer: Node, reader: Reader, middle: float, most: float = BOW) -> Curve:
    """The way of an edge: out of the top of a box, into a reader from below.

    Edges between places that lie above each other bow outwards, away from the drawing's `middle`, the more the longer
    they are, up to `most`: else they would hide behind the boxes between.
    """
    x1, y1 = writer.x, writer.y - writer.height / 2
    x2, y2 = reader.x, reader.y + (READER / 2 if reader.kind in "qkv" else NODE_HEIGHT / 2)
    rise = y1 - y2
    reach = max(14.0, 0.42 * rise)
    bow = furthest(rise, most) * math.exp(-abs(x2 - x1) / 90.0)
    bow = bow if (x1 + x2) / 2 >= middle else -bow
    return Curve(x1, y1, x1 + bow, y1 - reach, x2 + bow, y2 + reach, x2, y2)


def furthest(rise: float, most: float) -> float:
    """How far the control points go aside: not for short edges, at most so far for long ones."""
    return most * (1.0 - math.exp(-max(rise - 60.0, 0.0) / 700.0))
