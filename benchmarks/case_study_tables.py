"""Tables and plot of the result files of `case_study.py`.

Tables go into a page between `<!-- NAME -->` and `<!-- end -->`; names: `accuracies`, and for every sparsity
`overlap`, `transfer`, `heads` and `counts`, one after another.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from case_study_compare import WAYS, kind
from markdown_tables import markdown

Values = Mapping[str, Any]
ASKED = {"instruction": "by instruction", "few_shot": "by examples"}
TOP_HEADS = 8


def percent(sparsity: str) -> str:
    """0.98 as 98 %."""
    return f"{100 * float(sparsity):g} %"


def accuracies_table(found: Values) -> str:
    """A line for every model and task, in which every way has its two figures."""
    ways = {"instruction": "by instruction", "instruction, chat": "with the marks of a chat", "few_shot": "by examples"}
    lines: list[list[str]] = []
    for model, rows in found["accuracies"].items():
        for task in dict.fromkeys(row["task"] for row in rows):
            by_way = {row["way"]: row for row in rows if row["task"] == task}
            found_ways = (by_way.get(way) for way in ways)
            cells = [f"{row['accuracy']:.2f}, {row['accuracy_top1']:.2f}" if row else "-" for row in found_ways]
            lines.append([model, task, str(by_way["few_shot"]["pairs"]), *cells])
    return markdown(["model", "task", "pairs", *(f"{name}: accuracy, top-1" for name in ways.values())], lines)


# -------------------------------------------------------------------- of a comparison
def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Mean and range; a dash without values."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    middle = format(mean(values), form)
    return middle if len(values) == 1 else f"{middle} ({low:{form}} to {high:{form}})"


def overlap_table(found: Values) -> str:
    """Edges that two circuits share: of one way, and of both."""
    lines: list[list[str]] = []
    for sparsity, part in found["sparsities"].items():
        for name in (*WAYS, "between"):
            rows = [row for row in part["overlaps"] if row["kind"] == name]
            if not rows:
                continue
            times = [row["both"] / row["expected"] for row in rows]
            lines.append(
                [
                    *(percent(sparsity), ASKED.get(name, "one of each"), str(len(rows))),
                    *(spread([row["both"] for row in rows], ".0f"), f"{mean(row['expected'] for row in rows):.1f}"),
                    *(f"{mean(times):.1f}", f"{max(row['log10_p_value'] for row in rows):.0f}"),
                    *(spread([row[key] for row in rows]) for key in ("jaccard", "nodes")),
                ]
            )
    heads = ["sparsity", "two circuits, asked", "pairs of circuits", "edges in both", "by chance", "times chance"]
    return markdown([*heads, "log10 p, largest", "Jaccard of edges", "of nodes"], lines)


def transfer_table(found: Values) -> str:
    """KL, accuracies of every group of circuits on the prompts of both ways."""
    lines: list[list[str]] = []
    for sparsity, part in found["sparsities"].items():
        for name, row in part["places"][WAYS[0]].items():
            size = f"{mean(row['edges']):,.0f}" if row["edges"] else "-"
            cells: list[str] = [percent(sparsity), ASKED.get(name) or name, size]
            for way in WAYS:
                figures = part["places"][way][name]["figures"]
                cells += [interval(figures["kl"]), *(f"{figures[key]['value']:.2f}" for key in SHARES)]
            lines.append(cells)
    columns = [f"{what}, {ASKED[way]}" for way in WAYS for what in ("KL", "accuracy", "top-1", "as the model")]
    return markdown(["sparsity", "circuits", "edges", *columns], lines)


SHARES = "accuracy", "accuracy_top1", "exact_match"


def interval(estimate: Values) -> str:
    """A figure and its interval."""
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def heads_table(found: Values) -> str:
    """The heads on which most hangs: shared ones, and those of one way alone."""
    lines: list[list[str]] = []
    for sparsity, part in found["sparsities"].items():
        for wanted in ("shared", *WAYS):
            rows = [row for row in part["heads"]["rows"] if kind(row["circuits"], found["num_seeds"]) == wanted]
            rows.sort(key=lambda row: -max(row["weight"].values()))
            for row in rows[:TOP_HEADS]:
                lines.append(
                    [
                        *(percent(sparsity), wanted if wanted == "shared" else f"{ASKED[wanted]} alone"),
                        f"`{row['head']}`",
                        *(f"{100 * row['weight'][way]:.1f} %" for way in WAYS),
                        *(largest(row["attends"][way]) for way in WAYS),
                    ]
                )
    weights, parts = ([f"{what}, {ASKED[way]}" for way in WAYS] for what in ("share of effects", "attends to"))
    return markdown(["sparsity", "found", "head", *weights, *parts], lines)


def largest(attends: Values) -> str:
    """The two parts that get most attention."""
    best = sorted(attends.items(), key=lambda part: -part[1])[:2]
    return ", ".join(f"{name} {share:.2f}" for name, share in best)


def counts_table(found: Values) -> str:
    """How many heads matter in both ways' circuits, and how alike their effects are."""
    lines: list[list[str]] = []
    for sparsity, part in found["sparsities"].items():
        own = part["heads"]
        lines.append(
            [
                *(percent(sparsity), *(str(own["num"][way]) for way in WAYS), str(own["shared"])),
                *(f"{own['expected']:.1f}", f"{own['p_value']:.2g}"),
                *(spread(own["spearman"][name], ".2f") for name in (*WAYS, "between")),
                *(f"{100 * own['weight_of_shared'][way]:.0f} %" for way in WAYS),
            ]
        )
    heads = ["sparsity", *(f"heads, {ASKED[way]}" for way in WAYS), "shared", "by chance", "p"]
    ranks = [f"rank correlation, {name}" for name in (*ASKED.values(), "one of each")]
    return markdown([*heads, *ranks, *(f"effects of shared heads, {ASKED[way]}" for way in WAYS)], lines)


# -------------------------------------------------------------------- plot
def plot(found: Values, path: Path) -> None:
    """Left: overlap beside that of seeds and chance. Then KL of the circuits on the prompts of each way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    left, *places = figure.subplots(1, 3, width_ratios=(2, 3, 3))
    sparsities = list(found["sparsities"])
    width = 0.8 / len(sparsities)
    for number, sparsity in enumerate(sparsities):
        part, shift = found["sparsities"][sparsity], (number - (len(sparsities) - 1) / 2) * width
        names = [name for name in (*WAYS, "between") if any(row["kind"] == name for row in part["overlaps"])]
        values = [[row["jaccard"] for row in part["overlaps"] if row["kind"] == name] for name in names]
        sizes = [mean(sizes) for sizes in part["edges"].values()]
        shared = sizes[0] * sizes[1] / found["graph_edges"]
        values.append([shared / (sum(sizes) - shared)])
        spots = [spot + shift for spot in range(len(values))]
        left.bar(spots, [mean(row) for row in values], width, label=percent(sparsity), color=f"C{number}")
        for spot, row in zip(spots, values, strict=True):
            left.plot([spot] * len(row), row, "k.", markersize=4)
        left.set_xticks(range(len(values)), [*(LABELS[name] for name in names), "chance"], fontsize=8)
        for axes, way in zip(places, WAYS, strict=True):
            rows = {name: row for name, row in part["places"][way].items() if name in SHOWN}
            figures = [row["figures"]["kl"] for row in rows.values()]
            spots = [spot + shift for spot in range(len(rows))]
            ends = [[one["value"] - one["low"] for one in figures], [one["high"] - one["value"] for one in figures]]
            heights = [one["value"] for one in figures]
            axes.bar(spots, heights, width, yerr=ends, capsize=2, color=f"C{number}")
            axes.set_xticks(range(len(rows)), [SHOWN[name] for name in rows], rotation=30, ha="right")
            axes.set_yscale("log")
            axes.set(title=f"asked {ASKED[way]}", ylabel="KL")
    left.set(title="edges in common", ylabel="Jaccard")
    left.legend(title="sparsity")
    figure.savefig(path, dpi=130)


LABELS = {"instruction": "seeds,\ninstruction", "few_shot": "seeds,\nexamples", "between": "one of\neach"}
SHOWN = {
    "instruction": "of the instruction",
    "few_shot": "of the examples",
    "intersection": "intersection",
    "union": "union",
    "random, as large as the union": "random, as the union",
    "empty circuit": "empty",
}
