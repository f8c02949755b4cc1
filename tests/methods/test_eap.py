"""EAP: against finite differences, exact patching and node attribution."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.collate import collate
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.compiled import minimal_circuits
from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods import EAP, ExactEdgePatching
from edgeprune.methods.attribution import closing_curvatures, curvature_probe, open_gates
from edgeprune.methods.problem import Problem
from edgeprune.metrics import functional
from edgeprune.models.outputs import writer_outputs
from edgeprune.models.states import FixedOutputs, WriterStates
from tests.methods.small_problems import (
    compiled_problem,
    linear_model,
    problem,
    random_pairs,
    tiny,
)
from tests.models.reference import slow_logits
from tests.models.test_conformance import WIRED, build

SECOND_ORDER: list[Any] = ["kl", "squared_error"]


def scores_of(question: Problem, **options: Any) -> Tensor:
    scores = EAP(**options).discover(question, no_progress).scores
    assert scores is not None
    return scores


def slow_loss(question: Problem, gates: Tensor) -> Tensor:
    """Mean loss by sums over edges, in double precision."""
    total = torch.zeros((), dtype=torch.float64)
    for batch, full, ablated in question.batches_with_runs():
        logits = slow_logits(question.model, batch.clean, gates, ablated, batch.attention_mask)
        rows = torch.arange(len(batch))[:, None]
        total = total + question.losses(full.double(), logits[rows, batch.positions], batch).sum()
    return total / question.num_examples


@pytest.mark.parametrize(("family", "index"), WIRED)
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
    exact = ExactEdgePatching().discover(question, no_progress).scores
    assert exact is not None
    torch.testing.assert_close(scores_of(question), exact, rtol=1e-4, atol=1e-5)
    assert (exact.abs() > 1e-3).sum() > 20


def test_is_exact_for_edges_into_logits_without_a_final_norm() -> None:
    question = problem(tiny("edgeprune_compiled", 0), random_pairs(2))
    exact = ExactEdgePatching().discover(question, no_progress).scores
    assert exact is not None
    scores = scores_of(question)
    torch.testing.assert_close(scores[-1], exact[-1], rtol=1e-4, atol=1e-5)
    assert (scores[:-1] - exact[:-1]).abs().max() > 1e-3  # elsewhere the model is not linear


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_scores_of_a_writer_sum_to_its_node_attribution(name: str) -> None:
    """Moving a head's output itself, towards what closed edges carry, moves all its readers."""
    question, layer, head, step = problem(tiny(name)), 1, 2, 1e-5
    model = question.model
    writer = model.graph.first_writer(layer) + head
    slope = 0.0
    for batch, full, ablated in question.batches_with_runs():

        def loss(
            share: float, batch: PairBatch = batch, full: Tensor = full, ablated: WriterStates = ablated
        ) -> Tensor:
            own = model.record(batch.clean, batch.attention_mask).heads[layer].clone()
            own[:, :, head] += share * (ablated.heads[layer][:, :, head] - own[:, :, head])
            fixed = FixedOutputs(heads={layer: own})
            gates = model.graph.all_open(torch.float64)
            with torch.no_grad():
                logits = model(batch.clean, gates, ablated, batch.attention_mask, batch.positions, fixed=fixed)
            return question.losses(full, logits, batch).sum()

        slope += (loss(step) - loss(-step)).item() / (2 * step)
    total = scores_of(question)[:, writer].sum().item()
    assert total == pytest.approx(slope / question.num_examples, rel=1e-4)
    assert abs(total) > 1e-4


def test_a_writer_that_is_not_ablated_scores_zero() -> None:
    pairs = random_pairs()
    same = [type(pair)(pair.clean, pair.clean, pair.positions, pair.targets, pair.distractors) for pair in pairs]
    question = problem(tiny(), same)
    batch, _, ablated = next(iter(question.batches_with_runs()))
    states = question.model.record(batch.clean, batch.attention_mask)
    assert all(output.abs().max() > 0 for output in writer_outputs(question.model, states))
    real = batch.attention_mask.bool()  # kept states have zeros where a batch is padded
    assert ablated.minus(states).heads[:, real].abs().max() == 0
    assert scores_of(question).abs().max() == 0


# ---------------------------------------------------------------- metrics without a slope at the full model
def every_direction(index: int, shape: tuple[int, int]) -> Iterator[Tensor]:
    """In place of random signs: one output at one position after the other, whose squares add up to the mean."""
    size = shape[0] * shape[1]
    yield from torch.eye(size).view(size, *shape)


def exact_scores(question: Problem) -> Tensor:
    """What the scores are estimates of."""
    total, gates = torch.zeros(question.model.graph.shape, dtype=torch.float64), open_gates(question.model)
    for batch, full, ablated in question.batches_with_runs():
        total += closing_curvatures(question, batch, full, ablated, gates, every_direction)
    return total / question.num_examples


@pytest.mark.parametrize("metric", SECOND_ORDER)
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_is_half_the_second_derivative_of_the_loss_in_each_gate(family: Any, index: int, metric: Any) -> None:
    question = problem(build(family, index), random_pairs(2), cuts=(), metric=metric)
    scores, graph, step = exact_scores(question), question.model.graph, 1e-3
    edges = graph.exists.nonzero().tolist()
    for edge in random.Random(0).sample(edges, 8):
        nudge = torch.zeros(graph.shape, dtype=torch.float64)
        nudge[tuple(edge)] = step
        with torch.no_grad():
            below, at, above = (slow_loss(question, graph.all_open(torch.float64) + k * nudge) for k in (-1, 0, 1))
        expected = (below - 2 * at + above) / step**2 / 2
        torch.testing.assert_close(scores[tuple(edge)], expected, rtol=1e-3, atol=1e-6)
    assert (scores[graph.exists] > 1e-6).sum() > len(edges) / 2


@pytest.mark.parametrize("metric", SECOND_ORDER)
def test_probes_have_half_the_hessian_of_the_loss_as_covariance(metric: Any) -> None:
    batch = collate(list(enumerate(random_pairs(1))))
    full = 2 * torch.randn(1, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hessian: Any = torch.autograd.functional.hessian(
        lambda logits: getattr(functional, metric)(full, logits, batch).sum(), full
    )
    noise = torch.eye(10, dtype=torch.float64).view(10, 2, 5)
    probes = torch.stack([curvature_probe(metric, full[0], draw).flatten() for draw in noise])
    torch.testing.assert_close(probes.T @ probes, hessian.view(10, 10) / 2)


@pytest.mark.parametrize("metric", SECOND_ORDER)
@pytest.mark.parametrize("ablation", ["interchange", "zero"])
def test_estimates_approach_the_exact_scores(metric: Any, ablation: Any) -> None:
    question = problem(tiny(), metric=metric, ablation=ablation)
    exact, exists = exact_scores(question), question.model.graph.exists
    errors = []
    for samples in (4, 64):
        scores = scores_of(question, samples=samples)
        assert (scores >= 0).all()
        assert (scores[~exists] == 0).all()
        errors.append(((scores - exact).norm() / exact.norm()).item())
    assert errors[0] < 0.8  # sqrt(2 / samples) is .71 and .18: what they would be with a single example
    assert errors[1] < 0.35


@pytest.mark.parametrize("metric", SECOND_ORDER)
@pytest.mark.parametrize("ablation", ["interchange", "zero"])
def test_estimates_depend_on_neither_batches_nor_order(metric: Any, ablation: Any) -> None:
    model, pairs = tiny(), list(enumerate(random_pairs()))
    whole = scores_of(problem(model, cuts=(), metric=metric, ablation=ablation))
    cut = problem(model, cuts=(1, 3), metric=metric, ablation=ablation)
    torch.testing.assert_close(scores_of(cut), whole, rtol=1e-5, atol=1e-9)
    mixed = replace(cut, batches=[collate([pairs[3], pairs[0]]), collate([pairs[4], pairs[2], pairs[1]])])
    torch.testing.assert_close(scores_of(mixed), whole, rtol=1e-5, atol=1e-9)
    assert (scores_of(cut, seed=1) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("metric", SECOND_ORDER)
def test_examples_are_squared_apart(metric: Any) -> None:
    """The score of two examples is the mean of their own: slopes are squared before they are added."""
    model, pairs = tiny(), random_pairs(2)
    alone = [exact_scores(problem(model, [pair], metric=metric)) for pair in pairs]
    torch.testing.assert_close(exact_scores(problem(model, pairs, cuts=(), metric=metric)), (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize("program", ["reverse", "xproportion", "hist", "sort", "or_gate", "and_gate", "induction"])
def test_finds_the_circuits_of_compiled_programs(program: str) -> None:
    question, truth = compiled_problem(program), minimal_circuits(program, "interchange")[0]  # pyright: ignore
    scores = scores_of(question)
    circuit = Circuit.from_scores(question.model.graph, scores, num_edges=len(truth))
    assert set(circuit.edges()) == set(truth)


def test_samples_change_nothing_where_the_metric_has_a_slope() -> None:
    question = problem(tiny())
    assert torch.equal(scores_of(question, samples=1), scores_of(question, samples=7, seed=3))


def test_says_which_term_it_took() -> None:
    about = [
        EAP(samples=3).discover(problem(tiny(), metric=metric), no_progress).about
        for metric in ("logit_difference", "kl")
    ]
    assert about == [{"order": 1, "backward_passes": 3}, {"order": 2, "backward_passes": 15}]


def test_a_metric_that_is_not_defined_is_refused() -> None:
    with pytest.raises(EdgepruneError, match="'kl' is not defined"):
        scores_of(replace(compiled_problem("xproportion"), metric="kl"))


def test_settings() -> None:
    assert EAP(samples=2).describe() == {"method": "eap", "samples": 2, "seed": 0, "rules": None}
    with pytest.raises(EdgepruneError, match="samples must be at least 1, got 0"):
        EAP(samples=0)
