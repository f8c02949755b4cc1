"""Controls: which edges each opens, the rewired circuits, and their figures on models that can be worked out."""

import itertools
import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.compiled import minimal_circuits
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.controls import (
    CONTROLS,
    circuit_nodes,
    columns,
    inputs_of_nodes,
    rewire,
    run_controls,
    without_nodes,
)
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.graph import ArchSpec, EdgeGraph
from tests.methods.small_problems import compiled_problem, linear_model, problem, tiny

SHARED = EdgeGraph(ArchSpec(num_layers=1, num_heads=4, num_kv_heads=2))
ONE_HEAD = EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1, has_mlp=False))
FIRST = ("embed->a0.h0.k", "a0.h0->logits")


def evaluator(asked: Any, **changes: Any) -> Evaluator:
    return Evaluator(asked.model, asked.runs, asked.batches, "train", **changes)


def opened(graph: EdgeGraph, name: str, edges: tuple[str, ...]) -> set[str]:
    return set(Circuit(graph, CONTROLS[name].gates(graph, graph.keep_matrix(edges), 0).open).edges())


def every(graph: EdgeGraph) -> set[str]:
    return set(Circuit(graph, graph.exists).edges())


# -------------------------------------------------------------------- which edges
def test_nodes_are_what_edges_on_a_path_leave() -> None:
    """Neither a head that shares a kept k reader, nor one that nothing reads, nor one that reads nothing."""
    keep = SHARED.keep_matrix([*FIRST, "embed->a0.h2.q", "a0.h3->logits", "embed->m0"])
    assert circuit_nodes(SHARED, keep) == ("a0.h0",)
    assert circuit_nodes(SHARED, keep, embeddings=True) == ("embed", "a0.h0")
    assert circuit_nodes(SHARED, SHARED.exists) == SHARED.writers[1:]
    assert circuit_nodes(SHARED, torch.zeros(SHARED.shape, dtype=torch.bool), embeddings=True) == ()


def test_sufficiency_and_necessity_share_out_the_edges() -> None:
    assert opened(SHARED, "circuit", FIRST) == set(FIRST)
    assert opened(SHARED, "complement", FIRST) == every(SHARED) - set(FIRST)


def test_between_nodes() -> None:
    """All inputs of the head are open, kept or not; so is the embedding's edge to the logits."""
    expected = {"embed->a0.h0.q", "embed->a0.h0.k", "embed->a0.h0.v", "embed->logits", "a0.h0->logits"}
    assert opened(SHARED, "nodes", FIRST) == expected
    assert opened(SHARED, "nodes", ("a0.h0->logits",)) == set()  # dangling edges make no node


def test_nodes_ablated() -> None:
    """Head 1 shares k and v of key/value head 0 with head 0, so these stay open until both are ablated."""
    leaving = {"a0.h0->m0", "a0.h0->logits"}
    assert opened(SHARED, "nodes_ablated", FIRST) == every(SHARED) - leaving - {"embed->a0.h0.q"}
    both = opened(SHARED, "nodes_ablated", (*FIRST, "a0.h1->logits"))
    gone = {f"embed->a0.{name}" for name in ("h0.q", "h1.q", "h0.k", "h0.v")}
    assert both == every(SHARED) - leaving - {"a0.h1->m0", "a0.h1->logits"} - gone


@pytest.mark.parametrize("graph", [SHARED, ONE_HEAD, EdgeGraph(ArchSpec(num_layers=3, num_heads=2, num_kv_heads=2))])
def test_both_ends(graph: EdgeGraph) -> None:
    edges, none = every(graph), set[str]()
    embedding = {f"{name}->logits" for name in graph.writers[: graph.arch.num_embeddings]}
    full = {name: opened(graph, name, tuple(edges)) for name in CONTROLS}
    assert full == dict.fromkeys(CONTROLS, edges) | {"complement": none, "nodes_ablated": embedding}
    empty = {name: opened(graph, name, ()) for name in CONTROLS}
    assert empty == dict.fromkeys(CONTROLS, none) | {"complement": edges, "nodes_ablated": edges}


@pytest.mark.parametrize("kv_readers", ["group", "head"])
def test_inputs_are_those_of_paths(kv_readers: Any) -> None:
    """One input of a head, its output and nothing else make a path exactly where the table says so."""
    graph = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2, kv_readers=kv_readers))
    inputs = inputs_of_nodes(graph)
    for row, column in itertools.product(range(len(graph.readers) - 1), range(1, len(graph.writers))):
        keep = torch.zeros(graph.shape, dtype=torch.bool)
        keep[row, 0] = keep[-1, column] = True
        assert bool(inputs[row, column]) == (not graph.dangling(keep).any())
    assert not inputs[-1].any()
    assert not inputs[:, 0].any()


# -------------------------------------------------------------------- random circuits
def profile(keep: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(keep.sum(0).tolist()), tuple(keep.sum(1).tolist())


def test_rewired_circuits_keep_every_degree() -> None:
    graph = EdgeGraph(ArchSpec(num_layers=4, num_heads=4, num_kv_heads=2))
    keep = Circuit.random(graph, graph.num_edges // 5).keep
    first, again, other = (rewire(graph, keep, seed) for seed in (0, 0, 1))
    for made in (first, other):
        assert profile(made.open) == profile(keep)
        assert not (made.open & ~graph.exists).any()
        assert made.num_tried == 20 * int(keep.sum()) > made.num_swaps > int(keep.sum())
        assert (keep & ~made.open).sum() > keep.sum() / 2
    assert torch.equal(first.open, again.open)
    assert not torch.equal(first.open, other.open)


def test_rewired_circuits_are_as_likely_as_each_other() -> None:
    """All circuits with the same degrees, listed by hand, come up, and about equally often."""
    graph = EdgeGraph(ArchSpec(num_layers=1, num_heads=2, num_kv_heads=2))
    keep = graph.keep_matrix(["embed->a0.h0.q", "embed->m0", "a0.h0->logits", "a0.h1->m0", "embed->a0.h1.v"])
    cells = graph.exists.nonzero()
    same = set[bytes]()
    for chosen in itertools.combinations(range(len(cells)), 5):
        other = torch.zeros_like(keep)
        other[tuple(cells[list(chosen)].T)] = True
        if profile(other) == profile(keep):
            same.add(bytes(other.flatten().tolist()))
    drawn = Counter(bytes(rewire(graph, keep, seed).open.flatten().tolist()) for seed in range(600))
    assert set(drawn) == same
    assert len(same) > 2
    expected = 600 / len(same)
    assert sum((count - expected) ** 2 / expected for count in drawn.values()) < 4 * len(same)


def test_a_circuit_without_a_legal_swap_comes_back() -> None:
    for keep in (SHARED.keep_matrix(["m0->logits"]), SHARED.exists, torch.zeros(SHARED.shape, dtype=torch.bool)):
        made = rewire(SHARED, keep)
        assert torch.equal(made.open, keep)
        assert made.num_swaps == 0


# -------------------------------------------------------------------- figures
@pytest.mark.parametrize(("name", "index", "mlp"), [("gpt2", 0, "m0"), ("llama", 1, "m0"), ("gpt_neox", 0, "m1")])
def test_node_controls_ablate_whole_nodes(name: str, index: int, mlp: str) -> None:
    """Edges into a node that only closed edges leave change nothing, also with shared k and v readers."""
    judge = evaluator(problem(tiny(name, index)))
    graph = judge.graph
    keep = graph.keep_matrix(["embed->a0.h1.q", f"a0.h1->{mlp}", f"{mlp}->a2.h0.q", "a2.h0->logits", "embed->a1.h1.k"])
    nodes = circuit_nodes(graph, keep, embeddings=True)
    assert nodes == ("embed", "a0.h1", mlp, "a2.h0")
    found = run_controls(judge, keep, [3])
    outside = columns(graph, set(graph.writers) - set(nodes))
    inside = columns(graph, nodes[1:])
    expected = judge([without_nodes(graph.exists, outside), without_nodes(graph.exists, inside)]).figures()
    torch.testing.assert_close(found["nodes"].figures[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["nodes_ablated"].figures[0], expected[1], rtol=1e-4, atol=1e-5)


def test_or_gate_by_hand() -> None:
    """One of two heads does all; without its edges nothing reaches the logits, as in the empty circuit."""
    asked = compiled_problem("or_gate", "zero")
    keep = asked.model.graph.keep_matrix(minimal_circuits("or_gate", "zero")[0])
    judge = evaluator(asked, measures=("squared_error",))
    found = run_controls(judge, keep, range(3))
    yes = [float(batch.clean[row, 1:][batch.attention_mask[row, 1:] == 1].eq(1).any()) for batch in asked.batches
           for row in range(len(batch))]  # fmt: skip
    says_no = sum(yes) / len(yes)
    assert 0 < says_no < 1
    expected = {"circuit": 0.0, "complement": says_no, "nodes": 0.0, "nodes_ablated": says_no}
    assert {name: found[name].figures.item() for name in expected} == pytest.approx(expected, abs=1e-6)
    faithful = {name: found[name].faithfulness.item() for name in expected}
    assert faithful == pytest.approx({"circuit": 1, "complement": 0, "nodes": 1, "nodes_ablated": 0}, abs=1e-6)
    assert found.nodes == ("tok_embed", "a0.h0", "m0")
    assert found.num_edges == 3


def test_everything_is_run_at_once_and_nothing_depends_on_the_order_of_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = evaluator(problem(tiny("gpt2")))
    keep = Circuit.random(judge.graph, 40).keep
    forward, backward = run_controls(judge, keep, (0, 1, 2)), run_controls(judge, keep, (2, 1, 0))
    for name in ("random", "random_degrees"):
        torch.testing.assert_close(forward[name].figures, backward[name].figures.flip(0), rtol=1e-4, atol=1e-6)
        assert forward[name].moved == backward[name].moved[::-1]
        assert forward[name].num_open == (40, 40, 40)
    assert all(swaps > 40 for swaps in forward["random_degrees"].num_swaps)
    asked = list[int]()
    monkeypatch.setattr(Evaluator, "__call__", lambda self, gates, *about: asked.append(len(gates)) or forward.values)
    run_controls(judge, keep, (0, 1, 2))
    assert asked == [4 + 2 * 3]


def test_batches_do_not_matter() -> None:
    model = tiny("gpt2")
    keep = Circuit.random(model.graph, 60).keep
    whole, cut = (run_controls(evaluator(problem(model, cuts=cuts)), keep, [0]) for cuts in ((), (1, 4)))
    torch.testing.assert_close(whole.values.values, cut.values.values, rtol=1e-4, atol=1e-5)


def test_plain_values() -> None:
    judge = evaluator(compiled_problem("or_gate", "zero", 6))
    found = run_controls(judge, judge.graph.exists, (5, 6))
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(plain["controls"]) == list(CONTROLS)
    random = plain["controls"]["random"]
    assert random["seeds"] == [5, 6]
    assert random["figures"]["kl"] is None
    assert random["figures"]["squared_error"] == sum(row["squared_error"] for row in random["each"]) / 2 == 0
    assert random["faithfulness"]["squared_error"] == 1
    assert plain["controls"]["circuit"]["seeds"] == []
    assert plain["controls"]["complement"]["moved"] == [1.0]


def test_models_without_mlps_and_what_is_refused() -> None:
    judge = evaluator(problem(linear_model()))
    found = run_controls(judge, torch.zeros(judge.graph.shape), [0])
    assert found["circuit"].figures.tolist() == found["random"].figures.tolist() == judge.ends.figures()[1:].tolist()
    with pytest.raises(EdgepruneError, match="at least one seed"):
        run_controls(judge, judge.graph.exists, [])
    with pytest.raises(EdgepruneError, match="keep has shape"):
        run_controls(judge, torch.ones(2, 2))
    with pytest.raises(EdgepruneError, match="no node named 'm9'"):
        columns(judge.graph, ["m9"])
