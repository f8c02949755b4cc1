import pytest

from edgeprune import canonical
from edgeprune.circuit import Circuit
from edgeprune.comparison.role_recall import role_recall
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph

GREATER_THAN = canonical.load("greater_than")
GRAPH = GREATER_THAN.graph


@pytest.mark.parametrize("name", canonical.names())
def test_a_published_circuit_has_itself(name: str) -> None:
    known = canonical.load(name)
    result = role_recall(known.circuit(), known)
    number = len(known.roles)
    assert result["summary"] == f"{number} of {number} component types"
    assert (result["roles_found"], result["roles_complete"], result["num_roles"]) == (number, number, number)
    assert (result["node_recall"], result["edges"]["recall"], result["edges"]["precision"]) == (1, 1, 1)
    assert result["edges_not_dangling"] == result["edges"]


def test_nothing_is_found_in_an_empty_circuit() -> None:
    result = role_recall(Circuit.from_edges(GRAPH, []), GREATER_THAN)
    assert result["summary"] == "0 of 5 component types"
    assert (result["node_recall"], result["edges"]["recall"], result["roles_complete"]) == (0, 0, 0)


def test_by_hand() -> None:
    edges = ["embed->a0.h1.v", "a0.h1->a5.h5.k", "a5.h5->m9", "m9->logits", "embed->a1.h0.q", "embed->m2", "m3->m4"]
    result = role_recall(Circuit.from_edges(GRAPH, edges), GREATER_THAN)
    assert {name: role["nodes_found"] for name, role in result["roles"].items()} == {
        "early_heads": [],
        "early_head_of_mlps": ["a0.h1"],
        "early_mlps": [],  # two kept edges touch them, but they lead nowhere
        "year_heads": ["a5.h5"],
        "late_mlps": ["m9"],
    }
    assert result["roles"]["late_mlps"] == {
        "found": True,
        "complete": False,
        "nodes_found": ["m9"],
        "nodes_missed": ["m8", "m10", "m11"],
        "recall": 1 / 4,
    }
    assert (result["roles_found"], result["roles_complete"]) == (3, 1)
    assert result["summary"] == "3 of 5 component types"
    assert result["node_recall"] == 3 / 17
    assert (result["edges"]["both"], result["edges"]["only_found"]) == (6, 1)
    assert result["edges"]["recall"] == 6 / 235
    assert (result["edges_not_dangling"]["both"], result["edges_not_dangling"]["only_found"]) == (4, 0)


def test_a_circuit_with_two_embeddings_is_held_against_the_one_that_was_published() -> None:
    ioi = canonical.load("ioi")
    split = EdgeGraph(ArchSpec(num_layers=12, num_heads=12, num_kv_heads=12, split_embedding=True))
    result = role_recall(Circuit.from_edges(split, ["tok_embed->a9.h9.v", "a9.h9->logits"]), ioi)
    assert result["summary"] == "1 of 7 component types"
    assert (result["edges"]["precision"], result["edges"]["recall"]) == (1, 2 / 1021)


def test_a_circuit_of_another_model() -> None:
    with pytest.raises(
        EdgepruneError, match="'docstring' is one of attn-only-4l, with num_layers=4; this graph has 12"
    ):
        role_recall(Circuit.from_edges(GRAPH, []), canonical.load("docstring"))
