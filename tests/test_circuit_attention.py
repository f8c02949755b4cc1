"""Circuits with attention edges: names, sets, files, and that what is off every path does nothing in a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from edgeprune import circuit_attention
from edgeprune.circuit import ROLE_FORMAT, Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.gates.base import top_k
from edgeprune.roles import observed_roles, role_of
from tests.methods.small_problems import tiny
from tests.reading.small import evaluator
from tests.test_circuit_roles import GRAPH, PLAIN, scores

EDGES = GRAPH.attention


def some(seed: int = 0) -> Tensor:
    return torch.rand(EDGES.shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.fixture
def circuit() -> Circuit:
    plain = Circuit.from_scores(GRAPH, scores(), sparsity=0.8, header={"metrics": {"kl": 0.25}, "attention": {}})
    noise = torch.randn(EDGES.shape, generator=torch.Generator().manual_seed(2))
    return plain.with_attention(some(), {"attention": "at random"}, noise)


def test_random_ones_are_drawn_independently_of_the_edges() -> None:
    """The noise that ranks attention edges is not that which ranks edges, of which there are more."""
    attend = torch.zeros(EDGES.shape, dtype=torch.bool)
    attend[EDGES.exists] = top_k(torch.arange(EDGES.num_edges), 5)
    drawn = [circuit_attention.random(GRAPH, attend, seed) for seed in (0, 0, 1)]
    for seed, found in zip((0, 1), drawn[1:], strict=True):
        assert found is not None
        assert int(found.sum()) == 5
        of_edges = torch.rand(GRAPH.shape, generator=torch.Generator().manual_seed(seed)).flatten()[: EDGES.num_edges]
        assert not torch.equal(found, circuit_attention.highest(GRAPH, of_edges, 5)[0])
    first, again, other = drawn
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# -------------------------------------------------------------------- names and gates
def test_they_are_named_among_the_edges(circuit: Circuit) -> None:
    assert circuit.attend is not None
    assert torch.equal(circuit.attend, some() & EDGES.exists)
    assert len(circuit.attention_edges()) == int(circuit.attend.sum())
    again = Circuit.from_edges(GRAPH, [*circuit.edges(), *circuit.attention_edges()])
    assert again.attend is not None
    assert torch.equal(again.attend, circuit.attend)
    assert torch.equal(again.keep, circuit.keep)
    named = Circuit.from_edges(GRAPH, ["m0->logits@S2", "a1.h0[rest<-S2]"])
    assert (named.edges(), named.attention_edges()) == (["m0->logits@S2"], ["a1.h0[rest<-S2]"])
    assert Circuit.from_edges(GRAPH, ["m0->logits@S2"]).attend is None
    assert f", {int(circuit.attend.sum())} attention edges)" in repr(circuit)


def test_gates_are_open_where_none_exists(circuit: Circuit) -> None:
    gates = circuit.attention_gates(torch.float64)
    assert gates is not None
    assert torch.equal(gates.bool(), some() | ~EDGES.exists)
    assert Circuit.from_edges(GRAPH, []).attention_gates() is None


def test_what_does_not_fit_is_refused(circuit: Circuit) -> None:
    nan = torch.full(EDGES.shape, torch.nan)
    cases: list[tuple[Any, Tensor, Tensor | None, str]] = [
        (PLAIN, some(), None, "attention edges lead from role to role, and this graph has no roles"),
        (GRAPH, some()[1:], None, r"attend has shape \(2, 4, 3, 3\), this graph's attention edges are \[layer, head, "),
        (GRAPH, some(), nan[1:], "attend_scores has shape"),
        (GRAPH, some(), nan, r"the score of a0.h0\[IO<-IO\] is NaN"),
    ]
    for graph, attend, own, message in cases:
        keep = torch.zeros(graph.shape, dtype=torch.bool)
        with pytest.raises(EdgepruneError, match=message) as caught:
            Circuit(graph, keep, attend=attend, attend_scores=own)
        assert "\n" not in str(caught.value)
    with pytest.raises(EdgepruneError, match="this graph has no roles"):
        Circuit.from_edges(PLAIN, ["a1.h0[rest<-S2]"])


def test_who_does_not_know_of_them_refuses_closed_ones(circuit: Circuit) -> None:
    with pytest.raises(EdgepruneError, match=r"the circuit closes \d+ attention edges, which the model does not take"):
        circuit.check_fits(GRAPH)
    circuit.check_fits(GRAPH, attention=True)
    circuit.with_attention(EDGES.exists, {}).check_fits(GRAPH)
    opened = circuit.with_attention(None, {})
    opened.check_fits(GRAPH)
    assert opened.attention_edges() == []


# -------------------------------------------------------------------- sets and parts
def test_sets(circuit: Circuit) -> None:
    other = Circuit(GRAPH, circuit.keep, attend=some(1))
    plain = Circuit(GRAPH, circuit.keep)
    assert circuit.attend is not None
    assert other.attend is not None
    cases: list[tuple[Circuit, Tensor | None]] = [
        (circuit & other, circuit.attend & other.attend),
        (circuit | other, circuit.attend | other.attend),
        (circuit & plain, circuit.attend),
        (plain & circuit, circuit.attend),
        (circuit | plain, None),
        (plain | circuit, None),
        (plain & plain, None),
        (circuit - other, circuit.attend),
        (plain - other, None),
        (circuit.with_edges(circuit.keep, {}), circuit.attend),
    ]
    for found, expected in cases:
        assert (found.attend is None) == (expected is None)
        assert expected is None or torch.equal(found.attend, expected)  # pyright: ignore[reportArgumentType]
    assert circuit.union().attend is None
    assert Circuit(PLAIN, PLAIN.exists).with_roles(EDGES.roles).attend is None
    assert "metrics" not in circuit.header
    assert circuit.header["derived"] == [{"attention": "at random"}]


# -------------------------------------------------------------------- files
def test_a_file_gives_them_back(circuit: Circuit, tmp_path: Path) -> None:
    path = circuit.save(tmp_path / "c.safetensors")
    again = Circuit.load(path)
    assert again.header["format"] == ROLE_FORMAT
    for own, other in ((again.attend, circuit.attend), (again.attend_scores, circuit.attend_scores)):
        assert own is not None
        assert other is not None
        assert torch.equal(own, other)
    assert again.header["attention"] == {
        "num_edges": len(circuit.attention_edges()),
        "sparsity": 1 - len(circuit.attention_edges()) / EDGES.num_edges,
    }
    assert "attention" not in (again & again).header
    assert again.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_file_without_them_says_nothing_of_them(circuit: Circuit, tmp_path: Path) -> None:
    path = circuit.with_attention(None, {}).save(tmp_path / "c.safetensors")
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["keep", "scores"]
        assert "attention" not in json.loads(file.metadata()["edgeprune"])
    assert Circuit.load(path).attend is None


# -------------------------------------------------------------------- in a model
def test_what_dangles_does_nothing_where_logits_are_scored() -> None:
    """Edges that closed attention edges cut off, and open attention edges on no path, under interchange."""
    model = tiny("gpt2")
    judge = evaluator(model)
    roles = observed_roles(judge.batches)
    graph = model.graph.with_roles(roles)
    attend = torch.rand(graph.attention.shape, generator=torch.Generator().manual_seed(4)) < 0.3
    found = Circuit(graph, Circuit.random(graph, 400, seed=3).keep, attend=attend)
    useful = found.without_dangling()
    assert found.num_dangling > found.with_attention(None, {}).num_dangling
    assert useful.num_edges > 100
    assert 0 < len(useful.attention_edges()) < len(found.attention_edges())
    assert useful.num_dangling == 0
    for batch in judge.batches:
        ablated, mask = model.record(batch.corrupted, batch.corrupted_mask), batch.attention_mask

        def logits(circuit: Circuit, batch: Any = batch, ablated: Any = ablated, mask: Any = mask) -> Tensor:
            where, inside = role_of(batch, roles.names), circuit.attention_gates(torch.float64)
            gates = circuit.gates(torch.float64)
            return model(batch.clean, gates, ablated, mask, role_of=where, attention_gates=inside)

        rows = torch.arange(len(batch))[:, None]
        change = (logits(found) - logits(useful)).abs().amax(-1)
        assert change[rows, batch.positions].max() < 1e-10
        assert change.max() > 1e-6
        apart = (logits(useful) - logits(found.with_attention(None, {}))).abs().amax(-1)
        assert apart[rows, batch.positions].max() > 1e-6
