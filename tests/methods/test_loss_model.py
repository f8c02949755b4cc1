"""The quadratic model of the loss around a circuit, against differences and hand-made cases."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.methods.loss_model import LossModel, Swap
from edgeprune.methods.problem import Problem
from tests.methods.small_problems import linear_model, problem, random_pairs, tiny


def exact_loss(question: Problem, gates: Tensor) -> float:
    """Mean loss in double precision throughout."""
    total = 0.0
    for batch, full, ablated in question.batches_with_runs():
        logits = question.model(batch.clean, gates, ablated, batch.attention_mask, batch.positions)
        total += question.losses(full.double(), logits, batch).sum().item()
    return total / question.num_examples


def around(question: Problem, keep: Tensor, **options: Any) -> LossModel:
    return LossModel.around(question, keep, **{"probes": 2, **options})


@pytest.mark.parametrize("metric", ["kl", "squared_error", "logit_difference"])
def test_slopes_are_those_of_the_loss_at_open_and_at_closed_edges(metric: Any) -> None:
    question = problem(tiny(), metric=metric)
    keep = Circuit.random(question.model.graph, 40, seed=1).keep
    found = question.model.graph.to_matrix(around(question, keep).slopes)
    edges = [edge for want in (True, False) for edge in (keep == want).nonzero().tolist() if found[tuple(edge)]]
    for reader, writer in edges[::7]:
        sides: list[float] = []
        for change in (1e-5, -1e-5):
            gates = keep.double()
            gates[reader, writer] += change
            sides.append(exact_loss(question, gates))
        slope = (sides[0] - sides[1]) / 2e-5
        assert found[reader, writer].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_where_outputs_are_linear_the_model_is_the_loss_itself() -> None:
    """Under squared error, in edges into the logits of a model without norms: alone, and two at a time."""
    question = problem(linear_model(), metric="squared_error")
    graph = question.model.graph
    keep = Circuit.random(graph, 20, seed=3).keep
    found = around(question, keep, probes=250)
    start = exact_loss(question, keep.double())
    places = graph.to_vector(torch.arange(keep.numel()).view(keep.shape)).tolist()
    last = [place for place, cell in enumerate(places) if cell // keep.shape[1] == keep.shape[0] - 1]
    for place in last[::3]:
        moved = graph.to_vector(keep.double())
        moved[place] = 1 - moved[place]
        change = exact_loss(question, graph.to_matrix(moved)) - start
        assert found.alone()[place].item() == pytest.approx(change, rel=0.1, abs=0.03)
    for one, other in product(last[::3], last[1::3]):
        moved = graph.to_vector(keep.double())
        for place in (one, other):
            moved[place] = 1 - moved[place]
        change = exact_loss(question, graph.to_matrix(moved)) - start
        direction = moved - graph.to_vector(keep.double())
        expected = (found.slopes @ direction + (found.rows @ direction).square().sum()).item()
        assert expected == pytest.approx(change, rel=0.1, abs=0.03)


def test_batches_do_not_matter_and_memory_bounds_the_pairs_that_are_probed() -> None:
    model, pairs = tiny(), random_pairs(5)
    keep = Circuit.random(model.graph, 40, seed=1).keep
    whole = around(problem(model, pairs, cuts=(), metric="kl"), keep)
    parts = around(problem(model, pairs, cuts=(1, 3), metric="kl"), keep)
    torch.testing.assert_close(parts.slopes, whole.slopes, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(parts.alone(), whole.alone(), rtol=1e-5, atol=1e-8)
    assert len(whole.rows) == 10
    assert whole.passes == pytest.approx(1 + 2 * 2 / 3)
    few = around(problem(model, pairs, cuts=(1, 3), metric="kl"), keep, memory_gb=6 * 8 * model.graph.num_edges / 1e9)
    assert len(few.rows) == 6  # three pairs
    torch.testing.assert_close(few.slopes, whole.slopes, rtol=1e-5, atol=1e-8)
    first = around(problem(model, pairs[:3], cuts=(), metric="kl"), keep)
    torch.testing.assert_close(few.rows.square().sum(0), first.rows.square().sum(0), rtol=1e-5, atol=1e-8)


def test_draws_are_functions_of_their_numbers() -> None:
    question = problem(tiny(), metric="kl")
    keep = Circuit.random(question.model.graph, 40, seed=1).keep
    one, same, other = (around(question, keep, seed=1, draw=draw).rows for draw in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_without_curvature_closing_costs_the_size_of_the_slope() -> None:
    """A slope that promises a gain from closing is no reason to close."""
    question = problem(tiny(), metric="logit_difference")
    keep = Circuit.random(question.model.graph, 40, seed=1).keep
    found = around(question, keep)
    assert not len(found.rows)
    assert (found.alone()[found.keep] >= 0).all()
    assert torch.equal(found.alone()[~found.keep], found.slopes[~found.keep])


def hand_made() -> LossModel:
    """Edges 0 to 2 are closed, 3 to 5 open. 0 and 1 bring the same thing; 2 brings what closing 3 or 4 takes away."""
    keep = torch.tensor([False, False, False, True, True, True])
    slopes = torch.tensor([-4.0, -3.9, -2.0, 0.0, 0.0, 3.0]).double()
    rows = torch.tensor(
        [
            [1.0, 1.0, 0.0, 0.0, 0.0, -2.5],
            [0.0, 0.0, 0.5, 0.5, 0.6, 0.0],
        ]
    ).double()
    return LossModel(keep, slopes, rows, 1.0)


def test_swaps_are_lined_up_with_what_those_before_them_did() -> None:
    model = hand_made()
    assert model.alone().tolist() == pytest.approx([-3.0, -2.9, -1.75, 0.25, 0.36, 3.25])
    assert model.swaps(1) == [Swap(0, 3)]  # then 1 promises .9 only, and 2 promises 2.25: .5 more than alone
    assert model.swaps(9) == [Swap(0, 3), Swap(2, 4)]  # closing 5 as well would cost 8.25
    assert model.best_openings(2).tolist() == [0, 1]


def test_a_line_ends_where_no_gain_is_promised() -> None:
    model = hand_made()
    assert LossModel(model.keep, torch.zeros(6).double(), model.rows, 1.0).swaps(3) == []


def test_costs_in_another_circuit_are_those_of_the_quadratic_form() -> None:
    model = hand_made()
    keep = torch.tensor([True, False, True, True, False, True])
    costs = model.closing_costs(keep)

    def value(circuit: Tensor) -> float:
        moved = circuit.double() - model.keep.double()
        return (model.slopes @ moved + (model.rows @ moved).square().sum()).item()

    for place in range(6):
        without = keep.clone()
        without[place] = False
        expected = value(without) - value(keep) if keep[place] else torch.inf
        assert costs[place].item() == pytest.approx(expected)
