"""Terms that push gates shut: a Lagrangian that aims at a sparsity, and a penalty whose weight rises; see also `pace`.

They see `open_fraction`, the share of existing edges (or nodes) that are open: the expected L0 norm over its number, or
the mean of the sampled gates. Sparsity is one minus it.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, final

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError


class AbstractSparsityTerm(nn.Module, ABC):
    """A loss term. Its parameters, if any, are multipliers and *ascend*."""

    learning_rate: float = 0.0

    @abstractmethod
    def forward(self, open_fraction: Tensor, progress: float) -> Tensor:
        """The term (scalar) at `progress` in [0, 1] of the run."""

    @abstractmethod
    def target(self, progress: float) -> float | None:
        """The sparsity aimed at, or None where nothing is aimed at."""

    @abstractmethod
    def state(self, progress: float) -> dict[str, float]:
        """What to log: multipliers or weights."""


@final
class GeometricPenalty(AbstractSparsityTerm):
    """`weight * open_fraction` with a weight that rises geometrically: one run walks the whole frontier.

    Deviation from arXiv 2406.16778, which aims at one sparsity per run. Every sparsity is passed on the way, at the
    weight at which it is worth its price, so a snapshot taken there is a circuit of that sparsity.

    Args:
        start: Weight at the first step, in nats per (all edges open).
        end: Weight at the last step.
    """

    def __init__(self, start: float = 4.0, end: float = 4000.0) -> None:
        super().__init__()
        if not 0 < start <= end < math.inf:
            raise EdgepruneError(f"the penalty weight must rise from above 0, got start={start}, end={end}")
        self.start, self.end = start, end

    def weight(self, progress: float) -> float:
        """Weight at `progress`.

        >>> GeometricPenalty(1, 100).weight(0.5)
        10.0
        """
        return self.start * (self.end / self.start) ** progress

    def forward(self, open_fraction: Tensor, progress: float) -> Tensor:
        """`weight * open_fraction`."""
        return self.weight(progress) * open_fraction

    def target(self, progress: float) -> None:
        """Nothing is aimed at."""

    def state(self, progress: float) -> dict[str, float]:
        """The weight."""
        return {"penalty_weight": self.weight(progress)}


@final
class Lagrangian(AbstractSparsityTerm):
    """`l1 (s - t) + l2 (s - t)^2` with a target t that rises to its final value (arXiv 2406.16778, section 3).

    Args:
        target: Final sparsity. Published runs aim above 1 (IOI .94 to 1.1) because they lag behind their target.
        warmup: Share of the run in which the target rises from `start` (published: 2500 of 3000 steps).
        schedule: `"linear"` (published), or `"log"`: the share of open edges falls geometrically.
        start: Sparsity aimed at first (published: 0).
        learning_rate: Of the multipliers, which ascend (published: 0.8, 0.4 for CodeLlama, 0.001 for tracr reverse).
        linear_term: Use l1 at all (published; `--disable_linear_reg_term` drops it).
    """

    def __init__(
        self,
        target: float,
        *,
        warmup: float = 5 / 6,
        schedule: Literal["linear", "log"] = "linear",
        start: float = 0.0,
        learning_rate: float = 0.8,
        linear_term: bool = True,
    ) -> None:
        super().__init__()
        if schedule not in ("linear", "log"):
            raise EdgepruneError(f"schedule must be 'linear' or 'log', got {schedule!r}")
        if not 0 <= learning_rate < math.inf:
            raise EdgepruneError(f"the multipliers' learning_rate must not be negative, got {learning_rate}")
        if not 0 < warmup <= 1:
            raise EdgepruneError(f"warmup is a share of the run in (0, 1], got {warmup}")
        if not (0 <= start < 1 and target > start):
            raise EdgepruneError(f"the target must rise from start in [0, 1), got start={start}, target={target}")
        if schedule == "log" and target >= 1:
            raise EdgepruneError(f"schedule 'log' needs a target below 1, got {target}; use 'linear' to aim above it")
        self.final, self.warmup, self.schedule, self.start = target, warmup, schedule, start
        self.learning_rate, self.linear_term = learning_rate, linear_term
        self.multipliers = nn.Parameter(torch.zeros(2))

    def target(self, progress: float) -> float:
        """The sparsity aimed at now."""
        share = min(1.0, progress / self.warmup)
        if self.schedule == "log":
            low, high = math.log(1 - self.start), math.log(1 - self.final)
            return 1 - math.exp(low + share * (high - low))
        return self.start + share * (self.final - self.start)

    def forward(self, open_fraction: Tensor, progress: float) -> Tensor:
        """`l1 (s - t) + l2 (s - t)^2`: large multipliers push s up to t (l1) and hold it there (l2)."""
        gap = (1 - open_fraction) - self.target(progress)
        linear, square = self.multipliers
        return square * gap.square() + (linear * gap if self.linear_term else 0.0)

    def state(self, progress: float) -> dict[str, float]:
        """Both multipliers."""
        linear, square = self.multipliers.tolist()
        return {"lambda_1": linear, "lambda_2": square}
