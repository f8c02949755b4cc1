"""Uniform gradient sampling (Li and Janson 2024, arXiv 2409.09951): gates that are uniform on [0, 1] now and then.

    theta = sigmoid(alpha),  w = theta (1 - theta)  (no gradient),  u ~ Uniform(0, 1)
    m = 1 - clip((u - theta) / w + 1/2, 0, 1)

So m is 1 with probability theta - w/2, 0 with probability 1 - theta - w/2, and uniform on (0, 1) with probability w,
where dm/dtheta = 1/w. The mean of (dL/dm) (dm/dtheta) is therefore the integral of dL/dm over [0, 1], L(1) - L(0): the
slope of the expected loss of a gate that is 1 with probability theta, without bias.
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.gates.base import AbstractGates


def sample(alpha: Tensor, noise: Tensor, scaled_gradient: bool = False) -> Tensor:
    """One gate per entry of `alpha` (any shape) from uniform `noise` of the same shape.

    With `scaled_gradient` the gradient is multiplied by w once more.
    """
    theta = torch.sigmoid(alpha)
    width = (theta * (1 - theta)).detach().clamp(min=torch.finfo(alpha.dtype).tiny)
    gates = 1 - ((noise - theta) / width + 0.5).clamp(0, 1)
    return gates.detach() + width * (gates - gates.detach()) if scaled_gradient else gates


@final
class UniformWindow(AbstractGates):
    """Trainable gates, one `alpha` each, kept in float32.

    Args:
        num_gates: How many gates.
        init: Initial alpha (MIB: 1, a gate that is open with probability .73).
        scaled_gradient: Multiply the gradient of a gate by w once more: gates that are nearly decided then feel less of
            the loss than of the penalty.
    """

    def __init__(self, num_gates: int, *, init: float = 1.0, scaled_gradient: bool = False) -> None:
        super().__init__()
        if not math.isfinite(init):
            raise EdgepruneError(f"the initial alpha must be a finite number, got {init}")
        self.num_gates = num_gates
        self.scaled_gradient = scaled_gradient
        self.alpha = nn.Parameter(torch.full((num_gates,), float(init)))

    def sample(self, noise: Tensor) -> Tensor:
        """Gates `[num_gates]` for uniform `noise` `[num_gates]`."""
        return sample(self.alpha, noise.to(self.alpha.device), self.scaled_gradient)

    def prob_open(self) -> Tensor:
        """P(gate > 0), `[num_gates]`: theta + w/2."""
        theta = self.theta()
        return theta + 0.5 * theta * (1 - theta)

    def theta(self) -> Tensor:
        """Mean of each gate, `[num_gates]`; differentiable."""
        return torch.sigmoid(self.alpha)

    def deterministic(self) -> Tensor:
        """Gates without noise: open where theta is above one half, `[num_gates]`."""
        return (self.alpha > 0).to(self.alpha.dtype)

    def scores(self) -> Tensor:
        """Theta, `[num_gates]`."""
        return self.theta().detach()
