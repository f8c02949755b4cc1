"""Circuits as one HTML page to look around in: pan, zoom, hover, sliders, search, filters, differences.

The page is one file that loads nothing: style, script and data are in it, and its content security policy forbids the
rest.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.drawing.captions import facts, kept_weights, title
from edgeprune.drawing.edges import NamedCircuit, ranked, strengths, union
from edgeprune.drawing.layout import NODE_HEIGHT, READER, Layout, lay_out
from edgeprune.drawing.palette import DARK, LIGHT, STRONGEST, WEAKEST
from edgeprune.graph import EdgeGraph
from edgeprune.pages import page_template
from edgeprune.paths import write_whole_text

SCHEMA = "edgeprune-viewer/1"


def viewer_html(circuits: Sequence[NamedCircuit], start: int = 0, compare: int | None = None) -> str:
    """The page of one circuit, or of several of one graph among which a slider chooses.

    Args:
        circuits: In the order of the slider.
        start: Which one is shown first.
        compare: Which one it is then compared with, if any.

    Raises:
        EdgepruneError: The circuits are of different graphs.
    """
    graph, keep = union([one.circuit for one in circuits])
    data = {
        "schema": SCHEMA,
        **_places(graph, keep, lay_out(graph, keep)),
        **_edges(keep, [one.circuit for one in circuits]),
        "widths": [WEAKEST, STRONGEST],
        "existing": graph.num_edges,
        "circuits": [{"name": one.name, "facts": facts(one.circuit, one.whole)} for one in circuits],
        "weights": kept_weights(circuits[start].circuit),
        "start": start,
        "compare": compare,
    }
    return page_template(Path(__file__).with_name("viewer.html.j2")).render(
        title=title(circuits[start].circuit),
        data=json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
        light=LIGHT,
        dark=DARK,
    )


def write_viewer(
    circuits: Sequence[NamedCircuit], path: str | Path, start: int = 0, compare: int | None = None
) -> None:
    """Write `viewer_html` to a file."""
    page = viewer_html(circuits, start, compare)
    write_whole_text(Path(path), page)


def _places(graph: EdgeGraph, keep: Tensor, layout: Layout) -> dict[str, Any]:
    """Nodes, readers and frames with their places; a reader's number is its place in this list."""
    rows = keep.any(1).nonzero().flatten().tolist()
    readers = [layout.readers[row] for row in rows]
    return {
        "size": [round(layout.width, 1), round(layout.height, 1), round(layout.middle, 1)],
        "shapes": [NODE_HEIGHT, READER],
        "layers": graph.arch.num_layers,
        "nodes": [[one.name, one.kind, one.layer, *_rounded(one.x, one.y, one.width)] for one in layout.nodes],
        "readers": [[one.name, one.kind, *_rounded(one.x, one.y), list(one.nodes)] for one in readers],
        "boxes": [_rounded(*box) for box in layout.boxes],
        "rows": [[label.text, round(label.y, 1)] for label in layout.rows],
        "writers": [layout.leaves[column] for column in keep.any(0).nonzero().flatten().tolist()],
    }


def _edges(keep: Tensor, circuits: Sequence[Circuit]) -> dict[str, Any]:
    """All edges as pairs of numbers of reader and node; of each circuit its edges' numbers, strengths and scores.

    The strongest come first.
    """
    rows = {row: place for place, row in enumerate(keep.any(1).nonzero().flatten().tolist())}
    columns = {column: place for place, column in enumerate(keep.any(0).nonzero().flatten().tolist())}
    edges = [(row, column) for row, column in keep.nonzero().tolist()]
    number = {edge: place for place, edge in enumerate(edges)}
    order, shares, scores = list[list[int]](), list[list[float] | None](), list[list[float] | None]()
    for circuit in circuits:
        shown, strength, known = ranked(circuit), strengths(circuit), circuit.scores
        order.append([number[edge] for edge in shown])
        shares.append(None if known is None else [round(float(strength[edge]), 3) for edge in shown])
        scores.append(None if known is None else [_short(float(known[edge])) for edge in shown])
    return {
        "edges": [part for row, column in edges for part in (rows[row], columns[column])],
        "order": order,
        "shares": shares,
        "scores": scores,
    }


def _rounded(*values: float) -> list[float]:
    return [round(value, 1) for value in values]


def _short(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")
