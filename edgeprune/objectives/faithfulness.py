"""How far a circuit's predictions are from the full model's, at the scored positions."""

import torch
from torch import Tensor


def kl_divergence(full: Tensor, circuit: Tensor) -> Tensor:
    """KL(full || circuit) in nats from two log-probability tensors `[..., vocab]`; returns `[...]`."""
    return (full.exp() * (full - circuit)).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over examples of the mean over each example's real positions.

    Edge Pruning (arXiv 2406.16778) weighs examples alike, whatever the number of answer tokens.

    Args:
        values: `[batch, positions]`.
        mask: Bool, True where the position is real; every row has at least one.
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    return (kept.sum(-1) / mask.sum(-1)).mean()
