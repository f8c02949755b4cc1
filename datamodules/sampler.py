"""Which examples make up which batch: a pure function of (seed, epoch, number of the batch, rank).

A *step* is what all ranks process before one update of the gates: `batch_size * world_size * parts` examples in the
order of the epoch. Rank r takes every `world_size`-th of them, starting at r, and processes these in `parts` batches.
So ranks and parts together process what one process does that takes the whole step as one batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, final

import torch
from torch.utils.data import Sampler

from edgeprune.errors import EdgepruneError

T = TypeVar("T")


@final
class PairBatchSampler(Sampler[list[int]]):
    """Batches of example numbers, one epoch per iteration.

    >>> list(PairBatchSampler(5, 2))
    [[0, 1], [2, 3], [4]]
    >>> list(PairBatchSampler(5, 1, rank=1, world_size=2))  # a rank left without an example repeats one
    [[1], [3], [4]]

    Args:
        num_examples: Examples of the split.
        batch_size: Examples per batch and rank.
        seed: Shuffle, differently in every epoch; None keeps the order of the split and every example.
        rank: Number of this process.
        world_size: Number of processes.
        parts: Batches per step, whose gradients are added up.
        window: Steps whose examples are sorted by length before they are cut into steps, so that examples of a batch
            have similar lengths; 0 does not sort. The steps of a window come in random order. Only when shuffling.
        length: Length of an example.
        anew: No example comes twice: the numbers of each epoch follow on those of the one before, in order, and an
            epoch has as many whole steps as there are in `num_examples`, at least one. `seed` and `window` are not
            used. See `datamodules.stream`.
        position: Epoch and batch at which an iteration begins; asked when its first batch is drawn. Batches
            before it are left out, which is how training goes on in the middle of an epoch.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        *,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        parts: int = 1,
        window: int = 0,
        length: Callable[[int], int] = lambda number: 0,
        anew: bool = False,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        if batch_size < 1:
            raise EdgepruneError(f"a batch needs at least one example, got batch_size={batch_size}")
        self.step_size = batch_size * world_size * parts
        if anew:
            num_examples = max(1, num_examples // self.step_size) * self.step_size
        if parts > 1 and num_examples // world_size < parts:
            raise EdgepruneError(
                f"{num_examples} training pairs do not give accumulate_grad_batches={parts} batches to each of "
                f"{world_size} processes; give more pairs, or accumulate fewer batches"
            )
        self.num_examples = num_examples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.parts = parts
        self.window = window
        self.length = length
        self.anew = anew
        self.position = position

    def __len__(self) -> int:
        """Batches of a whole epoch; when shuffling, an incomplete last step is dropped if there are others."""
        full, rest = divmod(self.num_examples, self.step_size)
        return (full + (rest > 0 and (self.seed is None or full == 0))) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        epoch, start = self.position()
        order = self.order(epoch)
        for number in range(start, len(self)):
            step = order[number // self.parts * self.step_size :][: self.step_size]
            share = step[self.rank :: self.world_size] or [step[self.rank % len(step)]]
            yield self._part(share, number % self.parts)

    def _part(self, share: list[int], part: int) -> list[int]:
        """One of the batches into which a rank's share of a step is cut, as evenly as can be."""
        return share[len(share) * part // self.parts : len(share) * (part + 1) // self.parts]

    def place_in_step(self, number: int) -> tuple[int, int]:
        """Where a batch lies in this rank's share of its step: examples before it, and examples of the share."""
        step, part = divmod(number, self.parts)
        size = min(self.step_size, self.num_examples - step * self.step_size)
        share = max(1, len(range(self.rank, size, self.world_size)))
        return share * part // self.parts, share

    def fixed_batches(self) -> list[list[int]]:
        """Fixed batches: the batches of all ranks in epoch 0, and what this epoch leaves out, cut alike.

        Every example is in one of them. They are the same on every rank.
        """
        order, found = self.order(0), list[list[int]]()
        for start in range(0, len(order), self.step_size):
            step = order[start : start + self.step_size]
            shares = [step[rank :: self.world_size] for rank in range(self.world_size)]
            found += [self._part(share, part) for part in range(self.parts) for share in shares]
        return [batch for batch in found if batch]

    def order(self, epoch: int) -> list[int]:
        """All example numbers in the order of `epoch`; those of an incomplete last step are drawn before sorting."""
        if self.anew:
            first = epoch * self.num_examples
            return list(range(first, first + self.num_examples))
        if self.seed is None:
            return list(range(self.num_examples))
        # an odd factor keeps (seed, epoch) apart from (seed + 1, epoch - 1)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order: list[int] = torch.randperm(self.num_examples, generator=generator).tolist()
        if not self.window:
            return order

        def permuted(size: int) -> list[int]:
            return torch.randperm(size, generator=generator).tolist()

        return in_windows(order, self.step_size, self.window, self.length, permuted)


def in_windows(
    order: Sequence[T], step_size: int, window: int, length: Callable[[T], int], permuted: Callable[[int], list[int]]
) -> list[T]:
    """Examples in an order in which those of a step have similar lengths; those of an incomplete last step stay.

    Args:
        order: The examples.
        step_size: Examples of a step.
        window: Steps in a row whose examples are sorted by length and cut into steps again, which come in random order.
        length: Length of an example.
        permuted: The numbers below a size in random order.
    """
    order = list(order)
    whole = len(order) // step_size * step_size
    for first in range(0, whole, window * step_size):
        end = min(first + window * step_size, whole)
        alike = sorted(order[first:end], key=length)
        steps = [alike[start : start + step_size] for start in range(0, end - first, step_size)]
        order[first:end] = [example for step in permuted(len(steps)) for example in steps[step]]
    return order
