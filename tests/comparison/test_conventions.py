from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgeprune import canonical
from edgeprune.circuit import Circuit
from edgeprune.comparison.conventions import CONVENTIONS, Convention, convention_of, edge_values, node_values
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph

BASE = ArchSpec(num_layers=3, num_heads=4, num_kv_heads=2)
ARCHS = [
    BASE,
    replace(BASE, kv_readers="head"),
    replace(BASE, split_embedding=True),
    replace(BASE, split_embedding=True, kv_readers="head", parallel_blocks=True),
    replace(BASE, num_kv_heads=4, has_mlp=False),
    ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1, has_mlp=False),
]
GPT2 = ArchSpec(num_layers=12, num_heads=12, num_kv_heads=12)


@pytest.fixture(params=ARCHS, ids=str)
def graph(request: pytest.FixtureRequest) -> EdgeGraph:
    return EdgeGraph(request.param)


def _scores(graph: EdgeGraph) -> Tensor:
    return torch.randn(graph.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _by_name(graph: EdgeGraph, scores: Tensor, convention: Convention) -> list[float]:
    """What `edge_values` gives, edge by edge, in any order."""
    share = graph.arch.num_heads // graph.arch.num_kv_readers
    groups = graph.arch.num_heads // graph.arch.num_kv_heads
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row, column in graph.exists.nonzero().tolist():
        value, (writer, _, reader) = float(scores[row, column]), graph.edge_name(row, column).partition("->")
        layer, *place = reader.split(".")
        shared = place and place[1] != "q"
        first = int(place[0][1:]) * (share if shared else 1) if place else 0
        for head in range(first, first + (share if shared else 1)):
            inputs = f"{layer}.h{head}" if place else reader
            if convention.direct and place:
                cells["direct", f"{inputs}.{place[1]}"].append(value)
            if place and convention.inputs == "head":
                inputs += f".{place[1]}"
            elif shared and convention.inputs == "group":
                inputs = f"{layer}.g{head // groups}.{place[1]}"
            elif place and convention.inputs == "group":
                inputs += ".q"
            for name in _writer_names(writer, convention.num_embeddings):
                cells[name, inputs].append(value)
    return sorted(max(values) for values in cells.values())


def _writer_names(writer: str, num_embeddings: int) -> list[str]:
    if not writer.endswith("embed"):
        return [writer]
    names = ["tok_embed", "pos_embed"] if num_embeddings == 2 else ["embed"] * num_embeddings
    return [writer] if writer in names else names


@pytest.mark.parametrize("name", CONVENTIONS)
def test_edge_by_edge(graph: EdgeGraph, name: str) -> None:
    scores = _scores(graph)
    values = edge_values(graph, scores, CONVENTIONS[name])
    assert sorted(values.tolist()) == _by_name(graph, scores, CONVENTIONS[name])


def test_counts_are_those_of_the_graph(graph: EdgeGraph) -> None:
    sizes = [edge_values(graph, graph.exists, convention).numel() for convention in CONVENTIONS.values()]
    assert sizes == list(graph.counts().values())


def test_counts_of_gpt2() -> None:
    graph = EdgeGraph(GPT2)
    sizes = {name: edge_values(graph, graph.exists, convention).numel() for name, convention in CONVENTIONS.items()}
    assert sizes == {
        "one_embedding": 32491,
        "key_value_heads": 32491,
        "two_embeddings": 32936,
        "no_embedding": 32046,
        "acdc": 32923,
        "acdc_two_embeddings": 33368,
        "one_input": 11611,
    }


def test_without_a_name_the_edges_are_the_graphs_own(graph: EdgeGraph) -> None:
    scores = _scores(graph)
    values = edge_values(graph, scores, convention_of(graph))
    assert sorted(values.tolist()) == sorted(graph.to_vector(scores).tolist())


# Published counts of true edges; ACDC's list of tracr's reverse has 11 + 4 edges with two embeddings.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ioi", {"one_embedding": 963, "acdc": 1041, "no_embedding": 963 - 58, "two_embeddings": 963 + 58}),
        ("greater_than", {"one_embedding": 235, "acdc": 262, "no_embedding": 235 - 13, "two_embeddings": 235 + 13}),
        ("docstring", {"one_embedding": 24, "acdc": 37, "no_embedding": 24 - 8}),
        ("tracr_reverse", {"one_embedding": 10, "two_embeddings": 11, "acdc_two_embeddings": 15}),
        ("tracr_xproportion", {"one_embedding": 5, "two_embeddings": 7, "acdc_two_embeddings": 10}),
    ],
)
def test_true_edges_of_published_circuits(name: str, expected: dict[str, int]) -> None:
    circuit = canonical.load(name).circuit()
    values = {key: edge_values(circuit.graph, circuit.keep, CONVENTIONS[key]) for key in expected}
    assert {key: int((value > 0).sum()) for key, value in values.items()} == expected


# ---------------------------------------------------------------- nodes
def test_a_node_has_its_best_edge(graph: EdgeGraph) -> None:
    scores = _scores(graph)
    values = node_values(graph, scores, convention_of(graph))
    assert len(values) == len(graph.writers)
    for cut in scores[graph.exists].quantile(torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)):
        kept = Circuit(graph, scores >= cut).nodes()
        expected = [name for name, value in zip(graph.writers, values, strict=True) if value >= cut]
        assert expected == [name for name in kept if name != "logits"]


def test_embeddings_that_count_as_nodes(graph: EdgeGraph) -> None:
    without, one, two = (
        node_values(graph, graph.exists, CONVENTIONS[name])
        for name in ("no_embedding", "one_embedding", "two_embeddings")
    )
    assert len(without) + 2 == len(one) + 1 == len(two)
    assert len(two) == graph.arch.num_layers * graph.arch.writers_per_layer + 2


def test_edges_that_do_not_count_make_no_node() -> None:
    graph = EdgeGraph(BASE)
    circuit = Circuit.from_edges(graph, ["embed->a1.h2.q"])
    assert int(node_values(graph, circuit.keep, CONVENTIONS["one_embedding"]).clamp(min=0).sum()) == 2
    assert int(node_values(graph, circuit.keep, CONVENTIONS["no_embedding"]).clamp(min=0).sum()) == 0


# ---------------------------------------------------------------- mistakes
def test_nan_is_refused_where_an_edge_is() -> None:
    graph = EdgeGraph(BASE)
    scores = _scores(graph)
    scores[~graph.exists] = torch.nan
    assert edge_values(graph, scores, convention_of(graph)).isfinite().all()
    scores[0, 0] = torch.nan
    with pytest.raises(EdgepruneError, match="NaN cannot be ranked"):
        edge_values(graph, scores, convention_of(graph))


def test_another_shape() -> None:
    with pytest.raises(EdgepruneError, match=r"of shape \(28, 16\), got \(2, 3\)"):
        edge_values(EdgeGraph(BASE), torch.zeros(2, 3), CONVENTIONS["acdc"])
