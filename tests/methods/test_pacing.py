"""Recipes whose price is steered: what they tell `Pace`, and when."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import EdgePruning
from edgeprune.objectives import GeometricPenalty, Pace
from edgeprune.objectives.pace import Motion

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))
WORTH = torch.linspace(-1, 3, GRAPH.num_edges)


def error_of(gates: Tensor) -> Tensor:
    """Opening edge i is worth `WORTH[i]`; gates `[reader, writer]`, or `[group, reader, writer]`."""
    return -(gates[..., GRAPH.exists] * WORTH).sum(-1).mean()


def build(term: Any = None, **options: Any) -> EdgePruning:
    recipe = EdgePruning(term or Pace(0.9), **options)
    recipe.build(GRAPH)
    with torch.no_grad():
        recipe.edges.log_alpha.copy_(torch.linspace(-2, 2, GRAPH.num_edges))
    return recipe


def told(recipe: EdgePruning, monkeypatch: pytest.MonkeyPatch, price: float) -> Motion:
    """What `Pace` is told at a price."""
    seen: list[Motion] = []
    monkeypatch.setattr(Pace, "steer", lambda _, motion, progress: seen.append(motion))
    assert recipe.pace is not None
    recipe.pace.price.fill_(price)
    recipe.edges.log_alpha.grad = None
    error, gates = recipe.expected_error(error_of, seed=0, step=3)
    (error + recipe.penalty(gates, 0.5)).backward()
    recipe.after_backward(0.5)
    (motion,) = seen
    return motion


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"masks_per_batch": 4},
        {"estimator": "local", "num_flips": 99},
    ],
)
def test_the_slopes_told_are_those_of_the_error_alone(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = build(**options)
    free, paid = (told(recipe, monkeypatch, price) for price in (0.0, 40.0))
    error, _ = recipe.expected_error(error_of, seed=0, step=3)
    (expected,) = torch.autograd.grad(error, recipe.edges.log_alpha)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(free.slopes, expected)
    torch.testing.assert_close(paid.slopes, expected, atol=1e-5, rtol=1e-5)
    assert paid.units.abs().max() > 0.1
    torch.testing.assert_close(paid.units, free.units)


def test_units_are_slopes_of_the_expected_number_of_open_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = build()
    prob = recipe.edges.prob_open().detach()
    torch.testing.assert_close(told(recipe, monkeypatch, 1.0).units, prob * (1 - prob))


def test_open_edges_are_those_of_the_circuit(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = build()
    with torch.no_grad():
        recipe.edges.log_alpha[::2] = -1.0
    motion = told(recipe, monkeypatch, 1.0)
    assert 0 < int(motion.num_open(motion.locations)) == recipe.num_open() < GRAPH.num_edges
    assert int(motion.num_open(motion.locations + 9)) == GRAPH.num_edges


def test_the_price_is_steered_by_default_and_not_for_other_terms() -> None:
    assert isinstance(EdgePruning().sparsity_term, Pace)
    assert EdgePruning().pace is not None
    other = build(GeometricPenalty(1.0, 2.0))
    assert other.pace is None
    other.plan(100)
    other.after_backward(0.0)


# ------------------------------------------------------------------ rate
@pytest.mark.parametrize(
    ("steps", "start", "rate"), [(600, 2.0, 0.03), (3000, 2.0, 0.03), (300, 2.0, 0.06), (30, 2.0, 0.6)]
)
def test_the_rate_lets_a_gate_close_within_a_ninth_of_the_run(steps: int, start: float, rate: float) -> None:
    recipe = build(GeometricPenalty(), init_mean=start, node_gates=True)
    recipe.plan(steps)
    assert [group["lr"] for group in recipe.parameter_groups()] == pytest.approx([rate, rate])


def test_a_rate_that_is_set_stays_and_a_low_one_warns(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = build(Pace(0.9), learning_rate=0.03)
    recipe.plan(600)
    assert [group["lr"] for group in recipe.parameter_groups()] == [0.03]
    assert capsys.readouterr().err == ""
    recipe.plan(30)
    line = "edgeprune: warning: a gate takes 67 steps to close at learning rate 0.03, and the run has 30, so "
    assert capsys.readouterr().err.startswith(line)
    assert recipe.learning_rate == 0.03


def test_the_rate_of_nodes_may_be_set_apart() -> None:
    recipe = build(GeometricPenalty(), node_gates=True, node_learning_rate=0.5)
    assert [group["lr"] for group in recipe.parameter_groups()] == [0.03, 0.5]


@pytest.mark.parametrize("options", [{"penalty_on": "sample"}, {"node_gates": True}])
def test_a_count_that_cannot_be_foretold_is_not_steered(options: dict[str, Any]) -> None:
    with pytest.raises(
        EdgepruneError, match="Pace, the default sparsity_term, needs penalty_on 'expected' and no node"
    ):
        build(**options)
    build(GeometricPenalty(), **options)


def test_a_price_by_edges_is_none_for_nodes() -> None:
    with pytest.raises(EdgepruneError, match="Pace counts edges, so it cannot be node_sparsity_term"):
        EdgePruning(node_gates=True, node_sparsity_term=Pace(0.9))
