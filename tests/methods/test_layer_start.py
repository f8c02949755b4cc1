"""Warm starts that are calibrated in each layer: the share that is open, counted and by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.gates.hard_concrete import sample
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import EdgePruning, WarmStart
from edgeprune.methods.warm_start import layers
from edgeprune.objectives import GeometricPenalty, Pace

GRAPHS = [
    EdgeGraph(ArchSpec(num_layers=3, num_heads=4, num_kv_heads=2)),
    EdgeGraph(ArchSpec(num_layers=2, num_heads=3, num_kv_heads=3, split_embedding=True)),
    EdgeGraph(ArchSpec(num_layers=2, num_heads=2, num_kv_heads=2, has_mlp=False)),
]
GRAPH = GRAPHS[0]


def scores_of(graph: EdgeGraph) -> Tensor:
    """Larger by far in later layers, so that a ranking over all edges would leave the first ones without any."""
    noise = torch.randn(graph.shape, generator=torch.Generator().manual_seed(0))
    return noise + 100 * torch.arange(len(graph.readers))[:, None]


def build(folder: Path, graph: EdgeGraph = GRAPH, scores: Tensor | None = None, **options: Any) -> EdgePruning:
    own = scores_of(graph) if scores is None else scores
    path = Circuit.from_scores(graph, own, num_edges=5).save(folder / "scores.safetensors")
    made = EdgePruning(GeometricPenalty(1.0, 1.0), init_mean=7.0, warm_start=WarmStart(str(path), **options))
    made.build(graph)
    return made


def by_layer(graph: EdgeGraph, values: Tensor) -> dict[str, Tensor]:
    """Values `[num_edges]` of the edges that each layer reads, by the names of the readers."""
    found: dict[str, list[float]] = {}
    for value, (reader, _) in zip(values.tolist(), graph.exists.nonzero().tolist(), strict=True):
        found.setdefault(graph.readers[reader].split(".")[0].lstrip("am"), []).append(value)
    return {name: torch.tensor(each) for name, each in found.items()}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.95])
def test_every_layer_has_the_share_that_is_asked_for(tmp_path: Path, graph: EdgeGraph, sparsity: float) -> None:
    recipe = build(tmp_path, graph, layer_sparsity=sparsity)
    found = by_layer(graph, recipe.edges.log_alpha.detach())
    assert set(found) == {*map(str, range(graph.arch.num_layers)), "logits"}
    assert [int((each > 0).sum()) for each in found.values()] == [
        round((1 - sparsity) * len(each)) for each in found.values()
    ]
    assert recipe.num_open() == sum(round((1 - sparsity) * len(each)) for each in found.values())
    plain = build(tmp_path, graph, spread=1.0)  # as before: nothing of it is calibrated
    assert (plain.edges.log_alpha > 0).all()


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("sparsity", "softness"), [(0.5, 0.25), (0.8, 0.25), (0.8, 0.05), (0.9, 0.02)])
def test_the_mean_of_the_gates_is_the_share(tmp_path: Path, graph: EdgeGraph, sparsity: float, softness: float) -> None:
    """Of the gates at the middle of their noise."""
    recipe = build(tmp_path, graph, layer_sparsity=sparsity, softness=softness, calibrated="mean")
    gates = sample(recipe.edges.log_alpha.detach(), torch.tensor(0.5))
    for each in by_layer(graph, gates).values():
        assert each.mean().item() == pytest.approx(1 - sparsity, abs=1e-6)


def test_gates_follow_the_rank_in_their_layer(tmp_path: Path) -> None:
    """The logits of a model of one layer read three edges: of ranks 0, 1/2, 1; b is 3/4 where one is open."""
    graph = EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1))
    values = torch.zeros(graph.shape)
    values[-1, :3] = torch.tensor([5.0, -8.0, 1.0])
    recipe = build(tmp_path, graph, values, layer_sparsity=2 / 3, softness=0.5)
    found = by_layer(graph, recipe.edges.log_alpha.detach())["logits"]
    gates = [1 / (1 + math.exp(-(rank - 0.75) / 0.5)) for rank in (1, 0, 0.5)]
    expected = [2 / 3 * math.log((gate + 0.1) / (1.1 - gate)) for gate in gates]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_scores_are_ranked_as_for_other_starts(tmp_path: Path) -> None:
    signed, sizes = (
        build(tmp_path, scores=scores_of(GRAPH) - 150, layer_sparsity=0.5, magnitude=magnitude).edges.log_alpha
        for magnitude in (False, True)
    )
    vector = GRAPH.to_vector(scores_of(GRAPH) - 150)
    for edges in layers(GRAPH):
        assert torch.equal(signed[edges].argsort(), vector[edges].argsort())
        assert torch.equal(sizes[edges].argsort(), vector[edges].abs().argsort())


def test_of_tied_edges_the_earlier_is_the_better_one(tmp_path: Path) -> None:
    """A circuit without scores has two kinds of edges; the share is kept all the same."""
    path = Circuit.from_edges(GRAPH, ["m0->m1", "m0->logits"]).save(tmp_path / "circuit.safetensors")
    recipe = EdgePruning(GeometricPenalty(1.0, 1.0), warm_start=WarmStart(str(path), layer_sparsity=0.75))
    recipe.build(GRAPH)
    for edges in layers(GRAPH):
        own = recipe.edges.log_alpha[edges]
        assert int((own > 0).sum()) == round(0.25 * len(edges))
    names = [GRAPH.edge_name(*place) for place in GRAPH.exists.nonzero().tolist()]
    first, second = layers(GRAPH)[1], layers(GRAPH)[3]
    assert names[int(first[recipe.edges.log_alpha[first].argmax()])] == "m0->m1"
    assert names[int(second[recipe.edges.log_alpha[second].argmax()])] == "m0->logits"
    order = layers(GRAPH)[0]  # nothing is kept there
    assert torch.equal(recipe.edges.log_alpha[order].argsort(descending=True), torch.arange(len(order)))


def test_frozen_edges_stay_closed(tmp_path: Path) -> None:
    """The best 10 % of all edges are trained, which lie in the last layers; the first ones have nothing open then."""
    recipe = build(tmp_path, layer_sparsity=0.5, keep_below=0.1)
    kept = recipe.circuit().keep
    assert 0 < int(kept.sum()) == recipe.num_open() <= round(0.1 * GRAPH.num_edges)
    assert not kept[: GRAPH.arch.readers_per_layer].any()


def test_the_run_is_planned_from_where_gates_start(tmp_path: Path) -> None:
    """Not from `init_mean`; and without the file, as a run that goes on."""
    recipe = build(tmp_path, layer_sparsity=0.8)
    assert recipe.start is not None
    assert recipe.start.highest == recipe.edges.log_alpha.max().item()
    recipe.plan(30)
    (tmp_path / "scores.safetensors").unlink()
    again = EdgePruning(
        GeometricPenalty(1.0, 1.0), init_mean=7.0, warm_start=WarmStart(str(tmp_path / "gone"), layer_sparsity=0.8)
    )
    again.build(GRAPH)
    again.plan(30)
    assert recipe.learning_rate == again.learning_rate == pytest.approx(recipe.start.highest / (30 / 9), abs=1e-4)
    with pytest.raises(EdgepruneError, match="no circuit or score file"):
        again.check_started()


def test_a_steered_price_begins_with_the_edges_that_are_open(tmp_path: Path) -> None:
    path = Circuit.from_scores(GRAPH, scores_of(GRAPH), num_edges=5).save(tmp_path / "scores.safetensors")
    recipe = EdgePruning(Pace(0.95), warm_start=WarmStart(str(path), layer_sparsity=0.6))
    recipe.build(GRAPH)
    recipe.plan(50)
    (recipe.penalty(recipe.sample(0, 0), 0.0) + (recipe.sample(0, 0) ** 2).sum()).backward()
    recipe.after_backward(0.0)
    assert recipe.pace is not None
    assert float(recipe.pace.begin) == pytest.approx(recipe.num_open() / GRAPH.num_edges)
    assert recipe.num_open() / GRAPH.num_edges == pytest.approx(0.4, abs=0.01)


def test_the_header_has_the_settings(tmp_path: Path) -> None:
    record = build(tmp_path, layer_sparsity=0.8, softness=0.5).circuit().header["warm_start"]
    assert {name: record[name] for name in ("layer_sparsity", "softness", "calibrated")} == {
        "layer_sparsity": 0.8, "softness": 0.5, "calibrated": "open",
    }  # fmt: skip


@pytest.mark.parametrize(("sparsity", "calibrated"), [(0.9, "mean"), (0.999, "open")])
def test_a_start_without_an_open_gate_is_refused(tmp_path: Path, sparsity: float, calibrated: str) -> None:
    words = rf"layer_sparsity {sparsity} starts with no gate open \(calibrated: {calibrated}, softness 0.25\)"
    with pytest.raises(EdgepruneError, match=words):
        build(tmp_path, layer_sparsity=sparsity, calibrated=calibrated)
