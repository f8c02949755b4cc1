"""The head of the page, and the sections on how good the circuits are: summary, and size against measures."""

from collections.abc import Mapping, Sequence

from edgeprune.report import plots
from edgeprune.report.axes import Axis, axis
from edgeprune.report.blocks import CIRCUIT, Cell, Column, Facts, Plots, Row, Section, Table
from edgeprune.report.result import ENDS, Json, Result, cell, part
from edgeprune.report.text import UNDEFINED, counted, finite, number, percent, plain, words

# Keys of `about` that come first, in this order; `command` comes last.
_ABOUT = ("model", "task", "split", "num_examples", "ablation", "ablations", "resampling", "random_seeds", "tests")
_LABELS = {
    "num_examples": "pairs",
    "resampling": "intervals",
    "ablations": "ablations compared",
    "random_seeds": "random circuits",
}
# Keys that are part of another line.
_WITHIN = ("model_fingerprint", "test_examples", "minimality_edges")
_FRONTIER = ("kl", "squared_error", "logit_difference", "accuracy", "exact_match")
_NUM_FRONTIERS = 4
_WIDE = 30  # values whose largest is this many times the smallest get a logarithmic axis


def about(result: Result) -> Facts:
    """What was evaluated, and how."""
    data = result.about
    others = [name for name in data if name not in (*_ABOUT, *_WITHIN, "command")]
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
    others = {name: value for name, value in task.items() if name not in ("task", "sha256") and value is not None}
    name, digest = task.get("task"), part(task, "sha256").get(split)
    texts = [str(name)] if name else []
    texts += [plain(others)] if others else []
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
    others = result.taken[len(result.main) :]
    tables = [_summary_table(result, f"Circuits under {result.ablation} ablation", result.main)]
    tables += [_summary_table(result, "All other measures", others, folded=True)] if others else []
    intro = (
        f"Below a figure is its {result.interval}; pointing at it also shows the number of examples. "
        "An arrow shows where values are good. Random circuits have as many edges as the circuit above them; theirs "
        "are the mean and the standard deviation over seeds."
    )
    return Section("summary", "Summary", intro, tables)


def _summary_table(result: Result, caption: str, measures: Sequence[str], folded: bool = False) -> Table:
    sizes = [
        Column.words("method"),
        Column("edges", title="Edges that are kept open"),
        Column("sparsity", title="Closed edges / existing edges"),
        Column("dangling", title="Kept edges on no path of kept edges from an embedding to the logits"),
        Column("nodes"),
    ]
    shown = [] if folded else sizes
    blank = [Cell("")] * len(shown)
    ends = {
        end: [Row(text, [*blank, *(result.figure(figures, measure) for measure in measures)], "end")]
        for end, text in ENDS.items()
        if (figures := part(result.data, "ends", result.ablation, end))
    }
    rows = ends.get("full", [])
    for name, circuit in result.named:
        found = part(circuit, "ablations", result.ablation)
        figures = [result.figure(part(found, "measures"), measure) for measure in measures]
        rows.append(Row(name, [*([] if folded else _sizes(circuit)), *figures], title=str(circuit.get("path") or "")))
        random = part(found, "random")
        if any(measure in random for measure in measures):
            spreads = [result.spread(random, measure) for measure in measures]
            rows.append(Row(f"random, size of {name}", [*blank, *spreads], "control"))
    rows += ends.get("empty", [])
    columns = [CIRCUIT, *shown, *map(result.column, measures)]
    return Table(caption, columns, [row for row in rows if row.cells], folded=folded)


def _sizes(circuit: Json) -> list[Cell]:
    existing, union, inside = circuit.get("all_edges"), part(circuit, "union"), part(circuit, "attention")
    of_roles = f", union {number(union['edges'])} of {number(union['all_edges'])}" if union else ""
    if inside:
        of_roles += f", attention edges {number(inside['edges'])} of {number(inside['all_edges'])}"
    unions = f"union {percent(union['sparsity'])}" if union else ""
    unions += f", attention edges {percent(inside['sparsity'])}" if inside else ""
    return [
        cell(plain(circuit["method"]) if circuit.get("method") else UNDEFINED),
        cell(circuit.get("edges"), small=f"of {number(existing)}{of_roles}" if existing is not None else ""),
        cell(circuit.get("sparsity"), percent, small=unions),
        *(cell(circuit.get(name)) for name in ("dangling", "nodes")),
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
    figure = Plots(caption, drawn, [*keys.values(), *([random] if controls else [])])
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
        series[method] += _point(share, part(found, "measures", measure), ("value", "low", "high"), what)
        spread = part(found, "random", measure)
        random += _point(share, spread, ("mean", "minimum", "maximum"), f"random, size of {what}")
    limits = {name: finite(part(result.data, "ends", result.ablation, name, measure).get("value")) for name in ENDS}
    points = [point for points in (*series.values(), random) for point in points]
    y = _frontier_axis(result, measure, points, [value for value in limits.values() if value is not None])
    rules = [plots.Rule(ENDS[name], y=value) for name, value in limits.items() if value is not None]
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


def _point(x: float, found: Json, keys: Sequence[str], what: str) -> list[plots.Point]:
    y, low, high = (finite(found.get(key)) for key in keys)
    return [] if y is None else [plots.Point(x, y, f"{what}: {number(y)}", low, high)]
