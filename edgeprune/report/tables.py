"""The result of `edgeprune evaluate` for a terminal: a few tables; everything is in the JSON and on the page."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

MAIN = ("kl", "squared_error", "logit_difference", "accuracy", "exact_match")
GRID = ("kl", "squared_error", "logit_difference")  # by ablation
MOST_PAIRS = 30  # more pairs of circuits than that are not all in the table
ANSWERS = ("logit_difference", "probability_difference", "accuracy")
Row = dict[str, Any]


def tables(result: Row) -> Iterator[Table]:
    """The circuits, then ablations side by side and controls where there are any."""
    yield circuit_table(result)
    if len(result["about"]["ablations"]) > 1:
        yield from (ablation_table(result, name) for name in GRID if name in _main(result))
    if any("controls" in row for row in result["circuits"]):
        yield control_table(result)
    if result["pairs"]:
        yield pair_table(result)


def _main(result: Row) -> list[str]:
    """Measures in the tables; of KL and squared error the one that the first circuit was found by, if there is one."""
    known = [name for name in MAIN if name in result["measures"]]
    hidden = "kl" if result["circuits"][0]["objective"] == "squared_error" else "squared_error"
    if {"kl", "squared_error"} <= set(known):
        known.remove(hidden)
    return known or list(result["measures"])[:5]


def _table(title: str, left: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(left, overflow="fold", min_width=10)
    for heading in columns:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _headings(result: Row, names: Sequence[str]) -> list[str]:
    return [result["measures"][name]["heading"] for name in names]


def number(value: float | None) -> str:
    """Three decimals; a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def interval(figure: Row) -> str:
    """A figure with its interval."""
    if figure["low"] is None:
        return number(figure["value"])
    return f"{number(figure['value'])} [dim]\\[{number(figure['low'])}, {number(figure['high'])}][/dim]"


def circuit_table(result: Row) -> Table:
    """Figures with intervals, those of random circuits of the same size below."""
    about, shown = result["about"], _main(result)
    title = (
        f"{about['model']}, {about['num_examples']} {about['split']} pairs, {about['ablation']} ablation "
        f"({100 * about['resampling']['level']:g} % intervals over pairs)"
    )
    faithful = next((name for name in ANSWERS if name in result["measures"]), None)
    more = [] if faithful is None else [f"faithfulness ({result['measures'][faithful]['heading']})"]
    table = _table(title, "circuit", ["sparsity", "edges", "dangling", *_headings(result, shown), *more])
    ends = result["ends"][about["ablation"]]
    for row in result["circuits"]:
        found = row["ablations"][about["ablation"]]
        sizes = (f"{row['sparsity']:.4f}", f"{row['edges']:,}", f"{row['dangling']:,}")
        last = [] if faithful is None else [interval(found["normalised"][faithful])]
        table.add_row(row["name"], *sizes, *(interval(found["measures"][name]) for name in shown), *last)
        spread = [_spread(found["random"][name]) for name in shown]
        table.add_row("[dim]  random[/dim]", "", "", "", *spread, *[""] * len(more), style="dim")
    for end, label in (("full", "(full model)"), ("empty", "(no edges)")):
        table.add_row(label, "", "", "", *(interval(ends[end][name]) for name in shown), *[""] * len(more))
    return table


def _spread(found: Row) -> str:
    if found["deviation"] is None:
        return number(found["mean"])
    return f"{number(found['mean'])} ± {number(found['deviation'])}"


def ablation_table(result: Row, measure: str) -> Table:
    """One measure under every ablation."""
    ablations = result["about"]["ablations"]
    heading = result["measures"][measure]["heading"]
    table = _table(f"{heading} by ablation", "circuit", ablations)
    for row in result["circuits"]:
        table.add_row(row["name"], *(interval(row["ablations"][name]["measures"][measure]) for name in ablations))
    for end, label in (("full", "(full model)"), ("empty", "(no edges)")):
        table.add_row(label, *(number(result["ends"][name][end][measure]["value"]) for name in ablations))
    return table


def control_table(result: Row) -> Table:
    """What other choices of edges do."""
    shown = _main(result)
    table = _table(
        f"Controls, first {result['about']['test_examples']} pairs", "circuit", ["control", *_headings(result, shown)]
    )
    for row in result["circuits"]:
        for name, control in row["controls"]["controls"].items():
            table.add_row(row["name"], name, *(number(control["figures"][measure]) for measure in shown))
    return table


def pair_table(result: Row) -> Table:
    """Every two circuits: what they share, and how their figures differ; of many, each one and the next."""
    shown, pairs, title = _main(result), result["pairs"], "Every two circuits on the same pairs"
    if len(pairs) > MOST_PAIRS:
        every = f"{len(pairs):,}"
        pairs = [pair for pair in pairs if pair["b"] == pair["a"] + 1]
        title = f"Each circuit and the next on the same pairs ({len(pairs)} of {every}; --json and --report have all)"
    columns = ["shared", "by chance", "Jaccard", *(f"{heading}, 1st - 2nd (p)" for heading in _headings(result, shown))]
    table = _table(title, "circuits", columns)
    for pair in pairs:
        names = f"{result['circuits'][pair['a']]['name']}, {result['circuits'][pair['b']]['name']}"
        shares = (f"{pair['both']:,}", f"{pair['expected']:,.1f}", f"{pair['jaccard']:.3f}")
        differences = [pair["differences"][name] for name in shown]
        table.add_row(names, *shares, *(f"{number(item['value'])} ({number(item['p_value'])})" for item in differences))
    return table


# -------------------------------------------------------------------- lines
def notes(result: Row) -> Iterator[str]:
    """One line for circuits that differ in their seed, for each test of each circuit and for each known circuit."""
    yield from (_seeds(group, result) for group in result["seeds"])
    for row in result["circuits"]:
        for name, line in (("completeness", _completeness), ("minimality", _minimality), ("suffix", _suffix)):
            if name in row:
                yield f"{row['name']}: {line(row[name])}"
        for test in row.get("hypothesis", {}).get("tests", {}).values():
            yield f"{row['name']}: {test['name']}: {test['reading']}"
        if row.get("mib"):
            yield f"{row['name']}: {_mib(row['mib'])}"
        for name, known in row["known"].items():
            yield f"{row['name']}: against {name}: {known['summary']}"


def _seeds(group: Row, result: Row) -> str:
    names = ", ".join(result["circuits"][place]["name"] for place in group["circuits"])
    spread = group["ablations"][result["about"]["ablation"]]["measures"]
    figures = [f"{result['measures'][name]['heading']} {_spread(spread[name])}" for name in _main(result)]
    return f"{names}: {group['method']}, {len(group['seeds'])} seeds: {', '.join(figures)}"


def _mib(found: Row) -> str:
    """Both areas by both rankings: that by absolute score means nothing for scores without a meaningful zero."""
    rankings = {"score": found["signed"], "absolute score": found["absolute"]}
    return "; ".join(
        f"CPR {number(curve['cpr'])} and CMD {number(curve['cmd'])} by {name}" for name, curve in rankings.items()
    )


def _completeness(found: Row) -> str:
    if found["max"] is None:
        return "completeness: not defined"
    nodes = ", ".join(found["worst"]["nodes"][:6]) or "nothing"
    return (
        f"completeness: the largest difference in {found['measure']} between circuit and model without the same nodes "
        f"is {number(found['max'])}, without {nodes} ({len(found['knock_outs'])} sets)"
    )


def _minimality(found: Row) -> str:
    return (
        f"minimality: {found['num_redundant']} of {found['num_closed']} edges do not worsen {found['measure']} when "
        "closed alone"
    )


def _suffix(found: Row) -> str:
    verdict = found["verdict"]["stream"]
    return (
        f"suffix ablation: without its {len(found['nodes'])} nodes the output changes by "
        f"{number(found['circuit']['stream']['relative_change'])} of its norm, {number(verdict['ratio'])} times as "
        f"much as without random ones (p = {number(verdict['p_value'])})"
    )
