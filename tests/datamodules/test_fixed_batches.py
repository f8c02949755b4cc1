"""Every example has one fixed batch, which is that of epoch 0, whatever the epoch and the rank."""

import pytest

from datamodules.pairs import PairDataModule
from datamodules.sampler import PairBatchSampler
from tests.datamodules.test_pairs import LONG, SHORT, Ready, assert_same, make


def at_epoch_three() -> tuple[int, int]:
    return 3, 1


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_they_are_the_batches_of_epoch_0_and_the_rest(seed: int | None) -> None:
    fixed = PairBatchSampler(11, 4, seed=seed, position=at_epoch_three).fixed_batches()
    epoch = list(PairBatchSampler(11, 4, seed=seed))
    assert fixed[: len(epoch)] == epoch
    assert sorted(number for numbers in fixed for number in numbers) == list(range(11))
    assert [len(numbers) for numbers in fixed] == [4, 4, 3]


@pytest.mark.parametrize("num_examples", [24, 29, 5, 1])
def test_ranks_agree_on_those_that_hold_their_batches(num_examples: int) -> None:
    ranks = [PairBatchSampler(num_examples, 2, seed=0, rank=rank, world_size=3) for rank in range(3)]
    fixed = ranks[0].fixed_batches()
    assert all(sampler.fixed_batches() == fixed for sampler in ranks)
    assert sorted(number for numbers in fixed for number in numbers) == list(range(num_examples))
    assert all(batch in fixed for sampler in ranks for batch in sampler)


def module() -> PairDataModule:
    return make(Ready((SHORT, LONG, SHORT, LONG, SHORT), (SHORT, LONG, SHORT)), batch_size=2, eval_batch_size=2)


def test_fixed_batches_are_those_of_the_loaders() -> None:
    data = module()
    for split, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
        fixed = data.fixed_batches(split)
        for numbers, batch in zip(fixed.batches, loader, strict=split == "test"):
            assert_same(fixed.collate(numbers), batch)


def test_lengths_are_those_of_the_clean_prompt() -> None:
    fixed = module().fixed_batches("train")
    assert [fixed.lengths(number) for number in range(2)] == [(2, 1), (4, 2)]
