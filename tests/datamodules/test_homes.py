"""Every example has one home batch, which is that of epoch 0, whatever the epoch and the rank."""

import pytest

from datamodules.pairs import PairDataModule
from datamodules.sampler import PairBatchSampler
from tests.datamodules.test_pairs import LONG, SHORT, Ready, assert_same, make


def at_epoch_three() -> tuple[int, int]:
    return 3, 1


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_homes_are_the_batches_of_epoch_0_and_the_rest(seed: int | None) -> None:
    homes = PairBatchSampler(11, 4, seed=seed, position=at_epoch_three).homes()
    epoch = list(PairBatchSampler(11, 4, seed=seed))
    assert homes[: len(epoch)] == epoch
    assert sorted(number for home in homes for number in home) == list(range(11))
    assert [len(home) for home in homes] == [4, 4, 3]


@pytest.mark.parametrize("num_examples", [24, 29, 5, 1])
def test_ranks_agree_on_homes_which_hold_their_batches(num_examples: int) -> None:
    ranks = [PairBatchSampler(num_examples, 2, seed=0, rank=rank, world_size=3) for rank in range(3)]
    homes = ranks[0].homes()
    assert all(sampler.homes() == homes for sampler in ranks)
    assert sorted(number for home in homes for number in home) == list(range(num_examples))
    assert all(batch in homes for sampler in ranks for batch in sampler)


def module() -> PairDataModule:
    return make(Ready((SHORT, LONG, SHORT, LONG, SHORT), (SHORT, LONG, SHORT)), batch_size=2, eval_batch_size=2)


def test_home_batches_are_those_of_the_loaders() -> None:
    data = module()
    for split, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
        homes = data.homes(split)
        for numbers, batch in zip(homes.batches, loader, strict=split == "test"):
            assert_same(homes.collate(numbers), batch)


def test_lengths_are_those_of_the_clean_prompt() -> None:
    homes = module().homes("train")
    assert [homes.lengths(number) for number in range(2)] == [(2, 1), (4, 2)]
