"""Sparsity against faithfulness for the circuits of one run: rows, the table, `frontier.csv` and `frontier.png`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from edgeprune import circuit_attention
from edgeprune.circuit import Circuit
from edgeprune.metrics.registry import STANDARD as MEASURES
from edgeprune.metrics.registry import measure_named
from edgeprune.objectives import Objective
from edgeprune.paths import save_figure, write_table
from edgeprune.tables import Numbers, beside, table

Row = dict[str, Any]
ERROR_LABELS: dict[Objective, str] = {
    "kl": "KL(full || circuit), nats",
    "squared_error": "squared error of the outputs",
}


def frontier_row(
    requested: float | str, circuit: Circuit, measures: Mapping[str, float], control: Mapping[str, float]
) -> Row:
    """One circuit: what was asked for, its size, its measures, and (`random_...`) those of a random one of its size.

    One with roles has also the size of its union, and one with attention edges of its own their number and sparsity.
    """
    return {
        "asked": requested,
        "sparsity": round(circuit.sparsity, 6),
        "edges": circuit.num_edges,
        "dangling": circuit.num_dangling,
        **({"union_edges": circuit.union().num_edges} if circuit.roles else {}),
        **_attention(circuit),
        **{name: measures[name] for name in MEASURES},
        **{f"random_{name}": control[name] for name in MEASURES},
        "num_examples": int(measures["num_examples"]),
    }


def _attention(circuit: Circuit) -> dict[str, int | float]:
    if circuit.attend is None:
        return {}
    size = circuit_attention.size(circuit.graph, circuit.attend)["attention"]
    return {"attention_edges": size["num_edges"], "attention_sparsity": round(size["sparsity"], 6)}


def frontier_table(title: str, rows: Sequence[Row], objective: Objective = "kl", *, named: bool = False) -> Table:
    """The rows for a terminal, of KL and squared error the objective.

    Those with `reached: False` have a star, the one with `knee: True` an arrow.

    Args:
        title: Above the table.
        rows: Of `frontier_row`.
        objective: The measure that the circuits were found by.
        named: Show what was asked for as the circuits' names.
    """
    hidden = "squared_error" if objective == "kl" else "kl"
    shown = [name for name in MEASURES if name != hidden and not all(math.isnan(row[name]) for row in rows)]
    columns = ["circuit"] if named else []
    more = [name for name in ("union_edges", "attention_edges") if all(name in row for row in rows)]
    sizes = ["edges", "dangling", *more]
    return table(
        f"{title} (random circuit of the same size in brackets)",
        [*columns, *map(Numbers, ("sparsity", *_headings(sizes), *(measure_named(name).heading for name in shown)))],
        [
            [
                *([str(row["asked"])] if named else []),
                f"{'→ ' * row.get('knee', False)}{row['sparsity']:.4f}{'' if row.get('reached', True) else ' *'}",
                *(row[size] for size in sizes),
                *(beside(row[name], row[f"random_{name}"]) for name in shown),
            ]
            for row in rows
        ],
        caption=None if all(row.get("reached", True) for row in rows) else "* never reached: cut from the final gates",
    )


def _headings(sizes: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in sizes]


def write_frontier(folder: Path, rows: Sequence[Row], objective: Objective = "kl") -> None:
    """Write `frontier.csv` and `frontier.png` in `folder`, each whole or not at all."""
    write_table(folder / "frontier.csv", rows)
    plot_frontier(rows, folder / "frontier.png", objective)


def plot_frontier(rows: Sequence[Row], path: Path, objective: Objective = "kl") -> None:
    """Share of edges kept against the error, with the random circuits of the same sizes, to a PNG file.

    Of circuits that differ in attention edges alone, the number of these. Circuits without any edge have no place on
    the logarithmic axis and are left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    rows, kept, kind = _sizes(rows)
    axes.plot(kept, [row[objective] for row in rows], "o-", label="circuit")
    axes.plot(
        kept, [row[f"random_{objective}"] for row in rows], "s--", color="0.6", label="random circuit of the same size"
    )
    knee = [index for index, row in enumerate(rows) if row.get("knee")]
    if knee:
        error = [rows[index][objective] for index in knee]
        axes.plot([kept[index] for index in knee], error, "o", color="C3", fillstyle="none", ms=11, label="knee")
    axes.set(xlabel=kind, ylabel=ERROR_LABELS[objective], ylim=(0, None))
    if kept:
        axes.set_xscale("log")
        ticks = [value for value in (50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1) if min(kept) <= value <= max(kept)]
        axes.set_xticks(ticks or kept, [f"{value:.3g}" for value in ticks or kept])
        axes.minorticks_off()
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path, dpi=130)


def _sizes(rows: Sequence[Row]) -> tuple[list[Row], list[float], str]:
    """The rows that have a place, their sizes, and what these are."""
    inside = (
        len(rows) > 1 and len({row["edges"] for row in rows}) == 1 and all("attention_edges" in row for row in rows)
    )
    if inside:
        rows = [row for row in rows if row["attention_edges"]]
        return [*rows], [row["attention_edges"] for row in rows], "attention edges kept"
    rows = [row for row in rows if row["edges"]]
    return [*rows], [100 * (1 - row["sparsity"]) for row in rows], "edges kept (%)"
