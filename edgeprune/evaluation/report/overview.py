"""Sections on how good the circuits are: summary, frontier, ablations, controls, kinds of examples."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from edgeprune.evaluation.report import plots
from edgeprune.evaluation.report.axes import Axis, axis
from edgeprune.evaluation.report.blocks import Cell, Column, Facts, Figure, Row, Section, Table
from edgeprune.evaluation.report.result import Json, Result, either, items, num_seeds, part
from edgeprune.evaluation.report.text import UNDEFINED, counted, finite, number, percent, plain, words

# Keys of `about` with a line of their own, and what the line is called; `command` comes last.
_ABOUT = ("model", "task", "split", "num_examples", "ablation", "ablations", "resampling", "limits", "versions")
_FRONTIER = ("kl", "squared_error", "logit_difference", "accuracy", "exact_match")
_NUM_FRONTIERS, _NUM_GRIDS = 4, 3
_WIDE = 30  # values whose largest is this many times the smallest get a logarithmic axis
_ENDS = {"full": "full model", "empty": "empty circuit"}


def about(result: Result) -> Facts:
    """What was evaluated, and how."""
    data = result.about
    found = {name: _fact(result, name) for name in _ABOUT}
    others = {
        name: plain(data[name]) for name in data if name not in (*_ABOUT, "bootstrap", "model_fingerprint", "command")
    }
    found |= others | {"command": str(data.get("command") or "")}
    labels = {"num_examples": "pairs", "resampling": "intervals", "ablations": "ablations compared"}
    return Facts([(labels.get(name, words(name)), text) for name, text in found.items() if text], code=("command",))


def _fact(result: Result, name: str) -> str:
    data = result.about
    value = data.get(name) if name != "resampling" else result.resampling
    if value is None or value in ({}, [], ""):
        return ""
    if name == "model" and data.get("model_fingerprint"):
        return f"{value} (fingerprint of the weights {data['model_fingerprint']})"
    if name == "ablations" and isinstance(value, list) and len(value) == 1:
        return ""
    if name == "resampling" and isinstance(value, Mapping) and "draws" in value:
        seed = f", seed {number(value['seed'])}" if value.get("seed") is not None else ""
        return f"{result.interval}s, bootstrap over examples, {counted(value['draws'], 'draw')}{seed}"
    return plain(value)


# -------------------------------------------------------------------- summary
def summary(result: Result) -> Section | None:
    """Every circuit with its main measures, between the full model and the empty circuit."""
    if not result.circuits:
        return None
    tables = [_summary_table(result, f"Circuits under {result.ablation} ablation", result.main)]
    if len(result.taken) > len(result.main):
        others = result.taken[len(result.main) :]
        tables.append(_summary_table(result, "All other measures", others, folded=True))
    intro = (
        f"Below a figure is its {result.interval}; pointing at it also shows the number of examples. "
        "An arrow shows where values are good. Random circuits have as many edges as the circuit above them; theirs "
        "are the mean and the standard deviation over seeds."
    )
    return Section("summary", "Summary", intro, tables)


def _summary_table(result: Result, caption: str, measures: Sequence[str], folded: bool = False) -> Table:
    sizes = [
        Column("method", numeric=False),
        Column("edges", title="Edges that are kept open"),
        Column("sparsity", title="Closed edges / existing edges"),
        Column("dangling", title="Kept edges on no path of kept edges from an embedding to the logits"),
        Column("nodes"),
    ]
    columns = [Column("circuit", numeric=False), *([] if folded else sizes), *map(result.column, measures)]
    blank = [] if folded else [Cell("")] * len(sizes)
    rows = [_end_row(result, "full", "full model", measures, blank)]
    for name, circuit in result.named:
        found = part(circuit, "ablations", result.ablation)
        figures = [result.figure(part(found, "measures"), measure) for measure in measures]
        rows.append(Row(name, [*([] if folded else _sizes(circuit)), *figures], title=str(circuit.get("path") or "")))
        random = part(found, "random")
        if any(measure in random for measure in measures):
            spreads = [result.spread(random, measure) for measure in measures]
            rows.append(Row(f"random, size of {name}", [*blank, *spreads], "control"))
    rows.append(_end_row(result, "empty", "empty circuit", measures, blank))
    return Table(caption, columns, [row for row in rows if row.cells], folded=folded)


def _end_row(result: Result, end: str, name: str, measures: Sequence[str], blank: Sequence[Cell]) -> Row:
    figures = part(result.data, "ends", result.ablation, end)
    return Row(name, [*blank, *(result.figure(figures, measure) for measure in measures)] if figures else [], "end")


def _sizes(circuit: Json) -> list[Cell]:
    edges, existing, sparsity = (circuit.get(name) for name in ("edges", "all_edges", "sparsity"))
    of = f"of {number(existing)}" if existing is not None else ""
    method = plain(circuit["method"]) if circuit.get("method") else UNDEFINED
    nodes: Any = circuit.get("nodes")
    nodes = len(nodes) if isinstance(nodes, list | dict) else nodes
    return [
        Cell(method, sort=method),
        Cell(number(edges), of, sort=finite(edges)),
        Cell(percent(sparsity), sort=finite(sparsity)),
        *(Cell(number(value), sort=finite(value)) for value in (circuit.get("dangling"), nodes)),
    ]


# -------------------------------------------------------------------- frontier
def frontier(result: Result) -> Section | None:
    """Size against measures."""
    kept = [(name, circuit, share) for name, circuit in result.named if (share := _kept_percent(circuit))]
    measures = [name for name in _FRONTIER if name in result.taken] or result.main
    if not kept or not measures:
        return None
    methods = [str(circuit.get("method") or name) for name, circuit, _ in kept]
    keys = {method: plots.key(method, place) for place, method in enumerate(dict.fromkeys(methods))}
    drawn = [_frontier_plot(result, measure, kept, methods, keys) for measure in measures[:_NUM_FRONTIERS]]
    random = plots.grey("random circuits of the same size")
    controls = any(part(circuit, "ablations", result.ablation, "random") for circuit in result.circuits)
    caption = f"Edges kept against measures, {result.ablation} ablation; bars are {result.interval}s."
    if len(kept) < len(result.circuits):
        caption += " Circuits without edges have no place on the logarithmic axis."
    figure = Figure(caption, drawn, [*keys.values(), *([random] if controls else [])])
    intro = (
        "One point per circuit, with the random circuits of its size (bars from the least to the largest seed). "
        "Circuits of one method are joined. Dashed: the model with every edge closed, and with every edge open."
    )
    return Section("frontier", "Size against faithfulness", intro, [figure])


def _kept_percent(circuit: Json) -> float | None:
    edges, existing = finite(circuit.get("edges")), finite(circuit.get("all_edges"))
    return 100 * edges / existing if edges is not None and existing else None


def _frontier_plot(
    result: Result,
    measure: str,
    kept: Sequence[tuple[str, Json, float]],
    methods: Sequence[str],
    keys: dict[str, plots.Key],
) -> plots.Plot:
    series: dict[str, list[plots.Point]] = {method: [] for method in keys}
    random: list[plots.Point] = []
    for (name, circuit, share), method in zip(kept, methods, strict=True):
        found = part(circuit, "ablations", result.ablation)
        what = f"{name}, {share:.4g} % of edges"
        figure = part(found, "measures", measure)
        series[method] += _point(share, figure.get("value"), (figure.get("low"), figure.get("high")), what)
        spread = part(found, "random", measure)
        ends = (either(spread, "min", "minimum"), either(spread, "max", "maximum"))
        random += _point(share, spread.get("mean"), ends, f"random, size of {what}")
    limits = {name: finite(part(result.data, "ends", result.ablation, name, measure).get("value")) for name in _ENDS}
    points = [point for points in (*series.values(), random) for point in points]
    y = _frontier_axis(result, measure, points, [value for value in limits.values() if value is not None])
    rules = [plots.Rule(_ENDS[name], y=value) for name, value in limits.items() if value is not None]
    lines = [
        plots.Series(keys[method], sorted(points, key=lambda one: one.x), line=True)
        for method, points in series.items()
        if points
    ]
    x = axis("edges kept (%)", [share for _, _, share in kept], log=True)
    return plots.draw("", x, y, [plots.Series(plots.grey("random"), random), *lines], rules=rules)


def _frontier_axis(result: Result, measure: str, points: Sequence[plots.Point], limits: Sequence[float]) -> Axis:
    """Logarithmic where less is better and values are far apart; the full model at 0 is then beyond the axis."""
    values = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    low, high = min((point.y for point in points), default=0.0), max(values, default=0.0)
    if part(result.measures, measure).get("better") == "low" and low > 0 and high / low >= _WIDE:
        floor = low / 2  # where an interval begins that reaches 0
        return axis(result.axis_label(measure), [max(value, floor) for value in values], log=True)
    return axis(result.axis_label(measure), [*values, *limits], zero=True)


def _point(x: float, value: Any, ends: tuple[Any, Any], what: str) -> list[plots.Point]:
    y, low, high = (finite(number) for number in (value, *ends))
    return [] if y is None else [plots.Point(x, y, f"{what}: {number(y)}", low, high)]


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
    columns = [Column("circuit", numeric=False), *(Column(words(name)) for name in result.ablations)]
    rows = [
        Row(name, [_ablation_cell(result, part(circuit, "ablations", kind), measure) for kind in result.ablations])
        for name, circuit in result.named
    ]
    empty = [result.figure(part(result.data, "ends", kind, "empty"), measure) for kind in result.ablations]
    rows.append(Row("empty circuit", [Cell(cell.text, cell.small, cell.title, 0.0) for cell in empty], "end"))
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
    rows = list[Row]()
    described = dict[str, str]()
    for name, circuit in result.named:
        found = _controls(part(circuit, "controls"))
        if found and "circuit" not in found:
            own = part(circuit, "ablations", result.ablation, "measures")
            figures = [result.figure(own, measure) for measure in result.main]
            rows.append(Row(name, [Cell("the circuit itself", sort=""), *figures]))
        for control, about in found.items():
            spreads = _spreads(about)
            cells = [result.spread(spreads, measure) for measure in result.main]
            seeds = num_seeds(about.get("seeds"))
            small = counted(seeds, "seed") if seeds > 1 else ""
            kind = "circuit" if control == "circuit" else "control"
            rows.append(Row(name, [Cell(words(control), small, sort=control), *cells], kind))
            described[words(control)] = str(either(about, "description", "open") or "")
    if not rows:
        return None
    columns = [Column("circuit", numeric=False), Column("open edges", numeric=False), *map(result.column, result.main)]
    intro = (
        "A circuit is sufficient if it alone does what the model does and random choices of its size do not; it is "
        "necessary if the model without it stops doing so."
    )
    counts = [part(circuit, "controls").get("num_examples") for circuit in result.circuits]
    count = next((count for count in counts if count is not None), None)
    caption = "Each circuit beside its controls" + (f", on {counted(count, 'example')}" if count is not None else "")
    facts = Facts([(name, text) for name, text in described.items() if text])
    blocks = [Table(caption, columns, rows), *([facts] if facts.items else [])]
    return Section("controls", "Sufficiency and necessity", intro, blocks)


def _controls(found: Json) -> dict[str, Json]:
    """Each control by its name, as the schema has them or as a test of controls does."""
    inside = part(found, "controls") or found
    return {name: part(inside, name) for name in inside if part(inside, name)}


def _spreads(control: Json) -> Json:
    """By measure the spread over seeds; found from the figures of each where it is not given."""
    if part(control, "measures"):
        return part(control, "measures")
    each = [part(row) for row in items(control, "each")]
    return {measure: _spread([row.get(measure) for row in each]) for measure in part(control, "figures")}


def _spread(values: Sequence[Any]) -> Json:
    """None for the mean unless every value is known, as the figure of a control is."""
    known = [value for one in values if (value := finite(one)) is not None]
    if len(known) < len(values) or not known:
        return {"mean": None}
    deviation = stdev(known) if len(known) > 1 else None
    return {"mean": mean(known), "sd": deviation, "min": min(known), "max": max(known), "seeds": len(known)}


# -------------------------------------------------------------------- kinds of examples
def breakdown(result: Result) -> Section | None:
    """Measures on each kind of examples."""
    labels = dict.fromkeys(label for circuit in result.circuits for label in part(circuit, "labels"))
    tables = [table for label in labels if (table := _label_table(result, label)).rows]
    intro = "The same figures on the examples of each template or other label; few examples give wide intervals."
    return Section("breakdown", "Kinds of examples", intro, tables) if tables else None


def _label_table(result: Result, label: str) -> Table:
    rows = list[Row]()
    for name, circuit in result.named:
        for value, found in part(circuit, "labels", label).items():
            count = part(found).get("num_examples")
            figures = [result.figure(part(found, "measures"), one) for one in result.main]
            plain_figures = [Cell(cell.text, cell.small.split(" n = ")[0], cell.title, cell.sort) for cell in figures]
            rows.append(
                Row(name, [Cell(str(value), sort=str(value)), Cell(number(count), sort=finite(count)), *plain_figures])
            )
    columns = [Column("circuit", numeric=False), Column(words(label), numeric=False), Column("examples")]
    return Table(f"By {words(label)}", [*columns, *map(result.column, result.main)], rows)
