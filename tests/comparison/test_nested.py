"""Circuits of one run: which belong together, and how far the smaller lie in the larger, counted by hand."""

import math
from typing import Any

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.comparison.nested import circuits_of_runs, nestedness
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph

GRAPH = EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1))
EDGES = ["embed->a0.h0.q", "embed->a0.h0.k", "embed->a0.h0.v", "embed->m0", "a0.h0->m0", "embed->logits"]


def circuit(*places: int, **header: Any) -> Circuit:
    return Circuit.from_edges(GRAPH, [EDGES[place] for place in places], {"method": "edge_pruning", **header})


def test_shares_are_those_of_the_smaller_circuit() -> None:
    """1 of 2 edges in the next, 2 of 3 in the one after; 1 of 2 two sizes on. Eight edges: chance gives 3/8 and 4/8."""
    assert GRAPH.num_edges == 8
    found = nestedness([circuit(0, 1), circuit(1, 2, 3), circuit(0, 2, 3, 4)])
    first, second = found["steps"]
    assert (first["share"], first["expected"]) == (1 / 2, 3 / 8)
    assert (second["share"], second["expected"]) == (2 / 3, 4 / 8)
    assert found["share"] == pytest.approx(7 / 12)
    assert found["expected"] == pytest.approx(7 / 16)
    assert found["every_two"] == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    # at least one of 2 among 3 of 8: 1 - (5 x 4) / (8 x 7)
    assert first["log10_p_value"] == pytest.approx(math.log10(1 - 20 / 56), abs=1e-9)


def test_circuits_cut_from_one_ranking_are_nested() -> None:
    scores = torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(0))
    found = nestedness([Circuit.from_scores(GRAPH, scores, num_edges=number) for number in (1, 3, 6)])
    assert (found["share"], found["every_two"]) == (1, 1)
    assert found["expected"] == pytest.approx((3 / 8 + 6 / 8) / 2)


def test_random_circuits_are_nested_as_chance_gives() -> None:
    graph = EdgeGraph(ArchSpec(num_layers=6, num_heads=4, num_kv_heads=4))
    run = [Circuit.random(graph, size, seed) for seed, size in enumerate((300, 600, 900))]
    found = nestedness(run)
    assert found["share"] == pytest.approx(found["expected"], abs=0.05)
    assert found["expected"] == pytest.approx(750 / graph.num_edges)


def test_fewer_than_two_circuits_have_none() -> None:
    assert nestedness([circuit(0)]) == {"share": None, "expected": None, "every_two": None, "steps": []}


def test_circuits_of_another_graph_are_refused() -> None:
    other = EdgeGraph(ArchSpec(num_layers=2, num_heads=1, num_kv_heads=1))
    with pytest.raises(EdgepruneError, match="num_layers"):
        nestedness([circuit(0), Circuit.random(other, 3)])


# -------------------------------------------------------------------- which belong together
def test_a_run_has_circuits_that_differ_in_size_and_step_alone() -> None:
    one = [circuit(0, 1, 2, step=10, metrics={"kl": 0.1}, reached=True), circuit(0, 1, step=20), circuit(0, step=30)]
    other = [circuit(0, 1, 2, learning_rate=0.8), circuit(1, learning_rate=0.8)]
    alone = circuit(0, 1, seed=7)
    assert circuits_of_runs([one[0], other[0], one[1], alone, other[1], one[2]]) == [[5, 2, 0], [4, 1]]


def test_polished_circuits_are_a_run_of_their_own() -> None:
    plain = [circuit(0, 1), circuit(0, 1, 2)]
    polished = [one.with_edges(one.keep, {"polished": {"swaps": number}}) for number, one in enumerate(plain)]
    assert circuits_of_runs([*plain, *polished]) == [[0, 1], [2, 3]]


def test_every_size_counts_once_and_the_ends_do_not() -> None:
    whole = Circuit(GRAPH, GRAPH.exists, None, {"method": "edge_pruning"})
    assert circuits_of_runs([whole, circuit(0, 1), circuit(2, 3), circuit(), circuit(4)]) == [[4, 1]]


def test_circuits_of_no_known_method_are_of_no_run() -> None:
    assert circuits_of_runs([Circuit.from_edges(GRAPH, [EDGES[0]]), Circuit.from_edges(GRAPH, EDGES[:2])]) == []
    assert circuits_of_runs([]) == []
