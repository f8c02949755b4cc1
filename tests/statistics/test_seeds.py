"""Circuits that differ in their seed: which belong together, and their spread."""

import statistics
from typing import Any

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.circuit_attention import highest
from edgeprune.graph import ArchSpec, EdgeGraph, RoleSpec
from edgeprune.statistics.seeds import seed_groups, spread_of_seeds

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=4))


def circuit(num_edges: int, seed: int | None, **header: Any) -> Circuit:
    keep = Circuit.random(GRAPH, num_edges, 0).keep
    return Circuit(GRAPH, keep, None, {"method": "edge_pruning", "ablation": "zero", "seed": seed, **header})


def test_sizes_within_a_tenth_and_other_seeds_go_together() -> None:
    circuits = [circuit(44, 0), circuit(40, 1), circuit(45, 2), circuit(41, 1), circuit(49, 3), circuit(60, 4)]
    assert seed_groups(circuits) == [[1, 0], [3, 2]]


@pytest.mark.parametrize("other", [{"method": "acdc"}, {"objective": "nll"}, {"ablation": "mean"}])
def test_what_else_differs_keeps_them_apart(other: dict[str, Any]) -> None:
    assert seed_groups([circuit(20, 0), circuit(20, 1, **other), circuit(20, None)]) == []
    assert seed_groups([circuit(20, 0, **other), circuit(20, 1, **other)]) == [[0, 1]]


def test_numbers_of_open_attention_edges_are_alike_too() -> None:
    graph = GRAPH.with_roles(RoleSpec(("first", "second")))
    edges, keep = graph.attention, Circuit.random(graph, 60).keep

    def attending(num_open: int | None, seed: int) -> Circuit:
        noise = torch.rand(edges.num_edges, generator=torch.Generator().manual_seed(seed))
        attend = None if num_open is None else highest(graph, noise, num_open)[0]
        return Circuit(graph, keep, None, {"method": "edge_pruning", "seed": seed}, attend)

    assert edges.num_edges > 22
    assert seed_groups([attending(number, seed) for seed, number in enumerate((20, 5, 22, 23, None))]) == [[0, 2]]
    assert seed_groups([attending(None, 0), attending(edges.num_edges, 1), attending(0, 2), attending(0, 3)]) == [
        [2, 3],
        [0, 1],
    ]
    (found,) = spread_of_seeds([attending(22, 0), attending(20, 1)], [{"ablations": {}}] * 2)
    assert found["attention_edges"] == [20, 22]
    (found,) = spread_of_seeds([attending(None, 0), attending(None, 1)], [{"ablations": {}}] * 2)
    assert "attention_edges" not in found


def test_spread_over_the_seeds_that_have_a_figure() -> None:
    def row(kl: float, faithfulness: float | None) -> dict[str, Any]:
        return {
            "ablations": {"zero": {"measures": {"kl": {"value": kl}}, "normalised": {"kl": {"value": faithfulness}}}}
        }

    kl = [0.5, 0.25, 0.125]
    rows = [row(kl[0], 0.5), row(kl[1], None), row(kl[2], 0.75)]
    (found,) = spread_of_seeds([circuit(20, seed) for seed in (3, 1, 2)], rows)
    assert (found["method"], found["seeds"], found["edges"], found["circuits"]) == (
        "edge_pruning", [3, 1, 2], [20, 20, 20], [0, 1, 2],
    )  # fmt: skip
    spread = found["ablations"]["zero"]["measures"]["kl"]
    assert spread["mean"] == pytest.approx(statistics.mean(kl))
    assert spread["deviation"] == pytest.approx(statistics.stdev(kl))
    assert (spread["minimum"], spread["maximum"], spread["num_seeds"]) == (0.125, 0.5, 3)
    assert found["ablations"]["zero"]["normalised"]["kl"]["num_seeds"] == 2
