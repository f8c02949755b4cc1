"""Divergence and the mean over scored positions."""

import math

import pytest
import torch
from torch.distributions import Categorical
from torch.distributions import kl_divergence as reference

from edgeprune.objectives import kl_divergence, masked_mean


def log_probs(seed: int, *shape: int) -> torch.Tensor:
    logits = 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(-1)


def test_divergence_is_that_of_torch() -> None:
    full, circuit = log_probs(0, 4, 3, 11), log_probs(1, 4, 3, 11)
    expected = reference(Categorical(logits=full), Categorical(logits=circuit))
    found = kl_divergence(full, circuit)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert found.shape == (4, 3)
    assert found.min() > 0


def test_divergence_by_hand_is_not_symmetric() -> None:
    full, circuit = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    assert kl_divergence(full, circuit).item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)
    backwards = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)
    assert kl_divergence(circuit, full).item() == pytest.approx(backwards, abs=1e-6)


def test_equal_predictions_have_no_divergence() -> None:
    full = log_probs(2, 5, 7)
    assert kl_divergence(full, full).abs().max() == 0


def test_gradient_is_the_difference_of_probabilities() -> None:
    full = log_probs(0, 6)
    logits = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    kl_divergence(full, logits.log_softmax(-1)).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - full.exp())


def test_examples_weigh_alike_whatever_their_positions() -> None:
    values = torch.tensor([[1.0, 3.0], [10.0, 999.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert masked_mean(values, mask).item() == (2 + 10) / 2


def test_padding_may_hold_anything() -> None:
    values = torch.tensor([[1.0, float("nan")], [2.0, float("inf")]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    mean = masked_mean(values, mask)
    mean.backward()
    assert mean.item() == 1.5
    assert values.grad is not None
    assert values.grad.tolist() == [[0.5, 0], [0.5, 0]]
