"""Random paths: whole, of the size asked for, through any edge; inflated circuits and their effects."""

import pytest
import torch

from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.random_paths import RandomPaths, inflated_circuits, path_circuit
from edgeprune.graph import ArchSpec, EdgeGraph

GRAPHS = {
    "plain": ArchSpec(num_layers=3, num_heads=2, num_kv_heads=2),
    "split, shared k and v": ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2, split_embedding=True),
    "parallel": ArchSpec(num_layers=3, num_heads=2, num_kv_heads=1, kv_readers="head", parallel_blocks=True),
    "attention only": ArchSpec(num_layers=2, num_heads=2, num_kv_heads=2, has_mlp=False),
    "one layer, one head": ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1),
}


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> EdgeGraph:
    return EdgeGraph(GRAPHS[request.param])


def test_a_path_leads_from_an_embedding_to_the_logits(graph: EdgeGraph) -> None:
    """Through every edge: all edges exist, none dangles, and without any one of them all others do."""
    paths = RandomPaths(graph, torch.Generator().manual_seed(0))
    for number, place in enumerate(graph.exists.nonzero().tolist()):
        path = paths.through(*place)
        keep = torch.zeros(graph.shape, dtype=torch.bool)
        for edge in path:
            keep[edge] = True
        assert tuple(place) in path
        assert not (keep & ~graph.exists).any()
        assert int(keep.sum()) == len(path)
        assert not graph.dangling(keep).any()
        for edge in path if number % 5 == 0 else ():
            keep[edge] = False
            assert torch.equal(graph.dangling(keep), keep)
            keep[edge] = True


def test_circuits_of_paths_have_the_size_asked_for(graph: EdgeGraph) -> None:
    longest = 1 + graph.arch.num_layers * (1 + graph.arch.has_mlp)
    for size in (0, 1, graph.num_edges // 3, graph.num_edges):
        keep = path_circuit(graph, size)
        assert size <= int(keep.sum()) < size + longest
        assert not graph.dangling(keep).any()
        assert not (keep & ~graph.exists).any()
    assert not path_circuit(graph, 0).any()
    assert torch.equal(path_circuit(graph, graph.num_edges), graph.exists)


def test_circuits_of_paths_depend_on_the_seed_alone() -> None:
    graph = EdgeGraph(GRAPHS["plain"])
    assert torch.equal(path_circuit(graph, 9, 1), path_circuit(graph, 9, 1))
    assert len({tuple(path_circuit(graph, 9, seed).flatten().tolist()) for seed in range(20)}) == 20


def test_every_edge_comes_up() -> None:
    """100 circuits of a third of the edges, ten paths or so each: an edge is missed with a chance of 1e-4 at most."""
    graph = EdgeGraph(GRAPHS["plain"])
    seen = torch.stack([path_circuit(graph, graph.num_edges // 3, seed) for seed in range(100)]).any(0)
    assert torch.equal(seen, graph.exists)


def test_inflated_circuits(graph: EdgeGraph) -> None:
    """One path more, without one new edge of it; what was in the circuit stays."""
    keep = path_circuit(graph, graph.num_edges // 4)
    found = inflated_circuits(graph, keep, 12, seed=3)
    assert len(found.gates) == 24
    for number, (reader, writer) in enumerate(found.edges.tolist()):
        inflated, without = found.gates[number], found.gates[12 + number]
        assert not keep[reader, writer]
        assert (inflated & ~without).nonzero().tolist() == [[reader, writer]]
        assert not (keep & ~without).any()
        assert not graph.dangling(inflated).any()
    again = inflated_circuits(graph, keep, 12, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(found.gates, again.gates, strict=True))


def test_effects_are_losses_without_minus_losses_with() -> None:
    graph = EdgeGraph(GRAPHS["plain"])
    found = inflated_circuits(graph, graph.exists & False, 2)
    assert found.effects(torch.tensor([1.0, 2.0, 5.0, 1.5])).tolist() == [4.0, -0.5]
    with pytest.raises(EdgepruneError, match=r"4 circuits need as many losses, got shape \(2,\)"):
        found.effects(torch.ones(2))


def test_what_is_refused() -> None:
    graph = EdgeGraph(GRAPHS["plain"])
    with pytest.raises(EdgepruneError, match="of a circuit that lacks an edge"):
        inflated_circuits(graph, graph.exists, 3)
    with pytest.raises(EdgepruneError, match="cannot add 0 random paths"):
        inflated_circuits(graph, graph.exists & False, 0)
    with pytest.raises(EdgepruneError, match=f"num_edges must be 0 to {graph.num_edges}"):
        path_circuit(graph, graph.num_edges + 1)
