"""Sections on the output vector, hypothesis tests, and MIB's curves."""

from statistics import stdev

from edgeprune.report import plots
from edgeprune.report.axes import axis
from edgeprune.report.blocks import Block, Cell, Column, Facts, Figure, Row, Section, Table
from edgeprune.report.result import Json, Result, cell, circuits_with, entries, items, part
from edgeprune.report.text import UNDEFINED, counted, finite, number, percent, plain, probability, words

_FIRST = Column("circuit", numeric=False)
# Methods whose scores say how much an edge wants to be open: a negative one is not an effect of the other sign.
_TRAINED = ("edge_pruning", "subnetwork_probing", "ugs")


# -------------------------------------------------------------------- the output vector
_SPACES = {"stream": "final residual stream", "logits": "logits", "logits_centred": "logits minus their mean"}
_SETS = {"circuit": "its nodes", "random": "random nodes", "others": "all other nodes"}


def suffix(result: Result) -> Section | None:
    """How far the output moves without the nodes of the circuit, without as many others, and without all others."""
    found = circuits_with(result, "suffix")
    changes = [row for name, about in found for row in _changes(name, about)]
    if not changes:
        return None
    of = Column("of", numeric=False)
    heads = [of, *(Column(f"without {text}") for text in _SETS.values())]
    heads += [Column("ratio", title="Change without its nodes / mean change without random ones"), Column("p-value")]
    shapes = [row for name, about in found for row in _shapes(name, about)]
    shape_heads = [
        Column(figure, f"without {text}") for figure in ("norm / full model's", "cosine") for text in _SETS.values()
    ]
    intro = (
        "How far the vector that enters the final norm, and the logits, move at the scored positions when the nodes "
        "of the circuit are ablated together: |change| / |full model's vector|. Random sets have as many heads and "
        "MLPs in each layer; where few such sets exist, or most nodes of one are the circuit's, they say little."
    )
    caption = f"Relative change of the output{result.pairs(about for _, about in found)}"
    blocks = [
        Table(caption, [_FIRST, *heads], changes),
        Table("Nodes that were ablated", [_FIRST, *_NODES], [_nodes(name, about) for name, about in found]),
        Table("Length and direction of the output that is left", [_FIRST, of, *shape_heads], shapes, folded=True),
    ]
    return Section("suffix", "Suffix-vector ablation", intro, blocks)


def _changes(name: str, about: Json) -> list[Row]:
    rows = list[Row]()
    for space in part(about, "circuit"):
        text = _SPACES.get(space, words(space))
        changes = [cell(part(about, which, space).get("relative_change")) for which in _SETS]
        drawn = [finite(part(row, space).get("relative_change")) for row in entries(about, "each_random")]
        each = [value for value in drawn if value is not None]
        if len(each) > 1:
            title = f"{number(min(each))} to {number(max(each))}, {counted(len(each), 'seed')}"
            changes[1] = Cell(changes[1].text, f"± {number(stdev(each))}", title, changes[1].sort)
        verdict = part(about, "verdict", space)
        p_value = finite(verdict.get("p_value"))
        cells = [*changes, cell(verdict.get("ratio")), Cell(probability(p_value), sort=p_value)]
        rows.append(Row(name, [Cell(text, sort=text), *cells]))
    return rows


def _shapes(name: str, about: Json) -> list[Row]:
    return [
        Row(
            name,
            [
                Cell(text := _SPACES.get(space, words(space)), sort=text),
                *(
                    cell(part(about, which, space).get(figure))
                    for figure in ("norm_ratio", "cosine")
                    for which in _SETS
                ),
            ],
        )
        for space in part(about, "circuit")
    ]


_NODES = (
    Column("its nodes"),
    Column("names", numeric=False),
    Column("other nodes"),
    Column("random sets"),
    Column("shared", title="Mean share of the circuit's nodes in a random set"),
    Column("sets to draw from", title="How many sets have as many heads and MLPs in each layer"),
)


def _nodes(name: str, about: Json) -> Row:
    nodes, others, seeds = (items(about, key) for key in ("nodes", "other_nodes", "seeds"))
    overlap, sets = finite(about.get("overlap")), finite(about.get("log10_num_sets"))
    of = " (heads only)" if about.get("heads_only") is True else ""
    return Row(
        name,
        [
            cell(len(nodes)),
            Cell(plain(nodes) + of, title=", ".join(map(str, nodes)), sort=plain(nodes)),
            *(cell(len(some)) for some in (others, seeds)),
            Cell(percent(overlap), sort=overlap),
            Cell(UNDEFINED if sets is None else number(round(10**sets)) if sets < 6 else f"1e{sets:.0f}", sort=sets),
        ],
    )


# -------------------------------------------------------------------- hypothesis tests
def hypothesis(result: Result) -> Section | None:
    """Tests with what their outcome means."""
    found = circuits_with(result, "hypothesis")
    rows = [_test(name, part(about, "tests", test)) for name, about in found for test in part(about, "tests")]
    if not rows:
        return None
    columns = [_FIRST, Column("test", numeric=False), Column("null hypothesis", numeric=False)]
    columns += [Column("statistic"), Column("p-value"), Column("n", title="Examples, or random circuits")]
    intro = (
        "A small p-value speaks against the null hypothesis; a large one does not speak for it. Below a p-value is "
        "the smallest that this test could have given: with few examples or random circuits nothing can be rejected."
    )
    caption = f"Tests of each circuit{result.pairs(about for _, about in found)}"
    table = Table(caption, [*columns, Column("reading", numeric=False)], rows)
    facts = {
        "scores": (_used(result, found, "score"), "equivalence and independence"),
        "faithfulness": (_used(result, found, "faithfulness"), "sufficiency and partial necessity"),
    }
    told = [(name, f"{measures}, for {tests}") for name, (measures, tests) in facts.items() if measures]
    return Section("hypothesis", "Hypothesis tests", intro, [table, *([Facts(told)] if told else [])])


def _used(result: Result, found: list[tuple[str, Json]], key: str) -> str:
    """Headings of the measures that the tests used."""
    return ", ".join(dict.fromkeys(result.heading(about[key]) for _, about in found if about.get(key)))


def _test(name: str, test: Json) -> Row:
    p_value, least = finite(test.get("p_value")), finite(part(test, "details").get("least_p_value"))
    texts = [words(test.get("name") or UNDEFINED), str(test.get("null") or UNDEFINED)]
    statistic = finite(test.get("statistic"))
    cells = [
        *(Cell(text, sort=text) for text in texts),
        Cell(number(statistic), title=str(test.get("statistic_is") or ""), sort=statistic),
        Cell(probability(p_value), "" if least is None else f"least {probability(least)}", sort=p_value),
        cell(test.get("n")),
        Cell(reading := str(test.get("reading") or UNDEFINED), sort=reading),
    ]
    return Row(name, cells)


# -------------------------------------------------------------------- MIB
_RANKINGS = ("signed", "absolute")
_MIB = {
    "cpr": Column("CPR ↑", "requested size", "Area under faithfulness by share of edges"),
    "cmd": Column("CMD ↓", "requested size", "Area between faithfulness and 1"),
    "cpr_pruned_size": Column("CPR ↑", "pruned size", "The same with the edges that are left without dangling ones"),
    "cmd_pruned_size": Column("CMD ↓", "pruned size", "The same with the edges that are left without dangling ones"),
    "average": Column("average", "of the points", "Mean faithfulness of the points"),
}
_POINTS = {
    "num_asked": Column("edges asked for"),
    "num_kept": Column("edges kept", title="Without dangling ones"),
    "value": Column("figure"),
    "faithfulness": Column("faithfulness"),
}


def mib(result: Result) -> Section | None:
    """MIB's curves and their areas."""
    circuits = circuits_with(result, "mib")
    found = [
        (name, ranking, curve) for name, about in circuits for ranking in _RANKINGS if (curve := part(about, ranking))
    ]
    if not found:
        return None
    intro = (
        "Circuits of ten sizes from one order of scores, by the score itself (signed) or by its absolute value. "
        "Faithfulness is 0 for the empty circuit and 1 for the full model; CPR asks for much of it, CMD for 1. MIB "
        "publishes CPR of the signed and CMD of the absolute order."
    )
    trained = [
        name for name, circuit in result.named if circuit.get("method") in _TRAINED and part(circuit, "mib", "absolute")
    ]
    note = (
        f"{', '.join(trained)}: scores of trained masks. A negative one says that the edge wants to be closed, so the "
        "absolute order, and with it MIB's CMD, means nothing for them; look at the signed curve."
    )
    keys = [plots.key(name, result.names.index(name)) for name, _ in circuits]
    drawn = [plot for ranking in _RANKINGS if (plot := _mib_plot(result, ranking)) is not None]
    caption = "Dashed: the full model."
    heads = [_FIRST, Column("order", numeric=False), Column("measure", numeric=False), *_MIB.values()]
    rows = [_areas(result, name, ranking, curve, name in trained) for name, ranking, curve in found]
    points = [row for name, ranking, curve in found for row in _mib_points(name, ranking, curve)]
    point_heads = [_FIRST, Column("order", numeric=False), Column("requested"), *_POINTS.values()]
    blocks: list[Block] = [Facts([("absolute order", note)])] if trained else []
    blocks += [Figure(caption, drawn, keys)] if drawn else []
    blocks.append(Table(f"Areas of the curves{result.pairs(curve for *_, curve in found)}", heads, rows))
    blocks += [Table("Points of the curves", point_heads, points, folded=True)] if points else []
    blocks += _counted_edges([curve for *_, curve in found])
    return Section("mib", "Faithfulness by size (MIB)", intro, blocks)


def _areas(result: Result, name: str, ranking: str, curve: Json, trained: bool) -> Row:
    measure = result.heading(curve.get("measure") or UNDEFINED)
    void = trained and ranking == "absolute"
    cells = [Cell(ranking, "no meaning for a trained mask" if void else "", sort=ranking), Cell(measure, sort=measure)]
    return Row(name, [*cells, *(cell(curve.get(area)) for area in _MIB)], "control" if void else "circuit")


def _mib_points(name: str, ranking: str, curve: Json) -> list[Row]:
    return [
        Row(
            name,
            [
                Cell(ranking, sort=ranking),
                Cell(percent(point.get("requested")), sort=finite(point.get("requested"))),
                *(cell(point.get(key)) for key in _POINTS),
            ],
        )
        for point in entries(curve, "points")
    ]


def _counted_edges(curves: list[Json]) -> list[Facts]:
    """Which edges a share is of."""
    texts = dict.fromkeys(
        f"{number(curve.get('num_edges'))} ({curve['edges']}: {number(curve.get('num_edges_mib'))})"
        for curve in curves
        if curve.get("edges")
    )
    return [Facts([("edges counted", "; ".join(texts))])] if texts else []


def _mib_plot(result: Result, ranking: str) -> plots.Plot | None:
    series = list[plots.Series]()
    for place, (name, circuit) in enumerate(result.named):
        points = list[plots.Point]()
        for point in entries(part(circuit, "mib", ranking), "points"):
            share, value = finite(point.get("requested")), finite(point.get("faithfulness"))
            if share is not None and value is not None:
                points.append(plots.Point(100 * share, value, f"{name}, {100 * share:g} %: {number(value)}"))
        if points:
            series.append(plots.Series(plots.key(name, place), points, line=True))
    if not series:
        return None
    x = axis("edges requested (%)", [point.x for one in series for point in one.points], log=True)
    y = axis("faithfulness", [1.0, *(point.y for one in series for point in one.points)], zero=True)
    return plots.draw(f"{ranking} scores", x, y, series, rules=[plots.Rule("full model", y=1.0)])
