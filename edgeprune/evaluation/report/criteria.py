"""Sections on two demands of the literature: that a circuit is complete, and that it is minimal."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from edgeprune.evaluation.report import plots
from edgeprune.evaluation.report.axes import axis, bin_axis, place_in_bins
from edgeprune.evaluation.report.blocks import Block, Cell, Column, Figure, Row, Section, Table
from edgeprune.evaluation.report.result import (
    Json,
    Result,
    cell,
    circuits_with,
    either,
    items,
    numbers,
    part,
    points_of,
)
from edgeprune.evaluation.report.text import UNDEFINED, counted, finite, number, words

_NUM_WORST = 5  # node sets of a circuit in the table of completeness
_NUM_EDGES = 15  # edges of a circuit in the list of the least effective ones
_NUM_NODES = 8  # nodes of a set that are named
_EFFECT = ("effect", "standard_error")
# How the sets of nodes that are knocked out were found, in words, in the order of the legend.
_SET_KINDS = {
    "nothing": "nothing",
    "random": "random nodes",
    "single": "single nodes",
    "role": "roles",
    "greedy": "greedy search",
    "adversarial": "adversarial search",
    "edges": "random edges",
}


# -------------------------------------------------------------------- completeness
def completeness(result: Result) -> Section | None:
    """F(C without K) against F(M without K)."""
    found = circuits_with(result, "completeness")
    if not found:
        return None
    intro = (
        "A set of nodes K is taken out of the circuit C and of the whole model M. In a complete circuit both change "
        "alike: points lie on the diagonal. The score is |F(C \\ K) - F(M \\ K)|, 0 at best."
    )
    kinds = _kinds(point for _, about in found for point in points_of(about))
    keys = {kind: plots.key(_SET_KINDS.get(kind, words(kind)), place) for place, kind in enumerate(kinds)}
    drawn = [plot for name, about in found if (plot := _scatter(result, name, about, keys)) is not None]
    blocks: list[Block] = [Figure("One point per set K.", drawn, list(keys.values()))] if drawn else []
    return Section("completeness", "Completeness", intro, [*blocks, *_completeness_tables(result, found)])


def _kinds(points: Iterable[Json]) -> list[str]:
    found = {str(point.get("kind")) for point in points}
    return [kind for kind in _SET_KINDS if kind in found] + sorted(found - _SET_KINDS.keys())


def _set(point: Json) -> str:
    """A set by the name of its role, or the first of its nodes."""
    nodes = [str(node) for node in items(point, "nodes")]
    more = f" and {len(nodes) - _NUM_NODES} more" if len(nodes) > _NUM_NODES else ""
    text = ", ".join(nodes[:_NUM_NODES]) + more
    if point.get("kind") == "edges" and point.get("size") is not None:
        text = counted(point["size"], "edge")
    return f"{words(point['name'])}: {text}" if point.get("name") else text or "no node"


def _scatter(result: Result, name: str, about: Json, keys: Mapping[str, plots.Key]) -> plots.Plot | None:
    series: dict[str, list[plots.Point]] = {kind: [] for kind in keys}
    for point in points_of(about):
        x, y = finite(point.get("model")), finite(point.get("circuit"))
        if x is not None and y is not None:
            title = f"{words(point.get('kind'))}: {_set(point)}; circuit {number(y)}, model {number(x)}"
            series[str(point.get("kind"))].append(plots.Point(x, y, title))
    values = [value for points in series.values() for point in points for value in (point.x, point.y)]
    if not values:
        return None
    measure = result.heading(about.get("measure", "measure"))
    x, y = (axis(f"{measure} of {what}", values) for what in ("the model without K", "the circuit without K"))
    shown = [plots.Series(keys[kind], points) for kind, points in series.items()]
    return plots.draw(name, x, y, shown, diagonal=True)


def _completeness_tables(result: Result, found: Sequence[tuple[str, Json]]) -> list[Table]:
    rows, worst = list[Row](), list[Row]()
    for name, about in found:
        points = points_of(about)
        overall = {key: about[key] for key in ("mean", "max") if key in about}
        rows.append(_scores(result, name, about, "all", points, overall))
        for kind in _kinds(points):
            chosen = [point for point in points if str(point.get("kind")) == kind]
            rows.append(_scores(result, name, about, _SET_KINDS.get(kind, words(kind)), chosen, {}))
        scored = [point for point in points if finite(point.get("score")) is not None]
        for point in sorted(scored, key=lambda one: -one["score"])[:_NUM_WORST]:
            kind = _SET_KINDS.get(str(point.get("kind")), words(point.get("kind")))
            cells = [cell(point.get(value)) for value in ("circuit", "model", "score")]
            worst.append(Row(name, [Cell(kind, sort=kind), Cell(_set(point), sort=_set(point)), *cells]))
    first = Column("circuit", numeric=False)
    heads = [Column("sets K", numeric=False), Column("measure", numeric=False)]
    heads += [Column("examples"), Column("sets"), Column("mean score", "↓"), Column("largest", "↓")]
    sets = [Column("sets K", numeric=False), Column("nodes", numeric=False)]
    sets += [Column("circuit without K"), Column("model without K"), Column("score", "↓")]
    tables = [Table("Completeness scores", [first, *heads], rows)]
    return [*tables, *([Table("Sets with the largest scores", [first, *sets], worst, folded=True)] if worst else [])]


def _scores(result: Result, name: str, about: Json, sets: str, points: Sequence[Json], overall: Json) -> Row:
    """Mean and largest score: those given, or else of the points."""
    scores = [score for point in points if (score := finite(point.get("score"))) is not None]
    average = overall.get("mean", mean(scores) if scores else None)
    largest = overall.get("max", max(scores, default=None))
    measure = result.heading(about.get("measure", UNDEFINED))
    cells = [Cell(sets, sort=sets), Cell(measure, sort=measure)]
    values = (about.get("num_examples"), len(points), average, largest)
    return Row(name, [*cells, *map(cell, values)], "circuit" if sets == "all" else "control")


# -------------------------------------------------------------------- minimality
def minimality(result: Result) -> Section | None:
    """What each edge of a circuit adds."""
    found = circuits_with(result, "minimality")
    if not found:
        return None
    intro = (
        "Each edge is closed alone; its effect is by how much the measure gets worse. An edge whose effect is at most "
        "the tolerance is redundant: the circuit does without it, though perhaps not without several at once."
    )
    heads = ("examples", "edges", "tested", "redundant", "tolerance")
    rows, edges = list[Row](), list[Row]()
    for name, about in found:
        measure = result.heading(about.get("measure", UNDEFINED))
        rows.append(Row(name, [Cell(measure, sort=measure), *map(cell, _tested(about))]))
        edges += _least_edges(name, about)
    first = Column("circuit", numeric=False)
    blocks: list[Block] = [
        Table("Edges tested and redundant", [first, Column("measure", numeric=False), *map(Column, heads)], rows)
    ]
    drawn = [plot for name, about in found if (plot := _histogram(result, name, about)) is not None]
    blocks += (
        [Figure("Edges by their effect; bars are bins, whatever their width. Dashed: the tolerance.", drawn)]
        if drawn
        else []
    )
    heads = [first, Column("edge", numeric=False), Column("effect"), Column("standard error")]
    blocks += (
        [Table(f"Most redundant edges, {_NUM_EDGES} per circuit at most", heads, edges, folded=True)] if edges else []
    )
    return Section("minimality", "Minimality", intro, blocks)


def _tested(about: Json) -> list[Any]:
    tested = either(about, "num_tested", "num_closed")
    return [about.get("num_examples"), about.get("num_edges"), tested, *map(about.get, ("num_redundant", "tolerance"))]


def _least_edges(name: str, about: Json) -> list[Row]:
    edges: list[Json] = [edge for edge in items(about, "edges") if isinstance(edge, Mapping)]
    edges = [edge for edge in edges if finite(edge.get("effect")) is not None]
    edges.sort(key=lambda edge: edge["effect"])
    return [
        Row(name, [Cell(str(edge.get("edge")), sort=str(edge.get("edge"))), *(cell(edge.get(key)) for key in _EFFECT)])
        for edge in edges[:_NUM_EDGES]
    ]


def _histogram(result: Result, name: str, about: Json) -> plots.Plot | None:
    found = part(about, "histogram")
    bounds, counts = numbers(found, "bins") or numbers(found, "bounds"), numbers(found, "counts")
    if not counts or len(bounds) != len(counts) + 1:
        return None
    ends = enumerate(zip(bounds, bounds[1:], counts, strict=False))
    bars = [
        plots.Bar(place, place + 1, count, f"{low:.3g} to {high:.3g}: {counted(int(count), 'edge')}")
        for place, (low, high, count) in ends
    ]
    tolerance = place_in_bins(finite(about.get("tolerance")) or 0.0, bounds)
    x = bin_axis(f"effect on {result.axis_label(str(about.get('measure', 'the measure')))}", bounds)
    y = axis("edges", [0.0, *counts], zero=True)
    return plots.draw(name, x, y, bars=bars, rules=[plots.Rule("tolerance", x=tolerance)] if tolerance else [])
