"""What every trainable gate distribution offers to a recipe."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class AbstractGates(nn.Module, ABC):
    """One trainable random gate in [0, 1] for each of `num_gates` edges or nodes. Shapes are all `[num_gates]`."""

    num_gates: int

    @abstractmethod
    def sample(self, noise: Tensor) -> Tensor:
        """Gates for one draw of uniform `noise` in (0, 1); differentiable in the parameters."""

    @abstractmethod
    def prob_open(self) -> Tensor:
        """P(gate > 0), differentiable: its sum is the expected L0 norm."""

    @abstractmethod
    def deterministic(self) -> Tensor:
        """The gates without noise."""

    @abstractmethod
    def scores(self) -> Tensor:
        """What ranks the gates: the higher, the more the gate wants to stay open."""


def uniform_noise(seed: int, step: int, num_gates: int, *, stream: int = 0) -> Tensor:
    """Uniform noise in (0, 1), float32 `[num_gates]`, that is a function of its arguments alone.

    Drawn on the CPU, so that devices and data-parallel ranks agree and a resumed run repeats it. `stream` keeps several
    draws of one step (micro-batches, node gates) apart.
    """
    generator = torch.Generator().manual_seed(_mix(seed, step, stream))
    eps = torch.finfo(torch.float32).eps
    return torch.rand(num_gates, generator=generator).clamp_(eps, 1 - eps)


def _mix(*parts: int) -> int:
    """Hash a few integers to 63 bits, so that neighbouring seeds and steps give unrelated streams (splitmix64)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1


def top_k(scores: Tensor, num_open: int) -> Tensor:
    """Bool `[num_gates]` with exactly `num_open` True: the highest scores, ties broken by the lower index."""
    if not 0 <= num_open <= scores.numel():
        raise ValueError(f"cannot keep {num_open} of {scores.numel()} gates")
    order = torch.argsort(scores.detach().cpu(), descending=True, stable=True)
    keep = torch.zeros(scores.numel(), dtype=torch.bool)
    keep[order[:num_open]] = True
    return keep
