"""Losses of the circuits that ACDC asks about: the current one, and that without some edges into a receiver."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

from torch import Tensor

from edgeprune.methods.problem import Problem


class AbstractLosses(ABC):
    """Mean losses over all examples of a problem, for one receiver after the other."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def exact(self, keep: Tensor) -> float:
        """Loss of the circuit `keep`, bool `[reader, writer]`, by the masked model."""
        return self.problem.mean_loss(keep.to(self.problem.model.dtype))

    @abstractmethod
    def begin(self, keep: Tensor, reader: int) -> float:
        """Loss of the circuit `keep`; later questions are about it with further edges into `reader` closed."""

    @abstractmethod
    def prefixes(self, closed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        """Losses with the edges from `closed` and from the first 1, 2, ... of `candidates` into the reader closed."""


@final
class PlainLosses(AbstractLosses):
    """One run of the whole masked model for every question."""

    def begin(self, keep: Tensor, reader: int) -> float:
        """Loss of the circuit."""
        self.keep, self.reader = keep.clone(), reader
        return self.exact(keep)

    def prefixes(self, closed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        """One run per candidate."""
        keep, losses = self.keep.clone(), list[float]()
        keep[self.reader, list(closed)] = False
        for candidate in candidates:
            keep[self.reader, candidate] = False
            losses.append(self.exact(keep))
        return losses
