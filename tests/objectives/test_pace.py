"""A price that is steered so that the number of open gates keeps to a schedule, on gates whose slopes are known."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.gates.hard_concrete import prob_open
from edgeprune.objectives.pace import Motion, Pace

NUM, RATE, START = 2000, 0.03, 2.0


def count(locations: Tensor) -> Tensor:
    return (locations > 0).sum()


class Run:
    """Gates whose edges are worth `values` each, with noise; Adam moves them, a Pace pays."""

    def __init__(self, steps: int, values: Tensor, noise: float = 0.0, rate: float = RATE, **options: Any) -> None:
        self.steps, self.values, self.noise, self.rate = steps, values, noise, rate
        self.term = Pace(**{"end": 0.99, **options})
        self.term.build(len(values), len(values))
        self.term.aim([])
        self.term.plan(steps, START / rate)
        self.locations = torch.full_like(values, START).requires_grad_()
        self.adam = torch.optim.Adam([self.locations], lr=rate, betas=(0.9, 0.99), eps=1e-15)
        self.random = torch.Generator().manual_seed(0)
        self.open: list[int] = []
        self.prices: list[float] = []

    def step(self, number: int) -> None:
        progress = number / (self.steps - 1)
        fraction = prob_open(self.locations).mean()
        (units,) = torch.autograd.grad(fraction, self.locations)
        units = units * len(self.values)
        worth = self.values * (1 + self.noise * torch.randn(len(self.values), generator=self.random))
        slopes = -worth * units
        self.prices.append(self.term.price.item())
        self.locations.grad = slopes + self.term.price / len(self.values) * units
        self.term.steer(Motion(slopes, units, self.locations.detach(), self.rate, count), progress)
        self.adam.step()
        self.open.append(int(count(self.locations)))

    def go(self, first: int = 0, last: int | None = None) -> "Run":
        for number in range(first, self.steps if last is None else last):
            self.step(number)
        return self


def worths(scale: float = 1.0) -> Tensor:
    """Heavy-tailed, as those of edges are: most are worth next to nothing."""
    return scale * torch.randn(NUM, generator=torch.Generator().manual_seed(1)).mul(2.0).exp()


# ------------------------------------------------------------------ the count keeps to the schedule
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e4])
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_the_count_keeps_to_the_schedule_whatever_the_unit_of_the_error(scale: float, noise: float) -> None:
    run = Run(400, worths(scale), noise).go()
    wanted = [NUM * (1 - (run.term.target(step / 399) or 0)) for step in range(400)]
    for sparsity in (0.9, 0.95, 0.98):
        due = next(step for step, number in enumerate(wanted) if number <= NUM * (1 - sparsity))
        came = next(step for step, number in enumerate(run.open) if number <= NUM * (1 - sparsity))
        assert abs(came - due) <= 40, (sparsity, came, due)  # a tenth of the run
    assert run.open[-1] <= NUM * 0.01
    assert run.open[-1] >= NUM * 0.007


def test_the_price_is_that_of_the_unit_of_the_error() -> None:
    small, large = (Run(200, worths(scale)).go() for scale in (1.0, 1024.0))
    assert small.open == large.open
    assert [1024 * price for price in small.prices] == pytest.approx(large.prices, rel=1e-4)


def test_edges_that_are_worth_most_stay() -> None:
    run = Run(400, worths(), noise=1.0).go()
    kept = run.locations.detach() > 0
    assert run.values[kept].min() > run.values[~kept].median() * 10
    best = torch.zeros(NUM, dtype=torch.bool)
    best[run.values.topk(int(kept.sum())).indices] = True
    assert (kept & best).sum() >= 0.8 * kept.sum()


# ------------------------------------------------------------------ the price
def test_the_price_is_smooth_and_bounded() -> None:
    run = Run(400, worths(), noise=3.0).go()
    assert run.prices[0] == 0
    logarithms = torch.tensor(run.prices[30:]).log()
    assert logarithms.diff().abs().max() <= 30 / 400 + 1e-4
    assert max(run.prices) < 100 * NUM * worths().max()


def test_the_price_does_not_wind_up_while_no_gate_can_close() -> None:
    """At this rate a gate closes after 67 steps: nothing happens before, and the price must not rise meanwhile."""
    run = Run(600, worths()).go(last=58)
    assert run.open[-1] == NUM
    early = max(run.prices)
    run.go(first=58)
    assert early < max(run.prices) / 10


def test_edges_that_are_worth_too_much_stay_open_to_the_end() -> None:
    values = torch.full((NUM,), 1e-3)
    values[:100] = 0.5  # of an empty circuit's error of 10: five per cent each
    run = Run(300, values, worth=0.01)
    run.term.calibrate(10.0)
    run.go()
    assert run.open[-1] == 100
    assert (run.locations[:100] > 0).all()
    assert max(run.prices) <= 0.01 * 10 * NUM * (1 + 1e-5)


def test_what_it_does_is_in_its_buffers() -> None:
    whole, half = Run(120, worths()).go(), Run(120, worths()).go(last=50)
    rest = Run(120, worths())
    rest.term.load_state_dict(half.term.state_dict())
    rest.locations.data = half.locations.data.clone()
    rest.adam.load_state_dict(half.adam.state_dict())
    rest.go(first=50)
    assert rest.open == whole.open[50:]
    assert rest.prices == whole.prices[50:]


def test_penalty_is_the_price_per_open_edge() -> None:
    term = Pace(0.9)
    term.build(4, 4)
    term.price.fill_(8.0)
    fraction = torch.tensor(0.25, requires_grad=True)
    loss = term(fraction, 0.5)
    loss.backward()
    assert loss.item() == 2
    assert fraction.grad is not None
    assert fraction.grad.item() == 8
    assert term.state(0.5) == {"price": 8}
    assert list(term.parameters()) == []


# ------------------------------------------------------------------ the schedule
def test_the_logarithm_of_the_share_falls_as_a_power_of_time_and_holds() -> None:
    term = Pace(0.99, hold=0.2)
    shares = [1 - (term.target(progress / 10) or 0) for progress in range(9)]
    logarithms = [math.log(share) / math.log(0.01) for share in shares]
    assert logarithms == pytest.approx([(progress / 8) ** 0.6 for progress in range(9)])
    assert all(later < earlier for earlier, later in pairwise(shares))
    assert [term.target(progress) for progress in (0.8, 0.9, 1)] == pytest.approx([0.99] * 3)


def test_the_end_is_the_highest_sparsity_asked_for_unless_it_is_named() -> None:
    asked, named = Pace(hold=0), Pace(0.8, hold=0)
    assert asked.target(1.0) is None
    for term in (asked, named):
        term.aim([0.5, 0.95, 0.9])
    assert (asked.target(1.0), named.target(1.0)) == (pytest.approx(0.95), pytest.approx(0.8))
    named.aim([])
    with pytest.raises(EdgepruneError, match=r"^Pace knows no sparsity to arrive at: name those that you want in "):
        Pace().aim([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 95}, "Pace ends at a sparsity in (0, 1), got end=95; 0.99 keeps 1 % of the edges"),
        ({"end": 0.0}, "Pace ends at a sparsity in (0, 1), got end=0.0"),
        ({"hold": 1.0}, "hold is the share of the run that stays at the end, in [0, 1), got 1.0"),
        ({"worth": 0.0}, "worth is a share of the empty circuit's error above 0, got 0.0"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=re.escape(message)):
        Pace(**options)


def test_a_run_that_was_not_announced_is_refused() -> None:
    term = Pace(0.9)
    term.build(4, 4)
    motion = Motion(torch.ones(4), torch.ones(4), torch.ones(4), 0.1, count)
    with pytest.raises(EdgepruneError, match=r"^Pace was not told how long the run is: call plan"):
        term.steer(motion, 0.0)
    term.plan(10, 5.0)
    term.steer(motion, 0.0)
    worth = Pace(0.9, worth=0.1)
    worth.build(4, 4)
    worth.plan(10, 5.0)
    with pytest.raises(EdgepruneError, match=r"^worth is a share of the empty circuit's error, which SnapshotCircuits"):
        worth.steer(motion, 0.0)
