"""Sections on the output vector, hypothesis tests, and MIB's curves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeprune.evaluation.report import plots
from edgeprune.evaluation.report.axes import axis
from edgeprune.evaluation.report.blocks import Cell, Column, Figure, Row, Section, Table
from edgeprune.evaluation.report.result import Json, Result, cell, circuits_with, either, part, points_of
from edgeprune.evaluation.report.text import UNDEFINED, counted, finite, number, plain, probability, words


# -------------------------------------------------------------------- the output vector
def suffix(result: Result) -> Section | None:
    """Free-form figures: a line for each dict of plain values inside; those of equal keys are in one table."""
    tables = dict[tuple[str, ...], list[Row]]()
    for name, about in circuits_with(result, "suffix"):
        for group, values in _flat(about):
            cells = [Cell(group, sort=group)] if group else []
            row = Row(name, [*cells, *(_any(result, value) for value in values.values())])
            tables.setdefault((*(["of"] if group else []), *map(words, values)), []).append(row)
    if not tables:
        return None
    first = Column("circuit", numeric=False)
    blocks = [
        Table(
            _caption(heads),
            [first, *(Column(head, numeric=head != "of") for head in heads)],
            rows,
            folded="of" not in heads,
        )
        for heads, rows in sorted(tables.items(), key=lambda item: "of" not in item[0])
    ]
    intro = (
        "How far the vector that enters the final norm moves at the scored positions when the nodes of the circuit are "
        "ablated together, against all other nodes and random ones: change and norm relative to the full model's."
    )
    return Section("suffix", "Suffix-vector ablation", intro, blocks)


def _caption(heads: Sequence[str]) -> str:
    return "What was ablated" if "of" not in heads else ", ".join(heads[1:4]).capitalize()


def _flat(data: Json, group: str = "") -> Iterator[tuple[str, Json]]:
    """Each dict of plain values by its place, the outermost first."""
    nested = {name: value for name, value in data.items() if isinstance(value, Mapping) and not _is_figure(value)}
    if own := {name: value for name, value in data.items() if name not in nested}:
        yield group, own
    for name, value in nested.items():
        yield from _flat(value, f"{group}, {words(name)}" if group else words(name))


def _is_figure(value: Json) -> bool:
    return "value" in value or "mean" in value


def _any(result: Result, value: Any) -> Cell:
    if isinstance(value, Mapping):
        of = {"value": value}
        return result.figure(of, "value") if "value" in value else result.spread(of, "value")
    if isinstance(value, list | tuple):
        return Cell(counted(len(value), "entry", "entries"), title=plain(value))
    return Cell(UNDEFINED if value is None else plain(value), sort=finite(value))


# -------------------------------------------------------------------- hypothesis tests
def hypothesis(result: Result) -> Section | None:
    """Tests with what their outcome means."""
    rows = list[Row]()
    for name, about in circuits_with(result, "hypothesis"):
        found = part(about, "tests") or about
        for test in found:
            about = part(found, test)
            p_value = finite(about.get("p_value"))
            texts = [words(test), str(about.get("null") or UNDEFINED)]
            cells = [Cell(text, sort=text) for text in texts]
            meaning = str(about.get("statistic_is") or "")
            cells += [
                Cell(number(about.get("statistic")), title=meaning, sort=finite(about.get("statistic"))),
                Cell(probability(p_value), sort=p_value),
                cell(about.get("n")),
            ]
            rows.append(Row(name, [*cells, Cell(str(about.get("reading") or UNDEFINED))]))
    if not rows:
        return None
    columns = [
        Column("circuit", numeric=False),
        Column("test", numeric=False),
        Column("null hypothesis", numeric=False),
    ]
    columns += [Column("statistic"), Column("p-value"), Column("n"), Column("reading", numeric=False)]
    intro = "A small p-value speaks against the null hypothesis; a large one does not speak for it."
    return Section("hypothesis", "Hypothesis tests", intro, [Table("Tests of each circuit", columns, rows)])


# -------------------------------------------------------------------- MIB
_MIB = {
    "cpr": Column("CPR ↑", "requested size", "Area under faithfulness by share of edges"),
    "cmd": Column("CMD ↓", "requested size", "Area between faithfulness and 1"),
    "cpr_pruned_size": Column("CPR ↑", "pruned size", "The same with the edges that are left without dangling ones"),
    "cmd_pruned_size": Column("CMD ↓", "pruned size", "The same with the edges that are left without dangling ones"),
    "average": Column("average", "of the points", "Mean faithfulness of the points"),
}


def mib(result: Result) -> Section | None:
    """MIB's curves and their areas."""
    found = circuits_with(result, "mib")
    orders = dict.fromkeys(order for _, about in found for order in about if part(about, order))
    drawn = [plot for order in orders if (plot := _mib_plot(result, order)) is not None]
    rows = list[Row]()
    for name, about in found:
        for order, one in ((order, part(about, order)) for order in about if part(about, order)):
            measure = result.heading(one.get("measure", UNDEFINED))
            cells = [Cell(words(order), sort=order), Cell(measure, sort=measure)]
            rows.append(Row(name, [*cells, *(cell(one.get(value)) for value in _MIB)]))
    if not rows:
        return None
    intro = (
        "Circuits of several sizes from one order of scores, by the signed score or by its absolute value. "
        "Faithfulness is 0 for the empty circuit and 1 for the full model; CPR asks for much of it, CMD for 1."
    )
    columns = [Column("circuit", numeric=False), Column("scores", numeric=False), Column("measure", numeric=False)]
    keys = [plots.key(name, result.names.index(name)) for name, _ in found]
    figure = Figure("Dashed: the full model. Sizes of 0 have no place on the logarithmic axis.", drawn, keys)
    table = Table("Areas of the curves", [*columns, *_MIB.values()], rows)
    return Section("mib", "Faithfulness by size (MIB)", intro, [*([figure] if drawn else []), table])


def _mib_plot(result: Result, order: str) -> plots.Plot | None:
    series = list[plots.Series]()
    for place, (name, circuit) in enumerate(result.named):
        points = list[plots.Point]()
        for point in points_of(part(circuit, "mib", order)):
            share, value = finite(either(point, "requested", "share")), finite(point.get("faithfulness"))
            if share and share > 0 and value is not None:
                points.append(plots.Point(100 * share, value, f"{name}, {100 * share:g} %: {number(value)}"))
        if points:
            series.append(plots.Series(plots.key(name, place), sorted(points, key=lambda one: one.x), line=True))
    if not series:
        return None
    x = axis("edges requested (%)", [point.x for one in series for point in one.points], log=True)
    y = axis("faithfulness", [1.0, *(point.y for one in series for point in one.points)], zero=True)
    return plots.draw(f"{words(order)} scores", x, y, series, rules=[plots.Rule("full model", y=1.0)])
