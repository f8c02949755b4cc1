"""Sparsity against faithfulness for the circuits of one run: rows, the table, `frontier.csv` and `frontier.png`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from edgeprune.circuit import Circuit
from edgeprune.objectives import Objective
from edgeprune.paths import save_figure, write_table
from edgeprune.report.circuits_table import MEASURES, TableRow, faithfulness_table

Row = dict[str, Any]
ERROR_LABELS: dict[Objective, str] = {
    "kl": "KL(full || circuit), nats",
    "squared_error": "squared error of the outputs",
}


def frontier_row(
    asked: float | str, circuit: Circuit, measures: Mapping[str, float], control: Mapping[str, float]
) -> Row:
    """One circuit: what was asked for, its size, its measures, and (`random_...`) those of a random one of its size."""
    return {
        "asked": asked,
        "sparsity": round(circuit.sparsity, 6),
        "edges": circuit.num_edges,
        "dangling": circuit.num_dangling,
        **{name: measures[name] for name in MEASURES},
        **{f"random_{name}": control[name] for name in MEASURES},
        "num_examples": int(measures["num_examples"]),
    }


def frontier_table(title: str, rows: Sequence[Row], objective: Objective = "kl", *, named: bool = False) -> Table:
    """The rows for a terminal; those that say `reached: False` are marked with a star.

    Args:
        title: Above the table.
        rows: Of `frontier_row`.
        objective: The measure that the circuits were found by.
        named: Show what was asked for as the circuits' names.
    """
    lines = [
        TableRow(
            str(row["asked"]) if named else None,
            row["sparsity"],
            "" if row.get("reached", True) else " *",
            row["edges"],
            row["dangling"],
            {name: row[name] for name in MEASURES},
            {name: row[f"random_{name}"] for name in MEASURES},
        )
        for row in rows
    ]
    return faithfulness_table(title, lines, objective)


def write_frontier(folder: Path, rows: Sequence[Row], objective: Objective = "kl") -> None:
    """Write `frontier.csv` and `frontier.png` in `folder`, each whole or not at all."""
    write_table(folder / "frontier.csv", rows)
    plot_frontier(rows, folder / "frontier.png", objective)


def plot_frontier(rows: Sequence[Row], path: Path, objective: Objective = "kl") -> None:
    """Share of edges kept against the error, with the random circuits of the same sizes, to a PNG file.

    Circuits without any edge have no place on the logarithmic axis and are left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in rows if row["edges"]]
    kept = [100 * (1 - row["sparsity"]) for row in rows]
    axes.plot(kept, [row[objective] for row in rows], "o-", label="circuit")
    axes.plot(
        kept, [row[f"random_{objective}"] for row in rows], "s--", color="0.6", label="random circuit of the same size"
    )
    axes.set(xlabel="edges kept (%)", ylabel=ERROR_LABELS[objective], ylim=(0, None))
    if kept:
        axes.set_xscale("log")
        ticks = [value for value in (50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1) if min(kept) <= value <= max(kept)]
        axes.set_xticks(ticks or kept, [f"{value:.3g}" for value in ticks or kept])
        axes.minorticks_off()
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path, dpi=130)
