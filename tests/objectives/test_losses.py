"""Divergence and the mean over scored positions."""

import math

import pytest
import torch
from torch.distributions import Categorical
from torch.distributions import kl_divergence as reference

from edgeprune.batch import PairBatch
from edgeprune.metrics import functional
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


LN2, LN4_3 = math.log(2), math.log(4 / 3)
BANNED = {  # two distributions; KL of the first to the second, of the second to the first, Jensen-Shannon
    "in the full model": ([0.5, 0.5, 0.0], [0.25, 0.25, 0.5], LN2, math.inf, 0.75 * LN4_3),
    "in the circuit": ([0.25, 0.25, 0.5], [0.5, 0.5, 0.0], math.inf, LN2, 0.75 * LN4_3),
    "in both": ([0.5, 0.5, 0.0], [0.75, 0.25, 0.0], LN4_3 / 2, 0.75 * math.log(1.5) - 0.25 * LN2, None),
    "all but one, in both": ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], 0.0, 0.0, 0.0),
    "all that the other has": ([1.0, 0.0, 0.0], [0.0, 0.5, 0.5], math.inf, math.inf, LN2),
}
ROUNDED = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
MEASURES = {
    "kl": kl_divergence,
    "kl_reverse": lambda full, circuit: kl_divergence(circuit, full),
    "js": lambda full, circuit: functional.js(full[:, None], circuit[:, None], one_position(len(full))),
}


def one_position(number: int) -> PairBatch:
    ids = torch.zeros(number, 1, dtype=torch.long)
    names = ("clean", "corrupted", "positions", "targets", "distractors")
    mask = torch.ones(number, 1, dtype=torch.long)
    return PairBatch(
        **dict.fromkeys(names, ids), attention_mask=mask, position_mask=mask.bool(), index=torch.arange(number)
    )


def jensen_shannon(first: torch.Tensor, second: torch.Tensor) -> float:
    """As defined, with 0 log 0 = 0."""
    middle = (first + second) / 2
    return sum(float(torch.special.xlogy(own, own / middle).nansum()) for own in (first, second)) / 2


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("name", BANNED)
def test_impossible_tokens_by_hand(name: str, dtype: torch.dtype, shift: float) -> None:
    first, second, *expected = BANNED[name]
    full, circuit = (
        (torch.tensor([values], dtype=torch.float64).log() + shift).to(dtype).requires_grad_()
        for values in (first, second)
    )
    if expected[2] is None:
        expected[2] = jensen_shannon(*(torch.tensor(values, dtype=torch.float64) for values in (first, second)))
    for measure, value in zip(MEASURES.values(), expected, strict=True):
        (found,) = measure(full, circuit)
        assert found.dtype == dtype
        assert found.item() == pytest.approx(value, abs=ROUNDED[dtype])
        gradients = torch.autograd.grad(found, [full, circuit])
        assert all(gradient.isfinite().all() for gradient in gradients)
        for logits, gradient in zip((full, circuit), gradients, strict=True):
            assert gradient[logits == -torch.inf].count_nonzero() == 0


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_impossible_tokens_in_random_logits(dtype: torch.dtype, measure: str) -> None:
    """Values and gradients are those of float64 without the tokens that neither model allows."""
    generator = torch.Generator().manual_seed(4)
    full, circuit = (torch.randn(6, 40, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2))
    banned = torch.rand(40, generator=generator) < 0.3
    given = [logits.masked_fill(banned, -torch.inf).requires_grad_() for logits in (full, circuit)]
    plain = [logits[:, ~banned].double().requires_grad_() for logits in (full, circuit)]
    found, expected = MEASURES[measure](*given), MEASURES[measure](*plain)
    close = {"atol": 4 * ROUNDED[dtype], "rtol": 4 * ROUNDED[dtype]}
    torch.testing.assert_close(found.double(), expected, **close)
    for mine, right in zip(
        torch.autograd.grad(found.sum(), given), torch.autograd.grad(expected.sum(), plain), strict=True
    ):
        torch.testing.assert_close(mine[:, ~banned].double(), right, **close)
        assert mine[:, banned].count_nonzero() == 0


def test_no_value_changes_where_all_is_possible() -> None:
    full, circuit = log_probs(5, 4, 9).float(), log_probs(6, 4, 9).float()
    first, second = full.log_softmax(-1), circuit.log_softmax(-1)
    assert torch.equal(kl_divergence(full, circuit), (first.exp() * (first - second)).sum(-1))


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
