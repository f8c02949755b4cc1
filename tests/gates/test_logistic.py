"""Straight-through logistic gates: the probability of being open, the slope, the complement."""

import math

import pytest
import torch

from edgeprune.errors import EdgepruneError
from edgeprune.gates import LogisticGates, uniform_noise
from edgeprune.gates.logistic import sample


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.0])
def test_a_gate_is_open_with_the_sigmoid_of_its_logit_whatever_the_temperature(
    temperature: float, logit: float
) -> None:
    draws = 1_000_000
    gates = sample(torch.full((draws,), logit), uniform_noise(3, 5, draws), temperature)
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    expected = 1 / (1 + math.exp(-logit))
    error = math.sqrt(expected * (1 - expected) / draws)
    assert gates.mean().item() == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_the_gradient_is_that_of_the_sigmoid_of_what_was_drawn(temperature: float) -> None:
    logits = torch.linspace(-3, 3, 50, dtype=torch.float64, requires_grad=True)
    noise = uniform_noise(0, 0, 50).double()
    weights = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(weights @ sample(logits, noise, temperature), logits)
    soft = torch.sigmoid((logits + torch.log(noise) - torch.log1p(-noise)) / temperature)
    (expected,) = torch.autograd.grad(weights @ soft, logits)
    torch.testing.assert_close(found, expected)


def test_a_reversed_gate_is_one_minus_the_gate_and_so_is_its_gradient() -> None:
    gates = LogisticGates(40, init_std=2.0)
    noise = uniform_noise(1, 2, 40)
    gate, other = gates.sample(noise), gates.sample(noise, reverse=True)
    assert torch.equal(gate + other, torch.ones(40))
    assert 0 < gate.sum() < 40
    slopes = [torch.autograd.grad(values.sum(), gates.logits)[0] for values in (gate, other)]
    assert torch.equal(slopes[0], -slopes[1])
    assert slopes[0].abs().sum() > 0


def test_without_noise_the_sign_of_the_logit_decides() -> None:
    gates = LogisticGates(3)
    with torch.no_grad():
        gates.logits.copy_(torch.tensor([-0.1, 0.0, 0.1]))
    assert gates.deterministic().tolist() == [0, 0, 1]
    assert gates.scores().tolist() == pytest.approx([-0.1, 0.0, 0.1])


def test_the_slope_of_the_expected_density_is_that_of_the_sigmoid() -> None:
    gates = LogisticGates(7, init_std=1.0)
    (found,) = torch.autograd.grad(gates.prob_open().mean(), gates.logits)
    share = torch.sigmoid(gates.logits.detach())
    torch.testing.assert_close(found, share * (1 - share) / 7)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"init_mean": math.nan}, {"init_std": -1.0}])
def test_settings_that_make_no_gate_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(EdgepruneError, match="logistic gates need temperature > 0"):
        LogisticGates(3, **options)
