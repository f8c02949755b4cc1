"""Sections on the output vector, hypothesis tests, MIB's curves, and the circuits of one run."""

from dataclasses import replace
from itertools import pairwise
from statistics import stdev
from typing import Any

from edgeprune.report import plots
from edgeprune.report.axes import axis
from edgeprune.report.blocks import CIRCUIT, Block, Cell, Column, Facts, Plots, Row, Section, Table
from edgeprune.report.result import Json, Result, cell, circuits_with, entries, items, part
from edgeprune.report.text import UNDEFINED, chance, counted, finite, number, percent, plain, probability, words

# Methods whose scores say how much an edge wants to be open: a negative one is not an effect of the other sign.
_TRAINED = ("edge_pruning", "subnetwork_probing", "ugs", "matryoshka", "disco_gp")


# -------------------------------------------------------------------- the output vector
_SPACES = {"stream": "final residual stream", "logits": "logits", "logits_centred": "logits minus their mean"}
_SETS = {"circuit": "its nodes", "random": "random nodes", "others": "all other nodes"}
_SHAPES = {"norm_ratio": "norm / full model's", "cosine": "cosine"}


def suffix(result: Result) -> Section | None:
    """How far the output moves without the nodes of the circuit, without as many others, and without all others."""
    found = circuits_with(result, "suffix")
    heads = [CIRCUIT, Column.words("of"), *(Column(f"without {text}") for text in _SETS.values())]
    heads += [Column("ratio", title="Change without its nodes / mean change without random ones"), Column("p-value")]
    shape_heads = [CIRCUIT, Column.words("of")]
    shape_heads += [Column(head, f"without {text}") for head in _SHAPES.values() for text in _SETS.values()]
    intro = (
        "How far the vector that enters the final norm, and the logits, move at the scored positions when the nodes "
        "of the circuit are ablated together: |change| / |full model's vector|. Random sets have as many heads and "
        "MLPs in each layer; where few such sets exist, or most nodes of one are the circuit's, they say little."
    )
    changes = [row for name, about in found for row in _changes(name, about)]
    blocks = [
        Table(f"Relative change of the output{result.pairs(found)}", heads, changes),
        Table("Nodes that were ablated", [CIRCUIT, *_NODES], [_nodes(name, about) for name, about in found]),
        Table(
            "Length and direction of the output that is left",
            shape_heads,
            [row for name, about in found for row in _shapes(name, about)],
            folded=True,
        ),
    ]
    return Section.of("suffix", "Suffix-vector ablation", intro, blocks) if changes else None


def _changes(name: str, about: Json) -> list[Row]:
    rows = list[Row]()
    for space in part(about, "circuit"):
        changes = [cell(part(about, which, space).get("relative_change")) for which in _SETS]
        drawn = [finite(part(row, space).get("relative_change")) for row in entries(about, "each_random")]
        each = [value for value in drawn if value is not None]
        if len(each) > 1:
            title = f"{number(min(each))} to {number(max(each))}, {counted(len(each), 'seed')}"
            changes[1] = replace(changes[1], small=f"± {number(stdev(each))}", title=title)
        verdict = part(about, "verdict", space)
        last = [cell(verdict.get("ratio")), cell(verdict.get("p_value"), probability)]
        rows.append(Row(name, [cell(_SPACES.get(space, words(space))), *changes, *last]))
    return rows


def _shapes(name: str, about: Json) -> list[Row]:
    rows = list[Row]()
    for space in part(about, "circuit"):
        values = (part(about, which, space).get(shape) for shape in _SHAPES for which in _SETS)
        rows.append(Row(name, [cell(_SPACES.get(space, words(space))), *map(cell, values)]))
    return rows


_NODES = (
    Column("its nodes"),
    Column.words("names"),
    Column("other nodes"),
    Column("random sets"),
    Column("shared", title="Mean share of the circuit's nodes in a random set"),
    Column("sets to draw from", title="How many sets have as many heads and MLPs in each layer"),
)


def _nodes(name: str, about: Json) -> Row:
    nodes, others, seeds = (items(about, key) for key in ("nodes", "other_nodes", "seeds"))
    of = " (heads only)" if about.get("heads_only") is True else ""
    cells = [
        cell(len(nodes)),
        Cell(plain(nodes) + of, title=", ".join(map(str, nodes)), sort=plain(nodes)),
        *(cell(len(some)) for some in (others, seeds)),
        cell(about.get("overlap"), percent),
        cell(finite(about.get("log10_num_sets")), _power),
    ]
    return Row(name, cells)


def _power(log10: float | None) -> str:
    """A whole number of which the logarithm is known."""
    return UNDEFINED if log10 is None else number(round(10**log10)) if log10 < 6 else f"1e{log10:.0f}"


# -------------------------------------------------------------------- hypothesis tests
def hypothesis(result: Result) -> Section | None:
    """Tests with what their outcome means."""
    found = circuits_with(result, "hypothesis")
    rows = [_test(name, part(about, "tests", test)) for name, about in found for test in part(about, "tests")]
    columns = [CIRCUIT, Column.words("test"), Column.words("null hypothesis"), Column("statistic"), Column("p-value")]
    columns += [Column("n", title="Examples, or random circuits"), Column.words("reading")]
    intro = (
        "A small p-value speaks against the null hypothesis; a large one does not speak for it. Below a p-value is "
        "the smallest that this test could have given: with few examples or random circuits nothing can be rejected."
    )
    tests = {"score": "equivalence and independence", "faithfulness": "sufficiency and partial necessity"}
    facts = [
        (term, f"{measures}, for {tests[key]}")
        for key, term in (("score", "scores"), ("faithfulness", "faithfulness"))
        if rows and (measures := _used(result, found, key))
    ]
    blocks = [Table(f"Tests of each circuit{result.pairs(found)}", columns, rows), Facts(facts)]
    return Section.of("hypothesis", "Hypothesis tests", intro, blocks)


def _used(result: Result, found: list[tuple[str, Json]], key: str) -> str:
    """Headings of the measures that the tests used."""
    return ", ".join(dict.fromkeys(result.heading(about[key]) for _, about in found if about.get(key)))


def _test(name: str, test: Json) -> Row:
    least = finite(part(test, "details").get("least_p_value"))
    cells = [
        cell(words(test.get("name") or UNDEFINED)),
        cell(str(test.get("null") or UNDEFINED)),
        cell(finite(test.get("statistic")), title=str(test.get("statistic_is") or "")),
        cell(test.get("p_value"), probability, "" if least is None else f"least {probability(least)}"),
        cell(test.get("n")),
        cell(str(test.get("reading") or UNDEFINED)),
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
    "accuracy_area": Column("accuracy ↑", "mean over log size", "Area under accuracy by the logarithm of the share"),
}
_POINTS = {
    "num_asked": Column("edges asked for"),
    "num_kept": Column("edges kept", title="Without dangling ones"),
    "value": Column("figure"),
    "faithfulness": Column("faithfulness"),
    "accuracy": Column("accuracy"),
}


def mib(result: Result) -> Section | None:
    """MIB's curves and their areas."""
    circuits = circuits_with(result, "mib")
    found = [
        (name, ranking, curve) for name, about in circuits for ranking in _RANKINGS if (curve := part(about, ranking))
    ]
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
    heads = [CIRCUIT, Column.words("order"), Column.words("measure"), *_MIB.values()]
    rows = [_areas(result, name, ranking, curve, name in trained) for name, ranking, curve in found]
    point_heads = [CIRCUIT, Column.words("order"), Column("requested"), *_POINTS.values()]
    points = [row for name, ranking, curve in found for row in _mib_points(name, ranking, curve)]
    blocks: list[Block] = [
        Facts([("absolute order", note)] if trained else []),
        Plots.of("Dashed: the full model.", (_mib_plot(result, ranking) for ranking in _RANKINGS), keys),
        Table(f"Areas of the curves{result.pairs(found)}", heads, rows),
        Table("Points of the curves", point_heads, points, folded=True),
        _counted_edges([curve for *_, curve in found]),
    ]
    return Section.of("mib", "Faithfulness by size (MIB)", intro, blocks)


def _areas(result: Result, name: str, ranking: str, curve: Json, trained: bool) -> Row:
    void = trained and ranking == "absolute"
    order = cell(ranking, small="no meaning for a trained mask" if void else "")
    cells = [order, cell(result.heading(curve.get("measure") or UNDEFINED)), *_area_cells(curve)]
    return Row(name, cells, "control" if void else "circuit")


def _area_cells(curve: Json) -> list[Cell]:
    """The areas of a curve with their intervals."""
    return [_with_interval(curve.get(name), part(curve, "intervals", name)) for name in _MIB]


def _with_interval(value: Any, found: Json) -> Cell:
    low, high = found.get("low"), found.get("high")
    known = finite(low) is not None and finite(high) is not None
    return cell(value, small=f"[{number(low)}, {number(high)}]" if known else "")


def _mib_points(name: str, ranking: str, curve: Json) -> list[Row]:
    return [
        Row(name, [cell(ranking), cell(point.get("requested"), percent), *(cell(point.get(key)) for key in _POINTS)])
        for point in entries(curve, "points")
    ]


def _counted_edges(curves: list[Json]) -> Facts:
    """Which edges a share is of."""
    texts = dict.fromkeys(
        f"{number(curve.get('num_edges'))} ({curve['edges']}: {number(curve.get('num_edges_mib'))})"
        for curve in curves
        if curve.get("edges")
    )
    return Facts([("edges counted", "; ".join(texts))] if texts else [])


def _mib_plot(result: Result, ranking: str) -> plots.Plot | None:
    def points(name: str, circuit: Json) -> list[plots.Point]:
        rows = entries(part(circuit, "mib", ranking), "points")
        found = [(finite(row.get("requested")), finite(row.get("faithfulness"))) for row in rows]
        return [
            plots.Point(100 * share, value, f"{name}, {100 * share:g} %: {number(value)}")
            for share, value in found
            if share is not None and value is not None
        ]

    series = result.series(points)
    x = axis("edges requested (%)", [point.x for one in series for point in one.points], log=True)
    y = axis("faithfulness", [1.0, *(point.y for one in series for point in one.points)], zero=True)
    rules = [plots.Rule("full model", y=1.0)]
    return plots.draw(f"{ranking} scores", x, y, series, rules=rules) if series else None


# -------------------------------------------------------------------- circuits of one run
_NESTED = {
    "share": Column("nested", "in the next larger", "Share of a circuit's edges that the next larger one has; mean"),
    "expected": Column("by chance", title="The same for edges drawn at random"),
    "every_two": Column("nested", "in every larger", "Mean over every two sizes"),
}


def runs(result: Result) -> Section | None:
    """The circuits of each run: areas over their sizes, and how far the smaller lie inside the larger ones."""
    found = [(_run_name(run), run) for run in entries(result.data, "runs")]
    intro = (
        "Circuits of several sizes that one run gave, as they are: each of MIB's ten shares takes the largest that "
        "fits it, the empty circuit where none does, and 100 % is the full model. Nested: the share of a circuit's "
        "edges that the next larger one has too."
    )
    heads = [Column.words("run"), Column("sizes"), Column.words("measure"), *_MIB.values(), *_NESTED.values()]
    rows = [
        Row(
            name,
            [
                cell(len(items(run, "circuits"))),
                cell(result.heading(part(run, "mib").get("measure") or UNDEFINED)),
                *_area_cells(part(run, "mib")),
                *(cell(part(run, "nested").get(key)) for key in _NESTED),
            ],
        )
        for name, run in found
    ]
    steps = [row for name, run in found for row in _steps(result, name, run)]
    step_heads = [Column.words("run"), Column.words("circuit"), Column.words("inside"), *list(_NESTED.values())[:2]]
    blocks: list[Block] = [
        Table("Areas over the sizes of a run, and nestedness", heads, rows),
        Table("Each circuit in the next larger", [*step_heads, Column("p-value")], steps, folded=True),
    ]
    return Section.of("runs", "Circuits of one run", intro, blocks)


def _run_name(run: Json) -> str:
    seed = finite(run.get("seed"))
    return f"{plain(run.get('method'))}{'' if seed is None else f', seed {seed:.0f}'}"


def _steps(result: Result, name: str, run: Json) -> list[Row]:
    names = [result.name_at(place) for place in items(run, "circuits")]
    steps = entries(part(run, "nested"), "steps")
    return [
        Row(
            name,
            [
                *map(cell, between),
                cell(step.get("share"), heat=finite(step.get("share"))),
                cell(step.get("expected")),
                cell(step.get("log10_p_value"), chance),
            ],
        )
        for between, step in zip(pairwise(names), steps, strict=False)
    ]
