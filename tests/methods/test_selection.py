"""Scores to circuits: counts, order, growth, thresholds, dangling edges."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods.selection import Selection, above, greedy, positive_first, prune_dangling, top_n

GRAPHS = [
    EdgeGraph(ArchSpec(num_layers=3, num_heads=4, num_kv_heads=4)),
    EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2, split_embedding=True)),
    EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2, kv_readers="head", parallel_blocks=True)),
    EdgeGraph(ArchSpec(num_layers=3, num_heads=2, num_kv_heads=2, has_mlp=False)),
]


def noise(graph: EdgeGraph, seed: int = 0) -> Tensor:
    return torch.randn(graph.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def owner(graph: EdgeGraph, reader: str) -> list[str]:
    """Writers that read through a reader."""
    node, _, kind = reader.rpartition(".")
    if not node:
        return [reader] if reader in graph.writers else []
    arch, (layer, head) = graph.arch, node.split(".h")
    if kind == "q" or arch.num_kv_readers == arch.num_heads:
        return [node]
    times = arch.num_heads // arch.num_kv_readers
    return [f"{layer}.h{index}" for index in range(int(head) * times, (int(head) + 1) * times)]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("absolute", [False, True])
def test_top_n_has_the_highest_scores_and_exactly_so_many(graph: EdgeGraph, absolute: bool) -> None:
    scores = noise(graph)
    ranked = graph.to_vector(scores.abs() if absolute else scores)
    for count in (0, 1, 17, graph.num_edges):
        keep = top_n(graph, scores, count, absolute=absolute)
        assert keep.sum() == count
        inside = graph.to_vector(keep)
        if 0 < count < graph.num_edges:
            assert ranked[inside].min() > ranked[~inside].max()


def test_ties_are_cut_to_the_exact_count() -> None:
    graph = GRAPHS[0]
    keep = top_n(graph, torch.zeros(graph.shape), 10)
    assert graph.to_vector(keep).nonzero().flatten().tolist() == list(range(10))
    assert greedy(graph, torch.zeros(graph.shape), 10).sum() == 10


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("absolute", [False, True])
def test_greedy_takes_the_best_edge_into_what_is_reached(graph: EdgeGraph, absolute: bool) -> None:
    scores = noise(graph, 1)
    values = scores.abs() if absolute else scores
    reached, taken = {"logits"}, set[str]()
    edges = {
        graph.edge_name(reader, writer): values[reader, writer].item()
        for reader, writer in graph.exists.nonzero().tolist()
    }
    for count in range(graph.num_edges + 1):
        if count in (0, 1, 2, 5, 20, graph.num_edges):
            keep = greedy(graph, scores, count, absolute=absolute)
            assert set(Circuit(graph, keep).edges()) == taken
        if count == graph.num_edges:
            break
        open_ = [edge for edge in edges.keys() - taken if edge.split("->")[1] in reached]
        best = max(open_, key=edges.__getitem__)
        taken.add(best)
        writer = best.split("->")[0]
        reached |= {reader for reader in graph.readers if writer in owner(graph, reader)}


@pytest.mark.parametrize("graph", GRAPHS)
def test_what_greedy_keeps_leads_to_the_logits(graph: EdgeGraph) -> None:
    keep = greedy(graph, noise(graph, 2), 25)
    heard = graph.reaching_logits(keep)
    assert heard[keep.any(1)].all()
    assert not graph.reaching_logits(top_n(graph, noise(graph, 2), 25))[top_n(graph, noise(graph, 2), 25).any(1)].all()


@pytest.mark.parametrize("graph", GRAPHS)
def test_positive_first_goes_from_absolute_values_to_scores(graph: EdgeGraph) -> None:
    scores = noise(graph, 3)
    values, positive = graph.to_vector(scores), int((graph.to_vector(scores) > 0).sum())
    for count in (1, 10, positive // 2):
        assert torch.equal(positive_first(graph, scores, count, 0), top_n(graph, scores, count, absolute=True))
        assert torch.equal(positive_first(graph, scores, count, 1), top_n(graph, scores, count))
    keep = graph.to_vector(positive_first(graph, scores, 10, 0.65))
    first = values.argsort(descending=True)[:6]
    others = [edge for edge in values.abs().argsort(descending=True).tolist() if edge not in first]
    assert set(keep.nonzero().flatten().tolist()) == {*first.tolist(), *others[:4]}
    keep = positive_first(graph, scores - 10, 7, 1)  # none is above 0
    assert torch.equal(keep, top_n(graph, scores - 10, 7, absolute=True))


def test_a_selection_that_takes_positive_scores_first() -> None:
    graph, scores = GRAPHS[0], noise(GRAPHS[0]) - 2
    settings: dict[str, Any] = {"absolute": True, "sparsities": (0.9,), "positive_first": 0.5}
    (circuit,) = Selection(**settings).circuits(graph, scores).values()
    least = min(circuit.num_edges // 2, int((graph.to_vector(scores) > 0).sum()))
    assert (scores[circuit.keep] > 0).sum() >= least > 0
    assert circuit.header["selection"]["positive_first"] == 0.5
    (joined,) = Selection(rule="connected", **settings).circuits(graph, scores).values()
    assert (scores[joined.keep] > 0).sum() >= least
    assert (joined.num_dangling, joined.num_edges) == (0, circuit.num_edges)


def test_above_a_threshold() -> None:
    graph = GRAPHS[0]
    scores = noise(graph)
    assert torch.equal(above(graph, scores, 0.5), (scores > 0.5) & graph.exists)
    assert torch.equal(above(graph, scores, 0.5, absolute=True), (scores.abs() > 0.5) & graph.exists)


@pytest.mark.parametrize("choose", [top_n, greedy, above])
def test_scores_that_cannot_be_ranked_are_refused(choose: Any) -> None:
    scores = noise(GRAPHS[0])
    scores[0, 0] = torch.nan
    with pytest.raises(EdgepruneError, match="NaN"):
        choose(GRAPHS[0], scores, 3)


def slowly_pruned(graph: EdgeGraph, keep: Tensor) -> set[str]:
    """Drop the edges of nodes without an incoming or outgoing edge, until nothing changes."""
    edges = {tuple(edge.split("->")) for edge in Circuit(graph, keep).edges()}
    embeddings = set(graph.writers[: graph.arch.num_embeddings])
    while True:
        fed = embeddings | {node for _, reader in edges for node in owner(graph, reader)}
        writing = {writer for writer, _ in edges}
        left = {
            (writer, reader)
            for writer, reader in edges
            if writer in fed and (reader == "logits" or set(owner(graph, reader)) & writing)
        }
        if left == edges:
            return {f"{writer}->{reader}" for writer, reader in edges}
        edges = left


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("count", [5, 20, 40])
def test_pruning_reaches_the_fixed_point_and_leaves_its_argument_alone(graph: EdgeGraph, count: int) -> None:
    sizes: list[int] = []
    for seed in range(6):
        keep = top_n(graph, noise(graph, seed), count)
        before = keep.clone()
        pruned = prune_dangling(graph, keep)
        assert torch.equal(keep, before)
        assert set(Circuit(graph, pruned).edges()) == slowly_pruned(graph, keep)
        assert torch.equal(prune_dangling(graph, pruned), pruned)
        sizes.append(int(pruned.sum()))
    assert min(sizes) < count


def test_circuits_asked_for_by_nearly_equal_numbers_have_names_of_their_own() -> None:
    graph, scores = GRAPHS[0], noise(GRAPHS[0])
    names = list(Selection(sparsities=(0.98764, 0.98761, 0.9876)).circuits(graph, scores))
    assert names == ["sparsity-0.9876", "sparsity-0.98761", "sparsity-0.98764"]
    names = list(Selection(rule="threshold", thresholds=(0.1234567, 0.1234568, 1.0, 1e-5)).circuits(graph, scores))
    assert names == ["threshold-1e-05", "threshold-0.1234567", "threshold-0.1234568", "threshold-1"]


def test_a_selection_reports_its_edges_before_and_after() -> None:
    graph, scores = GRAPHS[0], noise(GRAPHS[0])
    circuits = Selection(sparsities=(0.9, 0.5), prune_dangling=True).circuits(graph, scores)
    assert list(circuits) == ["sparsity-0.5000", "sparsity-0.9000"]
    for sparsity, circuit in zip((0.5, 0.9), circuits.values(), strict=True):
        about = circuit.header["selection"]
        assert about["edges_before_pruning"] == round((1 - sparsity) * graph.num_edges)
        assert about["edges"] == circuit.num_edges == about["edges_before_pruning"] - dangling(graph, scores, sparsity)
        assert circuit.num_dangling == 0
        assert circuit.scores is not None
        assert torch.equal(graph.to_vector(circuit.scores), graph.to_vector(scores).float())


def dangling(graph: EdgeGraph, scores: Tensor, sparsity: float) -> int:
    return Circuit.from_scores(graph, scores, sparsity=sparsity).num_dangling


def test_a_selection_by_thresholds() -> None:
    circuits = Selection(rule="threshold", thresholds=(0.01, 1.0)).circuits(GRAPHS[0], noise(GRAPHS[0]))
    assert list(circuits) == ["threshold-0.01", "threshold-1"]
    assert circuits["threshold-0.01"].num_edges > circuits["threshold-1"].num_edges > 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rule": "best"}, "'best'"),
        ({"sparsities": (0.5, 1.5)}, "1.5"),
        ({"sparsities": ()}, "sparsities"),
        ({"rule": "threshold"}, "thresholds"),
        ({"positive_first": 1.5, "absolute": True}, "1.5"),
        ({"positive_first": 0.5}, "absolute=true"),
        ({"positive_first": 0.5, "absolute": True, "rule": "greedy"}, "'greedy'"),
        ({"seconds": 0}, "got 0"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(EdgepruneError, match=named):
        Selection(**settings)
