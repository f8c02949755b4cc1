"""Circuits in the DOT language of Graphviz."""

import json
from pathlib import Path

from edgeprune.circuit import Circuit
from edgeprune.drawing.captions import title
from edgeprune.drawing.edges import edges_of, union
from edgeprune.drawing.layout import lay_out
from edgeprune.drawing.palette import LIGHT, line_width
from edgeprune.drawing.shapes import Layout
from edgeprune.paths import write_whole_text


def dot(circuit: Circuit, other: Circuit | None = None) -> str:
    """A digraph with a rank for each row, and each edge of the circuit once.

    Edges end in the node that reads, with the colour of q, k or v and that letter as `class`; where several heads share
    a k or v reader it is a node of its own, with a dashed line to each of its heads.

    Args:
        circuit: The circuit.
        other: Draw the difference: edges have the colours and classes `first`, `second` and `both`.

    Raises:
        EdgepruneError: The two are of different graphs.
    """
    graph, keep = union([circuit] if other is None else [circuit, other])
    layout, edges = lay_out(graph, keep), edges_of(circuit, other)
    lines = [
        f"digraph {_quoted(title(circuit))} {{",
        "  rankdir=BT; ranksep=0.6; nodesep=0.15; outputorder=edgesfirst;",
        '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="sans-serif", fontsize=11, height=0.25];',
        "  edge [arrowsize=0.4];",
        *_nodes(layout),
    ]
    ends = dict[int, str]()
    for row in dict.fromkeys(edge.row for edge in edges):
        reader = layout.readers[row]
        owners = [layout.nodes[place].name for place in reader.nodes]
        ends[row] = reader.name if len(owners) > 1 else owners[0]
        if len(owners) > 1:
            look = f'label="{reader.kind}", shape=circle, width=0.2, fontsize=8, color={_quoted(LIGHT[reader.kind])}'
            lines.append(f"  {_quoted(reader.name)} [{look}];")
            lines += [f"  {_quoted(reader.name)} -> {_quoted(head)} [style=dashed, arrowhead=none];" for head in owners]
    for edge in edges:
        look = f'color={_quoted(LIGHT[edge.colour])}, penwidth={line_width(edge.strength):.2f}, class="{edge.colour}"'
        lines.append(f"  {_quoted(graph.writers[edge.column])} -> {_quoted(ends[edge.row])} [{look}];")
    return "\n".join([*lines, "}", ""])


def _nodes(layout: Layout) -> list[str]:
    """Nodes, those of one height in one rank."""
    ranks = dict[float, list[str]]()
    for node in layout.nodes:
        ranks.setdefault(node.y, []).append(_quoted(node.name))
    return [f"  {{ rank=same; {'; '.join(names)}; }}" for _, names in sorted(ranks.items(), reverse=True)]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def write_dot(circuit: Circuit, path: str | Path, other: Circuit | None = None) -> None:
    """Write `dot` to a file."""
    write_whole_text(Path(path), dot(circuit, other))
