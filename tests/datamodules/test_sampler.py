from collections.abc import Callable

import pytest

from datamodules.sampler import PairBatchSampler
from edgeprune.errors import EdgepruneError


def at(epoch: int, batch: int = 0) -> Callable[[], tuple[int, int]]:
    return lambda: (epoch, batch)


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def test_in_order_without_a_seed() -> None:
    sampler = PairBatchSampler(7, 3)
    assert list(sampler) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(sampler) == 3


def test_epochs_are_different_permutations_that_repeat_exactly() -> None:
    first, again, second, other = (
        list(PairBatchSampler(40, 4, seed=seed, position=at(epoch))) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first == again
    for batches in (first, second, other):
        assert sorted(flat(batches)) == list(range(40))
    assert first != second
    assert first != other
    assert second != other


@pytest.mark.parametrize("seed", [-1, 0, 2**62])
def test_any_seed_will_do(seed: int) -> None:
    assert sorted(PairBatchSampler(9, 3, seed=seed).order(5)) == list(range(9))


def test_incomplete_training_batch_is_dropped_unless_it_is_the_only_one() -> None:
    assert [len(batch) for batch in PairBatchSampler(10, 4, seed=0)] == [4, 4]
    assert len(PairBatchSampler(10, 4, seed=0)) == 2
    assert [len(batch) for batch in PairBatchSampler(3, 4, seed=0)] == [3]
    assert len(PairBatchSampler(3, 4, seed=0)) == 1


@pytest.mark.parametrize("start", [0, 1, 7, 10])
def test_resumed_epoch_neither_repeats_nor_skips(start: int) -> None:
    whole = list(PairBatchSampler(40, 4, seed=5, position=at(3)))
    resumed = PairBatchSampler(40, 4, seed=5, position=at(3, start))
    assert list(resumed) == whole[start:]
    assert len(resumed) == 10  # Lightning counts the batches of the whole epoch


def test_position_is_asked_when_the_first_batch_is_drawn() -> None:
    place = [(0, 0)]
    batches = iter(PairBatchSampler(40, 4, seed=5, position=lambda: place[0]))
    place[0] = (2, 9)
    assert list(batches) == list(PairBatchSampler(40, 4, seed=5, position=at(2)))[9:]


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("num_examples", [24, 29, 5])
def test_ranks_share_the_global_batch(seed: int | None, num_examples: int) -> None:
    alone = list(PairBatchSampler(num_examples, 6, seed=seed))
    ranks = [list(PairBatchSampler(num_examples, 2, seed=seed, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [len(alone)] * 3
    for number, batch in enumerate(alone):
        shares = [batches[number] for batches in ranks]
        assert sorted(flat(shares)) == sorted(batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_no_rank_is_left_without_a_batch() -> None:
    ranks = [list(PairBatchSampler(9, 2, rank=rank, world_size=4)) for rank in range(4)]
    assert [batches[1] for batches in ranks] == [[8]] * 4


def test_empty_batches_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="batch_size=0"):
        PairBatchSampler(3, 0)
