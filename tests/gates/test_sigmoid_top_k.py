"""Soft top-k masks: their sums, their gradient against finite differences, and limits."""

import math

import pytest
import torch
from torch import Tensor

from edgeprune.gates import sigmoid_top_k
from edgeprune.gates.sigmoid_top_k import thresholds


def scores(number: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(number, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KEPT = torch.tensor([0.3, 1.0, 7.5, 20.0, 39.0, 39.9], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_masks_sum_to_k_and_are_sigmoids_around_one_threshold(temperature: float) -> None:
    values = scores()
    masks = sigmoid_top_k(values, KEPT, temperature)
    torch.testing.assert_close(masks.sum(1), KEPT, rtol=1e-12, atol=1e-12)
    tau = thresholds(values, KEPT, temperature)
    torch.testing.assert_close(masks, torch.sigmoid((values - tau[:, None]) / temperature))


@pytest.mark.parametrize("number", [2, 1000, 200_000])
def test_equal_scores_are_kept_alike(number: int) -> None:
    """Also where one of very many is kept, for which the bracket of published code is too narrow."""
    kept = torch.tensor([1.0, number / 2, number - 0.5], dtype=torch.float64)
    masks = sigmoid_top_k(torch.zeros(number, dtype=torch.float64), kept, 0.5)
    torch.testing.assert_close(masks, (kept / number)[:, None].expand_as(masks), rtol=1e-10, atol=0)


def test_a_low_temperature_keeps_the_best() -> None:
    values = scores()
    (mask,) = sigmoid_top_k(values, torch.tensor([5.0]), 1e-3)
    assert set(mask.topk(5).indices.tolist()) == set(values.topk(5).indices.tolist())
    assert mask.sort(descending=True).values[:5].min() > 0.9
    assert mask.sort(descending=True).values[5:].max() < 0.1


def test_the_gradient_is_that_of_finite_differences() -> None:
    values = scores(12).requires_grad_()
    kept = torch.tensor([1.0, 3.3, 11.5], dtype=torch.float64)

    def masks(own: Tensor) -> Tensor:
        return sigmoid_top_k(own, kept, 0.5)

    assert torch.autograd.gradcheck(masks, (values,))


def test_gradients_sum_to_zero() -> None:
    values = scores().requires_grad_()
    weights = torch.randn(len(KEPT), len(values), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (slope,) = torch.autograd.grad((weights * sigmoid_top_k(values, KEPT, 0.5)).sum(), values)
    assert slope.sum().abs() < 1e-12
    assert slope.abs().max() > 1e-2
    (flat,) = torch.autograd.grad(sigmoid_top_k(values, KEPT, 0.5).sum(), values)  # the sums are given
    assert flat.abs().max() < 1e-12


def test_saturated_masks_stay_finite() -> None:
    values = torch.tensor([-1e4, 0.0, 1e4], requires_grad=True)
    masks = sigmoid_top_k(values, torch.tensor([1.0, 2.0]), 0.5)
    assert masks.sum(1).tolist() == pytest.approx([1.0, 2.0], abs=1e-2)
    (slope,) = torch.autograd.grad((masks * torch.tensor([1.0, 2.0, 3.0])).sum(), values)
    assert slope.isfinite().all()


def test_float32_scores_give_float32_masks() -> None:
    values = scores(70_651).float()
    kept = torch.tensor([math.exp(part) for part in (0.0, 3.0, 7.0, 11.0)])
    masks = sigmoid_top_k(values, kept, 0.5)
    assert masks.dtype == torch.float32
    torch.testing.assert_close(masks.sum(1, dtype=torch.float64), kept.double(), rtol=2e-6, atol=0)
