"""Sections on two demands of the literature: that a circuit is complete, and that it is minimal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeprune.report import plots
from edgeprune.report.axes import axis, bin_axis, place_in_bins
from edgeprune.report.blocks import Block, Cell, Column, Facts, Figure, Row, Section, Table
from edgeprune.report.result import (
    Json,
    Result,
    cell,
    circuits_with,
    entries,
    items,
    numbers,
    part,
)
from edgeprune.report.text import UNDEFINED, counted, finite, number, plain, probability, words

_NUM_WORST = 5  # node sets of a circuit in the table of completeness
_NUM_EDGES = 15  # edges of a circuit in the list of the least effective ones
_NUM_NODES = 8  # nodes of a set that are named
_FIRST = Column("circuit", numeric=False)
# How the sets of nodes that are knocked out were found, in words, in the order of the legend.
_SET_KINDS = {
    "nothing": "nothing",
    "random": "random nodes",
    "single": "single nodes",
    "role": "roles",
    "greedy": "greedy search",
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
    kinds = _kinds(one for _, about in found for one in entries(about, "knock_outs"))
    keys = {kind: plots.key(_kind(kind), place) for place, kind in enumerate(kinds)}
    drawn = [plot for name, about in found if (plot := _scatter(result, name, about, keys)) is not None]
    blocks: list[Block] = [Figure("One point per set K.", drawn, list(keys.values()))] if drawn else []
    return Section("completeness", "Completeness", intro, [*blocks, *_completeness_tables(result, found)])


def _kinds(knock_outs: Iterable[Json]) -> list[str]:
    found = {str(one.get("kind")) for one in knock_outs}
    return [kind for kind in _SET_KINDS if kind in found] + sorted(found - _SET_KINDS.keys())


def _kind(kind: Any) -> str:
    return _SET_KINDS.get(str(kind), words(kind))


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
    for point in entries(about, "knock_outs"):
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


def _completeness_tables(result: Result, found: Sequence[tuple[str, Json]]) -> list[Block]:
    rows, worst = list[Row](), list[Row]()
    for name, about in found:
        rows.append(_scores(result, name, about, "all", len(entries(about, "knock_outs")), about))
        for kind in part(about, "summary"):
            summary = part(about, "summary", kind)
            rows.append(_scores(result, name, about, _kind(kind), summary.get("num"), summary))
        scored = [one for one in entries(about, "knock_outs") if finite(one.get("score")) is not None]
        for one in sorted(scored, key=lambda one: -one["score"])[:_NUM_WORST]:
            kind = _kind(one.get("kind"))
            cells = [cell(one.get(value)) for value in ("circuit", "model", "score")]
            worst.append(Row(name, [Cell(kind, sort=kind), Cell(_set(one), sort=_set(one)), *cells]))
    heads = [Column("sets K", numeric=False), Column("measure", numeric=False)]
    heads += [Column("sets"), Column("mean score", "↓"), Column("largest", "↓")]
    sets = [Column("sets K", numeric=False), Column("nodes", numeric=False)]
    sets += [Column("circuit without K"), Column("model without K"), Column("score", "↓")]
    caption = f"Completeness scores{result.pairs(about for _, about in found)}"
    blocks: list[Block] = [Table(caption, [_FIRST, *heads], rows)]
    blocks += [Table("Sets with the largest scores", [_FIRST, *sets], worst, folded=True)] if worst else []
    missed = [(name, plain(roles)) for name, about in found if (roles := items(about, "roles_without_nodes"))]
    facts = [("roles without nodes", "; ".join(f"{name}: {roles}" for name, roles in missed))]
    return [*blocks, *([Facts(facts)] if missed else [])]


def _scores(result: Result, name: str, about: Json, sets: str, count: Any, scores: Json) -> Row:
    """Mean and largest score; there is no mean over sets of all kinds."""
    measure = result.heading(about.get("measure") or UNDEFINED)
    cells = [Cell(sets, sort=sets), Cell(measure, sort=measure), cell(count)]
    average = cell(scores.get("mean")) if "mean" in scores else Cell("")
    return Row(name, [*cells, average, cell(scores.get("max"))], "circuit" if sets == "all" else "control")


# -------------------------------------------------------------------- minimality
_CLOSED = {
    "num_edges": Column("edges", title="Edges of the circuit"),
    "num_dangling": Column("dangling", title="Kept edges on no path of kept edges from an embedding to the logits"),
    "num_closed": Column("closed", title="Edges whose effect was found"),
    "num_idle": Column("not run", title="Those of them whose effect is 0 by construction"),
    "num_redundant": Column("redundant"),
    "tolerance": Column("tolerance"),
}


def minimality(result: Result) -> Section | None:
    """What each edge of a circuit adds."""
    found = circuits_with(result, "minimality")
    if not found:
        return None
    intro = (
        "Each edge is closed alone; its effect is by how much the measure gets worse. An edge whose effect is at most "
        "the tolerance is redundant: the circuit does without it, though perhaps not without several at once."
    )
    measure = Column("measure", numeric=False)
    caption = f"Edges closed and redundant{result.pairs(about for _, about in found)}"
    heads = [_FIRST, measure, Column("closed are", numeric=False), *_CLOSED.values()]
    blocks: list[Block] = [Table(caption, heads, [_closed(result, name, about) for name, about in found])]
    blocks += _significance(found)
    drawn = [plot for name, about in found if (plot := _histogram(result, name, about)) is not None]
    blocks += (
        [Figure("Edges by their effect; bars are bins, whatever their width. Dashed: the tolerance.", drawn)]
        if drawn
        else []
    )
    edges = [row for name, about in found for row in _least_edges(name, about)]
    heads = [_FIRST, Column("edge", numeric=False), Column("effect"), Column("standard error")]
    heads += [Column("against random edges", numeric=False)]
    blocks += (
        [Table(f"Edges of the least effect, {_NUM_EDGES} per circuit at most", heads, edges, folded=True)]
        if edges
        else []
    )
    return Section("minimality", "Minimality", intro, blocks)


def _closed(result: Result, name: str, about: Json) -> Row:
    measure, chosen = result.heading(about.get("measure") or UNDEFINED), str(about.get("chosen") or UNDEFINED)
    texts = [Cell(text, sort=text) for text in (measure, chosen)]
    return Row(name, [*texts, *(cell(about.get(key)) for key in _CLOSED)])


def _significance(found: Sequence[tuple[str, Json]]) -> list[Block]:
    """The test of every edge against random edges."""
    rows = [_against_random(name, about) for name, one in found if (about := part(one, "significance"))]
    columns = [
        _FIRST,
        Column("edges", title="Edges that were tested"),
        Column("significant", title="Edges that matter more than random ones, corrected for the number of edges"),
        Column("superfluous", title="Edges that are shown to matter no more than most random ones"),
        Column("random edges", title="Edges of inflated circuits, each closed alone"),
        Column("p-value", title="That the circuit is minimal: each edge matters more than most random edges"),
        Column("reading", numeric=False),
    ]
    text = (
        "An edge is significant if few random edges matter as much: edges of random paths that were added to the "
        "circuit, each closed alone. It is superfluous if it matters no more than most of them. The p-value is that of "
        "the whole circuit; a rejection says that it is not minimal."
    )
    return [Table("Edges against random edges", columns, rows), Facts([("random edges", text)])] if rows else []


def _against_random(name: str, about: Json) -> Row:
    superfluous, p_value = [str(edge) for edge in items(about, "superfluous")], finite(about.get("p_value"))
    significant = finite(about.get("num_significant"))
    least = finite(about.get("least_p_value"))
    told = [str(about["null"])] if about.get("null") else []
    told += [f"the least p-value of an edge is {number(least)}"] if least is not None else []
    reading = str(about.get("reading") or UNDEFINED)
    correction = str(about.get("correction") or "").replace("_", "-").title()
    return Row(
        name,
        [
            cell(about.get("n")),
            Cell(number(about.get("num_significant")), correction, sort=significant),
            Cell(number(len(superfluous)), title=plain(superfluous), sort=len(superfluous)),
            cell(about.get("num_references")),
            Cell(probability(p_value), title="; ".join(told), sort=p_value),
            Cell(reading, sort=reading),
        ],
    )


def _least_edges(name: str, about: Json) -> list[Row]:
    edges = [edge for edge in entries(about, "edges") if finite(edge.get("effect")) is not None]
    edges.sort(key=lambda edge: edge["effect"])
    return [
        Row(
            name,
            [
                Cell(str(edge.get("edge")), "not run" if edge.get("idle") is True else "", sort=str(edge.get("edge"))),
                *(cell(edge.get(key)) for key in ("effect", "standard_error")),
                _verdict(str(edge.get("edge")), part(about, "significance")),
            ],
        )
        for edge in edges[:_NUM_EDGES]
    ]


def _verdict(edge: str, significance: Json) -> Cell:
    """What the test against random edges says of an edge."""
    if not finite(significance.get("num_references")):
        return Cell(UNDEFINED)
    unsure = {str(one.get("edge")): one for one in entries(significance, "not_significant")}
    if edge not in unsure:
        return Cell("significant", sort="significant")
    text = "superfluous" if edge in items(significance, "superfluous") else "not significant"
    return Cell(text, f"p {probability(unsure[edge].get('adjusted'))}", "p-value, corrected", sort=text)


def _histogram(result: Result, name: str, about: Json) -> plots.Plot | None:
    found = part(about, "histogram")
    bounds, counts = numbers(found, "bounds"), numbers(found, "counts")
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
