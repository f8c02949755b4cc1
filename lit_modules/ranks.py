"""What several processes of one run share out and exchange; with one process, it gets its own values back."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.examples import ExampleValues


@final
class OfAllRanksError(EdgepruneError):
    """A mistake that one rank found; all ranks raise it."""


def first_rank() -> bool:
    """Whether this process is the only one, or the first; known before a trainer is."""
    return rank_zero_only.rank == 0  # pyright: ignore[reportFunctionMemberAccess]


def gathered(trainer: pl.Trainer, value: Any) -> list[Any]:
    """One plain object of every rank, in the order of ranks; all ranks must call it."""
    if trainer.world_size == 1:
        return [value]
    everything: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everything, value)
    return everything


def summed(trainer: pl.Trainer, values: Tensor) -> Tensor:
    """Sum of every rank's tensor; all ranks must call it."""
    if trainer.world_size == 1:
        return values
    return trainer.strategy.reduce(values.clone(), reduce_op="sum")  # pyright: ignore[reportReturnType]


def average_gradients(trainer: pl.Trainer, parameters: Iterable[Tensor]) -> None:
    """Give gradients their mean over ranks where the strategy leaves that to the module; DDP has done it."""
    if trainer.world_size > 1 and isinstance(trainer.strategy, ModelParallelStrategy):
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.copy_(trainer.strategy.reduce(parameter.grad, reduce_op="mean"))


@contextmanager
def all_ranks_agree(trainer: pl.Trainer) -> Generator[None]:
    """Let what one rank refuses be refused by all of them, which would wait for it otherwise; all must come here.

    Raises:
        OfAllRanksError: The first refusal.
    """
    if not torch.distributed.is_initialized():
        yield
        return
    refusal: str | None = None
    try:
        yield
    except EdgepruneError as error:
        refusal = str(error)
    first = next(filter(None, gathered(trainer, refusal)), None)
    if first is not None:
        raise OfAllRanksError(first)


def shard(trainer: pl.Trainer) -> tuple[int, int]:
    """Number of this rank and of all ranks, as the loaders share pairs out."""
    kwargs: dict[str, Any] = trainer.distributed_sampler_kwargs or {}
    return kwargs.get("rank", 0), kwargs.get("num_replicas", 1)


def rows_of_rank(trainer: pl.Trainer, index: Tensor) -> Tensor:
    """Bool `[batch]`: which pairs of a split read in order are this rank's.

    A rank that is left without a pair at the end repeats one of another rank, which must not count twice.
    `index` is long `[batch]`, the numbers of the pairs.
    """
    rank, number = shard(trainer)
    return index % number == rank


def of_all_ranks(trainer: pl.Trainer, values: ExampleValues) -> ExampleValues:
    """Every example once, by number, from the shares of all ranks; all ranks must call it."""
    if trainer.world_size == 1:
        return values
    mine = values.examples(rows_of_rank(trainer, values.index))
    parts = gathered(trainer, (mine.values, mine.weights, mine.index))
    joined = [torch.cat(tensors, -1) for tensors in zip(*parts, strict=True)]
    order = joined[2].argsort()
    return ExampleValues(values.measures, joined[0][..., order], joined[1][..., order], joined[2][order])


def every_batch(pairs: Sequence[Any], collate: Callable[[Sequence[Any]], PairBatch], size: int) -> Iterator[PairBatch]:
    """All pairs in order. A loader would give each rank its share, and draw from the global seed."""
    for start in range(0, len(pairs), size):
        yield collate([(number, pairs[number]) for number in range(start, min(start + size, len(pairs)))])


def place_in_step(trainer: pl.Trainer, size: int, batch_idx: int) -> tuple[int, int]:
    """Pairs of this rank's share of a step that come before a batch of `size` pairs, and pairs of the share."""
    parts, data = trainer.accumulate_grad_batches, getattr(trainer, "datamodule", None)
    if parts == 1:
        return 0, size
    if hasattr(data, "place_in_step"):
        return data.place_in_step(batch_idx)  # pyright: ignore[reportOptionalMemberAccess]
    return batch_idx % parts * size, parts * size


def sample_of_groups(num_samples: int, before: int, size: int, share: int) -> Tensor:
    """Which sample of the gates each group of a batch has, long `[group]`; groups are equal and in order.

    A rank's share of a step falls into as many groups as divide both it and the samples. This batch has `size` pairs of
    it, after `before` others.

    >>> [sample_of_groups(*of).tolist() for of in ((8, 0, 8, 8), (8, 4, 2, 8), (4, 2, 4, 6))]
    [[0, 1, 2, 3, 4, 5, 6, 7], [4, 5], [0, 1, 1, 1]]
    """
    per_sample = share // math.gcd(num_samples, share)
    per_group = math.gcd(math.gcd(per_sample, before), size)
    return torch.arange(before, before + size, per_group) // per_sample
