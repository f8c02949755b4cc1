"""Sections on two demands of the literature: that a circuit is complete, and that it is minimal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeprune.report import plots
from edgeprune.report.axes import axis, bin_axis, place_in_bins
from edgeprune.report.blocks import CIRCUIT, Block, Cell, Column, Facts, Plots, Row, Section, Table
from edgeprune.report.result import Json, Result, cell, circuits_with, entries, items, numbers, part
from edgeprune.report.text import UNDEFINED, counted, finite, number, plain, probability, words

_NUM_WORST = 5  # node sets of a circuit in the table of completeness
_NUM_EDGES = 15  # edges of a circuit in the list of the least effective ones
_NUM_NODES = 8  # nodes of a set that are named
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
    intro = (
        "A set of nodes K is taken out of the circuit C and of the whole model M. In a complete circuit both change "
        "alike: points lie on the diagonal. The score is |F(C \\ K) - F(M \\ K)|, 0 at best."
    )
    kinds = _kinds(one for _, about in found for one in entries(about, "knock_outs"))
    keys = {kind: plots.key(_kind(kind), place) for place, kind in enumerate(kinds)}
    drawn = (_scatter(result, name, about, keys) for name, about in found)
    shown = Plots.of("One point per set K.", drawn, keys.values())
    return Section.of("completeness", "Completeness", intro, [shown, *_completeness_tables(result, found)])


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
            values = (one.get(key) for key in ("circuit", "model", "score"))
            worst.append(Row(name, [cell(_kind(one.get("kind"))), cell(_set(one)), *map(cell, values)]))
    heads = [CIRCUIT, Column.words("sets K"), Column.words("measure"), Column("sets")]
    heads += [Column("mean score", "↓"), Column("largest", "↓")]
    sets = [CIRCUIT, Column.words("sets K"), Column.words("nodes")]
    sets += [Column("circuit without K"), Column("model without K"), Column("score", "↓")]
    missed = [f"{name}: {plain(roles)}" for name, about in found if (roles := items(about, "roles_without_nodes"))]
    return [
        Table(f"Completeness scores{result.pairs(found)}", heads, rows),
        Table("Sets with the largest scores", sets, worst, folded=True),
        Facts([("roles without nodes", "; ".join(missed))] if missed else []),
    ]


def _scores(result: Result, name: str, about: Json, sets: str, count: Any, scores: Json) -> Row:
    """Mean and largest score; there is no mean over sets of all kinds."""
    measure = result.heading(about.get("measure") or UNDEFINED)
    average = cell(scores.get("mean")) if "mean" in scores else Cell("")
    cells = [cell(sets), cell(measure), cell(count), average, cell(scores.get("max"))]
    return Row(name, cells, "circuit" if sets == "all" else "control")


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
    intro = (
        "Each edge is closed alone; its effect is by how much the measure gets worse. An edge whose effect is at most "
        "the tolerance is redundant: the circuit does without it, though perhaps not without several at once."
    )
    heads = [CIRCUIT, Column.words("measure"), Column.words("closed are"), *_CLOSED.values()]
    drawn = [_histogram(result, name, about) for name, about in found]
    edges = [row for name, about in found for row in _least_edges(name, about)]
    edge_heads = [CIRCUIT, Column.words("edge"), Column("effect"), Column("standard error")]
    edge_heads += [Column.words("against random edges")]
    blocks: list[Block] = [
        Table(f"Edges closed and redundant{result.pairs(found)}", heads, [_closed(result, *one) for one in found]),
        *_significance(result),
        Plots.of("Edges by their effect; bars are bins, whatever their width. Dashed: the tolerance.", drawn),
        Table(f"Edges of the least effect, {_NUM_EDGES} per circuit at most", edge_heads, edges, folded=True),
    ]
    return Section.of("minimality", "Minimality", intro, blocks)


def _closed(result: Result, name: str, about: Json) -> Row:
    texts = (result.heading(about.get("measure") or UNDEFINED), str(about.get("chosen") or UNDEFINED))
    return Row(name, [*map(cell, texts), *(cell(about.get(key)) for key in _CLOSED)])


def _significance(result: Result) -> list[Block]:
    """The test of every edge against random edges."""
    rows = [_against_random(name, about) for name, about in circuits_with(result, "minimality", "significance")]
    columns = [
        CIRCUIT,
        Column("edges", title="Edges that were tested"),
        Column("significant", title="Edges that matter more than random ones, corrected for the number of edges"),
        Column("superfluous", title="Edges that are shown to matter no more than most random ones"),
        Column("random edges", title="Edges of inflated circuits, each closed alone"),
        Column("p-value", title="That the circuit is minimal: each edge matters more than most random edges"),
        Column.words("reading"),
    ]
    text = (
        "An edge is significant if few random edges matter as much: edges of random paths that were added to the "
        "circuit, each closed alone. It is superfluous if it matters no more than most of them. The p-value is that of "
        "the whole circuit; a rejection says that it is not minimal."
    )
    return [Table("Edges against random edges", columns, rows), Facts([("random edges", text)] if rows else [])]


def _against_random(name: str, about: Json) -> Row:
    superfluous, least = [str(edge) for edge in items(about, "superfluous")], finite(about.get("least_p_value"))
    notes = [str(about["null"])] if about.get("null") else []
    notes += [f"the least p-value of an edge is {number(least)}"] if least is not None else []
    correction = str(about.get("correction") or "").replace("_", "-").title()
    cells = [
        cell(about.get("n")),
        cell(about.get("num_significant"), small=correction),
        cell(len(superfluous), title=plain(superfluous)),
        cell(about.get("num_references")),
        cell(about.get("p_value"), probability, title="; ".join(notes)),
        cell(str(about.get("reading") or UNDEFINED)),
    ]
    return Row(name, cells)


def _least_edges(name: str, about: Json) -> list[Row]:
    edges = [edge for edge in entries(about, "edges") if finite(edge.get("effect")) is not None]
    edges.sort(key=lambda edge: edge["effect"])
    return [
        Row(
            name,
            [
                cell(str(edge.get("edge")), small="not run" if edge.get("idle") is True else ""),
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
        return cell("significant")
    text = "superfluous" if edge in items(significance, "superfluous") else "not significant"
    return cell(text, small=f"p {probability(unsure[edge].get('adjusted'))}", title="p-value, corrected")


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
