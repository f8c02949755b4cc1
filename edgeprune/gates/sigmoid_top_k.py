"""Soft top-k masks (Matryoshka Attribution, arXiv 2609.25518): a sigmoid around the threshold that leaves k open.

    m_i = sigmoid((s_i - tau) / T),  tau such that sum_i m_i = k

The threshold depends on the scores, and by implicit differentiation

    dL/ds_j = (v_j / T) (g_j - sum_i g_i v_i / sum_i v_i),  v = m (1 - m),  g = dL/dm

so that gradients sum to 0: opening a gate takes as much from the others.
"""

import math
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HALVINGS = 50  # of the bracket around the threshold
LEAST_SLOPE = 1e-8  # of the sum of all v, by which is divided


def sigmoid_top_k(scores: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Masks `[mask, num_gates]` in (0, 1), each with its own sum.

    Args:
        scores: `[num_gates]`; gradients reach them.
        k: Sum of each mask, `[mask]`, between 0 and `num_gates`, both excluded.
        temperature: T; the lower, the nearer are masks to 0 and 1.

    >>> sigmoid_top_k(torch.ones(4), torch.tensor([1.0, 2.0]), 0.5).round(decimals=4).tolist()
    [[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.5, 0.5]]
    """
    return _SigmoidTopK.apply(scores, k, temperature)


def thresholds(scores: Tensor, k: Tensor, temperature: float) -> Tensor:
    """The threshold tau of each mask, float64 `[mask]`, by bisection.

    Deviation: the bracket of published code, from the lowest score - 10 T to the highest + 10 T, is wider by
    T log(num_gates): with more than exp(10) gates of equal score a sum of 1 would lie outside.
    """
    reach = temperature * (10 + math.log(len(scores)))
    low, high = ((end + sign * reach).double().expand(len(k)) for end, sign in ((scores.min(), -1), (scores.max(), 1)))
    wanted = k.to(scores.device, torch.float64)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        too_many = _masks(scores, middle, temperature).sum(-1, dtype=torch.float64) > wanted
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return (low + high) / 2


def _masks(scores: Tensor, tau: Tensor, temperature: float) -> Tensor:
    return ((scores - tau.to(scores.dtype)[:, None]) / temperature).sigmoid_()


@final
class _SigmoidTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: Tensor, temperature: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        masks = _masks(scores, thresholds(scores, k, temperature), temperature)
        ctx.save_for_backward(masks)
        ctx.temperature = temperature
        return masks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (masks,) = ctx.saved_tensors
        weights = masks * (1 - masks)
        mean = (slope * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp(min=LEAST_SLOPE)
        return (weights * (slope - mean)).sum(0) / ctx.temperature, None, None
