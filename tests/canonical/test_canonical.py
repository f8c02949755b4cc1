"""Published circuits have the published counts, as far as these are known from outside."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from edgeprune import canonical
from edgeprune.canonical import CanonicalCircuit
from edgeprune.circuit import Circuit
from edgeprune.compiled import true_circuit
from edgeprune.compiled.tracr_format import known_edges
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from tests.files import GROUND_TRUTH

# Edges, direct ones, and edges with both embeddings merged into one.
PUBLISHED = {
    "ioi": (963, 78, 963),
    "greater_than": (235, 27, 235),
    "docstring": (24, 13, 24),
    "tracr_reverse": (11, 4, 10),
    "tracr_xproportion": (7, 3, 5),
}
KINDS = {
    "ioi": {
        "mlp->head": 567,
        "head->head": 124,
        "head->mlp": 123,
        "mlp->mlp": 66,
        "embed->head": 45,
        "head->logits": 13,
        "mlp->logits": 12,
        "embed->mlp": 12,
        "embed->logits": 1,
    },
    "greater_than": {
        "mlp->head": 89,
        "head->head": 54,
        "mlp->mlp": 42,
        "head->mlp": 27,
        "embed->head": 9,
        "head->logits": 6,
        "mlp->logits": 4,
        "embed->mlp": 4,
    },
}


def _kind(name: str) -> str:
    return {"a": "head", "m": "mlp", "e": "embed", "l": "logits"}[name[0]]


def _node(end: str) -> str:
    return ".".join(end.split(".")[:2])


def _split(graph: EdgeGraph, split: bool) -> EdgeGraph:
    return EdgeGraph(replace(graph.arch, split_embedding=split))


@pytest.fixture(params=canonical.names())
def known(request: pytest.FixtureRequest) -> CanonicalCircuit:
    return canonical.load(request.param)


def test_published_counts(known: CanonicalCircuit) -> None:
    merged = known.circuit(_split(known.graph, split=False))
    assert (known.circuit().num_edges, len(known.direct), merged.num_edges) == PUBLISHED[known.name]


@pytest.mark.parametrize("name", KINDS)
def test_published_breakdown(name: str) -> None:
    edges = [edge.split("->") for edge in canonical.load(name).circuit().edges()]
    assert Counter(f"{_kind(writer)}->{_kind(reader)}" for writer, reader in edges) == KINDS[name]


def test_acdc_counts_1041_edges_in_ioi_and_32923_in_all() -> None:
    ioi = canonical.load("ioi")
    assert ioi.circuit().num_edges + len(ioi.direct) == 1041
    assert ioi.graph.num_edges + 3 * 144 == 32923


@pytest.mark.parametrize(
    ("name", "heads", "mlps", "listed"),
    [
        ("ioi", 26, 12, 963 + 78 + 90),
        ("tracr_reverse", 2, 3, 24),
        ("tracr_xproportion", 1, 1, 14),
    ],
)
def test_acdc_also_lists_edges_that_it_does_not_count(name: str, heads: int, mlps: int, listed: int) -> None:
    """One from each q, k and v to its head's output, and one from each MLP's input to its output."""
    known = canonical.load(name)
    assert Counter(_kind(node) for node in known.nodes if node[0] in "am") == {"head": heads, "mlp": mlps}
    assert known.circuit().num_edges + len(known.direct) + 3 * heads + mlps == listed


def test_acdc_lists_those_of_heads_alone_in_greater_than_and_33367_edges_in_all() -> None:
    known = canonical.load("greater_than")
    heads = [node for node in known.nodes if node.startswith("a")]
    assert (3 * len(heads), len(known.direct), known.circuit().num_edges + len(known.direct)) == (27, 27, 262)
    assert known.graph.num_edges + 3 * 144 + (3 * 144 + 12) == 33367


# Connections between roles, and the inputs that they enter, as the paper on IOI draws them.
IOI_LATE = ("name_mover", "backup_name_mover", "negative_name_mover")
IOI_CONNECTIONS = [
    *(("embed", role, "qkv") for role in ("previous_token", "duplicate_token")),
    ("embed", "s_inhibition", "q"),
    *(("embed", role, "kv") for role in IOI_LATE),
    ("previous_token", "induction", "kv"),
    *((role, "s_inhibition", "kv") for role in ("induction", "duplicate_token")),
    *(("s_inhibition", role, "q") for role in IOI_LATE),
    *((role, "logits", "") for role in IOI_LATE),
]


def test_ioi_with_the_mlps_between_heads_alone() -> None:
    """Auto-circuit has 739 edges: a connection passes through the MLPs from its first writer to its last reader.

    None of them is taken before the output. Without all MLPs but the first, 232 edges are left.
    """
    ioi = canonical.load("ioi")
    exist = {ioi.graph.edge_name(row, column) for row, column in ioi.graph.exists.nonzero().tolist()}
    found: set[str] = set()
    for source, target, letters in IOI_CONNECTIONS:
        writers, readers = ioi.roles.get(source, (source,)), ioi.roles.get(target, (target,))
        first = min(int(node[1:].split(".")[0]) if node[0] == "a" else 0 for node in writers)
        last = max(int(node[1:].split(".")[0]) if node[0] == "a" else 0 for node in readers)
        between = [f"m{layer}" for layer in range(first, last)]
        inputs = [f"{node}.{letter}" for node in readers for letter in letters] or list(readers)
        found |= {f"{writer}->{reader}" for writer in (*writers, *between) for reader in (*inputs, *between)} & exist
    assert len(found) == 739
    assert found < set(ioi.circuit().edges())
    others = tuple(f"m{layer}" for layer in range(1, 12))
    assert sum(not any(end in others for end in edge.split("->")) for edge in found) == 232


def test_ioi_by_heads_alone() -> None:
    """Auto-circuit's circuit by nodes has every edge that no other head writes: 2,899 T + 3,641 at T positions."""
    ioi = canonical.load("ioi")
    kept = {node for members in ioi.roles.values() for node in members}
    written = dict(zip(ioi.graph.writers, ioi.graph.exists.sum(0).tolist(), strict=True))
    always = sum(number for writer, number in written.items() if not writer.startswith("a"))
    by_heads = sum(written[head] for head in kept)
    assert (always, by_heads, always + by_heads) == (2899, 3641, 6540)
    assert 13 * always + by_heads == 41328


def test_two_embeddings_stand_for_the_published_one() -> None:
    ioi = canonical.load("ioi")
    edges = ioi.circuit(_split(ioi.graph, split=True)).edges()
    assert len(edges) == 963 + 45 + 12 + 1
    merged = {edge.replace("tok_embed", "embed").replace("pos_embed", "embed") for edge in edges}
    assert merged == set(ioi.circuit().edges())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "ioi",
            ["a0.h1->a7.h3.v", "a2.h2->a5.h5.k", "embed->a9.h9.k", "a7.h3->a9.h9.q", "a10.h7->logits", "m8->a9.h9.q"],
        ),
        ("greater_than", ["a0.h1->m0", "a9.h1->m9", "a8.h11->m8", "m8->a9.h1.q", "m4->m8", "embed->a0.h3.q"]),
    ],
)
def test_edges_that_the_papers_describe(name: str, expected: list[str]) -> None:
    assert set(expected) <= set(canonical.load(name).circuit().edges())


@pytest.mark.parametrize(
    ("name", "unexpected"),
    [
        ("ioi", ["a7.h3->logits", "embed->a9.h9.q", "a2.h2->a5.h5.q", "a9.h9->a10.h0.q", "embed->a5.h5.k"]),
        ("greater_than", ["m4->a5.h5.k", "embed->m4", "a0.h3->m1", "a5.h5->a6.h1.q", "m4->logits"]),
    ],
)
def test_edges_that_they_leave_out(name: str, unexpected: list[str]) -> None:
    assert set(canonical.load(name).circuit().edges()).isdisjoint(unexpected)


def test_every_edge_of_the_docstring_circuit() -> None:
    movers = [
        f"{writer}->a3.h{head}.{letter}"
        for head in (0, 6)
        for writer, letter in (("embed", "v"), ("a0.h5", "v"), ("a1.h4", "q"), ("a1.h2", "k"), ("a2.h0", "k"))
    ]
    sources = [
        f"{writer}->{head}.{letter}" for writer in ("embed", "a0.h5") for head in ("a1.h2", "a2.h0") for letter in "qk"
    ]
    others = ["embed->a0.h5.v", "embed->a1.h4.v", "a0.h5->a1.h4.v", "a1.h4->a2.h0.v", "a3.h0->logits", "a3.h6->logits"]
    assert sorted(canonical.load("docstring").circuit().edges()) == sorted([*movers, *sources, *others])


def test_no_edge_dangles(known: CanonicalCircuit) -> None:
    assert known.circuit().num_dangling == 0


def test_nodes_and_roles(known: CanonicalCircuit) -> None:
    edges = known.circuit().edges()
    assert set(known.nodes) == {_node(end) for edge in edges for end in edge.split("->")}
    with_role = [node for members in known.roles.values() for node in members]
    assert len(set(with_role)) == len(with_role)
    assert set(with_role) <= set(known.nodes)
    assert {node for node in known.nodes if node.startswith("a")} <= set(with_role)
    assert list(known.nodes) == [name for name in (*known.graph.writers, "logits") if name in known.nodes]


def test_numbers_of_roles() -> None:
    assert {name: len(canonical.load(name).roles) for name in ("ioi", "greater_than", "docstring")} == {
        "ioi": 7,
        "greater_than": 5,
        "docstring": 4,
    }
    assert sum(map(len, canonical.load("ioi").roles.values())) == 26


@pytest.mark.parametrize(
    ("name", "by_layer"),
    [
        (
            "ioi",
            "0: 1 10, 2: 2, 3: 0, 4: 11, 5: 5 8 9, 6: 9, 7: 3 9, 8: 6 10, 9: 0 6 7 9, 10: 0 1 2 6 7 10, 11: 2 9 10",
        ),
        ("greater_than", "0: 1 3 5, 5: 5, 6: 1 9, 7: 10, 8: 11, 9: 1"),
        ("docstring", "0: 5, 1: 2 4, 2: 0, 3: 0 6"),
    ],
)
def test_heads_by_layer(name: str, by_layer: str) -> None:
    layers = (entry.split(":") for entry in by_layer.split(", "))
    expected = [f"a{layer}.h{head}" for layer, heads in layers for head in heads.split()]
    assert [node for node in canonical.load(name).nodes if node.startswith("a")] == expected


def test_direct_edges_are_inputs_of_heads() -> None:
    heads = sorted(node for members in canonical.load("ioi").roles.values() for node in members)
    assert sorted(canonical.load("ioi").direct) == sorted(f"{head}.{letter}" for head in heads for letter in "qkv")
    assert canonical.load("tracr_reverse").direct == ("a0.h0.v", "a3.h0.q", "a3.h0.k", "a3.h0.v")


def test_compiled_reverse_is_the_same_circuit() -> None:
    assert set(true_circuit("reverse", "zero")) == set(canonical.load("tracr_reverse").circuit().edges())
    assert set(true_circuit("xproportion", "zero")) < set(canonical.load("tracr_xproportion").circuit().edges())


def test_tracr_models_agree() -> None:
    reverse, xproportion = (canonical.load(f"tracr_{name}") for name in ("reverse", "xproportion"))
    assert set(known_edges(GROUND_TRUTH / "reverse", "zero")) == set(reverse.circuit().edges())
    structural = known_edges(GROUND_TRUTH / "xproportion", "zero", "structural")
    assert set(structural) == set(xproportion.circuit().edges())


def test_a_circuit_says_where_it_comes_from(known: CanonicalCircuit, tmp_path: Path) -> None:
    path = known.circuit().save(tmp_path / "known.safetensors")
    header = Circuit.load(path).header
    assert (header["circuit"], header["model"], header["sources"]) == (known.name, known.model, list(known.sources))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 6}, "num_layers=12; this graph has 6"),
        ({"num_heads": 24}, "num_heads=12; this graph has 24"),
        ({"num_kv_heads": 4}, "num_kv_heads=12; this graph has 4"),
        ({"has_mlp": False}, "has_mlp=True; this graph has False"),
        ({"parallel_blocks": True}, "parallel_blocks=False; this graph has True"),
    ],
)
def test_a_graph_of_another_shape(change: dict[str, int], message: str) -> None:
    values: dict[str, int] = {"num_layers": 12, "num_heads": 12, "num_kv_heads": 12} | change
    with pytest.raises(EdgepruneError, match=f"'ioi' is one of gpt2, with {message}: use"):
        canonical.load("ioi").circuit(EdgeGraph(ArchSpec(**values)))


def test_kv_readers_make_no_difference_without_shared_heads() -> None:
    ioi = canonical.load("ioi")
    per_head = EdgeGraph(replace(ioi.arch, kv_readers="head"))
    assert ioi.circuit(per_head).edges() == ioi.circuit().edges()


def test_an_unknown_name() -> None:
    with pytest.raises(EdgepruneError, match="no published circuit named 'iol'; the known ones are: ioi, greater_than"):
        canonical.load("iol")
