"""Where nodes, readers and edges of a circuit lie: plain numbers that every kind of drawing shares.

Layers are rows, the stream runs upwards: embeddings at the bottom, `logits` on top. Heads stand in the order of their
numbers with their q, k and v readers below them; heads that share k and v readers stand in one box with one of each.
MLPs stand in a column of their own at the right, half a row above the heads of their layer, which they can read. Where
a layer has an MLP alone, its row is lower.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from torch import Tensor

from edgeprune.graph import EdgeGraph
from edgeprune.nodes import layer_of, node_names, nodes_of_readers, reader_kind, writer_kind

HEAD_WIDTH, NODE_HEIGHT = 50.0, 20.0
READER = 10.0  # side of the square of a q, k or v reader
_READER_DROP = NODE_HEIGHT / 2 + READER / 2 + 1  # from a head's middle to its readers'
_HEAD_GAP, _GROUP_GAP, _PAD = 4.0, 16.0, 3.0
_MARGIN, _LABEL_WIDTH = 30.0, 66.0
_ASPECT = 1.35  # of a screen: rows are stretched towards it
_MAX_STRETCH = 300.0  # to the gap between groups
_ROW_HEIGHTS = (43.0, 88.0)  # of many rows, of few
_MANY_ROWS = 24
_MLP_RISE = 0.46  # of a row
_BOW = 190.0


class Node(NamedTuple):
    """A box: an embedding, a head, an MLP or `logits`; x and y are its middle, y runs downwards."""

    name: str
    kind: str
    layer: int
    x: float
    y: float
    width: float = HEAD_WIDTH
    height: float = NODE_HEIGHT


class Reader(NamedTuple):
    """Where edges into a reader end, and the nodes (places in `Layout.nodes`) that it is of.

    Only those of heads are seen: squares of side `READER` with their middle at x, y. Other readers are their node's
    lower side.
    """

    name: str
    kind: str
    x: float
    y: float
    nodes: tuple[int, ...]


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


@final
@dataclass(frozen=True)
class Layout:
    """All places, in units of about a pixel; edges that must bow do so away from the middle of the heads' rows."""

    nodes: Sequence[Node]  # by layer
    readers: dict[int, Reader]  # by row of the graph
    boxes: Sequence[Box]
    rows: Sequence[RowLabel]  # at x = 0
    leaves: dict[int, int]  # from a column of the graph to the place in `nodes` of the node that writes
    middle: float
    width: float
    height: float


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


def curve(writer: Node, reader: Reader, middle: float) -> Curve:
    """The way of an edge: out of the top of a box, into a reader from below.

    Edges between places that lie above each other bow outwards, away from the drawing's `middle`, the more the longer
    they are: else they would hide behind the boxes between.
    """
    x1, y1 = writer.x, writer.y - writer.height / 2
    x2, y2 = reader.x, reader.y + (READER / 2 if reader.kind in "qkv" else NODE_HEIGHT / 2)
    rise = y1 - y2
    reach = max(14.0, 0.42 * rise)
    bow = _bow(rise) * math.exp(-abs(x2 - x1) / 90.0)
    bow = bow if (x1 + x2) / 2 >= middle else -bow
    return Curve(x1, y1, x1 + bow, y1 - reach, x2 + bow, y2 + reach, x2, y2)


def _bow(rise: float) -> float:
    """How far the control points go aside: not for short edges, at most `_BOW` for long ones."""
    return _BOW * (1.0 - math.exp(-max(rise - 60.0, 0.0) / 700.0))


# -------------------------------------------------------------------- who is drawn
@final
@dataclass(frozen=True)
class _Group:
    """Heads of one layer that stand together, and the rows of the readers that they share (k, v), if any is drawn."""

    heads: Sequence[int]  # places of node_names
    shared: Sequence[int]  # rows
    frame: bool


def lay_out(graph: EdgeGraph, keep: Tensor) -> Layout:
    """Places for all edges of `keep`, and nothing else but the embeddings and `logits`.

    Args:
        graph: The graph.
        keep: Bool `[reader, writer]`: every edge that may be drawn.
    """
    names, owners = node_names(graph), nodes_of_readers(graph)
    rows = set(keep.any(1).nonzero().flatten().tolist())
    seen = set(keep.any(0).nonzero().flatten().tolist()) | {owners[row][0] for row in rows if len(owners[row]) == 1}
    for row in rows:  # a shared reader calls for all its heads only if none of them is there anyway
        seen |= set() if seen.intersection(owners[row]) else set(owners[row])
    num_embeddings, logits = graph.arch.num_embeddings, len(names) - 1
    groups = _groups(graph, seen, rows)
    mlps = {layer_of(names[node], logits): node for node in seen if writer_kind(names[node]) == "mlp" and node < logits}
    layers = sorted({*groups, *mlps})
    low, high = _ROW_HEIGHTS
    pitch = high - (high - low) * min(len(layers) / _MANY_ROWS, 1.0)
    rises = [pitch if layer in groups else (1 - _MLP_RISE) * pitch for layer in layers]  # to the row above
    height = 2 * _MARGIN + pitch + sum(rises) + NODE_HEIGHT
    stretch = _stretch(groups, height)
    width = max(2 * HEAD_WIDTH * num_embeddings, *(_width(row, stretch) for row in groups.values()), 0.0)
    middle, mlp_x = _LABEL_WIDTH + width / 2, _LABEL_WIDTH + width + 40.0 + HEAD_WIDTH / 2
    aside = 0.75 * _bow(sum(rises)) - HEAD_WIDTH / 2  # how far edges between MLPs bow beyond them
    full = (mlp_x + HEAD_WIDTH / 2 + max(aside, 0.0) if mlps else _LABEL_WIDTH + width) + _MARGIN
    made = _Places(graph)
    height += 0.2 * pitch  # `logits` stands that much above its row
    bottom = height - _MARGIN - NODE_HEIGHT / 2
    for place in range(num_embeddings):
        made.node(place, middle + (place - (num_embeddings - 1) / 2) * 2 * HEAD_WIDTH, bottom, 1.6 * HEAD_WIDTH)
    made.labels.append(RowLabel("embed", bottom))
    y = bottom - pitch
    for layer, rise in zip(layers, rises, strict=True):
        made.labels.append(RowLabel(f"layer {layer}", y))
        made.row(groups.get(layer, []), middle, y, stretch)
        if layer in mlps:
            made.node(mlps[layer], mlp_x, y - (rise - (1 - _MLP_RISE) * pitch))
        y -= rise
    made.node(logits, middle, y - 0.2 * pitch, 1.6 * HEAD_WIDTH)
    made.labels.append(RowLabel("logits", made.nodes[-1].y))
    return made.done(middle, full, height)


def _groups(graph: EdgeGraph, seen: set[int], rows: set[int]) -> dict[int, list[_Group]]:
    """Of each layer with a head, its groups in order."""
    arch, found = graph.arch, dict[int, list[_Group]]()
    size = arch.heads_per_kv_reader
    for layer in range(arch.num_layers):
        heads = graph.heads(layer)
        for start in range(heads.start, heads.stop, size):
            heads = [head for head in range(start, start + size) if head in seen]
            if heads:
                shared = [row for row in graph.inputs[start][1:] if row in rows]
                found.setdefault(layer, []).append(_Group(heads, shared, size > 1 and bool(shared)))
    return found


def _group_width(group: _Group) -> float:
    return len(group.heads) * (HEAD_WIDTH + _HEAD_GAP) - _HEAD_GAP + 2 * _PAD * group.frame


def _width(row: Sequence[_Group], gap: float) -> float:
    return sum(map(_group_width, row)) + gap * max(len(row) - 1, 0)


def _stretch(groups: dict[int, list[_Group]], height: float) -> float:
    """The gap between groups that gives the widest row the width of a screen of this height, within bounds."""
    wanted = height * _ASPECT - _LABEL_WIDTH - HEAD_WIDTH - 100.0
    gaps = [(wanted - _width(row, 0.0)) / (len(row) - 1) for row in groups.values() if len(row) > 1]
    return min(max(min(gaps, default=_GROUP_GAP), _GROUP_GAP), _MAX_STRETCH)


# -------------------------------------------------------------------- where it goes
class _Places:
    """Collects what is placed."""

    def __init__(self, graph: EdgeGraph) -> None:
        self.graph = graph
        self.names = node_names(graph)
        self.nodes: list[Node] = []
        self.at: dict[int, int] = {}  # from the place in node_names to that in nodes
        self.boxes: list[Box] = []
        self.labels: list[RowLabel] = []
        self.heads: dict[int, tuple[float, float]] = {}  # rows of heads' readers to their places

    def node(self, place: int, x: float, y: float, width: float = HEAD_WIDTH) -> None:
        name = self.names[place]
        kind = "logits" if name == "logits" else writer_kind(name)
        self.at[place] = len(self.nodes)
        self.nodes.append(Node(name, kind, layer_of(name, self.graph.arch.num_layers), x, y, width))

    def row(self, groups: Sequence[_Group], middle: float, y: float, gap: float) -> None:
        x = middle - _width(groups, gap) / 2
        for group in groups:
            width = _group_width(group)
            if group.frame:
                self.boxes.append(Box(x, y - NODE_HEIGHT / 2 - _PAD, width, NODE_HEIGHT + READER + 2 * _PAD + 2))
            self._group(group, x, width, y)
            x += width + gap

    def _group(self, group: _Group, left: float, width: float, y: float) -> None:
        """Heads side by side. Own readers q, k, v side by side; shared ones in the middle, beside the q of a head."""
        down, step = y + _READER_DROP, READER + 2
        single = len(group.heads) == 1 and bool(
            group.frame or self.graph.arch.num_heads == self.graph.arch.num_kv_readers
        )
        for number, head in enumerate(group.heads):
            x = left + _PAD * group.frame + number * (HEAD_WIDTH + _HEAD_GAP) + HEAD_WIDTH / 2
            self.node(head, x, y)
            self.heads[self.graph.inputs[head][0]] = (x - step if single else x, down)
        middle = left + width / 2
        apart = (HEAD_WIDTH + _HEAD_GAP) / 2 if len(group.heads) % 2 else step / 2
        _, k, v = self.graph.inputs[group.heads[0]]
        self.heads[k] = (middle - (0.0 if single else apart), down)
        self.heads[v] = (middle + (step if single else apart), down)

    def done(self, middle: float, width: float, height: float) -> Layout:
        """Everything, with readers of all nodes."""
        readers = dict[int, Reader]()
        for row, owners in enumerate(nodes_of_readers(self.graph)):
            here = tuple(self.at[owner] for owner in owners if owner in self.at)
            if here:
                name, node = self.graph.readers[row], self.nodes[here[0]]
                x, y = self.heads.get(row, (node.x, node.y))
                readers[row] = Reader(name, reader_kind(name), x, y, here)
        leaves = {place: at for place, at in self.at.items() if place < len(self.graph.writers)}
        return Layout(self.nodes, readers, self.boxes, self.labels, leaves, middle, width, height)
