"""The frontier over the trials of a sweep: sparsity against faithfulness, and the best circuit of each sparsity."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar, final

from rich.console import Console
from rich.table import Table

from edgeprune.errors import EdgepruneError
from edgeprune.objectives import Objective, error_measure
from edgeprune.parsing import parse_yaml, read_table, read_text
from edgeprune.paths import save_figure, write_table
from edgeprune.report.frontier import ERROR_LABELS
from edgeprune.runs import numbered_name
from edgeprune.sweeps.parameters import short
from edgeprune.sweeps.store import Store, Trial
from edgeprune.sweeps.worker import RUN
from edgeprune.tables import Numbers, Value, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
SEED = "seed_everything"
MOST_SETTINGS = 8  # that have a colour each in the plot
FAR = 2.0  # times the greatest error: random circuits from there on are named, not drawn
NEAR = 2  # digits that the sparsity of a circuit of none given is rounded to
_NAME = re.compile(r"(?:^|, )([\w.]+)=")  # of a parameter in `Found.settings`


@final
@dataclass(frozen=True)
class Found:
    """One circuit of one trial."""

    trial: int  # number
    problem: str  # task and model
    method: str  # class of the recipe
    settings: str  # the trial's parameters but for the seed
    seed: Any
    level: float  # sparsity it was taken for; of the final gates' circuit its actual one, rounded
    sparsity: float  # actual
    edges: int
    reached: bool  # the gates had got that sparse; else the circuit was cut from them
    objective: Objective  # what `error` is
    error: float  # on the validation pairs
    random_error: float  # of a random circuit of its size
    file: str  # path from the folder of the sweep
    attention_edges: int | None = None  # open ones; None: all are
    attention_sparsity: float | None = None  # actual


def summarise(folder: Path, console: Console) -> None:
    """Print the best circuits of a sweep; write `summary.csv` and `summary.png` in its folder.

    Raises:
        EdgepruneError: If the folder holds no sweep, or no trial of it has ended well.
    """
    store = Store.open(folder)
    trials = store.trials()
    found = [item for trial in trials if trial.state == "done" for item in circuits_of(store, trial)]
    if not found:
        states = {state: sum(trial.state == state for trial in trials) for state in ("running", "waiting", "failed")}
        counts = ", ".join(f"{count} {state}" for state, count in states.items() if count) or "none was started"
        raise EdgepruneError(f"{folder}: no trial has found circuits yet ({counts}); run the sweep to its end first")
    write_summary(folder, found)
    done = sum(trial.state == "done" for trial in trials)
    console.print(summary_table(f"{store.plan.name}: best circuits of {done} trials", found))
    for item in best(found):
        console.print(f"{item.problem}, sparsity {item.level:g}: {folder / item.file}", soft_wrap=True, highlight=False)
    console.print(f"summary.csv and summary.png are in {folder}", soft_wrap=True, highlight=False)


def circuits_of(store: Store, trial: Trial) -> list[Found]:
    """What a trial found, as its `frontier.csv` has it."""
    folder = store.trial_folder(trial.number) / RUN
    file, rows = folder / "config.yaml", read_table(folder / "frontier.csv")
    if not rows or not file.is_file():  # a config without SnapshotCircuits
        return []
    config = parse_yaml(read_text(file), str(file))
    objective = error_measure(config["model"]["objective"])
    settings = {name: value for name, value in trial.values.items() if name != SEED}
    alone = (config["model"]["recipe"].get("init_args") or {}).get("attention_edges") == "alone"
    sized = "attention_sparsity" if alone and "attention_sparsity" in rows[0] else "sparsity"
    return [
        Found(
            trial=trial.number,
            problem=f"{_class(config['data']['task'])} on {config['model']['name']}",
            method=_class(config["model"]["recipe"]),
            settings=", ".join(f"{name}={value}" for name, value in settings.items()),
            seed=config[SEED],
            level=_level(row, sized),
            sparsity=float(row["sparsity"]),
            edges=int(row["edges"]),
            reached=row["reached"] == "True",
            objective=objective,
            error=float(row[objective]),
            random_error=float(row[f"random_{objective}"]),
            file=str(_circuit_file(folder, row["asked"]).relative_to(store.folder)),
            attention_edges=_number(row, "attention_edges", int),
            attention_sparsity=_number(row, "attention_sparsity", float),
        )
        for row in rows
    ]


def best(found: Iterable[Found]) -> list[Found]:
    """The circuit with the least error at each problem and level; of equals one that was reached, then the sparser.

    Sparser is one with fewer edges, then with fewer attention edges. Of circuits that differ in these alone, those with
    more are likely to win: look at the column.
    """

    def order(item: Found) -> tuple[float, bool, float, float, int]:
        return _finite(item.error), not item.reached, -item.sparsity, -(item.attention_sparsity or 0.0), item.trial

    winners: dict[tuple[str, float], Found] = {}
    for item in sorted(found, key=order):
        winners.setdefault((item.problem, item.level), item)
    return [winners[key] for key in sorted(winners)]


def spread(found: Sequence[Found]) -> dict[float, tuple[float, float, float]]:
    """Level -> least, mean and greatest error; for circuits that differ in their seed alone.

    A trial counts once at each level, with its better circuit: the final gates' may have the sparsity of another one.
    """
    errors: dict[float, dict[int, float]] = {}
    for item in sorted(found, key=lambda item: (item.level, -_finite(item.error))):
        errors.setdefault(item.level, {})[item.trial] = item.error
    return {level: (min(each.values()), fmean(each.values()), max(each.values())) for level, each in errors.items()}


def series(found: Iterable[Found]) -> dict[tuple[str, str, str], list[Found]]:
    """Circuits by problem, method and settings: what differs inside one series is the seed."""
    grouped: dict[tuple[str, str, str], list[Found]] = {}
    for item in found:
        grouped.setdefault((item.problem, item.method, item.settings), []).append(item)
    return grouped


def summary_table(title: str, found: Sequence[Found]) -> Table:
    """A row for each problem and level: the best circuit, and the errors of its settings over seeds.

    Where some circuit has attention edges, their number too, and their sparsity.
    """
    grouped, winners = series(found), best(found)
    inside = _has_attention(found)
    problems = {item.problem for item in found}
    several = len(problems) > 1
    rows: list[list[Value]] = []
    for item in winners:
        alike = grouped[item.problem, item.method, item.settings]
        least, mean, most = spread(alike)[item.level]
        seeds = len({other.seed for other in alike})
        rows.append(
            [
                *([item.problem] if several else []),
                *(item.method, f"{item.level:g}{'' if item.reached else ' *'}", item.edges),
                *([_attention(item)] if inside else []),
                *(item.error, item.random_error, f"{seeds}: {mean:.4f} ({least:.4f} to {most:.4f})", item.trial),
            ]
        )
    more = ["attention edges (sparsity)"] if inside else []
    headings = ("sparsity", "edges", *more, "error", "random", "seeds: mean (range)", "trial")
    return table(
        title if several else f"{title}, {problems.pop()}",
        [*(["problem"] if several else []), "method", *(Numbers(heading, 4) for heading in headings)],
        rows,
        caption=None if all(item.reached for item in winners) else "* never reached: cut from the final gates",
    )


def write_summary(folder: Path, found: Sequence[Found]) -> None:
    """Write `summary.csv`, a row for each circuit, and `summary.png`."""
    left_out = () if _has_attention(found) else ("attention_edges", "attention_sparsity")
    rows = [{name: value for name, value in asdict(item).items() if name not in left_out} for item in found]
    write_table(folder / "summary.csv", rows)
    save_figure(frontier_figure(found), folder / "summary.png", dpi=130)


def frontier_figure(found: Sequence[Found]) -> "Figure":
    """One panel for each problem: share of edges kept against error, bars over seeds.

    Where a problem's circuits differ in attention edges alone, the number of these. Colours tell settings apart where
    there is one method with few of them, else methods. Circuits without any edge have no place on the logarithmic axis
    and are left out.
    """
    from matplotlib.figure import Figure

    problems = sorted({item.problem for item in found})
    colours = _colours(found)
    figure = Figure(figsize=(6.4 * len(problems), 5.2), layout="constrained")
    panels = figure.subplots(1, len(problems), squeeze=False)[0]
    for axes, problem in zip(panels, problems, strict=True):
        _panel(axes, [item for item in found if item.problem == problem], colours)
        axes.set_title(problem)
    return figure


def _colours(found: Sequence[Found]) -> dict[tuple[str, str], tuple[str, str]]:
    """A colour and a name in the legend for each method and settings."""
    kinds = list(dict.fromkeys((item.method, item.settings) for item in found))
    methods = sorted({method for method, _ in kinds})
    if len(methods) == 1 and 1 < len(kinds) <= MOST_SETTINGS:
        names = list(dict.fromkeys(name for _, settings in kinds for name in _NAME.findall(settings)))
        texts = [_NAME.sub(lambda one: one[0].replace(one[1], short(one[1], names)), kind[1]) for kind in kinds]
        return {kind: (f"C{place}", texts[place]) for place, kind in enumerate(kinds)}
    return {kind: (f"C{methods.index(kind[0])}", kind[0]) for kind in kinds}


def _panel(axes: Any, found: Sequence[Found], colours: dict[tuple[str, str], tuple[str, str]]) -> None:
    size, kind = _axis(found)
    found = [item for item in found if size(item)]
    grouped = series(found)
    named: dict[str, Any] = {}
    for place, ((_, method, settings), alike) in enumerate(grouped.items()):
        colour, name = colours[method, settings]
        aside = 1.012 ** (place - (len(grouped) - 1) / 2)  # bars of several series beside each other
        named.setdefault(name, _series(axes, alike, size, colour, aside))
    winners = best(found)
    kept = [size(item) for item in winners]
    lines = dict(named)
    (lines["best of each sparsity"],) = axes.plot(
        kept, [item.error for item in winners], "k*", markersize=8, zorder=5, markerfacecolor="none"
    )
    if not all(item.reached for item in found):
        (lines["hollow: never reached, cut from the final gates"],) = axes.plot([], [], "o", color="0.4", mfc="white")
    name, line = _random(axes, found, kept, winners)
    lines[name] = line
    labels = sorted({ERROR_LABELS[item.objective] for item in found})
    axes.set(xlabel=kind, ylabel=" or ".join(labels))
    axes.set_xscale("log")
    axes.set_xticks(kept, [f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in kept])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    several = any(len({item.seed for item in alike}) > 1 for alike in grouped.values())
    axes.legend(
        list(lines.values()),
        list(lines),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),  # below: curves go anywhere
        ncols=2,
        frameon=False,
        fontsize=8,
        title="mean and range over seeds" if several else None,
        title_fontsize=8,
    )


def _axis(found: Sequence[Found]) -> tuple[Callable[[Found], float], str]:
    """Size of a circuit on the axis of a panel with these, and what it is."""
    inside = len(found) > 1 and len({item.edges for item in found}) == 1
    if inside and all(item.attention_edges is not None for item in found):
        return lambda item: item.attention_edges or 0, "attention edges kept"
    return lambda item: 100 * (1 - item.sparsity) if item.edges else 0, "edges kept (%)"


def _series(axes: Any, alike: Sequence[Found], size: Callable[[Found], float], colour: str, aside: float) -> Any:
    """Means and ranges over seeds; hollow where any seed's gates were never that sparse."""
    seeds = spread(alike)
    at = {level: [item for item in alike if item.level == level] for level in seeds}
    kept = [aside * fmean(size(item) for item in items) for items in at.values()]
    means = [mean for _, mean, _ in seeds.values()]
    bars = [[mean - least for least, mean, _ in seeds.values()], [most - mean for _, mean, most in seeds.values()]]
    drawn = axes.errorbar(kept, means, bars, fmt="o-", markersize=4, capsize=3, color=colour, alpha=0.8)
    for x, mean, items in zip(kept, means, at.values(), strict=True):
        if not all(item.reached for item in items):
            axes.plot(x, mean, "o", markersize=4, color=colour, markerfacecolor="white", zorder=4)
    return drawn


def _random(axes: Any, found: Sequence[Found], kept: Sequence[float], winners: Sequence[Found]) -> tuple[str, Any]:
    """The random circuits of the winners' sizes: a line, or where that is far above the others words in the legend."""
    errors = [item.random_error for item in winners]
    top = max((item.error for item in found if math.isfinite(item.error)), default=0.0)
    style = {"color": "0.6", "markersize": 4}
    if top and min(errors, default=0.0) > FAR * top:
        axes.set_ylim(0, 1.1 * top)
        (line,) = axes.plot([], [], "s--", **style)
        least, most = (f"{value:.2f}" for value in (min(errors), max(errors)))
        return f"random, of its size: {least if least == most else f'{least} to {most}'}, above", line
    (line,) = axes.plot(kept, errors, "s--", **style)
    return "random, of its size", line


def _has_attention(found: Iterable[Found]) -> bool:
    return any(item.attention_edges is not None for item in found)


def _attention(item: Found) -> str:
    """Attention edges of a circuit, in a table."""
    sparsity = "" if item.attention_sparsity is None else f" ({item.attention_sparsity:.4f})"
    return "all" if item.attention_edges is None else f"{item.attention_edges:,}{sparsity}"


def _finite(error: float) -> float:
    return error if math.isfinite(error) else math.inf


def _class(section: dict[str, Any]) -> str:
    return str(section["class_path"]).rpartition(".")[2]


def _level(row: dict[str, str], sized: str) -> float:
    """`sized`: the column that has the sparsity of what was trained."""
    try:
        return float(row["asked"])
    except ValueError:  # "final gates"
        return round(float(row[sized]), NEAR)


def _number(row: dict[str, str], name: str, kind: Callable[[str], T]) -> T | None:
    return kind(row[name]) if row.get(name) else None


def _circuit_file(folder: Path, asked: str) -> Path:
    try:
        name = numbered_name(float(asked))
    except ValueError:
        name = "final"
    return folder / "circuits" / f"{name}.safetensors"
