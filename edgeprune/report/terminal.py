"""The result of `edgeprune evaluate` for a terminal: a few tables; everything is in the JSON and on the page."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from edgeprune.tables import Numbers, Value, dim, interval, number, spread, table

MAIN = ("kl", "squared_error", "logit_difference", "accuracy", "exact_match")
GRID = ("kl", "squared_error", "logit_difference")  # by ablation
MOST_PAIRS = 30  # more pairs of circuits than that are not all in the table
MOST_NODES = 10
ANSWERS = ("logit_difference", "probability_difference", "accuracy")
AREAS = {"cpr": "CPR", "cmd": "CMD", "accuracy_area": "accuracy area"}
ENDS = {"full": "(full model)", "empty": "(no edges)"}
_SIDES = ("circuit", "complement")
Json = dict[str, Any]


def tables(result: Json) -> Iterator[Table]:
    """The circuits, then ablations side by side, controls, pairs and runs where there are any."""
    yield circuit_table(result)
    if len(result["about"]["ablations"]) > 1:
        yield from (ablation_table(result, name) for name in GRID if name in _main(result))
    if any("controls" in row for row in result["circuits"]):
        yield control_table(result)
    if "weights" in result:
        yield weight_table(result["weights"])
    if result["pairs"]:
        yield pair_table(result)
    if result["runs"]:
        yield run_table(result)


def _main(result: Json) -> list[str]:
    """Measures in the tables; of KL and squared error the one that the first circuit was found by, if there is one."""
    known = [name for name in MAIN if name in result["measures"]]
    hidden = "kl" if result["circuits"][0]["objective"] == "squared_error" else "squared_error"
    if {"kl", "squared_error"} <= set(known):
        known.remove(hidden)
    return known or list(result["measures"])[:5]


def _measures(result: Json, names: Sequence[str]) -> list[Numbers]:
    return [Numbers(result["measures"][name]["heading"]) for name in names]


def _figure(figure: Json) -> str:
    return interval(figure["value"], figure["low"], figure["high"])


def _spread(found: Json) -> str:
    return spread(found["mean"], found["deviation"])


def circuit_table(result: Json) -> Table:
    """Figures with intervals, those of random circuits of the same size below."""
    about, shown = result["about"], _main(result)
    title = (
        f"{about['model']}, {about['num_examples']} {about['split']} pairs, {about['ablation']} ablation "
        f"({100 * about['resampling']['level']:g} % intervals over pairs)"
    )
    faithful = [name for name in ANSWERS if name in result["measures"]][:1]
    ends = result["ends"][about["ablation"]]
    unions = [Numbers("union's sparsity", 4), Numbers("edges")] if about.get("roles") else []
    inside = any("attention" in row for row in result["circuits"])
    attention = [Numbers("attention edges' sparsity", 4), Numbers("edges")] if inside else []
    blank = [""] * (3 + len(unions) + len(attention))
    rows: list[list[Value]] = []
    for row in result["circuits"]:
        found = row["ablations"][about["ablation"]]
        union, open_ones = row.get("union", row), row.get("attention", {"sparsity": 0.0, "edges": "all"})
        sizes = (row["sparsity"], row["edges"], row["dangling"], *(union["sparsity"], union["edges"])[: len(unions)])
        sizes += (open_ones["sparsity"], open_ones["edges"])[: len(attention)]
        figures = [*(found["measures"][name] for name in shown), *(found["normalised"][name] for name in faithful)]
        rows.append([row["name"], *sizes, *map(_figure, figures)])
        spreads = [dim(_spread(found["random"][name])) for name in shown]
        rows.append([dim("  random"), *blank, *spreads, *[""] * len(faithful)])
    for end, label in ENDS.items():
        rows.append([label, *blank, *(_figure(ends[end][name]) for name in shown), *[""] * len(faithful)])
    columns = ["circuit", Numbers("sparsity", 4), Numbers("edges"), Numbers("dangling"), *unions, *attention]
    columns += _measures(result, shown)
    columns += [Numbers(f"faithfulness ({column.heading})") for column in _measures(result, faithful)]
    return table(title, columns, rows)


def ablation_table(result: Json, measure: str) -> Table:
    """One measure under every ablation."""
    ablations = result["about"]["ablations"]
    rows = [
        [row["name"], *(_figure(row["ablations"][name]["measures"][measure]) for name in ablations)]
        for row in result["circuits"]
    ]
    rows += [
        [label, *(result["ends"][name][end][measure]["value"] for name in ablations)] for end, label in ENDS.items()
    ]
    heading = result["measures"][measure]["heading"]
    return table(f"{heading} by ablation", ["circuit", *map(Numbers, ablations)], rows)


def control_table(result: Json) -> Table:
    """What other choices of edges do."""
    shown = _main(result)
    rows = [
        [row["name"], name, *(control["figures"][measure] for measure in shown)]
        for row in result["circuits"]
        for name, control in row["controls"]["controls"].items()
    ]
    title = f"Controls, first {result['about']['test_examples']} pairs"
    return table(title, ["circuit", "control", *_measures(result, shown)], rows)


def weight_table(found: Json) -> Table:
    """Heads and MLPs by the share of their weights that is kept, from the densest; the page has all tensors."""
    nodes = sorted(found["nodes"].items(), key=lambda item: -item[1])[:MOST_NODES]
    title = f"Weights kept: {found['kept']:,} of {found['gated']:,}, {100 * found['density']:.3g} %; the densest nodes"
    return table(title, ["node", Numbers("%", 2)], [[name, 100 * share] for name, share in nodes])


def pair_table(result: Json) -> Table:
    """Every two circuits: what they share, and how their figures differ; of many, each one and the next."""
    shown, pairs, title = _main(result), result["pairs"], "Every two circuits on the same pairs"
    if len(pairs) > MOST_PAIRS:
        every = f"{len(pairs):,}"
        pairs = [pair for pair in pairs if pair["b"] == pair["a"] + 1]
        title = f"Each circuit and the next on the same pairs ({len(pairs)} of {every}; --json and --report have all)"
    title += "; edges shared by their unions" if any(pair.get("of_unions") for pair in pairs) else ""
    rows: list[list[Value]] = []
    for pair in pairs:
        names = (result["circuits"][pair[side]]["name"] for side in ("a", "b"))
        differences = [pair["differences"][name] for name in shown]
        texts = (f"{number(item['value'])} ({number(item['p_value'])})" for item in differences)
        rows.append([", ".join(names), pair["both"], pair["expected"], pair["jaccard"], *texts])
    columns = ["circuits", Numbers("shared"), Numbers("by chance", 1), Numbers("Jaccard")]
    columns += [Numbers(f"{column.heading}, 1st - 2nd (p)") for column in _measures(result, shown)]
    return table(title, columns, rows)


def run_table(result: Json) -> Table:
    """What the circuits of each run are worth together, over their sizes."""
    rows: list[list[Value]] = []
    for run in result["runs"]:
        nested, curve = run["nested"], run["mib"]
        sizes = f"{len(run['circuits'])}: {number(run['edges'][0])} to {number(run['edges'][-1])} edges"
        areas = [_figure(curve["intervals"][name]) if curve else "" for name in AREAS]
        seed = "" if run["seed"] is None else f", seed {run['seed']}"
        rows.append([f"{run['method']}{seed}", sizes, *areas, nested["share"], nested["expected"], nested["every_two"]])
    columns = ["run", "circuits", *map(Numbers, AREAS.values())]
    columns += [Numbers("nested (in the next larger)"), Numbers("by chance"), Numbers("in every larger")]
    measures = dict.fromkeys(run["mib"]["measure"] for run in result["runs"] if run["mib"])
    of = ", ".join(result["measures"][name]["heading"] for name in measures)
    return table(f"Circuits of one run over their sizes{f' ({of})' if of else ''}", columns, rows)


# -------------------------------------------------------------------- lines
def notes(result: Json) -> Iterator[str]:
    """One line for circuits that differ in their seed, for each test of each circuit and for each known circuit."""
    yield from (_seeds(group, result) for group in result["seeds"])
    for row in result["circuits"]:
        for name, line in (("completeness", _completeness), ("minimality", _minimality), ("suffix", _suffix)):
            if name in row:
                yield f"{row['name']}: {line(row[name])}"
        for test in row.get("hypothesis", {}).get("tests", {}).values():
            yield f"{row['name']}: {test['name']}: {test['reading']}"
        for what in ("edges", "weights"):
            if (part := row.get("functional", {}).get(what)) is not None:
                yield f"{row['name']}: {_functional(what, part, row['functional'])}"
        if row.get("mib"):
            yield f"{row['name']}: {_mib(row['mib'])}"
        for name, known in row["known"].items():
            yield f"{row['name']}: against {name}: {known['summary']}"


def _seeds(group: Json, result: Json) -> str:
    names = ", ".join(result["circuits"][place]["name"] for place in group["circuits"])
    found = group["ablations"][result["about"]["ablation"]]["measures"]
    figures = [f"{result['measures'][name]['heading']} {_spread(found[name])}" for name in _main(result)]
    return f"{names}: {group['method']}, {len(group['seeds'])} seeds: {', '.join(figures)}"


def _mib(found: Json) -> str:
    """The areas by both rankings: those by absolute score mean nothing for scores without a meaningful zero."""
    rankings = {"score": found["signed"], "absolute score": found["absolute"]}
    return "; ".join(f"{_areas(curve['intervals'])} by {name}" for name, curve in rankings.items())


def _areas(intervals: Json) -> str:
    return ", ".join(f"{heading} {_plain(intervals[name])}" for name, heading in AREAS.items())


def _plain(figure: Json) -> str:
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"


def _functional(what: str, part: Json, found: Json) -> str:
    with_it, without = (_plain(part[side]) for side in _SIDES)
    return (
        f"functional, {what} ({number(100 * part['share'], 2)} % kept): accuracy {with_it} with, {without} without; "
        f"full model {number(found['full']['value'])}, chance {number(found['chance'])}"
    )


def _completeness(found: Json) -> str:
    if found["max"] is None:
        return "completeness: not defined"
    nodes = ", ".join(found["worst"]["nodes"][:6]) or "nothing"
    return (
        f"completeness: the largest difference in {found['measure']} between circuit and model without the same nodes "
        f"is {number(found['max'])}, without {nodes} ({len(found['knock_outs'])} sets)"
    )


def _minimality(found: Json) -> str:
    return (
        f"minimality: {found['num_redundant']} of {found['num_closed']} edges do not worsen {found['measure']} when "
        "closed alone"
    )


def _suffix(found: Json) -> str:
    verdict = found["verdict"]["stream"]
    return (
        f"suffix ablation: without its {len(found['nodes'])} nodes the output changes by "
        f"{number(found['circuit']['stream']['relative_change'])} of its norm, {number(verdict['ratio'])} times as "
        f"much as without random ones (p = {number(verdict['p_value'])})"
    )
