"""Parts of circuits and what they become in other libraries, against walks along single edges."""

import importlib
import math
from typing import Any

import networkx
import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.nodes import node_names

SHARED = EdgeGraph(ArchSpec(num_layers=3, num_heads=4, num_kv_heads=2))
OWN = EdgeGraph(ArchSpec(num_layers=3, num_heads=2, num_kv_heads=2, split_embedding=True))
PARALLEL = EdgeGraph(ArchSpec(num_layers=3, num_heads=4, num_kv_heads=1, parallel_blocks=True))
GRAPHS = pytest.mark.parametrize("graph", [SHARED, OWN, PARALLEL], ids=["shared", "own", "parallel"])


def some(graph: EdgeGraph, share: float = 0.08, seed: int = 0, **header: Any) -> Circuit:
    scores = torch.randn(graph.shape, generator=torch.Generator().manual_seed(seed))
    return Circuit.from_scores(graph, scores, sparsity=1 - share, header=header)


def feeds(graph: EdgeGraph, reader: str) -> set[str]:
    """The nodes that a reader is of, by their names alone."""
    if "." not in reader:
        return {reader}
    layer, head, kind = reader.split(".")
    size = graph.arch.num_heads // graph.arch.num_kv_readers if kind != "q" else 1
    first = int(head[1:]) * size
    return {f"{layer}.h{number}" for number in range(first, first + size)}


def walk_up(circuit: Circuit, node: str) -> set[str]:
    """Nodes upstream, by repeating single steps until nothing is new."""
    found: set[str] = set()
    while True:
        new = {
            writer
            for writer, reader in (edge.split("->") for edge in circuit.edges())
            if reader == node or feeds(circuit.graph, reader) & ({node} | found)
        }
        if new <= found:
            return found
        found |= new


# -------------------------------------------------------------------- sets
def test_set_operations_are_those_of_the_edges() -> None:
    a, b = some(SHARED, 0.2, 0), some(SHARED, 0.3, 1)
    first, second = set(a.edges()), set(b.edges())
    assert first & second
    assert set((a & b).edges()) == first & second
    assert set((a | b).edges()) == first | second
    assert set((a - b).edges()) == first - second
    assert torch.equal((a | b).scores, a.scores)


def test_a_part_says_where_it_is_from_and_drops_what_was_measured() -> None:
    a = some(SHARED, model="m", metrics={"kl": 0.1}, absolute=True)
    b = some(SHARED, 0.3, 1, method="eap")
    both = (a & b).without_dangling()
    assert both.header["model"] == "m"
    assert "metrics" not in both.header
    assert both.header["derived"] == [
        {"and": {"method": "eap", "num_edges": b.num_edges}},
        {"without_dangling": (a & b).num_dangling},
    ]
    assert torch.equal(both.ranking, a.ranking), "the rule of the ranking stays with the scores"
    assert "derived" not in a.header


def test_parts_survive_a_file(tmp_path: Any) -> None:
    part = some(SHARED) - some(SHARED, 0.3, 1)
    assert Circuit.load(part.save(tmp_path / "part.safetensors")).edges() == part.edges()


@pytest.mark.parametrize("operation", ["__and__", "__or__", "__sub__"])
def test_circuits_of_other_graphs_are_refused(operation: str) -> None:
    with pytest.raises(EdgepruneError, match="num_heads=2, the other circuit has 4"):
        getattr(some(SHARED), operation)(some(OWN))


# -------------------------------------------------------------------- nodes
@GRAPHS
def test_ancestors_and_descendants(graph: EdgeGraph) -> None:
    circuit = some(graph)
    up = {node: walk_up(circuit, node) for node in node_names(graph)}
    assert any(up.values())
    for node, expected in up.items():
        assert set(circuit.ancestors(node)) == expected
        assert set(circuit.descendants(node)) == {other for other, above in up.items() if node in above}


@GRAPHS
def test_ancestors_and_descendants_of_a_reader(graph: EdgeGraph) -> None:
    circuit = some(graph, 0.15)
    for reader in [name for name in graph.readers if "." in name]:
        assert set(circuit.ancestors(reader)) == walk_up(circuit, reader)
        own = feeds(graph, reader)
        below = {name for node in own for name in circuit.descendants(node)}
        assert set(circuit.descendants(reader)) == own | below


@GRAPHS
def test_a_subgraph_has_the_edges_between_its_nodes(graph: EdgeGraph) -> None:
    circuit = some(graph, 0.3)
    names = [*circuit.ancestors("m2"), "m2"]
    expected = [
        edge
        for edge in circuit.edges()
        if edge.split("->")[0] in names and feeds(graph, edge.split("->")[1]) & set(names)
    ]
    assert 0 < len(expected) < circuit.num_edges
    assert circuit.subgraph(names).edges() == expected


def test_a_reader_lets_in_its_own_edges_alone() -> None:
    circuit = Circuit(SHARED, SHARED.exists)
    assert circuit.subgraph(["embed", "a1.h2.q"]).edges() == ["embed->a1.h2.q"]
    assert circuit.subgraph(["a1.h2.q", "m1"]).edges() == []


def test_without_dangling() -> None:
    circuit = some(SHARED)
    assert circuit.num_dangling > 0
    left = circuit.without_dangling()
    assert left.num_edges == circuit.num_edges - circuit.num_dangling
    assert left.num_dangling == 0


def test_heads_and_nodes_with_a_shared_reader() -> None:
    circuit = Circuit.from_edges(SHARED, ["embed->a1.h1.v", "m0->logits", "a0.h1->m0"])
    assert circuit.heads() == ["a0.h1", "a1.h2", "a1.h3"]
    assert circuit.nodes() == ["embed", "a0.h1", "m0", "a1.h2", "a1.h3", "logits"]


def test_an_unknown_node_is_refused_with_a_hint() -> None:
    with pytest.raises(EdgepruneError, match=r"no node or reader named 'a1.h9'.*did you mean 'a1.h\d"):
        some(SHARED).ancestors("a1.h9")
    with pytest.raises(EdgepruneError, match="they run from 'embed' to 'logits'"):
        some(SHARED).subgraph(["?"])


# -------------------------------------------------------------------- other libraries
@GRAPHS
def test_paths_of_networkx_are_those_of_the_circuit(graph: EdgeGraph) -> None:
    circuit = some(graph)
    made = circuit.to_networkx()
    nodes = set(circuit.nodes())
    assert nodes <= set(made)
    for node in nodes:
        assert networkx.ancestors(made, node) & nodes == set(circuit.ancestors(node))
        assert made.nodes[node]["layer"] == (-1 if "embed" in node else 3 if node == "logits" else int(node[1]))


@GRAPHS
def test_edges_of_networkx(graph: EdgeGraph) -> None:
    circuit = some(graph)
    made = circuit.to_networkx(inner=False)
    assert sorted("->".join(edge) for edge in made.edges) == sorted(circuit.edges())
    frame = circuit.to_dataframe().set_index("edge")
    for writer, reader, about in made.edges(data=True):
        assert about == frame.loc[f"{writer}->{reader}", ["score", "layer", "kind"]].to_dict()


def test_a_data_frame_has_a_row_for_each_edge() -> None:
    circuit = some(OWN, 0.3)
    frame = circuit.to_dataframe()
    assert list(frame["edge"]) == circuit.edges()
    assert frame["score"].tolist() == circuit.scores[circuit.keep].tolist()
    assert set(frame["kind"]) <= {
        f"{a}->{b}" for a in ("embed", "head", "mlp") for b in ("q", "k", "v", "mlp", "logits")
    }
    row = frame[frame["reader"] == "logits"].iloc[0]
    assert (row["layer"], row["edge"]) == (3, f"{row['writer']}->logits")


def test_a_data_frame_without_scores_or_edges() -> None:
    assert Circuit(OWN, OWN.exists).to_dataframe()["score"].isna().all()
    empty = Circuit(OWN, torch.zeros(OWN.shape, dtype=torch.bool)).to_dataframe()
    assert (len(empty), str(empty["layer"].dtype)) == (0, "int64")


@pytest.mark.parametrize(("method", "name"), [("to_dataframe", "pandas"), ("to_networkx", "networkx")])
def test_a_missing_library_is_named_with_its_extra(method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise ImportError

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(EdgepruneError, match=rf"{name} is not installed.*edgeprune\[analysis\]"):
        getattr(some(OWN), method)()


def test_a_notebook_shows_text_as_text() -> None:
    shown = some(SHARED, model="<b>m</b>", metrics={"kl": 0.25, "logit_difference": math.nan})._repr_html_()
    assert "&lt;b&gt;m" in shown
    assert "<b>m" not in shown
    assert "kl 0.25" in shown
    assert "logit_difference" not in shown
    best = max(some(SHARED).to_dataframe().to_dict("records"), key=lambda row: row["score"])
    assert shown.split("strongest edges")[1].index("->".join(best["edge"].split("->")).replace(">", "&gt;")) < 80
