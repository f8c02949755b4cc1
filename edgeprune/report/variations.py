"""Sections on what else was tried: other seeds, other ablations, other choices of edges, and each kind of examples."""

from dataclasses import replace
from statistics import mean, stdev

from edgeprune.report.blocks import CIRCUIT, Cell, Column, Facts, Row, Section, Table
from edgeprune.report.result import ENDS, Json, Result, cell, circuits_with, entries, items, numbers, part
from edgeprune.report.text import UNDEFINED, counted, finite, number, percent, plain, words

_NUM_GRIDS = 3


# -------------------------------------------------------------------- seeds
def seeds(result: Result) -> Section | None:
    """Circuits of one method that differ in their seed."""
    groups = entries(result.data, "seeds")
    counts = ["edges", *(["attention_edges"] if any("attention_edges" in group for group in groups) else [])]
    sizes = [Column(words(name)) for name in counts]
    columns = [CIRCUIT, Column.words("method"), Column("seeds"), *sizes, *map(result.column, result.main)]
    rows = [
        Row(", ".join(result.name_at(place) for place in items(group, "circuits")), _seed_cells(result, group, counts))
        for group in groups
    ]
    intro = (
        "Circuits that one method found with different seeds, none with 10 % more edges than the smallest: the mean of "
        "their figures, and its standard deviation over the seeds."
    )
    return Section.of("seeds", "Seeds", intro, [Table(f"Over seeds, {result.ablation} ablation", columns, rows)])


def _seed_cells(result: Result, group: Json, counts: list[str]) -> list[Cell]:
    names = [str(seed) for seed in items(group, "seeds")]
    found = part(group, "ablations", result.ablation, "measures")
    return [
        cell(plain(group["method"]) if group.get("method") else UNDEFINED),
        cell(len(names), title=f"seeds {', '.join(names)}"),
        *(_range_cell(numbers(group, name)) for name in counts),
        *(result.spread(found, measure) for measure in result.main),
    ]


def _range_cell(sizes: list[float]) -> Cell:
    if not sizes:
        return Cell(UNDEFINED, sort=None)
    return Cell(" to ".join(number(int(size)) for size in sorted({min(sizes), max(sizes)})), sort=mean(sizes))


# -------------------------------------------------------------------- ablations
def ablations(result: Result) -> Section | None:
    """Circuits by ablations."""
    if len(result.ablations) < 2:
        return None
    tables = [_ablation_table(result, measure) for measure in result.main[:_NUM_GRIDS]]
    intro = (
        "What a closed edge carries is a choice, and figures depend on it. In colour: normalised faithfulness, 0 as "
        "with every edge closed and 1 as the full model, under the same ablation. Below it the figure itself, and that "
        "of random circuits."
    )
    return Section("ablations", "Ablations", intro, tables)


def _ablation_table(result: Result, measure: str) -> Table:
    columns = [CIRCUIT, *(Column(words(name)) for name in result.ablations)]
    rows = [
        Row(name, [_ablation_cell(result, part(circuit, "ablations", kind), measure) for kind in result.ablations])
        for name, circuit in result.named
    ]
    empty = [result.figure(part(result.data, "ends", kind, "empty"), measure) for kind in result.ablations]
    rows.append(Row("empty circuit", [replace(one, sort=0.0) for one in empty], "end"))
    return Table(f"Normalised faithfulness by {result.heading(measure)}, and the figure itself", columns, rows)


def _ablation_cell(result: Result, found: Json, measure: str) -> Cell:
    normalised = result.figure(part(found, "normalised"), measure)
    figure = result.figure(part(found, "measures"), measure)
    random = result.spread(part(found, "random"), measure)
    small = f"{figure.text} {figure.small}".strip()
    small += f"; random {random.text}" if random.sort is not None else ""
    title = f"normalised: {normalised.title}; figure: {figure.title}"
    heat = None if not isinstance(normalised.sort, float) else min(max(normalised.sort, 0.0), 1.0)
    return Cell(normalised.text, small, title, normalised.sort, heat)


# -------------------------------------------------------------------- controls
def controls(result: Result) -> Section | None:
    """Sufficiency and necessity."""
    found = [(name, about) for name, about in circuits_with(result, "controls") if part(about, "controls")]
    described = {
        words(control): str(part(about, "controls", control).get("open") or "")
        for _, about in found
        for control in part(about, "controls")
    }
    columns = [
        CIRCUIT,
        Column.words("open", "Which edges are open; in words below the table"),
        Column("open edges"),
        Column("moved", title="Share of the circuit's edges that are closed; of random ones the mean over seeds"),
        *map(result.column, result.main),
    ]
    rows = [row for name, about in found for row in _control_rows(result, name, about)]
    ends = [
        Row(text, [Cell("")] * 3 + [cell(finite(figures.get(measure))) for measure in result.main], "end")
        for end, text in ENDS.items()
        if (figures := next((part(about, end) for _, about in found if part(about, end)), None)) is not None
    ]
    intro = (
        "A circuit is sufficient if it alone does what the model does and random choices of its size do not; it is "
        "necessary if the model without it stops doing so. A random control that moves few edges is nearly the "
        "circuit itself, and says little. Pointing at a figure shows its normalised faithfulness."
    )
    blocks = [
        Table(f"Each circuit beside its controls{result.pairs(found)}", columns, [*ends[:1], *rows, *ends[1:]]),
        Facts([(name, text) for name, text in described.items() if text]),
    ]
    return Section.of("controls", "Sufficiency and necessity", intro, blocks)


def _control_rows(result: Result, name: str, about: Json) -> list[Row]:
    rows = list[Row]()
    for control in part(about, "controls"):
        found = part(about, "controls", control)
        num_seeds = len(items(found, "seeds"))
        first = Cell(words(control), counted(num_seeds, "seed") if num_seeds > 1 else "", sort=control)
        figures = [_control_figure(result, found, measure) for measure in result.main]
        kind = "circuit" if control == "circuit" else "control"
        rows.append(Row(name, [first, _num_open(found), _moved(found), *figures], kind))
    return rows


def _num_open(control: Json) -> Cell:
    counts = numbers(control, "num_open")
    return cell(int(mean(counts)) if counts else None)


def _moved(control: Json) -> Cell:
    shares = numbers(control, "moved")
    if not shares:
        return Cell(UNDEFINED)
    low, high = min(shares), max(shares)
    title = f"{percent(low)} to {percent(high)} of the circuit's edges are closed, by seed" if low < high else ""
    return cell(mean(shares), percent, title=title)


def _control_figure(result: Result, control: Json, measure: str) -> Cell:
    """The mean over seeds, with the spread of a random control."""
    each = [value for row in entries(control, "each") if (value := finite(row.get(measure))) is not None]
    spread = {"mean": part(control, "figures").get(measure), "num_seeds": len(each)}
    if len(each) > 1:
        spread |= {"deviation": stdev(each), "minimum": min(each), "maximum": max(each)}
    found = result.spread({measure: spread}, measure)
    faithfulness = finite(part(control, "faithfulness").get(measure))
    title = found.title if faithfulness is None else f"{found.title}; normalised faithfulness {number(faithfulness)}"
    return replace(found, title=title)


# -------------------------------------------------------------------- kinds of examples
def breakdown(result: Result) -> Section | None:
    """Measures on each kind of examples."""
    labels = dict.fromkeys(label for circuit in result.circuits for label in part(circuit, "labels"))
    skipped = {
        label: f"{words(label)} ({counted(count, 'value')})"
        for circuit in result.circuits
        for label, count in part(circuit, "labels_skipped").items()
    }
    left_out = [("left out", f"{', '.join(skipped.values())}: too many values to tell apart")] if skipped else []
    intro = "The same figures on the examples of each template or other label; few examples give wide intervals."
    blocks = [*(_label_table(result, label) for label in labels), Facts(left_out)]
    return Section.of("breakdown", "Kinds of examples", intro, blocks)


def _label_table(result: Result, label: str) -> Table:
    rows = list[Row]()
    for name, found in circuits_with(result, "labels", label):
        for value, group in found.items():
            figures = [result.figure(part(group, "measures"), one) for one in result.main]
            without_count = [replace(one, small=one.small.split(" n = ")[0]) for one in figures]
            rows.append(Row(name, [cell(str(value)), cell(part(group).get("num_examples")), *without_count]))
    columns = [CIRCUIT, Column.words(words(label)), Column("examples"), *map(result.column, result.main)]
    return Table(f"By {words(label)}", columns, rows)
