"""Circuits with roles judged: every analysis on edges at roles, beside circuits without, which run as they are."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune import ablations
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.brute_force import brute_force
from edgeprune.evaluation.controls import complement, rewire, run_controls
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.evaluation.minimality import marginal_effects
from edgeprune.evaluation.random_paths import RandomPaths, inflated_circuits, path_circuit, useful_edges
from edgeprune.graph import EdgeGraph
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.loading import load_model
from edgeprune.report.evaluate import TESTS, EvaluationOptions, evaluate_circuits
from edgeprune.roles import observed_roles
from edgeprune.statistics.uncertainty import Resampling
from tests.methods.small_problems import tiny
from tests.reading.small import evaluator

QUICK = EvaluationOptions(
    tests=tuple(TESTS), seeds=2, resampling=Resampling(20), num_test_examples=3, num_minimality_edges=6, num_random=3
)


@pytest.fixture
def judge() -> Evaluator:
    found = evaluator(tiny("gpt2"))
    found.model.use_roles(observed_roles(found.batches))
    return found


def circuit_of(graph: EdgeGraph, share: float = 0.4) -> Circuit:
    scores = torch.randn(graph.shape, generator=torch.Generator().manual_seed(0))
    return Circuit.from_scores(graph, scores, sparsity=1 - share, header={"method": "noise", "ablation": "interchange"})


def kl(judge: Evaluator, gates: Tensor, examples: int = 5) -> float:
    """Mean over examples, by the definition."""
    values: list[Tensor] = []
    for batch in judge.limited(examples).batches:
        full, ablated = judge.runs(batch, judge.split)
        found = gated_logits(judge.model, batch, gates.double(), ablated)
        each = (full.softmax(-1) * (full.log_softmax(-1) - found.log_softmax(-1))).sum(-1)
        values.append((each * batch.position_mask).sum(-1) / batch.position_mask.sum(-1))
    return torch.cat(values).double().mean().item()


def test_circuits_with_and_without_roles_are_judged_together(judge: Evaluator) -> None:
    graph = judge.graph
    circuits = {
        "roles": circuit_of(graph),
        "union": circuit_of(graph).union(),
        "plain": circuit_of(graph.without_roles),
    }
    found = evaluate_circuits({"interchange": judge}, circuits, QUICK)
    assert judge.graph == graph  # the model has its roles again
    for row, circuit in zip(found["circuits"], circuits.values(), strict=True):
        figure = row["ablations"]["interchange"]["measures"]["kl"]["value"]
        assert figure == pytest.approx(kl(judge, circuit.keep), rel=1e-4)
        assert (row["edges"], row["all_edges"]) == (circuit.num_edges, circuit.graph.num_edges)
        assert sum(part["kept"] for part in row["layers"].values()) == circuit.num_edges
        assert sum(part["existing"] for part in row["kinds"].values()) == circuit.graph.num_edges
        assert set(TESTS) <= set(row)
    with_roles, union, plain = found["circuits"]
    assert with_roles["roles"] == list(graph.roles.names)  # pyright: ignore[reportOptionalMemberAccess]
    assert with_roles["union"]["edges"] == union["edges"] > with_roles["edges"] / 4
    assert "roles" not in union
    assert "union" not in plain
    assert with_roles["mib"]["signed"]["num_edges"] == graph.num_edges
    assert "each at 4 roles" in with_roles["mib"]["signed"]["edges"]
    assert plain["mib"]["signed"]["num_edges"] == graph.without_roles.num_edges
    assert found["pairs"][0]["both"] == union["edges"]  # of the unions
    assert [run["circuits"] for run in found["runs"]] == []


def test_a_circuit_without_roles_has_the_figures_that_it_has_alone(judge: Evaluator) -> None:
    plain = circuit_of(judge.graph.without_roles)
    beside = evaluate_circuits({"interchange": judge}, {"roles": circuit_of(judge.graph), "plain": plain}, QUICK)
    alone_judge = Evaluator(judge.model, judge.runs, judge.batches)
    judge.model.use_roles(None)
    alone = evaluate_circuits({"interchange": alone_judge}, {"plain": plain}, QUICK)["circuits"][0]
    found = beside["circuits"][1]
    for name in ("controls", "completeness", "minimality", "suffix", "hypothesis", "mib"):
        check_close(found[name], alone[name])
    check_close(found["ablations"], alone["ablations"])


def check_close(found: Any, expected: Any) -> None:
    """The same, numbers but for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            check_close(found[name], expected[name])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            check_close(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4, nan_ok=True)
    else:
        assert found == expected


def test_every_role_open_is_the_circuit_without_roles(judge: Evaluator) -> None:
    plain = circuit_of(judge.graph.without_roles)
    everywhere = plain.with_roles(judge.graph.roles)  # pyright: ignore[reportArgumentType]
    found = judge([plain.keep, everywhere.keep])
    torch.testing.assert_close(found.values[0], found.values[1], rtol=1e-5, atol=1e-6)


def test_controls_close_nodes_at_all_tokens(judge: Evaluator) -> None:
    keep = circuit_of(judge.graph).keep
    found = run_controls(judge, keep, range(2))
    assert found["complement"].num_open == (judge.graph.num_edges - int(keep.sum()),)
    assert found["complement"].figures[0, 0].item() == pytest.approx(kl(judge, complement(judge.graph, keep)), rel=1e-4)
    for name in ("random", "random_degrees"):
        assert found[name].num_open == (int(keep.sum()),) * 2
    few = Circuit.from_edges(judge.graph, ["embed->a0.h0.v@IO", "a0.h0->logits@rest", "embed->a1.h0.q@S2"]).keep
    nodes = run_controls(judge, few, [0])
    assert nodes.nodes == ("embed", "a0.h0")  # a1.h0 writes nothing that is read
    between = nodes["nodes"]
    names = ["embed->a0.h0.q", "embed->a0.h0.k", "embed->a0.h0.v", "embed->logits", "a0.h0->logits"]
    assert between.num_open == (4 * len(names),)
    plain = judge.graph.without_roles.keep_matrix(names)
    assert between.figures[0, 0].item() == pytest.approx(kl(judge, plain), rel=1e-4)


def test_rewired_circuits_keep_the_degrees_of_readers_at_roles(judge: Evaluator) -> None:
    keep = circuit_of(judge.graph).keep
    found = rewire(judge.graph, keep, 1)
    assert found.num_swaps > 0
    assert not torch.equal(found.open, keep)
    assert torch.equal(found.open.sum(-1), keep.sum(-1))
    assert torch.equal(found.open.sum((0, 1)), keep.sum((0, 1)))
    assert not (found.open & ~judge.graph.exists).any()


def test_an_effect_is_that_of_a_run_without_the_edge_at_its_role(judge: Evaluator) -> None:
    keep = circuit_of(judge.graph).keep
    found = marginal_effects(judge, keep, max_edges=12)
    base = kl(judge, keep)
    assert found.idle.any()
    assert not found.idle.all()
    for edge, effect in zip(found.edges, found.effects.tolist(), strict=True):
        without = keep.clone()
        without[edge] = False
        assert effect == pytest.approx(kl(judge, without) - base, rel=1e-3, abs=1e-6)


# -------------------------------------------------------------------- random paths
def test_random_circuits_of_paths_do_not_dangle(judge: Evaluator) -> None:
    graph = judge.graph
    sizes = set()
    for seed in range(5):
        found = path_circuit(graph, 40, seed)
        assert 40 <= found.sum() < 60
        assert not graph.dangling(found).any()
        sizes |= {int(part.sum()) for part in found}
    assert len(sizes) > 1
    assert torch.equal(path_circuit(graph, graph.num_edges), useful_edges(graph))
    useful = useful_edges(graph)
    assert torch.equal(useful, graph.exists & ~graph.dangling(graph.exists))
    assert useful.sum() < graph.num_edges


def test_paths_go_from_the_keys_of_a_role_to_one_that_sees_it(judge: Evaluator) -> None:
    graph = judge.graph
    paths = RandomPaths(graph, torch.Generator().manual_seed(0))
    role, reader, writer = graph.index("embed->a0.h1.k@IO")
    seen = set()
    for _ in range(40):
        path = paths.through(role, reader, writer)
        assert path[0] == (role, reader, writer)
        assert graph.roles.is_scored[path[-1][0]]  # pyright: ignore[reportOptionalMemberAccess]
        assert graph.readers[path[-1][1]] == "logits"
        seen.add(path[1][0])
    assert seen >= {1, 3}
    inflated = inflated_circuits(graph, circuit_of(graph).keep, 4)
    assert inflated.edges.shape == (4, 3)
    for place, (more, less) in zip(
        inflated.edges, zip(inflated.gates[:4], inflated.gates[4:], strict=True), strict=True
    ):
        assert (more & ~less).nonzero().tolist() == [place.tolist()]


# -------------------------------------------------------------------- what is refused
def test_matrices_of_another_graph_are_refused(judge: Evaluator) -> None:
    with pytest.raises(EdgepruneError, match=r"\[role, reader, writer\]"):
        run_controls(judge, circuit_of(judge.graph.without_roles).keep)
    by_role = circuit_of(judge.graph).keep
    judge.model.use_roles(None)
    with pytest.raises(EdgepruneError, match=r"MaskedModel\.use_roles"):
        judge([by_role])


def test_brute_force_is_of_circuits_without_roles() -> None:
    model = load_model("compiled:or_gate", dtype="float64")
    judge = evaluator(tiny("gpt2"))
    model.use_roles(observed_roles(judge.batches))
    with pytest.raises(EdgepruneError, match="without roles"):
        brute_force(model, judge.batches[0], ablations.zero(model))
