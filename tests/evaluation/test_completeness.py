"""Completeness against every subset of a small circuit's nodes, and on programs whose backups are known."""

import itertools
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.compiled import minimal_circuits, true_circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.completeness import (
    KnockOutOptions,
    find_completeness,
)
from edgeprune.evaluation.controls import circuit_nodes, complement
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.evaluation.random_sets import even_sizes
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.normalise import normalise
from tests.methods.small_problems import compiled_problem, linear_model, problem, tiny

THOROUGH = KnockOutOptions(num_random=20, restarts=3, steps=6, candidates=None)
SIX = ("a0.h0", "a0.h3", "m0", "a1.h1", "a2.h2", "m2")
ALL_SETS = [chosen for size in range(7) for chosen in itertools.combinations(SIX, size)]


def evaluator(asked: Any, **changes: Any) -> Evaluator:
    return Evaluator(asked.model, asked.runs, asked.batches, "train", **changes)


def without_circuit(evaluator: Evaluator, keep: Tensor) -> ExampleValues:
    """Of the model whose edges are all open but the circuit's."""
    return evaluator([complement(evaluator.graph, keep.bool())])


def remaining(evaluator: Evaluator, keep: Tensor) -> Tensor:
    """Its normalised faithfulness, `[measure]`: 0 where nothing is left."""
    return normalise(without_circuit(evaluator, keep).figures(), evaluator.ends.figures())[0]


@pytest.fixture(scope="module")
def judge() -> Evaluator:
    return evaluator(problem(tiny("gpt2")))


@pytest.fixture(scope="module")
def six(judge: Evaluator) -> Tensor:
    """Half of the edges that leave six nodes and the embedding, and a way through each node."""
    half = Circuit.random(judge.graph, judge.graph.num_edges // 2).keep
    keep = judge.graph.keep_matrix(f"{name}->logits" for name in SIX)
    keep |= judge.graph.keep_matrix(f"embed->{name}.v" if "." in name else f"embed->{name}" for name in SIX)
    for name in ("embed", *SIX):
        column = judge.graph.writers.index(name)
        keep[:, column] |= half[:, column]
    assert circuit_nodes(judge.graph, keep) == SIX
    return keep


@pytest.fixture(scope="module")
def truth(judge: Evaluator, six: Tensor) -> ExampleValues:
    """Of each of the 64 sets of six nodes in turn: the circuit without it, the model without it."""
    gates: list[Tensor] = []
    for chosen, keep in itertools.product(ALL_SETS, (six, judge.graph.exists)):
        edges = [edge for edge in Circuit(judge.graph, keep).edges() if edge.split("->")[0] not in chosen]
        gates.append(judge.graph.keep_matrix(edges))
    return judge(gates, measures=["logit_difference", "kl"])


# -------------------------------------------------------------------- against all subsets
@pytest.mark.parametrize("measure", ["logit_difference", "kl"])
def test_the_search_finds_the_worst_of_all_sets(
    judge: Evaluator, six: Tensor, truth: ExampleValues, measure: str
) -> None:
    """No figure differs from the enumerated one, random sets stay below the worst of all, the search gets there."""
    figures = truth.figures()[:, truth.measures.index(measure)].view(-1, 2)
    known = dict(zip(ALL_SETS, figures.tolist(), strict=True))
    worst = float((figures[:, 0] - figures[:, 1]).abs().max())
    found = find_completeness(judge, six, measure, options=THOROUGH)
    assert found.nodes == SIX
    for item in found.knock_outs:
        assert (item.circuit, item.model) == pytest.approx(known[item.nodes], abs=1e-5)
        assert item.score <= worst + 1e-5
    assert max(item.score for item in found.of("greedy")) == pytest.approx(worst, abs=1e-5)
    assert max(item.score for item in found.of("random")) > 0.01
    assert found.worst is not None
    assert found.worst.score == pytest.approx(worst, abs=1e-5)
    assert found.num_runs <= 2 * len(ALL_SETS)  # no set is run twice


def test_what_is_knocked_out(judge: Evaluator, six: Tensor) -> None:
    """The empty set first, random ones of every size, each node alone, roles as far as the circuit has them."""
    roles = {"early": ["a0.h3", "a0.h0", "a0.h1"], "elsewhere": ["a1.h0", "m1"], "out": ["m2"]}
    options = KnockOutOptions(num_random=8, restarts=0)
    found = find_completeness(judge, six, roles=roles, options=options)
    assert [item.nodes for item in found.of("nothing")] == [()]
    assert found.knock_outs[0].circuit == pytest.approx(judge([six]).figure("logit_difference"), abs=1e-5)
    assert found.knock_outs[0].model == pytest.approx(judge.ends.figure("logit_difference"), abs=1e-5)
    assert sorted(item.size for item in found.of("random")) == [1, 1, 2, 2, 3, 4, 5, 6]
    assert all(item.size == len(set(item.nodes) & set(SIX)) for item in found.of("random"))
    assert [item.nodes for item in found.of("single")] == [(name,) for name in SIX]
    assert {item.name: item.nodes for item in found.of("role")} == {"early": ("a0.h0", "a0.h3"), "out": ("m2",)}
    assert found.roles_without_nodes == ("elsewhere",)
    assert found.of("greedy") == found.of("edges") == ()
    assert found.points.shape == (len(found.knock_outs), 2)
    assert found.points[0].tolist() == [found.knock_outs[0].model, found.knock_outs[0].circuit]


def test_knock_outs_of_edges(judge: Evaluator) -> None:
    """Of two edges: one alone, and both, after which the circuit is empty and the model its complement."""
    keep = judge.graph.keep_matrix(["embed->m2", "m2->logits"])
    options = KnockOutOptions(num_random=0, restarts=0, max_singles=0, num_edge_sets=2)
    one, both = find_completeness(judge, keep, options=options).of("edges")
    assert (one.size, both.size) == (1, 2)
    without = without_circuit(judge, keep)
    assert both.model == pytest.approx(without.figure("logit_difference"), abs=1e-5)
    assert both.circuit == pytest.approx(judge.ends.figure("logit_difference", 1), abs=1e-5)
    edges = [judge.graph.keep_matrix([edge]) for edge in ("embed->m2", "m2->logits")]
    alone = [
        judge([gates & ~edge for gates in (keep, judge.graph.exists)]).of("logit_difference").mean(1) for edge in edges
    ]
    assert any([one.circuit, one.model] == pytest.approx(pair.tolist(), abs=1e-5) for pair in alone)


def test_limits_are_kept(judge: Evaluator, six: Tensor) -> None:
    options = KnockOutOptions(num_random=3, max_singles=2, restarts=2, steps=2, candidates=3)
    found = find_completeness(judge, six, options=options)
    assert [len(found.of(kind)) for kind in ("random", "single", "greedy")] == [3, 2, 2]
    first, second = found.of("greedy")  # two steps from nothing, and from three nodes
    assert first.size <= 2
    assert 1 <= second.size <= 5
    assert found.num_runs <= 2 * (1 + 3 + 2 + 2 * (1 + 2 * 3))
    again = find_completeness(judge, six, options=options)
    assert [item.nodes for item in again.knock_outs] == [item.nodes for item in found.knock_outs]
    other = find_completeness(judge, six, options=KnockOutOptions(num_random=3, max_singles=2, restarts=0, seed=7))
    assert [item.nodes for item in other.of("random")] != [item.nodes for item in found.of("random")]


def test_batches_do_not_matter(six: Tensor) -> None:
    options = KnockOutOptions(num_random=6, restarts=0)
    whole, cut = (
        find_completeness(evaluator(problem(tiny("gpt2"), cuts=cuts)), six, options=options) for cuts in ((), (1, 4))
    )
    torch.testing.assert_close(whole.points, cut.points, rtol=1e-4, atol=1e-5)


def test_sizes_are_spread() -> None:
    assert even_sizes(5, 5) == [1, 2, 3, 4, 5]
    assert even_sizes(7001, 3) == [1, 3501, 7001]
    assert even_sizes(1, 3) == [1, 1, 1]
    assert even_sizes(0, 3) == even_sizes(3, 0) == []


# -------------------------------------------------------------------- programs
@pytest.mark.parametrize(
    ("program", "ablation", "edges"),
    [
        ("reverse", "zero", true_circuit("reverse", "zero")),
        ("xproportion", "zero", true_circuit("xproportion", "zero")),
        ("or_gate", "interchange", true_circuit("or_gate", "interchange")),
        ("or_gate", "zero", true_circuit("or_gate", "interchange")),  # both heads
    ],
)
def test_circuits_with_all_that_a_program_uses_are_complete(
    program: str, ablation: str, edges: tuple[str, ...]
) -> None:
    judge = evaluator(compiled_problem(program, ablation, 12), measures=("squared_error",))
    found = find_completeness(judge, judge.graph.keep_matrix(edges), "squared_error", options=THOROUGH)
    assert {item.size for item in found.of("random")} == set(range(1, len(found.nodes) + 1))
    assert found.points.max() > 0.05  # something does break
    assert found.worst is not None
    assert found.worst.score == pytest.approx(0, abs=1e-4)  # of squares up to 100, in float32
    assert remaining(judge, judge.graph.keep_matrix(edges)).item() == pytest.approx(0, abs=1e-6)


def test_a_minimal_circuit_of_the_or_gate_is_faithful_but_not_complete() -> None:
    """Under zero ablation the other head takes over in the model, and there is none in the circuit."""
    judge = evaluator(compiled_problem("or_gate", "zero"), measures=("squared_error",))
    keep = judge.graph.keep_matrix(minimal_circuits("or_gate", "zero")[0])
    found = find_completeness(judge, keep, "squared_error", options=THOROUGH)
    says_no = judge.ends.figure("squared_error", 1)  # every right yes, 1, becomes 0
    assert 0.2 < says_no < 1
    scores = {item.nodes: item.score for item in found.knock_outs}
    expected = {(): 0, ("a0.h0",): says_no, ("m0",): 0, ("a0.h0", "m0"): 0}
    assert scores == pytest.approx(expected, abs=1e-6)
    assert found.worst is not None
    assert found.worst.nodes == ("a0.h0",)
    assert (found.worst.model, found.worst.circuit) == pytest.approx((0, says_no), abs=1e-6)
    assert remaining(judge, keep).item() == pytest.approx(0, abs=1e-6)  # both go through m0


# -------------------------------------------------------------------- ends and errors
def test_the_whole_model_is_complete_and_needs_itself(judge: Evaluator) -> None:
    options = KnockOutOptions(num_random=4, restarts=1, steps=2, candidates=2)
    found = find_completeness(judge, judge.graph.exists, options=options)
    assert found.points[:, 0].tolist() == pytest.approx(found.points[:, 1].tolist(), abs=1e-5)
    without = without_circuit(judge, judge.graph.exists)
    torch.testing.assert_close(without.figures()[0], judge.ends.figures()[1], rtol=1e-4, atol=1e-5)


def test_an_empty_circuit_has_nothing_to_knock_out(judge: Evaluator) -> None:
    options = KnockOutOptions(num_edge_sets=3)
    found = find_completeness(judge, judge.graph.all_closed(), roles={"all": SIX}, options=options)
    (only,) = found.knock_outs
    assert only.circuit == pytest.approx(judge.ends.figure("logit_difference", 1), abs=1e-5)
    assert found.roles_without_nodes == ("all",)
    left = remaining(judge, judge.graph.all_closed())
    assert left[judge.measures.index("logit_difference")].item() == pytest.approx(1, abs=1e-5)


def test_plain_values(judge: Evaluator, six: Tensor) -> None:
    options = KnockOutOptions(num_random=2, restarts=1, steps=1, num_edge_sets=1)
    plain = json.loads(json.dumps(find_completeness(judge, six, options=options).to_dict(), allow_nan=False))
    assert plain["ablation"] == "interchange"
    assert plain["num_examples"] == 5
    assert plain["options"]["num_random"] == 2
    assert list(plain["summary"]) == ["nothing", "random", "single", "greedy", "edges"]
    scores = [item["score"] for item in plain["knock_outs"] if item["kind"] == "single"]
    assert plain["summary"]["single"]["mean"] == pytest.approx(sum(scores) / 6)
    assert plain["summary"]["single"]["max"] == max(scores) == plain["summary"]["single"]["worst"]["score"]
    assert plain["max"] == max(item["score"] for item in plain["knock_outs"])


def test_a_measure_that_is_not_defined() -> None:
    """A program of numbers has no targets, so no logit difference; the search still ends."""
    judge = evaluator(compiled_problem("or_gate", "zero", 4))
    keep = judge.graph.keep_matrix(minimal_circuits("or_gate", "zero")[0])
    found = find_completeness(judge, keep)
    assert found.worst is None
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["max"] is plain["worst"] is plain["summary"]["greedy"]["mean"] is None


def test_models_without_mlps() -> None:
    judge = evaluator(problem(linear_model()))
    found = find_completeness(judge, judge.graph.exists, options=KnockOutOptions(num_random=1, restarts=0))
    assert len(found.of("single")) == 9


def test_what_is_refused(judge: Evaluator, six: Tensor) -> None:
    with pytest.raises(EdgepruneError, match=r"no node named 'a9\.h9'"):
        find_completeness(judge, six, roles={"late": ["a9.h9"]})
    with pytest.raises(EdgepruneError, match="measure must be one of"):
        find_completeness(judge, six, "beauty")
    with pytest.raises(EdgepruneError, match="keep has shape"):
        find_completeness(judge, six[:2])
    with pytest.raises(EdgepruneError, match="num_random must be at least 0, got -1"):
        KnockOutOptions(num_random=-1)
    with pytest.raises(EdgepruneError, match="candidates must be at least 1, got 0"):
        KnockOutOptions(candidates=0)
