"""Greedy reduction: where it may come to rest, on graphs of which every circuit is known, and what it promises."""

import json

import pytest

from edgeprune.compiled import minimal_circuits, true_circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.minimality import marginal_effects
from edgeprune.evaluation.reduction import reduce_circuit
from tests.evaluation.test_minimality import (
    ABLATIONS,
    LARGE,
    SMALL,
    edges_in_question,
    enumerated,
    evaluator,
    of_program,
    some_edges,
)
from tests.methods.small_problems import tiny


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_it_comes_to_rest_at_an_irreducible_circuit(name: str, ablation: str) -> None:
    judge, among = of_program(name, ablation), edges_in_question(name, ablation)
    found = reduce_circuit(judge, judge.graph.keep_matrix(among), "squared_error", exhaustive=True)
    edges = frozenset(judge.graph.edge_name(*edge) for edge in found.keep.nonzero().tolist())
    assert edges in {frozenset(circuit) for circuit in enumerated(judge, among).irreducible()}
    assert found.irreducible
    assert found.path[-1].figure < 1e-5
    if name in SMALL:
        assert edges in {frozenset(circuit) for circuit in minimal_circuits(name, ablation)}


def test_a_minimal_circuit_stays_as_it_is() -> None:
    judge = of_program("reverse", "interchange")
    keep = judge.graph.keep_matrix(true_circuit("reverse", "interchange"))
    found = reduce_circuit(judge, keep, "squared_error")
    assert found.keep.equal(keep)
    assert (found.num_rounds, found.num_evaluations, found.irreducible) == (1, 2 + int(keep.sum()), True)
    assert len(found.path) == 1


@pytest.mark.parametrize(("measure", "budget"), [("kl", 0.3), ("logit_difference", 0.5), ("accuracy", 0.2)])
@pytest.mark.parametrize("exhaustive", [False, True])
def test_what_is_left_is_within_the_budget(measure: str, budget: float, exhaustive: bool) -> None:
    judge = evaluator(tiny("llama", 1), cuts=())
    keep = some_edges(judge, 0.3)
    found = reduce_circuit(judge, keep, measure, budget, exhaustive=exhaustive)
    before, after = judge([keep, found.keep], measures=[measure]).figures()[:, 0].tolist()
    assert found.path[0] == (int(keep.sum()), pytest.approx(before, abs=1e-6))
    assert found.path[-1] == (int(found.keep.sum()), pytest.approx(after, abs=1e-6))
    worse = [step.figure - before if measure == "kl" else before - step.figure for step in found.path]
    assert max(worse) <= budget + found.rounding + 1e-6
    sizes = [step.num_edges for step in found.path]
    assert sizes == sorted(set(sizes), reverse=True)
    assert not (found.keep & ~keep).any()
    assert sizes[-1] < sizes[0]
    if exhaustive:
        assert found.irreducible
        left = budget - worse[-1]
        assert not marginal_effects(judge, found.keep, measure).redundant(left - found.rounding - 1e-6).any()


def test_a_larger_budget_is_spent() -> None:
    judge = evaluator(tiny(), cuts=())
    keep = judge.graph.exists
    sizes = [int(reduce_circuit(judge, keep, budget=budget, reuse=False).keep.sum()) for budget in (0, 0.03, 1e9)]
    assert int(keep.sum()) >= sizes[0] > sizes[1] > sizes[2] == 0


def test_a_relative_budget_is_a_share_of_the_figure() -> None:
    judge = evaluator(tiny(), cuts=())
    keep = some_edges(judge, 0.2)
    figure = judge([keep], measures=["kl"]).figure("kl")
    found, same = reduce_circuit(judge, keep, "kl", 0.2, relative=True), reduce_circuit(judge, keep, "kl", 0.2 * figure)
    assert found.budget == pytest.approx(0.2 * figure)
    assert found.path[-1].figure <= 1.2 * figure + found.rounding
    assert found.keep.equal(same.keep)


def test_edges_that_are_left_dangling_go_too() -> None:
    """m0 -> m1 -> logits does little; with the edge to the logits, the one before it leads nowhere."""
    judge = evaluator(tiny())
    keep = judge.graph.keep_matrix(["embed->logits", "embed->m0", "m0->m1", "m1->logits"])
    found = reduce_circuit(judge, keep, budget=1e9)
    assert (int(found.keep.sum()), found.path[-1].num_edges) == (0, 0)
    assert not judge.graph.dangling(found.keep).any()


def test_the_empty_circuit() -> None:
    judge = evaluator(tiny())
    found = reduce_circuit(judge, judge.graph.all_closed())
    assert (found.irreducible, len(found.path), found.to_dict()["share_removed"]) == (True, 1, None)


def test_results_are_plain() -> None:
    judge = evaluator(tiny())
    found = reduce_circuit(judge, some_edges(judge, 0.2), budget=0.5, max_examples=3)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["num_examples"] == 3
    assert plain["share_removed"] == 1 - plain["num_edges"] / plain["num_edges_before"] > 0
    assert plain["path"][0]["num_edges"] == plain["num_edges_before"]
    assert plain["path"][-1] == {"num_edges": plain["num_edges"], "figure": plain["figure"]}


def test_what_is_refused() -> None:
    judge = evaluator(tiny())
    for budget in (-1.0, float("nan"), float("inf")):
        with pytest.raises(EdgepruneError, match="budget must be a number of at least 0, got"):
            reduce_circuit(judge, judge.graph.exists, budget=budget)
    gate = of_program("or_gate", "zero")
    with pytest.raises(EdgepruneError, match="measure 'kl' is not defined for any"):
        reduce_circuit(gate, gate.graph.exists)
