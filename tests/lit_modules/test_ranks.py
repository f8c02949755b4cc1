"""Shares of pairs: together the ranks judge every pair once."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules.sampler import PairBatchSampler
from edgeprune.metrics.examples import ExampleValues
from lit_modules import ranks


def trainer(rank: int, number: int) -> Any:
    kwargs = {"rank": rank, "num_replicas": number} if number > 1 else None
    return SimpleNamespace(distributed_sampler_kwargs=kwargs, world_size=number)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("num_pairs", [1, 2, 7, 12, 13])
def test_every_pair_is_judged_once(num_pairs: int, number: int) -> None:
    judged: list[int] = []
    for rank in range(number):
        for batch in map(torch.tensor, PairBatchSampler(num_pairs, 2, rank=rank, world_size=number)):
            judged += batch[ranks.rows_of_rank(trainer(rank, number), batch)].tolist()
    assert sorted(judged) == list(range(num_pairs))


def values_of(index: list[int]) -> ExampleValues:
    """One measure of one circuit: the square of a pair's number, twice as heavy."""
    numbers = torch.tensor(index)
    squares = (numbers**2).double()[None, None]
    return ExampleValues(("kl",), 2 * squares, 2 * torch.ones_like(squares), numbers)


def test_examples_of_all_ranks_are_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [[0, 2, 4], [1, 3, 4]]  # the second is left without a pair, and repeats one of the first
    parts = [
        values_of(share).examples(ranks.rows_of_rank(trainer(r, 2), torch.tensor(share)))
        for r, share in enumerate(shares)
    ]
    given = [(part.values, part.weights, part.index) for part in parts]
    monkeypatch.setattr(ranks, "gathered", lambda _, own: given)
    joined = ranks.of_all_ranks(trainer(0, 2), values_of(shares[0]))
    assert joined.index.tolist() == [0, 1, 2, 3, 4]
    assert joined.of("kl").tolist() == values_of([0, 1, 2, 3, 4]).of("kl").tolist()
    assert joined.figure("kl") == (0 + 1 + 4 + 9 + 16) / 5
