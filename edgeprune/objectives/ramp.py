"""A penalty whose weight rises in a straight line, falls again, and stays (DiscoGP)."""

import math
from typing import final

from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.objectives.sparsity import AbstractSparsityTerm


@final
class RampPenalty(AbstractSparsityTerm):
    """`weight * open_fraction`: the weight goes from `start` to `peak`, then to `end`, and stays there.

    Published (DiscoGP): for edges 1, 100 and .01, with 20 of 100 epochs up and 20 down; for weights 1 to 1000 over the
    whole run.

    Args:
        start: Weight at the first step, in nats per (all gates open).
        peak: Weight at the end of the rise.
        end: Weight from the end of the fall on.
        warmup: Share of the run in which the weight rises.
        cooldown: Share of the run in which it falls.
    """

    def __init__(
        self, start: float = 1.0, peak: float = 100.0, end: float = 0.01, warmup: float = 0.2, cooldown: float = 0.2
    ) -> None:
        super().__init__()
        if not all(0 <= weight < math.inf for weight in (start, peak, end)):
            raise EdgepruneError(f"penalty weights must not be negative, got start={start}, peak={peak}, end={end}")
        if not (warmup >= 0 and cooldown >= 0 and warmup + cooldown <= 1):
            raise EdgepruneError(
                f"warmup and cooldown are shares of the run, together at most 1, got {warmup} and {cooldown}"
            )
        self.start, self.peak, self.end = start, peak, end
        self.warmup, self.cooldown = warmup, cooldown

    def weight(self, progress: float) -> float:
        """Weight at `progress`.

        >>> [RampPenalty(1, 100, 0, 0.25, 0.5).weight(progress) for progress in (0.0, 0.125, 0.25, 0.5, 0.9)]
        [1.0, 50.5, 100.0, 50.0, 0]
        """
        if progress < self.warmup:
            return self.start + (self.peak - self.start) * progress / self.warmup
        if progress < self.warmup + self.cooldown:
            return self.peak + (self.end - self.peak) * (progress - self.warmup) / self.cooldown
        return self.end if self.cooldown else self.peak

    def forward(self, open_fraction: Tensor, progress: float) -> Tensor:
        """`weight * open_fraction`."""
        return self.weight(progress) * open_fraction

    def target(self, progress: float) -> None:
        """Nothing is aimed at."""

    def state(self, progress: float) -> dict[str, float]:
        """The weight."""
        return {"penalty_weight": self.weight(progress)}
