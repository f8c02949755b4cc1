"""Circuits cut from scores of edges at roles, against every set of edges of small graphs."""

import itertools

import pytest
import torch
from torch import Tensor

from edgeprune.console import no_progress
from edgeprune.graph import ArchSpec, EdgeGraph, RoleSpec
from edgeprune.methods import EAP, Selection
from edgeprune.methods.bootstrap import Bootstrap, discover_by_batch
from edgeprune.methods.connected import connected
from edgeprune.methods.selection import greedy, top_n
from edgeprune.roles import observed_roles
from tests.methods.small_problems import problem, tiny
from tests.reading.small import pairs

TWO = RoleSpec(("A", "rest"), (("A",), ("A", "rest")), ("rest",))
AROUND = RoleSpec(("A", "rest"))  # every role sees all, and is scored
SMALL = [
    EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1, has_mlp=False), TWO),
    EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1, has_mlp=False), AROUND),
    EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1), TWO),
]
LARGE = EdgeGraph(
    ArchSpec(num_layers=3, num_heads=2, num_kv_heads=1, kv_readers="group"),
    RoleSpec(("IO", "S2", "rest"), (("IO", "rest"), ("IO", "S2", "rest"), ("IO", "S2", "rest")), ("S2",)),
)


def noise(graph: EdgeGraph, seed: int = 0) -> Tensor:
    return torch.randn(graph.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole_sets(graph: EdgeGraph) -> Tensor:
    """Every set of edges in which none dangles, bool `[set, edge]`."""
    every = torch.tensor(list(itertools.product([False, True], repeat=graph.num_edges)))
    return every[torch.tensor([not graph.dangling(graph.to_matrix(keep)).any() for keep in every])]


@pytest.mark.parametrize("graph", SMALL[:2], ids=["two", "around"])
def test_no_connected_set_of_that_size_has_a_larger_sum(graph: EdgeGraph) -> None:
    every = whole_sets(graph)
    sizes = every.sum(1)
    for seed, size in enumerate(sorted(set(sizes.tolist()) - {0})):
        values = graph.to_vector(noise(graph, seed))
        found = connected(graph, noise(graph, seed), size)
        assert found.gap == 0
        assert found.keep.sum() == size
        assert not graph.dangling(found.keep).any()
        sums = (every[sizes == size].double() @ values).max().item()
        assert (values * graph.to_vector(found.keep)).sum().item() == pytest.approx(sums, rel=1e-9)


def test_a_connected_set_of_a_larger_graph_does_not_dangle() -> None:
    for graph in (SMALL[2], LARGE):
        found = connected(graph, noise(graph), 9)
        assert found.keep.sum() == 9
        assert not graph.dangling(found.keep).any()


@pytest.mark.parametrize("absolute", [False, True])
def test_greedy_takes_the_best_edge_into_a_node_that_is_reached(absolute: bool) -> None:
    graph, scores = LARGE, noise(LARGE, 3)
    values = (scores.abs() if absolute else scores).masked_fill(~graph.exists, -torch.inf)
    keep = torch.zeros(graph.shape, dtype=torch.bool)
    reachable = int((graph.exists & graph.reaching_logits(graph.exists)[..., None]).sum())
    assert reachable < graph.num_edges
    for size in range(1, reachable + 1):
        reached = graph.reaching_logits(keep)[..., None]
        best = values.masked_fill(keep | ~reached, -torch.inf).argmax()
        keep.view(-1)[best] = True
        if size % 7 == 0 or size > reachable - 3:
            assert torch.equal(greedy(graph, scores, size, absolute=absolute), keep), size
    more = greedy(graph, scores, reachable + 5, absolute=absolute)
    others = torch.where(keep, -torch.inf, values)
    expected = keep | (others >= others.flatten().topk(5).values[-1])
    assert torch.equal(more, expected)


def test_the_other_rules_rank_edges_at_roles() -> None:
    graph, scores = LARGE, noise(LARGE, 5)
    for rule, more in (("top_n", {}), ("greedy", {}), ("connected", {}), ("top_n", {"prune_dangling": True})):
        options = Selection(rule=rule, sparsities=(0.9,), **more)  # pyright: ignore[reportArgumentType]
        (circuit,) = options.circuits(graph, scores).values()
        assert circuit.graph == graph
        if more:
            assert circuit.num_dangling == 0 < circuit.num_edges < round(0.1 * graph.num_edges)
        else:
            assert circuit.num_edges == round(0.1 * graph.num_edges)
    (circuit,) = Selection(rule="threshold", thresholds=(1.5,)).circuits(graph, scores).values()
    assert torch.equal(circuit.keep, (scores > 1.5) & graph.exists)
    (circuit,) = Selection(absolute=True, positive_first=0.5, sparsities=(0.9,)).circuits(graph, scores).values()
    half = top_n(graph, scores, circuit.num_edges // 2)
    assert (circuit.keep & half).sum() == circuit.num_edges // 2


def test_bootstrap_knows_roles() -> None:
    given = problem(tiny("gpt2"), pairs(), cuts=(1, 3))
    given.model.use_roles(observed_roles(given.batches))
    whole = EAP().discover(given, no_progress).scores
    found, samples = discover_by_batch(EAP(), given)
    assert whole is not None
    assert found.scores is not None
    torch.testing.assert_close(found.scores, whole, rtol=1e-9, atol=1e-12)
    low, high = Bootstrap(resamples=50).intervals(given.model.graph, samples)
    assert tuple(low.shape) == given.model.graph.shape
    assert (low <= high).all()
    assert len(Selection(bootstrap=Bootstrap(50), sparsities=(0.9,)).circuits(given.model.graph, whole, samples)) == 1
