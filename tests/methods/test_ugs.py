"""Uniform gradient sampling: the gate against integrals, the penalty by name, the published rates."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.gates import UniformWindow, uniform_noise
from edgeprune.gates.uniform_window import sample
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import UGS
from edgeprune.methods.base import mean_over_samples
from edgeprune.methods.ugs import published_rate

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))
ALPHA = torch.tensor([-1.5, 0.3, 2.0], dtype=torch.float64)


def build(**options: Any) -> UGS:
    recipe = UGS(**options)
    recipe.build(GRAPH)
    return recipe


def spread(recipe: UGS, seed: int = 0) -> UGS:
    with torch.no_grad():
        recipe.edges.alpha.copy_(2 * torch.randn(recipe.edges.num_gates, generator=torch.Generator().manual_seed(seed)))
    return recipe


# ------------------------------------------------------------------ the gate
def quadrature(theta: float, points: int) -> list[tuple[float, float]]:
    """Noise and weights that integrate any polynomial of the gate up to degree `2 points - 1` exactly."""
    width = theta * (1 - theta)
    roots, weights = map(torch.from_numpy, _gauss(points))
    inside = [
        (theta + width * root / 2, width * weight / 2)
        for root, weight in zip(roots.tolist(), weights.tolist(), strict=True)
    ]
    low, high = theta - width / 2, theta + width / 2
    return [(low / 2, low), ((1 + high) / 2, 1 - high), *inside]


def _gauss(points: int) -> Any:
    from numpy.polynomial.legendre import leggauss

    return leggauss(points)


def test_the_gate_is_open_closed_or_uniform_with_the_stated_probabilities() -> None:
    alpha = torch.tensor(0.7, dtype=torch.float64)
    theta = torch.sigmoid(alpha)
    width = theta * (1 - theta)
    noise = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    gates = sample(alpha.expand_as(noise), noise)
    assert gates.mean().item() == pytest.approx(theta.item(), abs=1e-5)
    assert (gates == 1).double().mean().item() == pytest.approx((theta - width / 2).item(), abs=1e-5)
    assert (gates == 0).double().mean().item() == pytest.approx((1 - theta - width / 2).item(), abs=1e-5)
    between = gates[(gates > 0) & (gates < 1)]
    assert between.histc(10, 0, 1).tolist() == pytest.approx([len(between) / 10] * 10, abs=2)
    made = UniformWindow(1, init=0.7)
    assert made.prob_open().item() == pytest.approx((theta + width / 2).item(), rel=1e-6)


def test_one_gate_s_gradient_is_the_slope_of_the_expected_loss() -> None:
    """For any loss of one gate, the mean gradient in alpha is theta' (L(1) - L(0)), exactly."""

    def loss(gate: Tensor) -> Tensor:
        return 3 * gate**5 - 7 * gate**3 + gate**2 + 0.5

    for value in ALPHA:
        alpha = value.clone().requires_grad_()
        theta = torch.sigmoid(value)
        mean = torch.zeros((), dtype=torch.float64)
        for noise, weight in quadrature(float(theta), 4):
            gate = sample(alpha, torch.tensor(noise, dtype=torch.float64))
            mean = mean + weight * torch.autograd.grad(loss(gate), alpha)[0]
        expected = theta * (1 - theta) * (loss(torch.tensor(1.0)) - loss(torch.tensor(0.0)))
        torch.testing.assert_close(mean, expected.double(), rtol=1e-12, atol=1e-12)


def test_several_gates_gradient_is_that_of_bernoulli_gates_where_the_loss_is_linear_in_each() -> None:
    table = torch.randn(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(gates: Tensor) -> Tensor:
        pairs = [torch.stack([1 - gate, gate]) for gate in gates]
        return torch.einsum("abc,a,b,c->", table, *pairs)

    exact = ALPHA.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(torch.sigmoid(exact)), exact)
    mean = torch.zeros(3, dtype=torch.float64)
    for draws in product(*(quadrature(float(torch.sigmoid(value)), 2) for value in ALPHA)):
        alpha = ALPHA.clone().requires_grad_()
        noise = torch.tensor([draw[0] for draw in draws], dtype=torch.float64)
        weight = torch.tensor([draw[1] for draw in draws], dtype=torch.float64).prod()
        mean += weight * torch.autograd.grad(loss(sample(alpha, noise)), alpha)[0]
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)


def test_a_scaled_gradient_is_the_same_sample_with_the_window_s_factor() -> None:
    noise = torch.sigmoid(ALPHA)  # the middle of each window
    alpha = ALPHA.clone().requires_grad_()
    plain, scaled = sample(alpha, noise), sample(alpha, noise, scaled_gradient=True)
    assert plain.tolist() == pytest.approx([0.5] * 3)
    torch.testing.assert_close(plain, scaled)
    (one,) = torch.autograd.grad(plain.sum(), alpha)
    (other,) = torch.autograd.grad(scaled.sum(), alpha)
    theta = torch.sigmoid(ALPHA)
    torch.testing.assert_close(other, one * theta * (1 - theta))


def test_decided_gates_stay_finite() -> None:
    alpha = torch.tensor([-200.0, -40.0, 40.0, 200.0], requires_grad=True)
    gates = sample(alpha, uniform_noise(0, 0, 4))
    assert gates.tolist() == [0, 0, 1, 1]
    assert torch.autograd.grad(gates.sum(), alpha)[0].tolist() == [0] * 4


# ------------------------------------------------------------------ the recipe
def test_a_step_s_samples_are_averaged() -> None:
    weights = torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(1))

    def error_of(gates: Tensor) -> Tensor:
        return (weights * gates).sum().square()

    recipe = spread(build(samples_per_step=3))
    error, mean = recipe.expected_error(error_of, seed=3, step=5)
    (gradient,) = torch.autograd.grad(error, recipe.edges.alpha)
    noises = [uniform_noise(3, 5, GRAPH.num_edges, stream=stream) for stream in (0, 101, 102)]
    samples = [GRAPH.to_matrix(sample(recipe.edges.alpha, noise)) for noise in noises]
    plain = torch.stack([error_of(gates) for gates in samples]).mean()
    torch.testing.assert_close(error, plain)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, recipe.edges.alpha)[0])
    torch.testing.assert_close(mean, torch.stack(samples).mean(0).detach())
    assert torch.equal(recipe.sample(3, 5), samples[0])
    assert not torch.equal(samples[0], samples[1])


def test_groups_of_a_batch_have_samples_of_their_own() -> None:
    seen: list[Tensor] = []

    def error_of(gates: Tensor) -> Tensor:
        seen.append(gates.detach())
        return gates.square().sum((1, 2)).mean()

    recipe = spread(build(samples_per_step=2, masks_per_batch=3))
    _, mean = recipe.expected_error(error_of, seed=3, step=5)
    samples = torch.cat(seen)
    assert [len(gates) for gates in seen] == [3, 3]
    assert len({tuple(gates.flatten().tolist()) for gates in samples}) == 6
    torch.testing.assert_close(mean, samples.mean(0))


def test_each_sample_is_differentiated_before_the_next_is_run() -> None:
    running: list[str] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, gates: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            running.append("forward")
            return gates.sum()

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            running.append("backward")
            return slope.expand(4)

    alpha = torch.zeros(4, requires_grad=True)
    error, _ = mean_over_samples(Watched.apply, (torch.sigmoid(alpha) for _ in range(2)))
    assert running == ["forward", "backward"] * 2
    (gradient,) = torch.autograd.grad(error, alpha)
    assert gradient.tolist() == pytest.approx([0.25] * 4)


def test_the_penalty_by_name() -> None:
    recipe = spread(build(edge_weight=0.5, node_weight=2.0))
    theta = {GRAPH.edge_name(*where): 0.0 for where in GRAPH.exists.nonzero().tolist()}
    for edge, value in zip(theta, recipe.edges.scores().tolist(), strict=True):
        theta[edge] = value
    busy = 0.0
    for writer in GRAPH.writers[1:]:
        layer, _, head = writer.partition(".h")
        readers = [writer]
        if head:
            readers = [f"{writer}.q", *(f"{layer}.h{int(head) // 2}.{kind}" for kind in "kv")]
        ends = [edge.split("->") for edge in theta]
        into = sum(value for (_, end), value in zip(ends, theta.values(), strict=True) if end in readers)
        out = sum(value for (start, _), value in zip(ends, theta.values(), strict=True) if start == writer)
        busy += float(sum(torch.tanh(torch.tensor(2 * total / (2 * 4))) for total in (into, out)))
    expected = 0.5 * sum(theta.values()) + 2.0 * busy
    for progress in (0.0, 1.0):
        assert recipe.penalty(torch.zeros(GRAPH.shape), progress).item() == pytest.approx(expected, rel=1e-5)


def test_the_published_rates_and_prices() -> None:
    assert [published_rate(price) for price in (1e-5, 1e-4, 2e-4, 5e-4, 1e-3)] == [0.15, 0.15, 0.1, 0.1, 0.05]
    made = build()
    (group,) = made.parameter_groups()
    assert (group["lr"], group["betas"], group["weight_decay"], group["maximize"]) == (
        pytest.approx(0.01),  # 0.05 / 5
        (0.9, 0.995),
        0.0,
        False,
    )
    assert [build(edge_weight=price).node_weight for price in (1e-4, 1e-3)] == [pytest.approx(5e-5), 2e-4]
    assert build(learning_rate=0.3).parameter_groups()[0]["lr"] == 0.3
    assert made.edges.scores().tolist() == pytest.approx([torch.sigmoid(torch.tensor(1.0)).item()] * GRAPH.num_edges)


def test_scores_are_theta_and_the_circuit_is_what_is_above_one_half() -> None:
    recipe = spread(build())
    alpha = recipe.edges.alpha.detach()
    assert torch.equal(GRAPH.to_vector(recipe.scores()), torch.sigmoid(alpha))
    circuit = recipe.circuit()
    assert torch.equal(GRAPH.to_vector(circuit.keep), alpha > 0)
    assert torch.equal(recipe.edges.deterministic() > 0, alpha > 0)
    assert 0 < circuit.num_edges == recipe.num_open() < GRAPH.num_edges
    assert circuit.header["method"] == "ugs"
    assert circuit.header["samples_per_step"] == 12


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"edge_weight": -1.0}, "prices >= 0"),
        ({"node_weight": -1.0}, "prices >= 0"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"rate_divisor": 0.0}, "rate_divisor > 0"),
        ({"samples_per_step": 0}, "samples_per_step >= 1"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"init": float("nan")}, "finite number, got nan"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(EdgepruneError, match=named):
        build(**options)
