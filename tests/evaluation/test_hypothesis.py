"""The hypothesis tests on models: the full model, the corrupted run, and a known circuit against random ones."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.tasks.base import TokenPair
from edgeprune.compiled import true_circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.evaluation.hypothesis import SQUARED_SCORE, HypothesisOptions, run_hypothesis_tests
from edgeprune.evaluation.random_paths import inflated_circuits, path_circuit
from edgeprune.methods.problem import Problem
from edgeprune.metrics.examples import ExampleValues
from edgeprune.statistics.significance import minimality_test
from tests.methods.small_problems import compiled_problem, problem, random_pairs, tiny

FEW = HypothesisOptions(num_random=3, permutations=50)


def evaluator_of(asked: Problem) -> Evaluator:
    return Evaluator(asked.model, asked.runs, asked.batches, "train")


@pytest.fixture(scope="module")
def answered() -> Evaluator:
    """40 pairs whose right answer is the model's own, whose wrong one is the last it would give."""
    model, pairs = tiny("gpt2"), list[TokenPair]()
    for pair in random_pairs(40):
        tokens = torch.tensor([pair.clean])
        logits = model.full(tokens, torch.ones_like(tokens), torch.tensor([pair.positions]))[0]
        best, worst = (tuple(ends.tolist()) for ends in (logits.argmax(-1), logits.argmin(-1)))
        pairs.append(TokenPair(pair.clean, pair.corrupted, pair.positions, best, worst))
    return evaluator_of(problem(model, pairs, cuts=(16, 32)))


def test_the_full_circuit_is_equivalent_and_leaves_the_corrupted_run(answered: Evaluator) -> None:
    found = run_hypothesis_tests(answered, answered.graph.exists, options=FEW)
    assert found["equivalence"].details["num_equal"] == 40
    assert found["equivalence"].p_value == pytest.approx(1)
    assert found["sufficiency"].p_value == found["partial_necessity"].p_value == 1.0  # random ones have all edges, too
    assert found.sizes == (answered.graph.num_edges,) * 3


def test_the_empty_circuit_is_not_equivalent_and_leaves_the_model(answered: Evaluator) -> None:
    """The corrupted run is behind on every example; what is left is the model itself."""
    found = run_hypothesis_tests(answered, answered.graph.exists & False, options=FEW)
    assert found["equivalence"].details["num_below"] >= 38
    assert found["equivalence"].rejected is True
    assert found["independence"].p_value == 1 / 51
    assert found["independence"].rejected is True
    assert found.sizes == (0, 0, 0)
    plain = json.loads(json.dumps(found.to_dict()))
    assert list(plain["tests"]) == ["equivalence", "independence", "sufficiency", "partial_necessity"]
    assert plain["options"] == {**plain["options"], "num_random": 3, "random": "paths", "seed": 0}
    assert (plain["num_examples"], plain["num_edges"], plain["random_edges"]) == (40, 0, 0)
    assert (plain["ablation"], plain["score"], plain["faithfulness"]) == ("interchange", "logit_difference", "kl")


def test_one_call_of_the_evaluator(answered: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, Any]] = []
    original = Evaluator.__call__

    def counted(self: Evaluator, gates: Sequence[Tensor | None], what: str, measures: Sequence[str]) -> ExampleValues:
        asked.append((len(gates), measures))
        return original(self, gates, what, measures)

    monkeypatch.setattr(Evaluator, "__call__", counted)
    run_hypothesis_tests(answered, answered.graph.exists, options=FEW)
    assert asked == [(1 + 2 * 4, ("logit_difference", "kl"))]


def test_better_means_what_it_says_in_any_measure(answered: Evaluator) -> None:
    """Ranks of a circuit among five random ones, from figures that are run apart."""
    judge, graph = answered.limited(8), answered.graph
    keep, measures = path_circuit(graph, 30, 99), ("kl", "accuracy", "logit_difference_percent", "logit_difference")
    random = [path_circuit(graph, int(keep.sum()), seed) for seed in range(5)]
    figures = judge([None, keep, *random], measures=measures)
    scores = figures.of("logit_difference")
    worse = {
        "kl": figures.figures()[1:, 0],
        "accuracy": 1 - figures.figures()[1:, 1],
        "logit_difference_percent": (100 - figures.figures()[1:, 2]).abs(),
        SQUARED_SCORE: (scores[1:] - scores[0]).square().mean(-1),
    }
    for faithfulness, losses in worse.items():
        options = HypothesisOptions(num_random=5, permutations=5)
        found = run_hypothesis_tests(judge, keep, faithfulness=faithfulness, options=options)
        assert found["sufficiency"].statistic == sum(float(loss) <= float(losses[0]) for loss in losses[1:]) / 5


def test_a_known_circuit_beats_random_ones_of_its_size() -> None:
    """Reverse under interchange: the two edges that matter, against paths; to remove either of them does as much."""
    judge = evaluator_of(compiled_problem("reverse", number=40))
    keep = judge.graph.keep_matrix(true_circuit("reverse", "interchange"))
    options = HypothesisOptions(num_random=20, permutations=20)
    found = run_hypothesis_tests(judge, keep, "nll", "squared_error", options)
    assert found["equivalence"].details["num_equal"] == 40
    assert found["sufficiency"].p_value == pytest.approx(1 / 21)
    sharing = sum(bool((path_circuit(judge.graph, 2, seed) & keep).any()) for seed in range(20))
    assert found["partial_necessity"].p_value == pytest.approx((1 + sharing) / 21)
    useless = judge.graph.keep_matrix(["tok_embed->logits"])
    assert run_hypothesis_tests(judge, useless, "nll", "squared_error", FEW)["sufficiency"].p_value > 0.5


def test_edges_of_a_known_circuit_matter_more_than_random_ones() -> None:
    """Effects of knocking out edges, of the circuit and of inflated ones, as a caller would measure them."""
    judge = evaluator_of(compiled_problem("reverse", number=24))
    names = true_circuit("reverse", "interchange")
    idle = "pos_embed->logits"  # what it carries is the same on both prompts
    keep = judge.graph.keep_matrix([*names, idle])
    knocked_out = []
    for name in (*names, idle):
        knocked_out.append(keep.clone())
        knocked_out[-1][judge.graph.index(name)] = False
    random = inflated_circuits(judge.graph, keep, 60)
    losses = judge([keep, *knocked_out, *random.gates], measures=["squared_error"]).figures()[:, 0]
    effects = losses[1 : 1 + len(knocked_out)] - losses[0]
    found = minimality_test(effects, random.effects(losses[1 + len(knocked_out) :]), (*names, idle)).to_dict()
    assert [row["edge"] for row in found["not_significant"]] == [idle] == found["superfluous"]
    assert found["rejected"] is True


def test_measures_that_are_not_defined_are_not_tested() -> None:
    """Pairs of a compiled program have no distractors, so no logit difference."""
    judge = evaluator_of(compiled_problem("reverse", number=8))
    found = run_hypothesis_tests(judge, judge.graph.exists, faithfulness=SQUARED_SCORE, options=FEW)
    assert [test.rejected for test in found.tests] == [None] * 4


def test_without_random_circuits(answered: Evaluator) -> None:
    found = run_hypothesis_tests(
        answered, answered.graph.exists, options=HypothesisOptions(num_random=0, permutations=5)
    )
    assert (found["sufficiency"].rejected, found["equivalence"].rejected) == (None, False)
    assert found.to_dict()["random_edges"] is None


def test_what_is_refused(answered: Evaluator) -> None:
    with pytest.raises(EdgepruneError, match="random one of paths, edges, got 5 and 'nodes'"):
        HypothesisOptions(num_random=5, random="nodes")  # type: ignore[arg-type]
    with pytest.raises(EdgepruneError, match="measure must be one of"):
        run_hypothesis_tests(answered, answered.graph.exists, "beauty", options=FEW)
    with pytest.raises(EdgepruneError, match="keep has shape"):
        run_hypothesis_tests(answered, torch.ones(2, 2), options=FEW)
