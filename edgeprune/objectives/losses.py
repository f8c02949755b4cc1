"""How far a circuit's outputs are from the full model's, at the scored positions."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Objective = Literal["kl", "squared_error"]


def kl_divergence(full: Tensor, circuit: Tensor) -> Tensor:
    """KL(full || circuit) in nats from two tensors of logits (or log-probabilities) `[..., vocab]`; returns `[...]`.

    Logits may be -inf, for outputs of probability 0. `0 log 0` is 0; where the circuit rules out what the full model
    does not, the divergence is inf, and has no gradient.

    >>> kl_divergence(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 3.0])).item()
    0.0
    """
    full, circuit = full.log_softmax(-1), circuit.log_softmax(-1)
    impossible, missing = full == -torch.inf, circuit == -torch.inf
    ratio = (full - circuit).masked_fill(impossible | missing, 0)
    return (full.exp() * ratio).sum(-1).masked_fill((missing & ~impossible).any(-1), torch.inf)


def squared_error(full: Tensor, circuit: Tensor) -> Tensor:
    """Squared difference of two tensors of raw outputs `[..., outputs]`, summed over outputs; returns `[...]`.

    For models whose outputs are numbers rather than logits: a softmax over one output is constant, and over 0/1 outputs
    it hides most of an error.
    """
    return (full - circuit).square().sum(-1)


OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl_divergence, "squared_error": squared_error}


def error_measure(objective: str) -> Objective:
    """What tables and plots show as the error of circuits found by an objective, whichever it is.

    >>> error_measure("logit_difference")
    'kl'
    """
    return "squared_error" if objective == "squared_error" else "kl"


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over examples of the mean over each example's real positions.

    Edge Pruning (arXiv 2406.16778) weighs examples alike, whatever the number of answer tokens.

    Args:
        values: `[batch, positions]`.
        mask: Bool, True where the position is real; every row has at least one.
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    return (kept.sum(-1) / mask.sum(-1)).mean()
