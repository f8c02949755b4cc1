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


LENGTHS = [3 + (7 * number) % 11 for number in range(50)]


def padding(batches: list[list[int]]) -> float:
    """Share of the tokens of all batches that is padding."""
    wide = sum(len(batch) * max(LENGTHS[number] for number in batch) for batch in batches)
    return 1 - sum(LENGTHS[number] for number in flat(batches)) / wide


@pytest.mark.parametrize("window", [2, 4, 100])
def test_windows_of_lengths_save_padding_and_lose_no_example(window: int) -> None:
    plain, sorted_ = (
        list(PairBatchSampler(50, 4, seed=1, window=size, length=LENGTHS.__getitem__)) for size in (0, window)
    )
    assert padding(sorted_) < 0.7 * padding(plain)
    assert len(set(flat(sorted_))) == 48
    assert set(flat(sorted_)) == set(flat(plain))  # what is left out is drawn, and not the longest


def test_windows_are_filled_at_random_and_their_batches_come_in_any_order() -> None:
    epochs = [
        list(PairBatchSampler(48, 4, seed=1, window=4, length=LENGTHS.__getitem__, position=at(epoch)))
        for epoch in (0, 0, 1)
    ]
    assert epochs[0] == epochs[1]
    assert {frozenset(batch) for batch in epochs[0]}.isdisjoint(frozenset(batch) for batch in epochs[2])
    longest = [max(LENGTHS[number] for number in batch) for batch in epochs[0]]
    assert any(longest[start : start + 4] != sorted(longest[start : start + 4]) for start in range(0, 12, 4))


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize(("batch_size", "parts", "world_size"), [(4, 3, 1), (1, 12, 1), (2, 3, 2), (12, 1, 1)])
def test_parts_and_ranks_share_a_step(window: int, batch_size: int, parts: int, world_size: int) -> None:
    options = {"seed": 3, "window": window, "length": LENGTHS.__getitem__}
    alone = list(PairBatchSampler(50, 12, **options))
    ranks = [
        PairBatchSampler(50, batch_size, rank=rank, world_size=world_size, parts=parts, **options)
        for rank in range(world_size)
    ]
    assert [len(sampler) for sampler in ranks] == [4 * parts] * world_size
    for step, expected in enumerate(alone):
        found = [flat(list(sampler)[step * parts : (step + 1) * parts]) for sampler in ranks]
        assert found == [expected[rank::world_size] for rank in range(world_size)]


def test_a_batch_knows_its_place_in_the_step() -> None:
    sampler = PairBatchSampler(26, 2, seed=0, parts=4)
    assert [sampler.place_in_step(number) for number in range(6)] == [(0, 8), (2, 8), (4, 8), (6, 8), (0, 8), (2, 8)]
    short = PairBatchSampler(7, 2, seed=0, parts=4)
    assert [len(batch) for batch in short] == [1, 2, 2, 2]
    assert [short.place_in_step(number) for number in range(4)] == [(0, 7), (1, 7), (3, 7), (5, 7)]


def test_more_parts_than_pairs_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="3 training pairs do not give accumulate_grad_batches=4 batches"):
        PairBatchSampler(3, 1, seed=0, parts=4)


@pytest.mark.parametrize("start", [0, 1, 5, 11])
def test_a_resumed_epoch_with_windows_and_parts_goes_on(start: int) -> None:
    options = {"seed": 5, "parts": 3, "window": 2, "length": LENGTHS.__getitem__}
    whole = list(PairBatchSampler(50, 4, position=at(3), **options))
    assert list(PairBatchSampler(50, 4, position=at(3, start), **options)) == whole[start:]
