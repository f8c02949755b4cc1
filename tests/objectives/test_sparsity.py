"""What pushes gates shut: a rising weight, and a Lagrangian that aims."""

import re
from itertools import pairwise
from typing import Any

import pytest
import torch

from edgeprune.errors import EdgepruneError
from edgeprune.objectives import GeometricPenalty, Lagrangian


# ------------------------------------------------------------------ rising weight
def test_weight_runs_from_start_to_end_in_equal_ratios() -> None:
    term = GeometricPenalty(2.0, 200.0)
    weights = [term.weight(step / 10) for step in range(11)]
    assert weights[0] == 2
    assert weights[-1] == pytest.approx(200)
    ratios = [later / earlier for earlier, later in pairwise(weights)]
    assert ratios == pytest.approx([100**0.1] * 10)
    assert term.state(0.5) == {"penalty_weight": pytest.approx(20)}


def test_penalty_is_the_weight_per_open_edge() -> None:
    term = GeometricPenalty(2.0, 200.0)
    fraction = torch.tensor(0.25, requires_grad=True)
    loss = term(fraction, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(5)
    assert fraction.grad is not None
    assert fraction.grad.item() == pytest.approx(20)
    assert term.target(0.5) is None
    assert list(term.parameters()) == []


def test_a_constant_weight_is_allowed() -> None:
    assert {GeometricPenalty(3.0, 3.0).weight(progress) for progress in (0, 0.3, 1)} == {3.0}


@pytest.mark.parametrize(("start", "end"), [(0, 1), (-1, 1), (5, 4)])
def test_a_weight_that_does_not_rise_is_refused(start: float, end: float) -> None:
    with pytest.raises(EdgepruneError, match=f"must rise from above 0, got start={start}, end={end}"):
        GeometricPenalty(start, end)


# ------------------------------------------------------------------ Lagrangian
def test_linear_target_rises_evenly_and_stays() -> None:
    term = Lagrangian(1.1, warmup=0.5, start=0.1)
    targets = [term.target(progress) for progress in (0, 0.125, 0.25, 0.5, 0.75, 1)]
    assert targets == pytest.approx([0.1, 0.35, 0.6, 1.1, 1.1, 1.1])


def test_log_target_closes_equal_ratios() -> None:
    term = Lagrangian(0.99, warmup=0.8, schedule="log")
    open_shares = [1 - term.target(progress) for progress in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    assert open_shares == pytest.approx([1, 0.01**0.25, 0.1, 0.01**0.75, 0.01, 0.01])


def test_published_defaults() -> None:
    term = Lagrangian(0.94)
    assert term.target(2500 / 3000) == pytest.approx(0.94)
    assert term.target(1250 / 3000) == pytest.approx(0.47)
    assert term.learning_rate == 0.8
    assert term.multipliers.tolist() == [0, 0]


def test_value_by_hand() -> None:
    term = Lagrangian(0.9, warmup=1.0)
    with torch.no_grad():
        term.multipliers.copy_(torch.tensor([2.0, 5.0]))
    gap = 0.3 - 0.9
    assert term(torch.tensor(0.7), 1.0).item() == pytest.approx(2 * gap + 5 * gap**2)
    assert term.state(0.0) == {"lambda_1": 2.0, "lambda_2": 5.0}
    square_only = Lagrangian(0.9, warmup=1.0, linear_term=False)
    with torch.no_grad():
        square_only.multipliers.copy_(torch.tensor([2.0, 5.0]))
    assert square_only(torch.tensor(0.7), 1.0).item() == pytest.approx(5 * gap**2)


@pytest.mark.parametrize("linear_term", [True, False])
@pytest.mark.parametrize(("open_fraction", "too_open"), [(0.6, True), (0.05, False)])
def test_ascending_multipliers_push_sparsity_towards_its_target(
    open_fraction: float, too_open: bool, linear_term: bool
) -> None:
    term = Lagrangian(0.9, warmup=1.0, linear_term=linear_term)
    ascent = torch.optim.SGD(term.parameters(), lr=1.0, maximize=True)
    pressures = []  # gates descend: a positive gradient closes them
    for _ in range(4):
        fraction = torch.tensor(open_fraction, requires_grad=True)
        ascent.zero_grad()
        term(fraction, 1.0).backward()
        assert fraction.grad is not None
        pressures.append(fraction.grad.item() * (1 if too_open else -1))
        ascent.step()
    assert pressures[0] == 0  # multipliers start at 0
    assert all(later > earlier for earlier, later in pairwise(pressures))


def test_a_reached_target_leaves_the_multipliers_alone() -> None:
    term = Lagrangian(0.75, warmup=1.0)
    term(torch.tensor(0.25), 1.0).backward()
    assert term.multipliers.grad is not None
    assert term.multipliers.grad.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.9, "warmup": 0}, "warmup is a share of the run in (0, 1], got 0"),
        ({"target": 0.9, "warmup": 1.5}, "warmup is a share of the run in (0, 1], got 1.5"),
        ({"target": 0.9, "start": 0.9}, "must rise from start in [0, 1), got start=0.9, target=0.9"),
        ({"target": 0.9, "start": -0.1}, "must rise from start in [0, 1), got start=-0.1"),
        ({"target": 1.2, "start": 1.0}, "must rise from start in [0, 1), got start=1.0"),
        ({"target": 1.0, "schedule": "log"}, "schedule 'log' needs a target below 1, got 1.0; use 'linear'"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=re.escape(message)):
        Lagrangian(**options)
