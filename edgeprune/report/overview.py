"""Sections on how good the circuits are: summary, frontier, ablations, controls, kinds of examples."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from edgeprune.report import plots
from edgeprune.report.axes import Axis, axis
from edgeprune.report.blocks import Block, Cell, Column, Facts, Figure, Row, Section, Table
from edgeprune.report.result import Json, Result, circuits_with, entries, items, numbers, part
from edgeprune.report.text import UNDEFINED, counted, finite, number, percent, plain, words

# Keys of `about` that come first, in this order; `command` comes last.
_ABOUT = ("model", "task", "split", "num_examples", "ablation", "ablations", "resampling", "random_seeds", "tests")
_LABELS = {
    "num_examples": "pairs",
    "resampling": "intervals",
    "ablations": "ablations compared",
    "random_seeds": "random circuits",
}
# Keys that another line tells.
_TOLD = ("model_fingerprint", "test_examples", "minimality_edges")
_FRONTIER = ("kl", "squared_error", "logit_difference", "accuracy", "exact_match")
_NUM_FRONTIERS, _NUM_GRIDS = 4, 3
_WIDE = 30  # values whose largest is this many times the smallest get a logarithmic axis
_ENDS = {"full": "full model", "empty": "empty circuit"}


def about(result: Result) -> Facts:
    """What was evaluated, and how."""
    data = result.about
    others = [name for name in data if name not in (*_ABOUT, *_TOLD, "command")]
    found = {name: _fact(result, name) for name in (*_ABOUT, *others, "command")}
    return Facts([(_LABELS.get(name, words(name)), text) for name, text in found.items() if text], code=("command",))


def _fact(result: Result, name: str) -> str:
    data = result.about
    value = data.get(name)
    if value is None or value in ({}, [], ""):
        return ""
    if name == "model" and data.get("model_fingerprint"):
        return f"{value} (fingerprint of the weights {data['model_fingerprint']})"
    if name == "task" and isinstance(value, Mapping):
        return _task(value, str(data.get("split")))
    if name == "ablations" and isinstance(value, list) and len(value) == 1:
        return ""
    if name == "resampling" and isinstance(value, Mapping) and "draws" in value:
        seed = f", seed {number(value['seed'])}" if value.get("seed") is not None else ""
        return f"{result.interval}s, bootstrap over examples, {counted(value['draws'], 'draw')}{seed}"
    if name == "random_seeds":
        return f"{number(value)} of the size of each circuit"
    if name == "tests":
        return f"{plain(value)}{_limits(data)}"
    return plain(value)


def _task(task: Json, split: str) -> str:
    """What is known of a task; of the hashes of its tokens only the beginning of the one of the split."""
    told = {name: value for name, value in task.items() if name not in ("task", "sha256") and value is not None}
    name, digest = task.get("task"), part(task, "sha256").get(split)
    texts = [str(name)] if name else []
    texts += [plain(told)] if told else []
    texts += [f"SHA-256 of the tokens {str(digest)[:16]}"] if digest else []
    return ", ".join(texts)


def _limits(about: Json) -> str:
    """On how many pairs the tests ran, and how many edges they closed."""
    pairs, edges = finite(about.get("test_examples")), finite(about.get("minimality_edges"))
    limits = [f"on the first {counted(int(pairs), 'pair')}"] if pairs is not None else []
    limits += [f"minimality closes {counted(int(edges), 'edge')} at most"] if edges is not None else []
    return f" ({'; '.join(limits)})" if limits else ""


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
    return [
        Cell(method, sort=method),
        Cell(number(edges), of, sort=finite(edges)),
        Cell(percent(sparsity), sort=finite(sparsity)),
        *(Cell(number(value), sort=finite(value)) for value in (circuit.get("dangling"), circuit.get("nodes"))),
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
        ends = (spread.get("minimum"), spread.get("maximum"))
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
    found = [(name, about) for name, about in circuits_with(result, "controls") if part(about, "controls")]
    if not found:
        return None
    described = {
        words(control): str(part(about, "controls", control).get("open") or "")
        for _, about in found
        for control in part(about, "controls")
    }
    columns = [
        Column("circuit", numeric=False),
        Column("open", numeric=False, title="Which edges are open; in words below the table"),
        Column("open edges"),
        Column("moved", title="Share of the circuit's edges that are closed; of random ones the mean over seeds"),
        *map(result.column, result.main),
    ]
    abouts = [about for _, about in found]
    rows = [row for name, about in found for row in _control_rows(result, name, about)]
    ends = [
        Row(text, [Cell("")] * 3 + [_plain_figure(figures, measure) for measure in result.main], "end")
        for end, text in _ENDS.items()
        if (figures := next((part(about, end) for about in abouts if part(about, end)), None)) is not None
    ]
    intro = (
        "A circuit is sufficient if it alone does what the model does and random choices of its size do not; it is "
        "necessary if the model without it stops doing so. A random control that moves few edges is nearly the "
        "circuit itself, and says little. Pointing at a figure shows its normalised faithfulness."
    )
    caption = f"Each circuit beside its controls{result.pairs(abouts)}"
    facts = Facts([(name, text) for name, text in described.items() if text])
    return Section(
        "controls",
        "Sufficiency and necessity",
        intro,
        [Table(caption, columns, [*ends[:1], *rows, *ends[1:]]), *([facts] if facts.items else [])],
    )


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
    return Cell(number(value := int(mean(counts))), sort=value) if counts else Cell(UNDEFINED)


def _moved(control: Json) -> Cell:
    shares = numbers(control, "moved")
    if not shares:
        return Cell(UNDEFINED)
    low, high = min(shares), max(shares)
    title = f"{percent(low)} to {percent(high)} of the circuit's edges are closed, by seed" if low < high else ""
    return Cell(percent(mean(shares)), title=title, sort=mean(shares))


def _control_figure(result: Result, control: Json, measure: str) -> Cell:
    """The mean over seeds, with the spread of a random control."""
    each = [value for row in entries(control, "each") if (value := finite(row.get(measure))) is not None]
    spread = {"mean": part(control, "figures").get(measure), "num_seeds": len(each)}
    if len(each) > 1:
        spread |= {"deviation": stdev(each), "minimum": min(each), "maximum": max(each)}
    found = result.spread({measure: spread}, measure)
    faithfulness = finite(part(control, "faithfulness").get(measure))
    title = found.title if faithfulness is None else f"{found.title}; normalised faithfulness {number(faithfulness)}"
    return Cell(found.text, found.small, title, found.sort)


def _plain_figure(figures: Json, measure: str) -> Cell:
    return Cell(number(value := finite(figures.get(measure))), sort=value)


# -------------------------------------------------------------------- kinds of examples
def breakdown(result: Result) -> Section | None:
    """Measures on each kind of examples."""
    labels = dict.fromkeys(label for circuit in result.circuits for label in part(circuit, "labels"))
    blocks: list[Block] = [table for label in labels if (table := _label_table(result, label)).rows]
    skipped = {
        label: counted(count, "value")
        for circuit in result.circuits
        for label, count in part(circuit, "labels_skipped").items()
    }
    if skipped:
        texts = ", ".join(f"{words(label)} ({count})" for label, count in skipped.items())
        blocks.append(Facts([("left out", f"{texts}: too many values to tell apart")]))
    intro = "The same figures on the examples of each template or other label; few examples give wide intervals."
    return Section("breakdown", "Kinds of examples", intro, blocks) if blocks else None


def _label_table(result: Result, label: str) -> Table:
    rows = list[Row]()
    for name, circuit in result.named:
        for value, found in part(circuit, "labels", label).items():
            count = part(found).get("num_examples")
            figures = [result.figure(part(found, "measures"), one) for one in result.main]
            json_numbers = [Cell(cell.text, cell.small.split(" n = ")[0], cell.title, cell.sort) for cell in figures]
            rows.append(
                Row(name, [Cell(str(value), sort=str(value)), Cell(number(count), sort=finite(count)), *json_numbers])
            )
    columns = [Column("circuit", numeric=False), Column(words(label), numeric=False), Column("examples")]
    return Table(f"By {words(label)}", [*columns, *map(result.column, result.main)], rows)
