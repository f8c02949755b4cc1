"""Attention edges of a graph: names, existence, descriptions, and the paths that lead along them."""

import re
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph, RoleSpec
from edgeprune.graph_attention import names_attention
from edgeprune.graph_paths import on_a_path
from tests.test_graph import outputs, spec
from tests.test_graph_roles import FEW, observed

ROLES = RoleSpec(("S2", "IO", "END"), (("S2", "IO"), ("IO",), ("S2", "IO", "END")), ("END",))
Step = tuple[int, str, list[str]]
GRAPH = EdgeGraph(spec(2, 4, 2), ROLES)


# -------------------------------------------------------------------- names and counts
def test_there_is_one_wherever_a_query_role_sees_a_key_role() -> None:
    edges = GRAPH.attention
    assert edges.shape == tuple(edges.exists.shape) == (2, 4, 3, 3)
    assert edges.exists[0, 0].tolist() == [[True, True, False], [False, True, False], [True, True, True]]
    assert edges.num_edges == int(edges.exists.sum()) == 2 * 4 * 6
    assert EdgeGraph(GRAPH.arch, RoleSpec(("a", "b"))).attention.num_edges == 2 * 4 * 4  # nothing is known of prompts


def test_names_and_places_are_each_others_inverse() -> None:
    edges = GRAPH.attention
    assert edges.index("a1.h3[END<-S2]") == edges.index(" a1.h3 [ END <- S2 ] ") == (1, 3, 2, 0)
    names = edges.names(edges.exists)
    assert len(set(names)) == edges.num_edges
    assert [edges.index(name) for name in names] == [tuple(place) for place in edges.exists.nonzero().tolist()]
    assert edges.names(edges.keep_matrix(names[3:7])) == names[3:7]
    assert all(names_attention(name) for name in names)
    assert not any(names_attention(name) for name in ("m0->logits@S2", "a0.h1->a1.h0.q@a[b]", "a0.h1"))


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ("a0.h1[END]", "'a0.h1[END]' is not of the form 'a5.h1[query role<-key role]'"),
        ("m0[END<-S2]", "'m0[END<-S2]' is not of the form"),
        ("a2.h0[END<-S2]", "no head named 'a2.h0' in this graph; they run from 'a0.h0' to 'a1.h3'"),
        ("a0.h4[END<-S2]", "no head named 'a0.h4'"),
        ("a0.h1[END<-S1]", "no role named 'S1'; the roles are S2, IO, END"),
        ("a0.h1[IO<-S2]", "'a0.h1[IO<-S2]' does not exist: no token of IO is at or after one of S2"),
    ],
)
def test_names_of_no_attention_edge_are_refused(edge: str, message: str) -> None:
    with pytest.raises(EdgepruneError, match=re.escape(message)) as caught:
        GRAPH.attention.index(edge)
    assert "\n" not in str(caught.value)


def test_what_has_no_roles_has_none() -> None:
    with pytest.raises(EdgepruneError, match="this graph has no roles"):
        _ = GRAPH.without_roles.attention
    with pytest.raises(EdgepruneError, match="without '@', '->' and '<-', got 'a<-b'"):
        RoleSpec(("a<-b",))


def test_a_description_counts_them() -> None:
    assert "; 48 attention edges\n" in GRAPH.describe()
    assert "attention edges" not in GRAPH.without_roles.describe()


def test_gates_close_what_exists_alone() -> None:
    edges = GRAPH.attention
    gates = edges.gates(edges.keep_matrix(["a0.h1[END<-S2]"]), torch.float64)
    assert gates.dtype == torch.float64
    assert gates[0, 1].tolist() == [[0, 0, 1], [1, 0, 1], [1, 0, 0]]
    assert torch.equal(edges.gates(edges.exists), torch.ones(edges.shape))


# -------------------------------------------------------------------- paths from token to token
def steps(graph: EdgeGraph, attend: Tensor, roles: Sequence[int], token: int, reader: str) -> Iterator[Step]:
    """Where a path goes on from a reader at a token: to which token, which writer, and along which attention edge."""
    for writer in outputs(graph.arch, reader):
        if not reader.endswith((".k", ".v")):
            yield token, writer, []
            continue
        layer, head = (int(part) for part in writer[1:].split(".h"))
        for where in range(token, len(roles)):
            if attend[layer, head, roles[where], roles[token]]:
                yield where, writer, [graph.attention.edge_name(layer, head, roles[where], roles[token])]


def token_paths(
    graph: EdgeGraph, keep: Tensor, attend: Tensor, roles: Sequence[int], scored: int
) -> tuple[set[str], set[str]]:
    """Edges, and attention edges, of every path from an embedding to the logits of the last `scored` tokens."""
    edges, inside = set[str](), set[str]()

    def walk(token: int, writer: str, path: list[str], crossed: list[str]) -> None:
        column, role = graph.writers.index(writer), roles[token]
        for row in keep[role, :, column].nonzero().flatten().tolist():
            reader, longer = graph.readers[row], [*path, graph.edge_name(role, row, column)]
            if reader != "logits":
                for where, head, along in steps(graph, attend, roles, token, reader):
                    walk(where, head, longer, crossed + along)
            elif token >= len(roles) - scored:
                edges.update(longer)
                inside.update(crossed)

    for token in range(len(roles)):
        for writer in graph.writers[: graph.arch.num_embeddings]:
            walk(token, writer, [], [])
    return edges, inside


@pytest.mark.parametrize("arch", [arch for arch in FEW.values() if not arch.coupled_heads])
def test_closed_attention_edges_end_paths_of_tokens(arch: ArchSpec) -> None:
    roles, found = [2, 0, 1], 0
    for number in (0, 2, 3):
        for scored in (1, 2):
            graph = EdgeGraph(arch, observed([roles], scored, 3))
            noise = torch.Generator().manual_seed(number)
            keep = (torch.rand(graph.shape, generator=noise) < 0.3) & graph.exists
            attend = (torch.rand(graph.attention.shape, generator=noise) < 0.4) & graph.attention.exists
            edges, inside = token_paths(graph, keep, attend, roles, scored)
            kept = {graph.edge_name(*place) for place in keep.nonzero().tolist()}
            dangling = {graph.edge_name(*place) for place in graph.dangling(keep, attend).nonzero().tolist()}
            assert dangling == kept - edges
            assert set(graph.attention.names(on_a_path(graph, keep, attend))) == inside
            assert torch.equal(graph.dangling(keep, graph.attention.exists), graph.dangling(keep))
            found += int((graph.dangling(keep, attend) != graph.dangling(keep)).sum())
    assert found


def test_coupled_heads_are_joined_by_any_attention_edge_of_their_layer() -> None:
    """What one head reads moves what all write, so one open edge of any head is enough; with none there is no path."""
    graph = EdgeGraph(FEW["coupled"], RoleSpec(("first", "second"), (("first",), ("first", "second")), ("second",)))
    keep = graph.keep_matrix(["embed->a0.h0.v@first", "a0.h1->logits@second"])
    attend = torch.zeros(graph.attention.shape, dtype=torch.bool)
    assert torch.equal(graph.dangling(keep, attend), keep)
    attend[0, 0, 1, 0] = True
    assert not graph.dangling(keep, attend).any()
    assert torch.equal(on_a_path(graph, keep, attend), attend)


def test_by_hand() -> None:
    graph = EdgeGraph(spec(2, 2), RoleSpec(("first", "second"), (("first",), ("first", "second")), ("second",)))
    keep = graph.keep_matrix(
        ["embed->a0.h0.v@first", "a0.h0->logits@second", "embed->a0.h1.v@first", "a0.h1->logits@second"]
    )
    attend = graph.attention.keep_matrix(["a0.h0[second<-first]", "a0.h0[first<-first]", "a0.h1[second<-second]"])
    dangling = [graph.edge_name(*place) for place in graph.dangling(keep, attend).nonzero().tolist()]
    assert dangling == ["embed->a0.h1.v@first", "a0.h1->logits@second"]
    assert graph.attention.names(on_a_path(graph, keep, attend)) == ["a0.h0[second<-first]"]
