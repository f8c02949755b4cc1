"""Circuits with roles: sizes, files, unions, what they do in a model, and who refuses them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from edgeprune.circuit import FORMAT, ROLE_FORMAT, Circuit
from edgeprune.drawing import write_dot
from edgeprune.errors import EdgepruneError
from edgeprune.formats import read_circuit, write_circuit
from edgeprune.graph import ArchSpec, EdgeGraph, RoleSpec
from edgeprune.methods.warm_start import Start, WarmStart
from edgeprune.models.masked import MaskedModel
from edgeprune.roles import observed_roles, role_of
from tests.methods.small_problems import tiny
from tests.reading.small import evaluator

PLAIN = EdgeGraph(ArchSpec(num_layers=3, num_heads=4, num_kv_heads=2))
RESULTS = Path(__file__).parent.parent / "docs" / "results"
ROLES = RoleSpec(("IO", "S2", "rest"), (("IO", "rest"), ("IO", "S2", "rest"), ("IO", "S2", "rest")), ("rest",))
GRAPH = PLAIN.with_roles(ROLES)


def scores(graph: EdgeGraph = GRAPH) -> torch.Tensor:
    return torch.randn(graph.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def circuit() -> Circuit:
    return Circuit.from_scores(GRAPH, scores(), sparsity=0.8, header={"model": "tiny", "metrics": {"kl": 0.25}})


# -------------------------------------------------------------------- sizes and names
def test_sizes_are_of_edges_at_roles_and_of_the_union(circuit: Circuit) -> None:
    assert circuit.num_edges == round(0.2 * GRAPH.num_edges) == int(circuit.keep.sum()) == len(circuit.edges())
    assert tuple(circuit.keep.shape) == (3, *PLAIN.shape)
    assert abs(circuit.sparsity - 0.8) < 1 / GRAPH.num_edges
    union = circuit.union()
    assert union.graph == PLAIN
    assert union.num_edges == int((circuit.keep.sum(0) > 0).sum())
    assert circuit.num_edges / 3 < union.num_edges < circuit.num_edges
    assert union.sparsity == 1 - union.num_edges / PLAIN.num_edges
    assert circuit.nodes() == union.nodes()
    assert circuit.roles == ROLES.names
    assert union.roles == ()
    assert "roles IO, S2, rest)" in repr(circuit)
    assert "role" not in repr(union)


def test_edges_are_named_with_their_role(circuit: Circuit) -> None:
    again = Circuit.from_edges(GRAPH, circuit.edges())
    assert torch.equal(again.keep, circuit.keep)
    assert Circuit.from_edges(GRAPH, ["m0->logits@S2"]).edges() == ["m0->logits@S2"]
    assert torch.equal(circuit.gates(), circuit.keep.float())


def test_dangling_edges_depend_on_the_role() -> None:
    whole = ["embed->a0.h0.v@IO", "a0.h0->logits@rest"]
    assert Circuit.from_edges(GRAPH, whole).num_dangling == 0
    lost = Circuit.from_edges(GRAPH, [*whole, "a0.h0->logits@IO", "embed->a1.h0.q@S2"])
    assert lost.num_dangling == 2
    assert lost.without_dangling().edges() == whole


def test_a_table_has_a_column_of_roles(circuit: Circuit) -> None:
    frame = circuit.to_dataframe()
    assert frame["edge"].tolist() == circuit.edges()
    assert (frame["writer"] + "->" + frame["reader"] + "@" + frame["role"]).tolist() == circuit.edges()
    assert circuit.scores is not None
    assert frame["score"].tolist() == circuit.scores[circuit.keep].tolist()
    assert "role" not in circuit.union().to_dataframe()
    assert f"{circuit.num_edges:,} of {GRAPH.num_edges:,} edges" in circuit._repr_html_()


# -------------------------------------------------------------------- unions
def test_a_union_is_scored_by_the_role_that_ranks_an_edge_highest(circuit: Circuit) -> None:
    union = circuit.union()
    assert union.scores is not None
    assert torch.equal(union.scores[PLAIN.exists], scores().amax(0)[PLAIN.exists])
    absolute = Circuit(GRAPH, circuit.keep, scores(), {"absolute": True}).union().scores
    assert absolute is not None
    assert torch.equal(absolute.abs()[PLAIN.exists], scores().abs().amax(0)[PLAIN.exists])
    assert (absolute < 0).any()
    assert Circuit(GRAPH, circuit.keep).union().scores is None
    assert union.header == {"model": "tiny", "derived": [{"union": [*ROLES.names], "num_edges": circuit.num_edges}]}


def test_a_union_of_equal_roles_is_the_circuit_bit_for_bit() -> None:
    plain = Circuit.from_scores(PLAIN, scores(PLAIN), sparsity=0.7)
    by_role = plain.with_roles(ROLES)
    assert by_role.graph == GRAPH
    assert by_role.num_edges == 3 * plain.num_edges
    assert by_role.sparsity == plain.sparsity
    union = by_role.union()
    assert torch.equal(union.keep, plain.keep)
    assert union.scores is not None
    assert plain.scores is not None
    assert torch.equal(union.scores, plain.scores)
    assert plain.union() is plain
    assert torch.equal(Circuit(GRAPH, GRAPH.exists).union().keep, PLAIN.exists)


def test_sets_of_edges(circuit: Circuit) -> None:
    other = Circuit.random(GRAPH, 100, seed=1)
    assert torch.equal((circuit & other).keep, circuit.keep & other.keep)
    assert torch.equal((circuit - other).keep, circuit.keep & ~other.keep)
    assert (circuit | other).num_edges == circuit.num_edges + other.num_edges - (circuit & other).num_edges
    with pytest.raises(
        EdgepruneError, match=r"has no roles, the other circuit has the roles IO, S2, rest; give it the"
    ):
        _ = circuit | circuit.union()


# -------------------------------------------------------------------- files
def test_files_come_back_whole(circuit: Circuit, tmp_path: Path) -> None:
    path = circuit.save(tmp_path / "a.safetensors")
    found = Circuit.load(path)
    assert torch.equal(found.keep, circuit.keep)
    assert found.scores is not None
    assert circuit.scores is not None
    assert torch.equal(found.scores, circuit.scores)
    assert found.graph == GRAPH
    assert found.graph.roles is not None
    assert (found.graph.roles.sees, found.graph.roles.scored) == (ROLES.sees, ROLES.scored)
    union = circuit.union()
    assert found.header["format"] == ROLE_FORMAT
    assert found.header["union"] == {"num_edges": union.num_edges, "sparsity": union.sparsity}
    assert found.header["graph"]["roles"]["names"] == [*ROLES.names]
    assert found.header["num_dangling"] == circuit.num_dangling
    assert found.save(tmp_path / "b.safetensors").read_bytes() == path.read_bytes()
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("keep").shape == GRAPH.shape


def test_a_damaged_file_is_called_by_its_own_format(circuit: Circuit, tmp_path: Path) -> None:
    path = circuit.save(tmp_path / "a.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(EdgepruneError, match=f"not a whole circuit file of format {ROLE_FORMAT}: its contents are not"):
        Circuit.load(path)


def test_a_circuit_without_roles_is_written_as_ever(circuit: Circuit, tmp_path: Path) -> None:
    union = Circuit.load(circuit.union().save(tmp_path / "union.safetensors"))
    assert union.header["format"] == FORMAT
    assert not {"roles", "union"} & (union.header.keys() | union.header["graph"].keys())
    assert union.graph == PLAIN
    shipped = next(RESULTS.rglob("sparsity-*.safetensors"))  # written before there were roles
    assert Circuit.load(shipped).save(tmp_path / "again.safetensors").read_bytes() == shipped.read_bytes()


# -------------------------------------------------------------------- in a model
def test_dangling_edges_do_nothing_where_logits_are_scored() -> None:
    """Under interchange; at positions that are not scored they may, and others do where they are."""
    model = tiny("gpt2")
    judge = evaluator(model)
    roles = observed_roles(judge.batches)
    found = Circuit.random(model.graph.with_roles(roles), 220, seed=3)
    useful = found.without_dangling()
    assert 20 < found.num_dangling < 200
    for batch in judge.batches:
        ablated, mask = model.record(batch.corrupted, batch.corrupted_mask), batch.attention_mask

        def logits(circuit: Circuit, batch: Any = batch, ablated: Any = ablated, mask: Any = mask) -> torch.Tensor:
            where = role_of(batch, roles.names)
            return model(batch.clean, circuit.gates(torch.float64), ablated, mask, role_of=where)

        rows = torch.arange(len(batch))[:, None]
        change = (logits(found) - logits(useful)).abs().amax(-1)
        assert change[rows, batch.positions].max() < 1e-10
        assert change.max() > 1e-6
        assert (logits(useful) - logits(Circuit.from_edges(found.graph, []))).abs().amax(-1)[
            rows, batch.positions
        ].max() > 1e-4


def test_a_union_runs_as_the_plain_circuit(circuit: Circuit) -> None:
    model = tiny("gpt2")
    batch = evaluator(model).batches[0]
    roles = observed_roles([batch])
    plain = Circuit.random(model.graph, 60)
    by_role = plain.with_roles(roles)
    ablated = model.record(batch.corrupted, batch.corrupted_mask)
    expected = model(batch.clean, plain.gates(torch.float64), ablated, batch.attention_mask)
    union = model(batch.clean, by_role.union().gates(torch.float64), ablated, batch.attention_mask)
    assert torch.equal(union, expected)
    each = model(
        batch.clean,
        by_role.gates(torch.float64),
        ablated,
        batch.attention_mask,
        role_of=role_of(batch, roles.names),
    )
    real = batch.attention_mask.bool()
    torch.testing.assert_close(each[real], expected[real], atol=1e-12, rtol=0)


# -------------------------------------------------------------------- who refuses them
def _warm_start(circuit: Circuit, folder: Path) -> None:
    Start(WarmStart(str(circuit.save(folder / "c.safetensors"))), PLAIN)


REFUSALS: dict[str, Callable[[Circuit, Path], Any]] = {
    "drawing": lambda circuit, folder: write_dot(circuit, folder / "c.dot"),
    "another format": lambda circuit, folder: write_circuit(circuit, folder / "c.json", "eap-ig-json"),
    "a list of edges": lambda circuit, folder: write_circuit(circuit, folder / "d.json", "edges"),
    "another graph": lambda circuit, folder: read_circuit(circuit.save(folder / "c.safetensors"), PLAIN),
    "warm start": _warm_start,
    "paths up": lambda circuit, _: circuit.ancestors("logits"),
    "paths down": lambda circuit, _: circuit.descendants("embed"),
    "subgraphs": lambda circuit, _: circuit.subgraph(["embed", "logits"]),
    "networkx": lambda circuit, _: circuit.to_networkx(),
    "roles": lambda circuit, _: circuit.with_roles(ROLES),
    "a model": lambda circuit, _: circuit.check_fits(PLAIN),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_take_roles_says_so_in_one_line(what: str, circuit: Circuit, tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match=r"the roles IO, S2, rest.*; take its union: `Circuit\.union`") as caught:
        REFUSALS[what](circuit, tmp_path)
    assert "\n" not in str(caught.value)


def test_an_evaluator_refuses_gates_of_roles() -> None:
    model: MaskedModel = tiny("gpt2")
    judge = evaluator(model)
    keep = Circuit.random(model.graph.with_roles(observed_roles(judge.batches)), 60).keep
    with pytest.raises(EdgepruneError, match=r"a circuit's matrix of gates has shape \(4, .*take the union"):
        judge([keep])
