"""Straight-through logistic gates: 0 or 1 in the run, with the slope of a sigmoid in the backward (DiscoGP).

    g = log u - log(1 - u),  u ~ Uniform(0, 1)          a standard logistic variable
    z = 1[l + g > 0]                                    what the run sees
    dz/dl = s (1 - s) / temperature,  s = sigmoid((l + g) / temperature)

P(z = 1) = sigmoid(l) whatever the temperature is: that sets how near to its threshold a gate must be for a gradient to
reach it, and how large the gradient is then.
"""

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.gates.base import AbstractGates


def sample(logits: Tensor, noise: Tensor, temperature: float, reverse: bool = False) -> Tensor:
    """One gate, 0 or 1, per entry of `logits` (any shape) from uniform `noise` of the same shape.

    Differentiable in `logits`, as the module says. With `reverse` it is one minus the gate: the complement.
    """
    gates: Any = _StraightThrough.apply(logits, noise, temperature, reverse)
    return gates


class _StraightThrough(torch.autograd.Function):
    """Keeps the noise alone for the backward: one number per gate, of which there may be as many as weights."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, noise: Tensor, temperature: float, reverse: bool) -> Tensor:
        ctx.save_for_backward(logits, noise)
        ctx.temperature, ctx.reverse = temperature, reverse
        is_open = _shifted(logits, noise) > 0
        return (~is_open if reverse else is_open).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (grad,) = grad_outputs
        logits, noise = ctx.saved_tensors
        soft = _shifted(logits, noise).div_(ctx.temperature).sigmoid_()
        slope = soft.mul_(1 - soft).div_(-ctx.temperature if ctx.reverse else ctx.temperature)
        return slope.mul_(grad), None, None, None


def _shifted(logits: Tensor, noise: Tensor) -> Tensor:
    """`l + g`, in the dtype of `logits`."""
    return torch.logit(noise.to(logits)).add_(logits)


def check_settings(temperature: float, init_mean: float, init_std: float) -> None:
    """Refuse settings that make no gate.

    Raises:
        EdgepruneError: The message names all three.
    """
    if not (0 < temperature < math.inf and math.isfinite(init_mean) and 0 <= init_std < math.inf):
        raise EdgepruneError(
            f"logistic gates need temperature > 0, a finite init_mean and init_std >= 0, got {temperature}, "
            f"{init_mean} and {init_std}"
        )


@final
class LogisticGates(AbstractGates):
    """Trainable straight-through logistic gates, one `logit` each, kept in float32.

    Args:
        num_gates: How many gates.
        temperature: Of the slope; P(open) does not depend on it.
        init_mean: Mean of the initial logits.
        init_std: Their standard deviation.
        seed: Seeds the initial noise when `init_std` > 0.
    """

    def __init__(
        self,
        num_gates: int,
        *,
        temperature: float = 1.0,
        init_mean: float = 1.0,
        init_std: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_settings(temperature, init_mean, init_std)
        self.num_gates = num_gates
        self.temperature = temperature
        noise = torch.randn(num_gates, generator=torch.Generator().manual_seed(seed))
        self.logits = nn.Parameter(init_mean + init_std * noise)

    def sample(self, noise: Tensor, reverse: bool = False) -> Tensor:
        """Gates `[num_gates]` for uniform `noise` `[num_gates]`; with `reverse`, one minus them."""
        return sample(self.logits, noise.to(self.logits.device), self.temperature, reverse)

    def prob_open(self) -> Tensor:
        """P(gate = 1), `[num_gates]`."""
        return torch.sigmoid(self.logits)

    def deterministic(self) -> Tensor:
        """Gates without noise: open where the logit is above 0, `[num_gates]`."""
        return (self.logits > 0).to(self.logits.dtype)

    def scores(self) -> Tensor:
        """The logits, `[num_gates]`."""
        return self.logits.detach()
