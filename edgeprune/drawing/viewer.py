"""Circuits as one HTML page to look around in: pan, zoom, hover, sliders, search, filters, differences.

Circuits with roles have them side by side as columns, and a switch to a single one or to the union, which has a layout
of its own; the panel of a head lists its attention edges. The page is one file that loads nothing: style, script and
data are in it, and its content security policy forbids the rest.
"""

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune.circuit import Circuit
from edgeprune.drawing.captions import facts, kept_weights, title
from edgeprune.drawing.edges import NamedCircuit, ranked, strengths, union
from edgeprune.drawing.layout import flat, lay_out
from edgeprune.drawing.palette import DARK, LIGHT, STRONGEST, WEAKEST
from edgeprune.drawing.shapes import NODE_HEIGHT, READER, Layout
from edgeprune.graph import EdgeGraph
from edgeprune.pages import page_template
from edgeprune.paths import write_whole_text

SCHEMA = "edgeprune-viewer/1"


def viewer_html(
    circuits: Sequence[NamedCircuit], start: int = 0, compare: int | None = None, role: str | None = None
) -> str:
    """The page of one circuit, or of several of one graph among which a slider chooses.

    Args:
        circuits: In the order of the slider.
        start: Which one is shown first.
        compare: Which one it is then compared with, if any.
        role: Of circuits with roles: the one that is shown first, or `UNION`; None: all, side by side.

    Raises:
        EdgepruneError: The circuits are of different graphs.
    """
    all_of = [one.circuit for one in circuits]
    data = {
        "schema": SCHEMA,
        **_scene(all_of),
        "widths": [WEAKEST, STRONGEST],
        "circuits": [{"name": one.name, "facts": facts(one.circuit, one.whole)} for one in circuits],
        "weights": kept_weights(circuits[start].circuit),
        "start": start,
        "compare": compare,
    }
    if all_of[0].roles:
        data |= {"union": _scene([circuit.union() for circuit in all_of]), "role": role}
        data |= {"attention": [_attention(circuit) for circuit in all_of]}
    return page_template(Path(__file__).with_name("viewer.html.j2")).render(
        title=title(circuits[start].circuit),
        data=json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
        roles=all_of[0].roles,
        light=LIGHT,
        dark=DARK,
    )


def write_viewer(
    circuits: Sequence[NamedCircuit],
    path: str | Path,
    start: int = 0,
    compare: int | None = None,
    role: str | None = None,
) -> None:
    """Write `viewer_html` to a file."""
    page = viewer_html(circuits, start, compare, role)
    write_whole_text(Path(path), page)


def _attention(circuit: Circuit) -> dict[str, list[str]] | None:
    """By head the open attention edges, as `END<-S2`; None: all are open."""
    if circuit.attend is None:
        return None
    found: dict[str, list[str]] = {}
    for name in circuit.attention_edges():
        head, _, between = name.removesuffix("]").partition("[")
        found.setdefault(head, []).append(between)
    return found


def _scene(circuits: Sequence[Circuit]) -> dict[str, Any]:
    """Everything that has a place, and the edges of each circuit; of circuits with roles, or of their unions."""
    graph, keep = union(circuits)
    places = [flat(graph, place) for place in keep.nonzero().tolist()]
    rows = {row: number for number, row in enumerate(sorted({row for row, _ in places}))}
    columns = {column: number for number, column in enumerate(sorted({column for _, column in places}))}
    layout = lay_out(graph, keep)
    found = _places(graph, layout, list(rows), list(columns))
    if graph.roles is not None:
        found["single"] = {
            part.name: _single(lay_out(graph, keep, graph.roles.index(part.name)), rows) for part in layout.parts
        }
    return {
        **found,
        "edges": [part for row, column in places for part in (rows[row], columns[column])],
        **_order(graph, {place: number for number, place in enumerate(places)}, circuits),
        "existing": graph.num_edges,
    }


def _single(layout: Layout, rows: Container[int]) -> dict[str, Any]:
    """Where everything of a role lies when it is shown alone, in the order that it has among all roles."""
    (part,) = layout.parts
    return {
        "size": [round(layout.width, 1), round(layout.height, 1), layout.bow],
        "part": _rounded(part.left, part.right, part.middle),
        "nodes": [_rounded(one.x, one.y) for one in layout.nodes],
        "readers": [_rounded(one.x, one.y) for row, one in layout.readers.items() if row in rows],
        "boxes": [_rounded(*box) for box in layout.boxes],
        "rows": [[label.text, round(label.y, 1)] for label in layout.rows],
    }


def _places(graph: EdgeGraph, layout: Layout, rows: Sequence[int], columns: Sequence[int]) -> dict[str, Any]:
    """Nodes, readers and frames with their places; a reader's number is its place in this list."""
    readers = [layout.readers[row] for row in rows]
    found = {
        "size": [round(layout.width, 1), round(layout.height, 1), layout.bow],
        "shapes": [NODE_HEIGHT, READER],
        "layers": graph.arch.num_layers,
        "parts": [[one.name, *_rounded(one.left, one.right, one.middle)] for one in layout.parts],
        "nodes": [
            [one.name, one.kind, one.layer, *_rounded(one.x, one.y, one.width), one.part] for one in layout.nodes
        ],
        "readers": [[one.name, one.kind, *_rounded(one.x, one.y), list(one.nodes)] for one in readers],
        "boxes": [_rounded(*box) for box in layout.boxes],
        "rows": [[label.text, round(label.y, 1)] for label in layout.rows],
        "writers": [layout.leaves[column] for column in columns],
    }
    if graph.roles is not None:
        scored = [graph.roles.names[place] for place in graph.roles.is_scored.nonzero().flatten().tolist()]
        found |= {"leads": [list(one.leads) for one in readers], "scored": scored}
    return found


def _order(graph: EdgeGraph, number: Mapping[tuple[int, int], int], circuits: Sequence[Circuit]) -> dict[str, Any]:
    """Of each circuit its edges' numbers, strengths and scores, the strongest first."""
    order, shares, scores = list[list[int]](), list[list[float] | None](), list[list[float] | None]()
    for circuit in circuits:
        shown, strength, known = ranked(circuit), strengths(circuit), circuit.scores
        order.append([number[flat(graph, edge)] for edge in shown])
        shares.append(None if known is None else [round(float(strength[edge]), 3) for edge in shown])
        scores.append(None if known is None else [_short(float(known[edge])) for edge in shown])
    return {"order": order, "shares": shares, "scores": scores}


def _rounded(*values: float) -> list[float]:
    return [round(value, 1) for value in values]


def _short(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")
