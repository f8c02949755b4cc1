"""The local expectation gradient against the exact one, by enumeration; what is asked, and what is remembered."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.methods.flips import Flips, WholeFlips
from edgeprune.methods.local_expectation import RECENT, SURE, MeasuredEffects, local_expectation

SIZE = 5
GENERATOR = torch.Generator().manual_seed(0)
TABLE = torch.rand(2**SIZE, generator=GENERATOR, dtype=torch.float64)
PROB = torch.tensor([0.1, 0.35, 0.5, 0.8, 0.95], dtype=torch.float64)
ALL = tuple(range(SIZE))


def error_of(gates: Tensor) -> Tensor:
    """Any function of 0/1 gates at all."""
    number = int(sum(int(gate) << i for i, gate in enumerate(gates)))
    return TABLE[number]


def expected(prob: Tensor) -> Tensor:
    total = prob.new_zeros(())
    for gates in product((0.0, 1.0), repeat=SIZE):
        z = torch.tensor(gates, dtype=prob.dtype)
        total = total + error_of(z) * (prob * z + (1 - prob) * (1 - z)).prod()
    return total


def exact_gradient() -> Tensor:
    prob = PROB.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected(prob), prob)
    return gradient


class Watched:
    """`WholeFlips` of a function that notes which gates are run, and knows some to be idle."""

    def __init__(self, known_idle: tuple[int, ...] = ()) -> None:
        self.known_idle, self.run, self.with_gradients = known_idle, list[list[int]](), list[bool]()

    def __call__(self, gates: Tensor) -> Flips:
        return self.Made(self, gates)

    def error_of(self, gates: Tensor) -> Tensor:
        self.with_gradients.append(torch.is_grad_enabled())
        return error_of(gates)

    class Made:
        def __init__(self, watched: "Watched", gates: Tensor) -> None:
            self.watched, self.whole = watched, WholeFlips(watched.error_of, gates)
            self.error = self.whole.error

        def idle(self, gates: Tensor) -> Tensor:
            return torch.isin(gates, torch.tensor(self.watched.known_idle, dtype=torch.long))

        def errors(self, gates: Tensor) -> Tensor:
            self.watched.run.append(gates.tolist())
            return self.whole.errors(gates)


def noise_for(gates: tuple[float, ...]) -> Tensor:
    """Noise that makes exactly these gates."""
    z = torch.tensor(gates, dtype=torch.float64)
    return PROB * 0.5 * z + (PROB + 1) * 0.5 * (1 - z)


def new_measured(num_gates: int = SIZE) -> MeasuredEffects:
    return MeasuredEffects(num_gates).double()


def any_noise(num_gates: int = SIZE) -> Tensor:
    return torch.rand(num_gates, generator=GENERATOR, dtype=torch.float64)


def estimate(
    gates: tuple[float, ...], measured: MeasuredEffects, flips_of: Watched, num_flips: int = SIZE
) -> tuple[Tensor, Tensor, Tensor]:
    prob = PROB.clone().requires_grad_()
    error, sample = local_expectation(flips_of, prob, noise_for(gates), any_noise(), measured, num_flips)
    (gradient,) = torch.autograd.grad(error, prob)
    return error.detach(), sample, gradient


def test_the_mean_over_all_samples_is_the_exact_gradient() -> None:
    mean, value = torch.zeros(SIZE, dtype=torch.float64), 0.0
    for gates in product((0.0, 1.0), repeat=SIZE):
        z = torch.tensor(gates, dtype=torch.float64)
        weight = (PROB * z + (1 - PROB) * (1 - z)).prod()
        error, found, gradient = estimate(gates, new_measured(), Watched())
        assert found.tolist() == list(gates)
        mean += weight * gradient
        value += float(weight * error)
    torch.testing.assert_close(mean, exact_gradient(), rtol=0, atol=1e-12)
    assert abs(value - float(expected(PROB))) < 1e-12


def test_the_estimate_is_the_mean_of_the_last_values() -> None:
    """A large effect of long ago is forgotten as well as a small one."""
    measured = new_measured()
    measured.update(torch.arange(SIZE), torch.full((SIZE,), 1e6, dtype=torch.float64))
    samples = list(product((0.0, 1.0), repeat=SIZE))[:RECENT]
    alone = [estimate(gates, new_measured(), Watched())[2] for gates in samples]
    found = [estimate(gates, measured, Watched())[2] for gates in samples]
    torch.testing.assert_close(found[0], (alone[0] + 1e6) / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[-1], torch.stack(alone).mean(0), rtol=0, atol=1e-12)


def test_a_gate_that_is_not_measured_keeps_its_estimate_and_one_that_never_was_has_none() -> None:
    measured, watched = new_measured(), Watched()
    first = estimate((1.0, 0.0, 1.0, 1.0, 0.0), measured, watched, num_flips=2)[2]
    second = estimate((1.0, 1.0, 1.0, 0.0, 0.0), measured, watched, num_flips=2)[2]
    before, after = watched.run
    assert len(before) == len(after) == 2
    assert not set(before) & set(after)  # first those that were never measured
    assert set(first.nonzero().flatten().tolist()) == set(before)
    assert torch.equal(first[before], second[before])
    assert set(second.nonzero().flatten().tolist()) == {*before, *after}
    priced = measured.priced(PROB.clone().requires_grad_())
    assert torch.equal(priced.detach(), PROB)
    assert measured.known.tolist() == [gate in {*before, *after} for gate in ALL]


def test_a_penalty_pushes_what_was_measured_and_may_still_fall() -> None:
    measured = new_measured()
    measured.update(torch.tensor([0, 2, 3]), torch.zeros(3, dtype=torch.float64))
    prob = torch.tensor([(1 - SURE) / 2, 0.5, 0.5, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(measured.priced(prob).sum(), prob)
    assert slope.tolist() == [0, 0, 1, 1, 0]


def test_a_gate_is_pushed_open_no_further_than_it_can_come_back_from() -> None:
    measured = new_measured(2)
    measured.update(torch.arange(2), torch.tensor([-1.0, -1.0], dtype=torch.float64))
    prob = torch.tensor([SURE - 1e-6, SURE + 1e-6], dtype=torch.float64, requires_grad=True)

    def flips_of(gates: Tensor) -> Flips:
        return WholeFlips(lambda values: 0 - values.sum(), gates)

    error, _ = local_expectation(flips_of, prob, any_noise(2), any_noise(2), measured, 2)
    (slope,) = torch.autograd.grad(error, prob)
    assert slope.tolist() == [-1, 0]


def test_an_idle_gate_gets_no_gradient_at_all() -> None:
    def blind(gates: Tensor) -> Tensor:
        return error_of(torch.cat([gates[:4], torch.ones(1, dtype=gates.dtype)]))

    prob = PROB.clone().requires_grad_()
    error, _ = local_expectation(
        lambda gates: WholeFlips(blind, gates), prob, any_noise(), any_noise(), new_measured(), SIZE
    )
    (gradient,) = torch.autograd.grad(error, prob)
    assert float(gradient[4]) == 0.0
    assert (gradient[:4] != 0).all()


def test_gates_known_to_be_idle_take_no_run_and_count_as_measured() -> None:
    measured, watched = new_measured(), Watched(known_idle=(1, 2, 4))
    gradient = estimate((1.0, 0.0, 1.0, 1.0, 0.0), measured, watched)[2]
    assert sorted(watched.run[0]) == [0, 3]
    assert gradient.nonzero().flatten().tolist() == [0, 3]
    assert measured.known.all()


def test_gates_that_are_closed_for_good_are_never_asked() -> None:
    measured, watched = new_measured(), Watched()
    prob = torch.where(torch.tensor([True, False, True, True, False]), PROB, 0)
    for _ in range(4):
        _, sample = local_expectation(watched, prob, any_noise(), any_noise(), measured, SIZE)
        assert sample[[1, 4]].tolist() == [0, 0]
    assert {gate for gates in watched.run for gate in gates} == {0, 2, 3}


def test_undecided_gates_are_asked_more_often_and_decided_ones_still_are() -> None:
    num_gates, steps = 64, 400
    prob = torch.full((num_gates,), 0.9999, dtype=torch.float64)
    prob[:8] = 0.5
    measured, counts = new_measured(num_gates), torch.zeros(num_gates)

    def flips_of(gates: Tensor) -> Flips:
        made = WholeFlips(lambda values: values.sum(), gates)
        plain = made.errors

        def counted(some: Tensor) -> Tensor:
            counts[some] += 1
            return plain(some)

        made.errors = counted
        return made

    for _ in range(steps):
        local_expectation(flips_of, prob, any_noise(num_gates), any_noise(num_gates), measured, 4)
    assert counts[:8].mean() > 4 * counts[8:].mean()
    assert counts[8:].min() > 2
    assert counts.sum() == 4 * steps


def test_gates_stay_as_they_were_sampled_and_the_model_runs_without_gradients() -> None:
    watched = Watched()
    _, gates, _ = estimate((0.0, 1.0, 1.0, 0.0, 1.0), new_measured(), watched, num_flips=2)
    assert gates.tolist() == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert watched.with_gradients == [False] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_effect_that_is_not_finite_is_not_taken_for_none(value: float) -> None:
    with pytest.raises(EdgepruneError, match="the effect of a flipped gate is not finite"):
        MeasuredEffects(3).update(torch.tensor([0, 2]), torch.tensor([1.0, value]))
