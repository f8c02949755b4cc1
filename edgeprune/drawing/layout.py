"""Where nodes, readers and edges of a circuit lie: plain numbers that every kind of drawing shares.

Layers are rows, the stream runs upwards: embeddings at the bottom, `logits` on top. Heads stand in the order of their
numbers with their q, k and v readers below them; heads that share k and v readers stand in one box with one of each.
MLPs stand in a column of their own at the right, half a row above the heads of their layer, which they can read. Where
a layer has an MLP alone, its row is lower.

With roles each has a column of its own, with the nodes that read or write at its tokens, `a5.h1@S2`; rows are those of
all columns. Only attention leads from one column to another: from a head's k and v to the head at each role that sees
their tokens (`Reader.leads`). Rows and columns of the matrices are numbered through, role by role (`flat`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from edgeprune.drawing.shapes import (
    BOW,
    HEAD_WIDTH,
    NODE_HEIGHT,
    READER,
    ROLE_BOW,
    Box,
    Layout,
    Node,
    Part,
    Reader,
    RowLabel,
    furthest,
)
from edgeprune.graph import EdgeGraph
from edgeprune.graph_roles import AT
from edgeprune.nodes import layer_of, node_names, nodes_of_readers, reader_kind, writer_kind

_READER_DROP = NODE_HEIGHT / 2 + READER / 2 + 1  # from a head's middle to its readers'
_HEAD_GAP, _GROUP_GAP, _PAD = 4.0, 16.0, 3.0
_MARGIN, _LABEL_WIDTH = 30.0, 66.0
_ASPECT = 1.35  # of a screen: rows are stretched towards it
_MAX_STRETCH = 300.0  # to the gap between groups
_ROW_HEIGHTS = (43.0, 88.0)  # of many rows, of few
_MANY_ROWS = 24
_MLP_RISE = 0.46  # of a row
_ROLE_ROWS = (1.3, 2.2)  # rows of roles are so many times higher: what leads from column to column lies between them
_ROLE_GAP = 46.0  # between columns of roles


def flat(graph: EdgeGraph, place: Sequence[int]) -> tuple[int, int]:
    """Row and column of an edge `(reader, writer)`, or `(role, reader, writer)` numbered through role by role."""
    *role, row, column = place
    number = role[0] if role else 0
    return number * len(graph.readers) + row, number * len(graph.writers) + column


# -------------------------------------------------------------------- who is drawn
@final
@dataclass(frozen=True)
class _Group:
    """Heads of one layer that stand together, and the rows of the readers that they share (k, v), if any is drawn."""

    heads: Sequence[int]  # places of node_names
    shared: Sequence[int]  # rows
    frame: bool


@final
@dataclass(frozen=True)
class _Drawn:
    """What is drawn of one role: groups of heads, and the MLP, by layer."""

    role: int
    groups: dict[int, list[_Group]]
    mlps: dict[int, int]
    embeddings: Sequence[int]
    logits: bool


def lay_out(graph: EdgeGraph, keep: Tensor, only: int | None = None) -> Layout:
    """Places for all edges of `keep`, and nothing else but the embeddings and `logits`; with roles, scored ones alone.

    Args:
        graph: The graph.
        keep: Bool `[reader, writer]`, or `[role, reader, writer]`: every edge that may be drawn. Roles without an edge
            have no column.
        only: Of all roles the one that is placed, with the room that a drawing without roles has.
    """
    arch, drawn = graph.arch, [one for one in _drawn(graph, keep) if only in (None, one.role)]
    abreast = graph.roles is not None and only is None
    layers = sorted({layer for one in drawn for layer in (*one.groups, *one.mlps)})
    bow, pitch = (ROLE_BOW if abreast else BOW), _pitch(drawn, layers, abreast)
    rises = [pitch * share for share in _rises(drawn, layers)]  # to the row above
    height = 2 * _MARGIN + pitch + sum(rises) + NODE_HEIGHT + 0.2 * pitch  # `logits` stands that much above its row
    aside = max(0.75 * furthest(sum(rises), bow) - HEAD_WIDTH / 2, 0.0)  # how far edges between MLPs bow beyond them
    bottom = height - _MARGIN - NODE_HEIGHT / 2
    heights = [bottom - pitch - sum(rises[:place]) for place in range(len(layers) + 1)]
    made, left = _Places(graph), _LABEL_WIDTH
    for one in drawn:
        gap = _GROUP_GAP if abreast else _stretch(one.groups, height - 0.2 * pitch)
        width = max(2 * HEAD_WIDTH * arch.num_embeddings, *(_width(row, gap) for row in one.groups.values()), 0.0)
        middle, mlp_x = left + width / 2, left + width + 40.0 + HEAD_WIDTH / 2
        right = mlp_x + HEAD_WIDTH / 2 + aside if one.mlps else left + width
        made.begin(one.role, left, right, middle)
        for place in one.embeddings:
            x = middle + (place - (arch.num_embeddings - 1) / 2) * 2 * HEAD_WIDTH
            made.node(place, x, bottom, 1.6 * HEAD_WIDTH)
        for layer, rise, y in zip(layers, rises, heights, strict=False):
            made.row(one.groups.get(layer, []), middle, y, gap)
            if layer in one.mlps:
                made.node(one.mlps[layer], mlp_x, y - (rise - (1 - _MLP_RISE) * pitch))
        if one.logits:
            made.node(len(graph.writers), middle, heights[-1] - 0.2 * pitch, 1.6 * HEAD_WIDTH)
        left = right + _ROLE_GAP
    labels = [RowLabel(f"layer {layer}", y) for layer, y in zip(layers, heights, strict=False)]
    labels = [RowLabel("embed", bottom), *labels, RowLabel("logits", heights[-1] - 0.2 * pitch)]
    return made.done(labels, bow, left - _ROLE_GAP + _MARGIN, height)


def _rises(drawn: Sequence[_Drawn], layers: Sequence[int]) -> list[float]:
    """How far it is from each layer's row to the next one, in units of the pitch."""
    return [1.0 if any(layer in one.groups for one in drawn) else 1 - _MLP_RISE for layer in layers]


def _pitch(drawn: Sequence[_Drawn], layers: Sequence[int], roles: bool) -> float:
    """The height of a row: less where there are many; columns of roles are stretched towards the shape of a screen."""
    low, high = _ROW_HEIGHTS
    pitch = high - (high - low) * min(len(layers) / _MANY_ROWS, 1.0)
    if not roles:
        return pitch
    widths = [max(map(_width, one.groups.values(), [_GROUP_GAP] * len(one.groups)), default=0.0) for one in drawn]
    wanted = (sum(widths) + len(drawn) * 3 * HEAD_WIDTH) / _ASPECT / (1 + sum(_rises(drawn, layers)))
    return min(max(wanted, _ROLE_ROWS[0] * pitch), _ROLE_ROWS[1] * pitch)


def _drawn(graph: EdgeGraph, keep: Tensor) -> list[_Drawn]:
    """Of each role with an edge what takes part there; of all roles if none has one."""
    names, owners = node_names(graph), nodes_of_readers(graph)
    by_role = keep.reshape(-1, *keep.shape[-2:])
    places = by_role.flatten(1).any(1).nonzero().flatten().tolist() or range(len(by_role))
    sides = {place: _sides(by_role[place], owners) for place in places}
    anywhere = set[int]().union(*(seen for _, seen in sides.values()))
    found: list[_Drawn] = []
    for place, (rows, seen) in sides.items():
        for row in rows:  # a shared reader calls for heads only if none of its own is there anyway
            if not seen.intersection(owners[row]):
                seen |= anywhere.intersection(owners[row]) or set(owners[row])
        mlps = {layer_of(names[node], 0): node for node in seen if writer_kind(names[node]) == "mlp"}
        embeddings: Sequence[int] = range(graph.arch.num_embeddings)
        logits = True
        if graph.roles is not None:
            embeddings = [node for node in embeddings if node in seen]
            logits = len(graph.writers) in seen or bool(graph.roles.is_scored[place])
        found.append(_Drawn(place, _groups(graph, seen, rows), mlps, embeddings, logits))
    return found


def _sides(keep: Tensor, owners: Sequence[tuple[int, ...]]) -> tuple[set[int], set[int]]:
    """Rows with an edge of `keep` `[reader, writer]`; nodes that write, or have such a row for themselves."""
    rows = set(keep.any(1).nonzero().flatten().tolist())
    writing = set(keep.any(0).nonzero().flatten().tolist())
    return rows, writing | {owners[row][0] for row in rows if len(owners[row]) == 1}


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
    """Collects what is placed, part by part."""

    def __init__(self, graph: EdgeGraph) -> None:
        self.graph = graph
        self.names = node_names(graph)
        self.nodes: list[Node] = []
        self.parts: list[Part] = []
        self.roles: list[int] = []  # of the parts
        self.at: dict[tuple[int, int], int] = {}  # from a role and the place in node_names to that in nodes
        self.boxes: list[Box] = []
        self.heads: dict[tuple[int, int], tuple[float, float]] = {}  # roles and rows of heads' readers to their places

    def begin(self, role: int, left: float, right: float, middle: float) -> None:
        self.roles.append(role)
        self.parts.append(Part(self.graph.roles.names[role] if self.graph.roles else "", left, right, middle))

    def node(self, place: int, x: float, y: float, width: float = HEAD_WIDTH) -> None:
        name, part = self.names[place], self.parts[-1]
        kind = "logits" if name == "logits" else writer_kind(name)
        layer = layer_of(name, self.graph.arch.num_layers)
        self.at[self.roles[-1], place] = len(self.nodes)
        name = name if self.graph.roles is None else f"{name}{AT}{part.name}"
        self.nodes.append(Node(name, kind, layer, x, y, width, part=len(self.parts) - 1))

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
        down, step, role = y + _READER_DROP, READER + 2, self.roles[-1]
        single = len(group.heads) == 1 and bool(
            group.frame or self.graph.arch.num_heads == self.graph.arch.num_kv_readers
        )
        for number, head in enumerate(group.heads):
            x = left + _PAD * group.frame + number * (HEAD_WIDTH + _HEAD_GAP) + HEAD_WIDTH / 2
            self.node(head, x, y)
            self.heads[role, self.graph.inputs[head][0]] = (x - step if single else x, down)
        middle = left + width / 2
        apart = (HEAD_WIDTH + _HEAD_GAP) / 2 if len(group.heads) % 2 else step / 2
        _, k, v = self.graph.inputs[group.heads[0]]
        self.heads[role, k] = (middle - (0.0 if single else apart), down)
        self.heads[role, v] = (middle + (step if single else apart), down)

    def done(self, labels: Sequence[RowLabel], bow: float, width: float, height: float) -> Layout:
        """Everything, with readers of all nodes."""
        graph, readers, leaves = self.graph, dict[int, Reader](), dict[int, int]()
        for role in self.roles:
            for row, owners in enumerate(nodes_of_readers(graph)):
                here = tuple(self.at[role, owner] for owner in owners if (role, owner) in self.at)
                if not here:
                    continue
                name, node = graph.readers[row], self.nodes[here[0]]
                x, y = self.heads.get((role, row), (node.x, node.y))
                leads = self._leads(role, owners) if reader_kind(name) in "kv" else here
                number = role * len(graph.readers) + row
                name = name if graph.roles is None else f"{name}{AT}{graph.roles.names[role]}"
                readers[number] = Reader(name, reader_kind(graph.readers[row]), x, y, here, leads)
        for (role, place), at in self.at.items():
            if place < len(graph.writers):
                leaves[role * len(graph.writers) + place] = at
        return Layout(self.nodes, readers, self.boxes, labels, leaves, self.parts, bow, width, height)

    def _leads(self, role: int, owners: Sequence[int]) -> tuple[int, ...]:
        """The nodes of these heads at every role that sees `role`."""
        roles = self.graph.roles
        seeing = [other for other in self.roles if roles is None or bool(roles.sees_matrix[other, role])]
        places = [(other, owner) for other in seeing for owner in owners]
        return tuple(self.at[place] for place in places if place in self.at)
