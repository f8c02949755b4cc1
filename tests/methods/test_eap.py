"""EAP: against finite differences, exact patching and node attribution."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.methods import EAP, ExactEdgePatching
from edgeprune.methods.problem import Problem
from edgeprune.metrics.functional import logit_difference
from edgeprune.models.outputs import writer_outputs
from edgeprune.models.states import FixedOutputs, WriterStates
from tests.methods.small_problems import ignore_progress, linear_model, problem, random_pairs, tiny
from tests.models.reference import slow_logits
from tests.models.test_conformance import CASES, build


def scores_of(question: Problem) -> Tensor:
    scores = EAP().discover(question, ignore_progress).scores
    assert scores is not None
    return scores


def slow_loss(question: Problem, gates: Tensor) -> Tensor:
    """Mean negative logit difference by sums over edges, in double precision."""
    total = torch.zeros((), dtype=torch.float64)
    for batch, full, ablated in question.frozen():
        logits = slow_logits(question.model, batch.clean, gates, ablated, batch.attention_mask)
        rows = torch.arange(len(batch))[:, None]
        total = total - logit_difference(full, logits[rows, batch.positions], batch).sum()
    return total / question.num_examples


@pytest.mark.parametrize(("family", "index"), CASES)
def test_is_minus_the_slope_of_the_loss_in_each_gate(family: Any, index: int) -> None:
    question = problem(build(family, index), random_pairs(2), cuts=())
    scores, exists = scores_of(question), question.model.graph.exists
    gates, step = question.model.graph.all_open(torch.float64), 1e-5
    direction = torch.randn(gates.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ends = [slow_loss(question, gates + share * direction) for share in (-step, step)]
    torch.testing.assert_close(-(scores * direction).sum(), (ends[1] - ends[0]) / (2 * step), rtol=1e-4, atol=1e-6)
    gates.requires_grad_()
    (slopes,) = torch.autograd.grad(slow_loss(question, gates), gates)
    torch.testing.assert_close(scores, -slopes, rtol=1e-4, atol=1e-6)
    assert (scores[exists].abs() > 1e-4).any()
    assert (scores[~exists] == 0).all()


@pytest.mark.parametrize("cuts", [(), (1, 2, 3, 4), (4,)])
def test_scores_do_not_depend_on_batches(cuts: tuple[int, ...]) -> None:
    model = tiny()
    torch.testing.assert_close(
        scores_of(problem(model, cuts=cuts)), scores_of(problem(model, cuts=(3,))), rtol=1e-5, atol=1e-7
    )


def test_scores_do_not_depend_on_the_order_of_examples() -> None:
    model, pairs = tiny(), random_pairs()
    torch.testing.assert_close(
        scores_of(problem(model, pairs[::-1])), scores_of(problem(model, pairs)), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("ablation", ["interchange", "zero"])
def test_is_exact_where_the_model_is_linear_in_every_edge(ablation: Any) -> None:
    question = problem(linear_model(), random_pairs(2), ablation=ablation)
    exact = ExactEdgePatching().discover(question, ignore_progress).scores
    assert exact is not None
    torch.testing.assert_close(scores_of(question), exact, rtol=1e-4, atol=1e-5)
    assert (exact.abs() > 1e-3).sum() > 20


def test_is_exact_for_edges_into_logits_without_a_final_norm() -> None:
    question = problem(tiny("edgeprune_compiled", 0), random_pairs(2))
    exact = ExactEdgePatching().discover(question, ignore_progress).scores
    assert exact is not None
    scores = scores_of(question)
    torch.testing.assert_close(scores[-1], exact[-1], rtol=1e-4, atol=1e-5)
    assert (scores[:-1] - exact[:-1]).abs().max() > 1e-3  # elsewhere the model is not linear


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_scores_of_a_writer_sum_to_its_node_attribution(name: str) -> None:
    """Moving a head's output itself, towards what closed edges carry, moves all its readers."""
    question, layer, head, step = problem(tiny(name)), 1, 2, 1e-5
    model = question.model
    writer = model.graph.first_writer(layer) + head
    slope = 0.0
    for batch, full, ablated in question.frozen():

        def loss(
            share: float, batch: PairBatch = batch, full: Tensor = full, ablated: WriterStates = ablated
        ) -> Tensor:
            own = model.record(batch.clean, batch.attention_mask).heads[layer].clone()
            own[:, :, head] += share * (ablated.heads[layer][:, :, head] - own[:, :, head])
            fixed = FixedOutputs(heads={layer: own})
            gates = model.graph.all_open(torch.float64)
            with torch.no_grad():
                logits = model(batch.clean, gates, ablated, batch.attention_mask, batch.positions, fixed=fixed)
            return -logit_difference(full, logits, batch).sum()

        slope += (loss(step) - loss(-step)).item() / (2 * step)
    total = scores_of(question)[:, writer].sum().item()
    assert total == pytest.approx(slope / question.num_examples, rel=1e-4)
    assert abs(total) > 1e-4


def test_a_writer_that_is_not_ablated_scores_zero() -> None:
    pairs = random_pairs()
    same = [type(pair)(pair.clean, pair.clean, pair.positions, pair.targets, pair.distractors) for pair in pairs]
    question = problem(tiny(), same)
    batch, _, ablated = next(iter(question.frozen()))
    states = question.model.record(batch.clean, batch.attention_mask)
    assert all(output.abs().max() > 0 for output in writer_outputs(question.model, states))
    assert ablated.minus(states).heads.abs().max() == 0
    assert scores_of(question).abs().max() == 0


@pytest.mark.parametrize("metric", ["kl", "squared_error"])
def test_metrics_without_slope_are_refused(metric: Any) -> None:
    with pytest.raises(EdgepruneError, match=f"{metric}.*logit_difference"):
        scores_of(problem(tiny(), metric=metric))
