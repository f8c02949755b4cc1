"""Circuits as SVG, PNG and PDF, by matplotlib."""

from pathlib import Path
from typing import Any

from edgeprune.circuit import Circuit
from edgeprune.drawing.captions import caption, title
from edgeprune.drawing.edges import DrawnEdge, edges_of, union
from edgeprune.drawing.layout import lay_out
from edgeprune.drawing.palette import LIGHT, line_width, opacity
from edgeprune.drawing.shapes import READER, Layout
from edgeprune.paths import save_figure

FORMATS = (".svg", ".png", ".pdf")
_UNIT = 1 / 72  # inches of a unit of the layout
_HEADROOM = 52.0  # for title and legend, units
_MAX_SIDE = 60.0  # inches
_DPI = 160
_FONTS = ["DejaVu Sans", "Verdana", "Arial", "sans-serif"]  # an SVG is shown with the first that is there
_LEGEND = {
    "q": "into q",
    "k": "into k",
    "v": "into v",
    "mlp": "into an MLP",
    "logits": "into logits",
    "first": "only in {first}",
    "second": "only in {second}",
    "both": "in both",
}


def draw_image(
    circuit: Circuit,
    path: str | Path,
    other: Circuit | None = None,
    names: tuple[str, str] = ("A", "B"),
    whole: Circuit | None = None,
) -> None:
    """Draw a circuit, or the difference of two, to an image file.

    Args:
        circuit: The circuit.
        path: Ends in one of `FORMATS`.
        other: Another circuit of the same graph.
        names: What the two are called in the legend.
        whole: The circuit that `circuit` is a part of; its size is shown as well.

    Raises:
        EdgepruneError: The two are of different graphs.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    path = Path(path)
    graph, keep = union([circuit] if other is None else [circuit, other])
    layout, edges = lay_out(graph, keep), edges_of(circuit, other)
    width, height = layout.width, layout.height + _HEADROOM
    scale = min(_UNIT, _MAX_SIDE / max(width, height))
    fonts: dict[Any, Any] = {"font.family": "sans-serif", "font.sans-serif": _FONTS}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgeprune", **fonts}):
        figure = Figure(figsize=(width * scale, height * scale), facecolor=LIGHT["ground"])
        axes: Any = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(layout.height, -_HEADROOM))
        axes.axis("off")
        points = scale / _UNIT  # points of a unit
        _draw_edges(axes, layout, edges, points)
        _draw_nodes(axes, layout, edges, points)
        _draw_texts(axes, circuit, edges, names, caption(circuit, whole), points)
        no_date = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None} if path.suffix == ".pdf" else {}
        save_figure(figure, path, dpi=_DPI, facecolor=LIGHT["ground"], metadata=no_date)


def _draw_edges(axes: Any, layout: Layout, edges: list[DrawnEdge], points: float) -> None:
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba
    from matplotlib.path import Path as Line

    codes = [Line.MOVETO, Line.CURVE4, Line.CURVE4, Line.CURVE4]
    lines, colours = list[Any](), list[Any]()
    for edge in edges:
        way = layout.curve(edge.row, edge.column)
        lines.append(Line(list(zip(way[::2], way[1::2], strict=True)), codes))
        colours.append(to_rgba(LIGHT[edge.colour], opacity(edge.strength, len(edges))))
    widths = [line_width(edge.strength) * points for edge in edges]
    axes.add_collection(PathCollection(lines, facecolors="none", edgecolors=colours, linewidths=widths, zorder=1))


def _draw_nodes(axes: Any, layout: Layout, edges: list[DrawnEdge], points: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    def box(x: float, y: float, width: float, height: float, fill: str, line: str, order: int, corner: float) -> None:
        style = f"round,pad=0,rounding_size={corner}"
        look: dict[str, Any] = {"facecolor": fill, "edgecolor": line, "linewidth": 0.9 * points, "zorder": order}
        axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, mutation_aspect=1, **look))

    def text(x: float, y: float, content: str, size: float, **more: Any) -> None:
        more = {"ha": "center", "va": "center_baseline", "color": LIGHT["ink"], "zorder": 4, **more}
        axes.text(x, y, content, fontsize=size * points, **more)

    for frame in layout.boxes:
        box(*frame, LIGHT["raised"], LIGHT["line"], 2, 5)
    for node in layout.nodes:
        left, top = node.x - node.width / 2, node.y - node.height / 2
        line = LIGHT["quiet"] if node.kind == "head" else LIGHT.get(node.kind, LIGHT["ink"])
        box(left, top, node.width, node.height, LIGHT["ground"], line, 3, 4)
        text(node.x, node.y, node.name, 11)
    for row in dict.fromkeys(edge.row for edge in edges):
        reader = layout.readers[row]
        if reader.kind in "qkv":
            box(reader.x - READER / 2, reader.y - READER / 2, READER, READER, LIGHT[reader.kind], LIGHT["ground"], 3, 2)
            text(reader.x, reader.y, reader.kind, 7.5, color=LIGHT["ground"], weight="bold")
    for label in layout.rows:
        text(8, label.y, label.text, 10, ha="left", color=LIGHT["quiet"])


def _draw_texts(
    axes: Any, circuit: Circuit, edges: list[DrawnEdge], names: tuple[str, str], text: str, points: float
) -> None:
    from matplotlib.lines import Line2D

    difference = any(edge.colour in ("first", "second", "both") for edge in edges)
    about = f"{names[0]} and {names[1]}" if difference else text
    axes.text(8, -_HEADROOM + 16, title(circuit), fontsize=13 * points, weight="bold", va="center", color=LIGHT["ink"])
    axes.text(8, -_HEADROOM + 34, about, fontsize=10 * points, va="center", color=LIGHT["quiet"])
    used = [name for name in _LEGEND if any(edge.colour == name for edge in edges)]
    counts = {name: sum(edge.colour == name for edge in edges) for name in used}
    texts = [f"{_LEGEND[name].format(first=names[0], second=names[1])} ({counts[name]:,})" for name in used]
    lines = [Line2D([], [], color=LIGHT[name], linewidth=2.5 * points) for name in used]
    axes.legend(
        lines,
        texts,
        loc="upper left",
        bbox_to_anchor=(0.0, _below(axes)),
        bbox_transform=axes.transAxes,
        ncols=max(len(used), 1),
        frameon=False,
        fontsize=9 * points,
        handlelength=1.2,
        columnspacing=1.2,
        borderaxespad=0.4,
        labelcolor=LIGHT["quiet"],
    )


def _below(axes: Any) -> float:
    """Where the texts above end, as a share of the height."""
    bottom, top = axes.get_ylim()
    return (bottom - top - 44.0) / (bottom - top)
