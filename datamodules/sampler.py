"""Which examples make up which batch: a pure function of (seed, epoch, number of the batch, rank).

A *global* batch is what all ranks process in one step: `batch_size * world_size` examples in the order of the
epoch. Rank r takes every `world_size`-th of them, starting at r, so the ranks together process what one
process with the global batch would.
"""

from collections.abc import Callable, Iterator
from typing import final

import torch
from torch.utils.data import Sampler

from edgeprune.errors import EdgepruneError


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
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        if batch_size < 1:
            raise EdgepruneError(f"a batch needs at least one example, got batch_size={batch_size}")
        self.num_examples = num_examples
        self.global_batch_size = batch_size * world_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.position = position

    def __len__(self) -> int:
        """Batches of a whole epoch; when shuffling, an incomplete last one is dropped if there are others."""
        full, rest = divmod(self.num_examples, self.global_batch_size)
        return full + (rest > 0 and (self.seed is None or full == 0))

    def __iter__(self) -> Iterator[list[int]]:
        epoch, start = self.position()
        order = self.order(epoch)
        for number in range(start, len(self)):
            batch = order[number * self.global_batch_size : (number + 1) * self.global_batch_size]
            yield batch[self.rank :: self.world_size] or [batch[self.rank % len(batch)]]

    def homes(self) -> list[list[int]]:
        """Home batches: what each rank gets of each batch of epoch 0, and of the examples that this epoch leaves out.

        Every example is in one of them. They are the same on every rank.
        """
        order = self.order(0)
        batches = (
            order[start : start + self.global_batch_size] for start in range(0, len(order), self.global_batch_size)
        )
        shares = (batch[rank :: self.world_size] for batch in batches for rank in range(self.world_size))
        return [share for share in shares if share]

    def order(self, epoch: int) -> list[int]:
        """All example numbers in the order of `epoch`."""
        if self.seed is None:
            return list(range(self.num_examples))
        # an odd factor keeps (seed, epoch) apart from (seed + 1, epoch - 1)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(self.num_examples, generator=generator).tolist()
