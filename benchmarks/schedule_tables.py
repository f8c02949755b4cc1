"""Tables and plot of the runs of `schedule.py`.

    python benchmarks/schedule_tables.py --folder runs/schedule --out docs/results/schedule

Writes OUT.json (every run, without the KL of single pairs) and OUT.png, and in OUT.md what stands between
`<!-- NAME -->` and `<!-- end -->`, NAME being a problem's, `programs` or `separate`. `--keep` takes the runs that
OUT.json has and the folder lacks.

KL is a mean over seeds. Runs of one setting differ by their seeds: the spread of log KL is pooled over all settings of
a problem that have several seeds, and a setting is marked where it is further than three standard errors from the base.
"""

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_tables import lines_of, markdown
from schedule_settings import PROBLEMS, SETTINGS

Row = dict[str, Any]
APART = 3  # standard errors
ONE_RUN = ("base", "steps x 2, rate 0.03")  # what separate runs are held against
SEPARATE = ("Lagrangian", "published", "constant price")
WAYS = {
    "Lagrangian, equal steps": "Lagrangian to [0-9.]+$",
    "the same, multipliers x 10": "Lagrangian to .*multipliers",
    "constant price, equal steps": "constant price",
    "published form, 3,000 steps": "published to",
    "published form, 600 steps": "published / 5",
}


# -------------------------------------------------------------------- rows
def read(folder: Path) -> list[Row]:
    """All results."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*-s[0-9]*.json"))]
    for row in rows:
        for circuit in row.get("circuits", ()):
            values = circuit.pop("kl_of_pairs")
            circuit["kl_error"] = round(statistics.stdev(values) / math.sqrt(len(values)), 4)  # over pairs
    return rows


def merged(rows: Iterable[Row], kept: Iterable[Row]) -> list[Row]:
    """The rows, and those kept that are not among them; in the order of the settings."""
    by_name = {(row["problem"], row["setting"], row["seed"]): row for row in (*kept, *rows)}
    problems, settings = list(PROBLEMS), list(SETTINGS)
    return sorted(
        by_name.values(), key=lambda row: (problems.index(row["problem"]), settings.index(row["setting"]), row["seed"])
    )


def at(row: Row, sparsity: float) -> Row:
    """The snapshot of a sparsity."""
    return next(circuit for circuit in row["circuits"] if circuit["name"] == f"sparsity-{sparsity:.4f}")


def final(row: Row) -> Row:
    """The circuit of the final gates."""
    return next(circuit for circuit in row["circuits"] if circuit["name"] == "final")


def by_setting(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Runs by setting."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["setting"], []).append(row)
    return found


# -------------------------------------------------------------------- statistics
def logs(runs: Sequence[Row], sparsity: float) -> list[float]:
    """Log KL of each run."""
    return [math.log(at(run, sparsity)["kl"]) for run in runs]


def pooled_spread(settings: Mapping[str, Sequence[Row]], sparsity: float) -> float | None:
    """Standard deviation of log KL between seeds of one setting, pooled over settings; None: no setting has two."""
    groups = [logs(runs, sparsity) for runs in settings.values() if len(runs) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    return (
        math.sqrt(sum(statistics.variance(group) * (len(group) - 1) for group in groups) / freedom) if groups else None
    )


def mark(runs: Sequence[Row], base: Sequence[Row], sparsity: float, spread: float | None) -> str:
    """`-` or `+` where the runs are below or above the base by more than the seeds explain."""
    if spread is None or runs is base:
        return ""
    own, other = logs(runs, sparsity), logs(base, sparsity)
    distance = (statistics.mean(own) - statistics.mean(other)) / (spread * math.sqrt(1 / len(own) + 1 / len(other)))
    return " (+)" if distance > APART else " (-)" if distance < -APART else ""


def frontier_at(runs: Sequence[Row], sparsities: Sequence[float], edges: int) -> float | None:
    """KL of one-run frontiers at a number of edges, between two snapshots or the last and the end; None outside."""
    points = [
        (at(runs[0], sparsity)["edges"], statistics.mean(logs(runs, sparsity)))
        for sparsity in sparsities
        if all(at(run, sparsity)["reached"] for run in runs)
    ]
    ends = [final(run) for run in runs]
    points.append((statistics.mean(e["edges"] for e in ends), statistics.mean(math.log(e["kl"]) for e in ends)))
    points.sort()
    for (fewer, high), (more, low) in pairwise(points):
        if fewer <= edges <= more:
            share = math.log(edges / fewer) / math.log(more / fewer)
            return math.exp(high + share * (low - high))
    return None


# -------------------------------------------------------------------- tables
def language_table(rows: Sequence[Row]) -> str:
    """KL at every sparsity by setting."""
    sparsities = PROBLEMS[rows[0]["problem"]].sparsities
    settings = {name: runs for name, runs in by_setting(rows).items() if not name.startswith(SEPARATE)}
    spreads = {sparsity: pooled_spread(settings, sparsity) for sparsity in sparsities}
    base = settings["base"]

    def cell(runs: Sequence[Row], sparsity: float) -> str:
        values = [at(run, sparsity)["kl"] for run in runs]
        star = "" if all(at(run, sparsity)["reached"] for run in runs) else " *"
        return f"{statistics.mean(values):.3f}{star}{mark(runs, base, sparsity, spreads[sparsity])}"

    lines = [
        [
            name,
            str(len(runs)),
            str(runs[0]["values"]["steps"]),
            *(cell(runs, sparsity) for sparsity in sparsities),
            " / ".join(
                str(round(statistics.mean(at(run, sparsity)["step"] for run in runs))) for sparsity in sparsities
            ),
            f"{statistics.mean(final(run)['sparsity'] for run in runs):.3f}",
        ]
        for name, runs in settings.items()
    ]
    known = [f"{100 * spread:.0f} %" if spread else "-" for spread in spreads.values()]
    lines.append(["*spread between seeds*", "", "", *known, "", ""])
    heads = [f"{100 * sparsity:g} %" for sparsity in sparsities]
    return markdown(["setting", "seeds", "steps", *heads, "at step", "ends at"], lines)


def separate_table(rows: Sequence[Row]) -> str:
    """Runs made for one circuit each, against runs that give the whole frontier."""
    lines: list[list[str]] = []
    for problem in dict.fromkeys(row["problem"] for row in rows if "circuits" in row):
        settings = by_setting(row for row in rows if row["problem"] == problem)
        sparsities = PROBLEMS[problem].sparsities
        for name, runs in settings.items():
            if name.startswith(SEPARATE):
                ends = [final(run) for run in runs]
                lines.append(
                    [
                        *(problem, name, str(len(runs)), str(runs[0]["values"]["steps"])),
                        f"{statistics.mean(end['sparsity'] for end in ends):.3f}",
                        f"{statistics.mean(end['kl'] for end in ends):.3f}",
                        *(held_against(ends, settings.get(one, ()), sparsities) for one in ONE_RUN),
                    ]
                )
    heads = ["problem", "run", "seeds", "steps", "ends at", "its KL", *(f"one run ({one})" for one in ONE_RUN)]
    return markdown(heads, lines)


def held_against(ends: Sequence[Row], runs: Sequence[Row], sparsities: Sequence[float]) -> str:
    """KL of one-run frontiers at the sizes of circuits, and the ratio of the circuits' KL to it."""
    there = [frontier_at(runs, sparsities, end["edges"]) if runs else None for end in ends]
    pairs = [(end["kl"], one) for end, one in zip(ends, there, strict=True) if one is not None]
    if not pairs:
        return "-"
    ratios = ", ".join(f"{kl / one:.2f}" for kl, one in pairs)
    return f"{statistics.mean(one for _, one in pairs):.3f}; {ratios}"


def program_table(rows: Sequence[Row]) -> str:
    """How often the known circuit is found."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))

    def cell(runs: Sequence[Row]) -> str:
        if not runs:
            return "-"
        exact = sum(not run["missing"] and not run["extra"] for run in runs)
        missing, extra = (statistics.mean(len(run[key]) for run in runs) for key in ("missing", "extra"))
        auc = statistics.mean(run["auc"] for run in runs)
        return f"{exact} of {len(runs)}; {missing:.1f}, {extra:.1f}; {auc:.3f}"

    lines = [
        [name, *(cell([run for run in runs if run["problem"] == problem]) for problem in problems)]
        for name, runs in by_setting(rows).items()
    ]
    return markdown(["setting", *problems], lines)


# -------------------------------------------------------------------- plot
def plot(rows: Sequence[Row], path: Path) -> None:
    """KL against the share of edges kept, one panel per language model's problem."""
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys(row["problem"] for row in rows if "circuits" in row))
    figure = Figure(figsize=(4.6 * len(problems) + 1, 4.2), layout="constrained")
    panels = figure.subplots(1, len(problems), squeeze=False)[0]
    for axes, problem in zip(panels, problems, strict=True):
        panel(axes, problem, [row for row in rows if row["problem"] == problem])
    panels[0].set_ylabel("KL(full || circuit), nats")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def panel(axes: Any, problem: str, rows: Sequence[Row]) -> None:
    """One run of the settings in `ONE_RUN`, every seed; final circuits of separate runs; other settings grey."""
    sparsities = PROBLEMS[problem].sparsities
    for name, runs in by_setting(rows).items():
        if name.startswith(SEPARATE):
            continue
        style: Row = {"color": "0.8", "lw": 0.7, "zorder": 0}
        if name in ONE_RUN:
            style = {"color": ("C0", "k")[ONE_RUN.index(name)], "lw": 1.5, "marker": "o", "ms": 4}
        for run in runs:
            points = [at(run, sparsity) for sparsity in sparsities if at(run, sparsity)["reached"]]
            points = sorted([*points, final(run)], key=lambda circuit: circuit["edges"])
            label = f"one run, {name}" if name in ONE_RUN and run is runs[0] else None
            draw(axes.plot, points, label=label, **style)
    for number, (label, pattern) in enumerate(WAYS.items(), start=1):
        ends = [final(row) for row in rows if re.match(pattern, row["setting"])]
        if ends:
            draw(axes.scatter, ends, label=label, color=f"C{number}", marker="sD^vP"[number - 1], zorder=3)
    axes.set(title=problem, xlabel="edges kept (%)", xscale="log", yscale="log")
    ticks = [20, 10, 5, 3, 2, 1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    heights = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2]
    axes.set_yticks(heights, [f"{height:g}" for height in heights])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.grid(alpha=0.3)


def draw(how: Callable[..., Any], circuits: Sequence[Row], **style: Any) -> None:
    """Points of circuits."""
    how([100 * row["edges"] / row["all_edges"] for row in circuits], [row["kl"] for row in circuits], **style)


# -------------------------------------------------------------------- page
def insert(page: str, tables: Mapping[str, str]) -> str:
    """The page with the tables between their marks."""
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", "\n<!-- end -->"
        page = re.sub(
            re.escape(begin) + ".*?" + re.escape(end), lambda _, new=begin + table + end: new, page, flags=re.S
        )
    return page


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/schedule"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/schedule"), help="without the ending")
    parser.add_argument("--keep", action="store_true", help="keep the runs of OUT.json that the folder lacks")
    options = parser.parse_args()
    data, text = options.out.with_suffix(".json"), options.out.with_suffix(".md")
    rows = merged(read(options.folder), json.loads(data.read_text()) if options.keep else ())
    data.write_text(lines_of(rows))
    language = {row["problem"]: [] for row in rows if "circuits" in row}
    tables = {name: language_table([row for row in rows if row["problem"] == name]) for name in language}
    tables["separate"] = separate_table(rows)
    tables["programs"] = program_table([row for row in rows if "circuits" not in row])
    if text.exists():
        text.write_text(insert(text.read_text(), tables))
    else:
        print("\n\n".join(tables.values()))
    plot(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
