"""The local expectation gradient against the exact one, by enumeration."""

from itertools import product

import torch
from torch import Tensor

from edgeprune.methods.local_expectation import local_expectation

SIZE = 5
GENERATOR = torch.Generator().manual_seed(0)
TABLE = torch.rand(2**SIZE, generator=GENERATOR, dtype=torch.float64)
PROB = torch.tensor([0.1, 0.35, 0.5, 0.8, 0.95], dtype=torch.float64)


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


def estimate(noise: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    prob = PROB.clone().requires_grad_()
    error, gates = local_expectation(error_of, prob, noise, chosen)
    (gradient,) = torch.autograd.grad(error, prob)
    return error.detach(), gates, gradient


def noise_for(gates: tuple[float, ...]) -> Tensor:
    """Noise that makes exactly these gates."""
    z = torch.tensor(gates, dtype=torch.float64)
    return PROB * 0.5 * z + (PROB + 1) * 0.5 * (1 - z)


def test_the_mean_over_all_samples_is_the_exact_gradient() -> None:
    mean, value = torch.zeros(SIZE, dtype=torch.float64), 0.0
    for gates in product((0.0, 1.0), repeat=SIZE):
        z = torch.tensor(gates, dtype=torch.float64)
        weight = (PROB * z + (1 - PROB) * (1 - z)).prod()
        error, found, gradient = estimate(noise_for(gates), torch.arange(SIZE))
        assert found.tolist() == list(gates)
        mean += weight * gradient
        value += float(weight * error)
    torch.testing.assert_close(mean, exact_gradient(), rtol=0, atol=1e-12)
    assert abs(value - float(expected(PROB))) < 1e-12


def test_choosing_few_gates_is_scaled_so_that_the_mean_stays() -> None:
    noise = noise_for((1.0, 0.0, 1.0, 1.0, 0.0))
    every = estimate(noise, torch.arange(SIZE))[2]
    single = sum(estimate(noise, torch.tensor([i]))[2] for i in range(SIZE)) / SIZE
    torch.testing.assert_close(single, every, rtol=0, atol=1e-12)


def test_an_idle_gate_gets_no_gradient_at_all() -> None:
    def blind(gates: Tensor) -> Tensor:
        return error_of(torch.cat([gates[:4], torch.ones(1, dtype=gates.dtype)]))

    prob = PROB.clone().requires_grad_()
    error, _ = local_expectation(blind, prob, torch.rand(SIZE, generator=GENERATOR), torch.arange(SIZE))
    (gradient,) = torch.autograd.grad(error, prob)
    assert float(gradient[4]) == 0.0
    assert (gradient[:4] != 0).all()


def test_gates_stay_as_they_were_sampled_and_the_model_runs_without_gradients() -> None:
    seen: list[bool] = []

    def watching(gates: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return error_of(gates)

    prob = PROB.clone().requires_grad_()
    _, gates = local_expectation(watching, prob, noise_for((0.0, 1.0, 1.0, 0.0, 1.0)), torch.tensor([1, 3]))
    assert gates.tolist() == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert seen == [False] * 3
