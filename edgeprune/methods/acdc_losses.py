"""Losses of the circuits that ACDC asks about: the current one, and that without some edges into a receiver."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.methods.problem import Problem
from edgeprune.models.circuit_run import ONE_LAYER, state_bytes
from edgeprune.models.clean_run import CleanRun
from edgeprune.models.downstream import DownstreamRun
from edgeprune.models.masked import MaskedModel

Receiver = tuple[int, ...]  # (reader,), or (role, reader)


class AbstractLosses(ABC):
    """Mean losses over all examples of a problem, for one receiver after the other."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def exact(self, keep: Tensor) -> float:
        """Loss of the circuit `keep`, bool `[..., reader, writer]`, by the masked model."""
        return self.problem.mean_loss(keep.to(self.problem.model.dtype))

    @abstractmethod
    def begin(self, keep: Tensor, receiver: Receiver) -> float:
        """Loss of the circuit `[..., reader, writer]`, of which `prefixes` closes further edges into `receiver`."""

    @abstractmethod
    def prefixes(self, closed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        """Losses with the edges from `closed` and from the first 1, 2, ... of `candidates` into the reader closed."""


@final
class PlainLosses(AbstractLosses):
    """One run of the whole masked model for every question."""

    def begin(self, keep: Tensor, receiver: Receiver) -> float:
        """Loss of the circuit `[..., reader, writer]`."""
        self.keep, self.receiver = keep.clone(), receiver
        return self.exact(keep)

    def prefixes(self, closed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        """One run per candidate."""
        keep, losses = self.keep.clone(), list[float]()
        keep[(*self.receiver, list(closed))] = False
        for candidate in candidates:
            keep[(*self.receiver, candidate)] = False
            losses.append(self.exact(keep))
        return losses


@final
class DownstreamLosses(AbstractLosses):
    """Only what lies downstream of the receiver is run, for several candidates at once.

    Args:
        problem: The problem.
        memory_gb: Half of it bounds what is kept of all examples from question to question (else that is made anew for
            each), half of it what one question needs. Batches are cut to fit; one example is the least.
        max_ahead: The most candidates in one question.
    """

    def __init__(self, problem: Problem, memory_gb: float, max_ahead: int) -> None:
        super().__init__(problem)
        half = memory_gb * 1e9 / 2
        self.batches = [part for batch in problem.batches for part in batch.parts(self._fitting(batch, half))]
        kept = sum(state_bytes(problem.model) * batch.clean.numel() for batch in self.batches)
        self.keeps = kept <= half
        self.half, self.max_ahead = half, max_ahead
        self.clean: dict[int, tuple[CleanRun, Tensor]] = {}
        self.runs_from_reader: dict[int, tuple[DownstreamRun, Tensor]] = {}

    def begin(self, keep: Tensor, receiver: Receiver) -> float:
        """Loss of the circuit `[..., reader, writer]`."""
        self.keep, self.receiver = keep.clone(), receiver
        self.runs_from_reader.clear()
        runs = (self._downstream(number) for number in self._numbers())
        return self._mean([self._losses(run, full, run.logits[None]) for run, full in runs])[0]

    def prefixes(self, closed: Sequence[int], candidates: Sequence[int]) -> list[float]:
        """One run for as many candidates as memory allows."""
        sums: list[Tensor] = []
        role = self.receiver[0] if len(self.receiver) > 1 else None
        for number in self._numbers():
            (run, full), found = self._downstream(number), list[Tensor]()
            step = max(1, int(self.half / _rerun_bytes(self.problem.model) / self.batches[number].clean.numel()) - 1)
            done = list(closed)
            for start in range(0, len(candidates), step):
                asked = candidates[start : start + step]
                found.append(self._losses(run, full, run.ahead(done, asked, role)))
                done += asked
            sums.append(torch.cat(found))
        return self._mean(sums)

    def _numbers(self) -> range:
        return range(len(self.batches))

    def _mean(self, sums: list[Tensor]) -> list[float]:
        return (torch.stack(sums).sum(0) / self.problem.num_examples).tolist()

    def _fitting(self, batch: PairBatch, half: float) -> int:
        """Examples whose state and whose question about one candidate stay within half of the memory each."""
        per_token = max(state_bytes(self.problem.model), 2 * _rerun_bytes(self.problem.model))
        return max(1, int(half / per_token / batch.clean.shape[1]))

    def _clean(self, number: int) -> tuple[CleanRun, Tensor]:
        if number in self.clean:
            return self.clean[number]
        batch = self.batches[number].to(self.problem.model.device)
        full, ablated = self.problem.runs(batch, self.problem.split)
        made = CleanRun(self.problem.model, batch, ablated), full
        if self.keeps:
            self.clean[number] = made
        return made

    def _downstream(self, number: int) -> tuple[DownstreamRun, Tensor]:
        """The circuit on a batch, and the full model's logits at the scored positions."""
        if number in self.runs_from_reader:
            return self.runs_from_reader[number]
        clean, full = self._clean(number)
        made = DownstreamRun(clean, self.keep, self.receiver[-1]), full
        if self.keeps:
            self.runs_from_reader[number] = made
        return made

    def _losses(self, run: DownstreamRun, full: Tensor, logits: Tensor) -> Tensor:
        """Summed over examples, float64 `[candidates]`, from `[candidates, batch, positions, vocab]`."""
        return torch.stack([self.problem.losses(full, one, run.clean.batch).double().sum() for one in logits]).cpu()


def _rerun_bytes(model: MaskedModel) -> int:
    """Bytes per token and candidate of a run, at most: changes of all writers, twice, and one layer's values."""
    return (2 * len(model.graph.writers) + ONE_LAYER) * model.width * model.dtype.itemsize
