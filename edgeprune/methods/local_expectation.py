"""Gradient of an expectation over 0/1 gates by flipping gates, for losses that are flat in every single gate."""

from collections.abc import Callable

import torch
from torch import Tensor


def local_expectation(
    error_of: Callable[[Tensor], Tensor], prob_open: Tensor, noise: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """One sample of `E[error(z)]`, z_i ~ Bernoulli(prob_open_i), with its local expectation gradient.

    dE/dp_i = E[error(z, z_i = 1) - error(z, z_i = 0)] exactly (the local expectation gradient of Titsias and
    Lazaro-Gredilla 2015, arXiv 1503.01494, for a factorised Bernoulli). The difference is measured for the `chosen`
    gates, with the others as sampled. A gate on which nothing depends gets a gradient of exactly 0, whatever the other
    gates do.

    Args:
        error_of: Error (scalar) of 0/1 gates `[num_gates]`; run without gradients, `1 + len(chosen)` times.
        prob_open: P(z_i = 1), `[num_gates]`, differentiable.
        noise: Uniform noise in (0, 1), `[num_gates]`.
        chosen: Long `[num_chosen]`: gates to flip, a uniformly random subset.

    Returns:
        The error of the sample (scalar) whose gradient estimates that of the expectation without bias; the sample.
    """
    with torch.no_grad():
        gates = (noise < prob_open).to(prob_open.dtype)
        error = error_of(gates)
        effects = torch.stack([_effect(error_of, error, gates, int(index)) for index in chosen])
    scale = prob_open.numel() / len(chosen)
    slope = (effects * prob_open[chosen]).sum() * scale
    return error + slope - slope.detach(), gates


def _effect(error_of: Callable[[Tensor], Tensor], error: Tensor, gates: Tensor, index: int) -> Tensor:
    """Error with gate `index` open minus error with it closed."""
    flipped = gates.clone()
    flipped[index] = 1 - flipped[index]
    return (error - error_of(flipped)) * (2 * gates[index] - 1)
