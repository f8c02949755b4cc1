"""Hard concrete gates: probabilities against samples, limits, gradients; noise; exact counts."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.gates import HardConcrete, top_k, uniform_noise
from edgeprune.gates.hard_concrete import STRETCH, TEMPERATURE, deterministic, prob_open, sample

SETTINGS = [(TEMPERATURE, STRETCH), (0.3, (-0.5, 1.2))]


def samples(log_alpha: float, temperature: float, stretch: tuple[float, float]) -> Tensor:
    noise = uniform_noise(0, 0, 10**6)
    return sample(torch.full((10**6,), log_alpha), noise, temperature, stretch)


# ------------------------------------------------------------------ distribution
@pytest.mark.parametrize(("temperature", "stretch"), SETTINGS)
@pytest.mark.parametrize("log_alpha", [-4.0, -1.0, 0.0, 1.5, 4.0])
def test_probability_of_an_open_gate(log_alpha: float, temperature: float, stretch: tuple[float, float]) -> None:
    gates = samples(log_alpha, temperature, stretch)
    expected = prob_open(torch.tensor(log_alpha), temperature, stretch).item()
    error = math.sqrt(expected * (1 - expected) / len(gates))
    assert (gates > 0).float().mean().item() == pytest.approx(expected, abs=5 * error)  # five standard errors
    assert gates.min() >= 0
    assert gates.max() <= 1


def test_both_ends_have_equal_probability_when_the_location_is_zero() -> None:
    gates = samples(0.0, TEMPERATURE, STRETCH)
    closed, opened = (gates == 0).float().mean().item(), (gates == 1).float().mean().item()
    assert closed == pytest.approx(opened, abs=5 * math.sqrt(2 * 0.1682 / 10**6))
    assert closed == pytest.approx(1 - 0.8318, abs=5 * math.sqrt(0.1682 / 10**6))


def test_shift_of_the_published_setting() -> None:
    location = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(prob_open(location), torch.sigmoid(location + 1.5986), atol=1e-4, rtol=0)


def test_values_known_by_hand() -> None:
    assert deterministic(torch.tensor(1.609)).item() == pytest.approx(0.9, abs=1e-4)
    assert 1 - prob_open(torch.tensor(10.0, dtype=torch.float64)).item() == pytest.approx(9.2e-6, rel=0.01)
    middle = sample(torch.tensor(0.0), torch.tensor(0.5))
    assert middle.item() == pytest.approx(0.5, abs=1e-6)


def test_limits() -> None:
    far = torch.tensor([-40.0, 40.0])
    noise = torch.tensor([0.99, 0.01])
    assert sample(far, noise).tolist() == [0, 1]
    assert deterministic(far).tolist() == [0, 1]
    torch.testing.assert_close(prob_open(far), torch.tensor([0.0, 1.0]))
    extremes = torch.finfo(torch.float32).eps
    ends = sample(torch.zeros(2), torch.tensor([extremes, 1 - extremes]))
    assert ends.tolist() == [0, 1]


def test_a_gate_rises_with_its_location_and_its_noise() -> None:
    grid = torch.linspace(-3, 3, 50)
    assert (sample(grid, torch.full((50,), 0.4)).diff() >= 0).all()
    assert (sample(torch.zeros(50), torch.linspace(0.01, 0.99, 50)).diff() >= 0).all()


# ------------------------------------------------------------------ gradients
def _sampled(location: Tensor) -> Tensor:
    return sample(location, torch.linspace(0.35, 0.65, len(location), dtype=torch.float64))


@pytest.mark.parametrize("function", [_sampled, prob_open, deterministic])
def test_gradients_match_central_differences(function: Callable[[Tensor], Tensor]) -> None:
    location = torch.linspace(-0.7, 0.7, 7, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(location).sum(), location)
    step = 1e-6  # the error of a central difference is of order step**2, far below the tolerance
    with torch.no_grad():
        expected = (function(location + step) - function(location - step)) / (2 * step)
    assert expected.min() > 0  # none of the gates is clamped, where the gradient would be 0
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-7)


def test_a_clamped_gate_has_no_gradient() -> None:
    location = torch.tensor([-10.0, 10.0], requires_grad=True)
    sample(location, torch.tensor([0.5, 0.5])).sum().backward()
    assert location.grad is not None
    assert location.grad.tolist() == [0, 0]


# ------------------------------------------------------------------ module
def test_module_is_the_pure_functions() -> None:
    gates = HardConcrete(5, init_mean=0.5, init_std=0.3, temperature=0.4, stretch=(-0.2, 1.3))
    noise = uniform_noise(3, 4, 5)
    assert torch.equal(gates.sample(noise), sample(gates.log_alpha, noise, 0.4, (-0.2, 1.3)))
    assert torch.equal(gates.prob_open(), prob_open(gates.log_alpha, 0.4, (-0.2, 1.3)))
    assert torch.equal(gates.deterministic(), deterministic(gates.log_alpha, (-0.2, 1.3)))
    assert torch.equal(gates.scores(), gates.log_alpha)
    assert not gates.scores().requires_grad
    assert [parameter.shape for parameter in gates.parameters()] == [(5,)]


def test_initial_locations() -> None:
    assert HardConcrete(4, init_mean=2.0).log_alpha.tolist() == [2, 2, 2, 2]
    first, again, other = (HardConcrete(1000, init_mean=10.0, init_std=0.01, seed=seed).log_alpha for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.mean().item() == pytest.approx(10, abs=0.002)
    assert first.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0}, {"temperature": -1.0}, {"stretch": (0.0, 1.1)}, {"stretch": (-0.1, 1.0)}],
)
def test_bad_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(EdgepruneError, match=r"temperature > 0 and a stretch past \[0, 1\], got"):
        HardConcrete(3, init_mean=0.0, **options)


# ------------------------------------------------------------------ noise
def test_noise_is_a_function_of_its_arguments() -> None:
    torch.manual_seed(0)
    first = uniform_noise(1, 2, 100)
    torch.manual_seed(99)
    assert torch.equal(first, uniform_noise(1, 2, 100))
    assert first.dtype == torch.float32


def test_noise_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    uniform_noise(1, 2, 100)
    assert torch.equal(before, torch.get_rng_state())


def test_other_arguments_give_unrelated_noise() -> None:
    number = 20_000
    draws = [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
        (0, 1, 1),
        (2, 0, 0),
        (-1, 0, 0),
        (9**12, 0, 0),
    ]
    noise = torch.stack([uniform_noise(seed, step, number, stream=stream) for seed, step, stream in draws])
    correlation = torch.corrcoef(noise.double()) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / math.sqrt(number)  # five standard errors


def test_noise_is_uniform_and_never_touches_the_ends() -> None:
    noise = uniform_noise(7, 0, 10**6)
    assert noise.min() > 0
    assert noise.max() < 1
    assert torch.isfinite(torch.logit(noise)).all()
    share = torch.histc(noise, bins=10, min=0, max=1) / len(noise)
    torch.testing.assert_close(share, torch.full((10,), 0.1), atol=5 * math.sqrt(0.09 / 10**6), rtol=0)


# ------------------------------------------------------------------ exact numbers of open gates
@pytest.mark.parametrize("num_open", [0, 1, 5, 9, 10])
def test_top_k_is_exact_in_spite_of_ties(num_open: int) -> None:
    ties = torch.zeros(10)
    assert top_k(ties, num_open).nonzero().flatten().tolist() == list(range(num_open))
    pairs = torch.tensor([1.0, 2.0, 2.0, 1.0, 3.0, 3.0, -1.0, 0.0, 0.0, 2.0])
    keep = top_k(pairs, num_open)
    assert int(keep.sum()) == num_open
    if 0 < num_open < 10:
        assert pairs[keep].min() >= pairs[~keep].max()


def test_top_k_by_hand() -> None:
    assert top_k(torch.tensor([0.1, 3.0, -2.0, 3.0, 0.5]), 3).tolist() == [False, True, False, True, True]
    assert top_k(torch.tensor([2.0, 1.0, 1.0, 1.0]), 2).tolist() == [True, True, False, False]


@pytest.mark.parametrize("num_open", [-1, 4])
def test_top_k_refuses_impossible_numbers(num_open: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {num_open} of 3 gates"):
        top_k(torch.zeros(3), num_open)
