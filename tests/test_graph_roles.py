"""Graphs with roles: names, counts, descriptions, and paths that go from token to token."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph, RoleSpec
from tests.test_graph import SMALL, outputs, small, spec

ROLES = RoleSpec(("S1", "S2", "rest"))
GRAPH = EdgeGraph(spec(2, 4, 2), ROLES)


# -------------------------------------------------------------------- names and counts
@small
def test_every_edge_is_there_once_for_each_role(arch: ArchSpec) -> None:
    plain, graph = EdgeGraph(arch), EdgeGraph(arch, ROLES)
    assert graph.shape == (3, *plain.shape) == tuple(graph.exists.shape) == tuple(graph.all_closed().shape)
    assert graph.num_edges == 3 * plain.num_edges == int(graph.exists.sum())
    assert all(torch.equal(own, plain.exists) for own in graph.exists)
    names = [graph.edge_name(*place) for place in graph.exists.nonzero().tolist()]
    assert len(set(names)) == graph.num_edges
    assert [graph.index(name) for name in names] == [tuple(place) for place in graph.exists.nonzero().tolist()]
    values = torch.arange(graph.num_edges, dtype=torch.float64)
    assert torch.equal(graph.to_vector(graph.to_matrix(values)), values)
    assert graph.with_roles(None) == plain
    assert plain.with_roles(ROLES) == graph


def test_names_by_hand() -> None:
    assert GRAPH.index("a0.h3->a1.h1.q@S2") == (1, *GRAPH.with_roles(None).index("a0.h3->a1.h1.q"))
    assert GRAPH.edge_name(2, GRAPH.shape[1] - 1, 0) == "embed->logits@rest"
    keep = GRAPH.keep_matrix(["m0->logits@S1", " m0 -> logits @ rest "])
    assert keep.sum((1, 2)).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("graph", "edge", "message"),
    [
        (GRAPH, "m0->logits", "this one has the roles S1, S2, rest; say at which, as in 'm0->logits@S1'"),
        (GRAPH.with_roles(None), "m0->logits@S1", "this one has no roles; leave '@S1' out"),
        (GRAPH, "m0->logits@S3", "no role named 'S3'; the roles are S1, S2, rest"),
        (GRAPH, "m1->a0.h0.q@S1", "m1 is not computed before a0.h0.q reads"),
        (GRAPH, "m9->logits@S1", "no writer named 'm9'"),
        (GRAPH, "m0@S1", "is not of the form 'writer->reader'"),
    ],
)
def test_names_of_other_graphs_are_refused(graph: EdgeGraph, edge: str, message: str) -> None:
    with pytest.raises(EdgepruneError, match=re.escape(message)):
        graph.index(edge)


def test_shapes_of_other_graphs_are_refused() -> None:
    with pytest.raises(EdgepruneError, match=r"expected a \[role, reader, writer\] matrix of shape \(3, "):
        GRAPH.to_vector(torch.zeros(GRAPH.with_roles(None).shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "roles must be one name or more"),
        ((("a", "a"),), "each another"),
        ((("a@b",),), "without '@', '->' and '<-', got 'a@b'"),
        ((("",),), "got ''"),
        ((("a", "b"), (("a",),)), "sees must be of 2 roles"),
        ((("a",), (("c",),)), "no role named 'c'"),
        ((("a",), (), ("c",)), "no role named 'c'"),
    ],
)
def test_roles_that_make_no_sense_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        RoleSpec(*arguments)


# -------------------------------------------------------------------- descriptions
def test_plain_values_rebuild_the_graph() -> None:
    for roles in (ROLES, RoleSpec(("a", "b"), (("a",), ("b", "a")), ("b",))):
        graph = GRAPH.with_roles(roles)
        values = json.loads(json.dumps(graph.to_dict()))
        back = EdgeGraph.from_dict(values)
        assert back == graph
        assert back.roles is not None
        assert (back.roles.sees, back.roles.scored) == (roles.sees, roles.scored)
        assert values == json.loads(json.dumps(graph.to_dict()))  # not used up
    assert "roles" not in GRAPH.with_roles(None).to_dict()
    with pytest.raises(EdgepruneError, match="not the description of roles: 'names'"):
        EdgeGraph.from_dict({**GRAPH.to_dict(), "roles": {}})


def test_what_prompts_are_like_makes_no_other_graph() -> None:
    other = GRAPH.with_roles(RoleSpec(ROLES.names, (("S1",), ("S2",), ("rest",)), ("rest",)))
    assert other == GRAPH
    assert hash(other) == hash(GRAPH)
    assert other != GRAPH.with_roles(RoleSpec(("S1", "S2", "END")))
    assert other != GRAPH.with_roles(None)


def test_a_description_says_what_can_matter() -> None:
    plain = GRAPH.with_roles(None)
    assert f"{plain.num_edges:,} edges\n" in plain.describe()
    found = GRAPH.with_roles(RoleSpec(("a", "b"), (("a",), ("a", "b")), ("b",)))
    # at role a nothing is heard by its logits, by the last MLP, and by the last layer's queries
    last = found.rows(1)
    lost = sum(found.num_visible[row] for row in (*range(last.q.start, last.q.stop), last.mlp.start, -1))
    assert lost == 4 * 6 + 10 + 11
    assert f"at each of 2 roles: a, b), {2 * plain.num_edges - lost:,} of them on a path" in found.describe()


# -------------------------------------------------------------------- paths from token to token
def token_paths(graph: EdgeGraph, keep: Tensor, prompts: Sequence[Sequence[int]], scored: int) -> set[str]:
    """Edges of every path from an embedding to the logits of the last `scored` tokens, one path after the other."""
    on_paths: set[str] = set()

    def walk(roles: Sequence[int], token: int, writer: str, path: list[str]) -> None:
        column, role = graph.writers.index(writer), roles[token]
        for row in keep[role, :, column].nonzero().flatten().tolist():
            reader = graph.readers[row]
            longer = [*path, graph.edge_name(role, row, column)]
            if reader == "logits":
                if token >= len(roles) - scored:
                    on_paths.update(longer)
                continue
            crosses = reader.endswith((".k", ".v"))
            layer = reader.partition(".")[0]
            together = graph.arch.coupled_heads and "." in reader
            written = (
                [f"{layer}.h{n}" for n in range(graph.arch.num_heads)] if together else outputs(graph.arch, reader)
            )
            for where in range(token, len(roles) if crosses else token + 1):
                for following in written:
                    walk(roles, where, following, longer)

    for roles in prompts:
        for token in range(len(roles)):
            for writer in graph.writers[: graph.arch.num_embeddings]:
                walk(roles, token, writer, [])
    return on_paths


def observed(prompts: Sequence[Sequence[int]], scored: int, number: int) -> RoleSpec:
    names = [f"r{role}" for role in range(number)]
    sees = [
        tuple(
            names[key]
            for key in range(number)
            if any(roles[t] == query and key in roles[: t + 1] for roles in prompts for t in range(len(roles)))
        )
        for query in range(number)
    ]
    ends = {role for roles in prompts for role in roles[-scored:]}
    return RoleSpec(tuple(names), tuple(sees), tuple(names[role] for role in sorted(ends)))


FEW = {
    **{name: SMALL[name] for name in ("one layer", "split", "one group", "one head")},
    "groups": spec(2, 2, 1),
    "attention only": spec(2, 2, has_mlp=False),
    "parallel": spec(2, 2, parallel_blocks=True),
    "coupled": spec(2, 2, coupled_heads=True),
}


@pytest.mark.parametrize("arch", FEW.values(), ids=FEW.keys())
def test_dangling_edges_lie_on_no_path_of_tokens(arch: ArchSpec) -> None:
    """One token for each role, so that roles are tokens; the first of them is scored too, and is not the last."""
    prompts = [[2, 0, 1]]
    for number, density in enumerate((0.15, 0.3)):
        for scored in (1, 2):
            graph = EdgeGraph(arch, observed(prompts, scored, 3))
            keep = torch.rand(graph.shape, generator=torch.Generator().manual_seed(number)) < density
            keep &= graph.exists
            on_paths = token_paths(graph, keep, prompts, scored)
            kept = {graph.edge_name(*place) for place in keep.nonzero().tolist()}
            dangling = {graph.edge_name(*place) for place in graph.dangling(keep).nonzero().tolist()}
            assert dangling == kept - on_paths
            assert dangling


def test_nothing_on_a_path_of_tokens_is_dangling() -> None:
    """Prompts whose roles lie in several orders, and come back: paths of roles are at least those of tokens."""
    prompts, arch = [[0, 1, 0, 2], [1, 0, 0, 2]], spec(2, 2, 1)
    graph = EdgeGraph(arch, observed(prompts, 1, 3))
    keep = (torch.rand(graph.shape, generator=torch.Generator().manual_seed(0)) < 0.2) & graph.exists
    useful = {graph.edge_name(*place) for place in (keep & ~graph.dangling(keep)).nonzero().tolist()}
    assert token_paths(graph, keep, prompts, 1) <= useful


@small
def test_one_role_is_no_role(arch: ArchSpec) -> None:
    plain, graph = EdgeGraph(arch), EdgeGraph(arch, RoleSpec(("all",)))
    keep = (torch.rand(plain.shape, generator=torch.Generator().manual_seed(1)) < 0.2) & plain.exists
    assert torch.equal(graph.dangling(keep[None])[0], plain.dangling(keep))
    assert torch.equal(graph.reaching_logits(keep[None])[0], plain.reaching_logits(keep))


def test_dangling_by_hand() -> None:
    graph = EdgeGraph(spec(2, 2), RoleSpec(("first", "second"), (("first",), ("first", "second")), ("second",)))
    found = graph.keep_matrix(
        [
            "embed->a0.h0.q@first",  # a query from which no scored logits hear
            "embed->a0.h1.v@first",  # heard at the second role, through the next edge
            "a0.h1->logits@second",
            "a0.h0->logits@first",  # not scored
            "embed->a1.h0.k@second",
            "a1.h0->logits@second",
            "embed->a1.h1.k@second",  # only the first role would hear, and it comes before
            "a1.h1->logits@first",
        ]
    )
    dangling = [graph.edge_name(*place) for place in graph.dangling(found).nonzero().tolist()]
    assert sorted(dangling) == [
        "a0.h0->logits@first",
        "a1.h1->logits@first",
        "embed->a0.h0.q@first",
        "embed->a1.h1.k@second",
    ]
