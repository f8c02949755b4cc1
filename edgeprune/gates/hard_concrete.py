"""Hard concrete gates (Louizos, Welling and Kingma 2018, arXiv 1712.01312).

A binary concrete variable, stretched past [0, 1] and clamped back, so that a gate is exactly 0 or exactly 1 with
positive probability and still has a gradient in between:

    s = sigmoid((log u - log(1 - u) + log_alpha) / temperature),  u ~ Uniform(0, 1)        (eq. 10)
    z = min(1, max(0, s * (high - low) + low))                                              (eqs. 10, 11)
    P(z > 0) = sigmoid(log_alpha - temperature * log(-low / high))                          (eq. 12)
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.gates.base import AbstractGates

TEMPERATURE = 2 / 3  # arXiv 1712.01312, section 4: beta
STRETCH = (-0.1, 1.1)  # arXiv 1712.01312, section 4: gamma, zeta


def sample(
    log_alpha: Tensor, noise: Tensor, temperature: float = TEMPERATURE, stretch: tuple[float, float] = STRETCH
) -> Tensor:
    """One gate per entry of `log_alpha` (any shape) from uniform `noise` of the same shape (eqs. 10, 11)."""
    low, high = stretch
    soft = torch.sigmoid((torch.logit(noise) + log_alpha) / temperature)
    return (soft * (high - low) + low).clamp(0, 1)


def prob_open(log_alpha: Tensor, temperature: float = TEMPERATURE, stretch: tuple[float, float] = STRETCH) -> Tensor:
    """P(gate > 0) (eq. 12).

    >>> round(prob_open(torch.tensor(0.0)).item(), 4)
    0.8318
    """
    low, high = stretch
    return torch.sigmoid(log_alpha - temperature * math.log(-low / high))


def prob_above_half(
    log_alpha: Tensor, temperature: float = TEMPERATURE, stretch: tuple[float, float] = STRETCH
) -> Tensor:
    """P(gate > 1/2): a gate rounded to 0 or 1 is open with this probability.

    >>> prob_above_half(torch.tensor(0.0)).item()
    0.5
    """
    low, high = stretch
    return torch.sigmoid(log_alpha - temperature * math.log((0.5 - low) / (high - 0.5)))


def deterministic(log_alpha: Tensor, stretch: tuple[float, float] = STRETCH) -> Tensor:
    """The gate without noise, as used after training (eq. 13).

    >>> round(deterministic(torch.tensor(1.609)).item(), 3)
    0.9
    """
    low, high = stretch
    return (torch.sigmoid(log_alpha) * (high - low) + low).clamp(0, 1)


@final
class HardConcrete(AbstractGates):
    """Trainable hard concrete gates, one `log_alpha` each, kept in float32.

    Args:
        num_gates: How many gates.
        init_mean: Mean of the initial `log_alpha`. Published runs use 10 (gates start at 0.99999, with almost no
            gradient); see `EdgePruning` for the default used here.
        init_std: Standard deviation of the initial `log_alpha`. Deviation from the published 0.01: 0, because noise in
            the gates breaks the symmetry already and the start is then the same for every seed.
        temperature: beta of the paper; 2/3 there.
        stretch: gamma and zeta of the paper; (-0.1, 1.1) there. The overhang lets a gate be exactly 0 or 1.
        seed: Seeds the initial noise when `init_std` > 0.
    """

    def __init__(
        self,
        num_gates: int,
        *,
        init_mean: float,
        init_std: float = 0.0,
        temperature: float = TEMPERATURE,
        stretch: tuple[float, float] = STRETCH,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (temperature > 0 and stretch[0] < 0 and stretch[1] > 1):
            raise EdgepruneError(
                f"hard concrete needs temperature > 0 and a stretch past [0, 1], got {temperature} and {tuple(stretch)}"
            )
        self.num_gates = num_gates
        self.temperature = temperature
        self.stretch = (float(stretch[0]), float(stretch[1]))
        noise = torch.randn(num_gates, generator=torch.Generator().manual_seed(seed))
        self.log_alpha = nn.Parameter(init_mean + init_std * noise)

    def sample(self, noise: Tensor) -> Tensor:
        """Gates `[num_gates]` for uniform `noise` `[num_gates]`."""
        return sample(self.log_alpha, noise.to(self.log_alpha.device), self.temperature, self.stretch)

    def prob_open(self) -> Tensor:
        """P(gate > 0), `[num_gates]`."""
        return prob_open(self.log_alpha, self.temperature, self.stretch)

    def prob_above_half(self) -> Tensor:
        """P(gate > 1/2), `[num_gates]`."""
        return prob_above_half(self.log_alpha, self.temperature, self.stretch)

    def deterministic(self) -> Tensor:
        """Gates without noise, `[num_gates]`."""
        return deterministic(self.log_alpha, self.stretch)

    def scores(self) -> Tensor:
        """The location `log_alpha` itself: every other statistic of the gate rises with it."""
        return self.log_alpha.detach()
