"""The table in which circuits are shown in a terminal, beside random circuits of their sizes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from edgeprune.metrics.registry import STANDARD as MEASURES
from edgeprune.metrics.registry import measure_named
from edgeprune.objectives import Objective


class TableRow(NamedTuple):
    """One circuit: its name if it has one, its size, its measures and those of its random control."""

    name: str | None
    sparsity: float
    mark: str
    num_edges: int
    num_dangling: int
    measures: dict[str, float]
    control: dict[str, float]


def faithfulness_table(title: str, rows: Sequence[TableRow], objective: Objective = "kl") -> Table:
    """One line per circuit; a column of names only where rows have them, of a measure only where it exists.

    Of KL and squared error, the one that the circuits were found by is shown.
    """
    hidden = "squared_error" if objective == "kl" else "kl"
    shown = [name for name in MEASURES if name != hidden and not all(math.isnan(row.measures[name]) for row in rows)]
    named = any(row.name is not None for row in rows)
    table = Table(title=f"{title} (random circuit of the same size in brackets)")
    if named:
        table.add_column("circuit", overflow="fold", min_width=10)
    for heading in ("sparsity", "edges", "dangling", *(measure_named(name).heading for name in shown)):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [f"{row.measures[key]:.3f} [dim]({row.control[key]:.3f})[/dim]" for key in shown]
        size = (f"{row.sparsity:.4f}{row.mark}", f"{row.num_edges:,}", f"{row.num_dangling:,}")
        table.add_row(*([row.name or ""] if named else []), *size, *cells)
    return table
