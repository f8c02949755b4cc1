"""The knee of a frontier: the smallest circuit that is still good, named, marked in the table and the file."""

import csv
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.metrics.registry import STANDARD
from edgeprune.report.frontier import frontier_row, frontier_table, write_frontier
from lit_modules import SnapshotCircuits
from lit_modules.snapshots import Snapshot, knee_line, knee_of

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))


def snapshot(num_edges: int, error: float) -> Snapshot:
    measures = dict.fromkeys(STANDARD, 0.0) | {"kl": error, "num_examples": 10}
    circuit = Circuit.random(GRAPH, num_edges, 0)
    return Snapshot(circuit.sparsity, True, circuit, Path("circuit.safetensors"), measures, measures)


FRONTIER = [snapshot(40, 0.01), snapshot(20, 0.09), snapshot(10, 0.1), snapshot(5, 0.7)]


def test_the_knee_is_the_smallest_that_stays_below() -> None:
    assert knee_of(FRONTIER, "kl", 0.1) is FRONTIER[1]
    assert knee_of(reversed(FRONTIER), "kl", 0.1) is FRONTIER[1]
    assert knee_of([*FRONTIER, snapshot(3, 0.02)], "kl", 0.1) is not FRONTIER[1]  # errors need not rise
    assert knee_of(FRONTIER, "kl", 0.01) is None


def test_the_line_says_which_it_is_and_by_what() -> None:
    sparsity = f"{FRONTIER[1].circuit.sparsity:.4g}"
    assert knee_line(FRONTIER[1], "kl", 1.0, 0.1) == (
        f"knee: sparsity {sparsity}, 20 edges, kl 0.09: the smallest of these circuits that stays below 10 % of the "
        "empty circuit's kl, 1"
    )
    assert knee_line(None, "kl", 2.5, 0.1) == (
        "knee: none of these circuits stays below 10 % of the empty circuit's kl, 2.5; ask for lower sparsities"
    )


def test_table_file_and_plot_mark_it(tmp_path: Path) -> None:
    rows = [
        frontier_row(item.circuit.sparsity, item.circuit, item.measures, item.control) | {"knee": item is FRONTIER[1]}
        for item in FRONTIER
    ]
    text = StringIO()
    Console(file=text, width=200).print(frontier_table("Circuits", rows))
    assert [line for line in text.getvalue().splitlines() if "→" in line] == [
        line for line in text.getvalue().splitlines() if f"{FRONTIER[1].circuit.sparsity:.4f}" in line
    ]
    write_frontier(tmp_path, rows)
    with (tmp_path / "frontier.csv").open() as file:
        assert [row["knee"] for row in csv.DictReader(file)] == ["False", "True", "False", "False"]
    assert (tmp_path / "frontier.png").stat().st_size > 1000


@pytest.mark.parametrize("share", [0.0, 1.0, 10.0])
def test_a_share_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(EdgepruneError, match=rf"knee is a share of the empty circuit's error in \(0, 1\), got {share}"):
        SnapshotCircuits([0.9], knee=share)
