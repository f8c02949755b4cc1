"""What closed edges carry, against sums made by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from datamodules.tasks.base import TokenPair
from edgeprune import ablations
from edgeprune.ablations import mean_of_pairs
from edgeprune.errors import EdgepruneError
from edgeprune.models.families.gpt2 import GPT2
from edgeprune.models.masked import MaskedModel
from tests.ablations.cases import UNEQUAL, batch_of, fields

LENGTHS = [5, 2, 4, 3, 1]


@pytest.fixture(scope="module")
def model() -> MaskedModel:
    torch.manual_seed(0)
    return MaskedModel(AutoModelForCausalLM.from_config(copy.deepcopy(GPT2.tiny()[0])).double())


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 20, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def mask() -> Tensor:
    return (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()


def test_the_mean_is_over_real_tokens_alone(model: MaskedModel, ids: Tensor, mask: Tensor) -> None:
    alone = [fields(model.record(ids[row : row + 1, :length])) for row, length in enumerate(LENGTHS)]
    for found, *parts in zip(fields(ablations.mean(model, ids, mask)), *alone, strict=True):
        tokens = torch.cat([part[:, 0] for part in parts], dim=1)  # [item, all real tokens, ...]
        assert found.shape[1:3] == (1, 1)
        torch.testing.assert_close(found[:, 0, 0], tokens.mean(1))


def test_the_positional_mean_is_over_the_prompts_that_reach_it(model: MaskedModel, ids: Tensor, mask: Tensor) -> None:
    alone = [fields(model.record(ids[row : row + 1, :length])) for row, length in enumerate(LENGTHS)]
    for found, *parts in zip(fields(ablations.mean(model, ids, mask, positional=True)), *alone, strict=True):
        assert found.shape[1:3] == (1, max(LENGTHS))
        for position in range(max(LENGTHS)):
            reached = [part[:, 0, position] for part in parts if part.shape[2] > position]
            torch.testing.assert_close(found[:, 0, position], torch.stack(reached).mean(0))


def test_without_a_mask_every_token_counts(model: MaskedModel, ids: Tensor) -> None:
    for found, all_of_them in zip(fields(ablations.mean(model, ids)), fields(model.record(ids)), strict=True):
        torch.testing.assert_close(found[:, 0, 0], all_of_them.mean((1, 2)))


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_batch_size_does_not_matter(
    model: MaskedModel, ids: Tensor, mask: Tensor, batch_size: int, positional: bool
) -> None:
    whole = ablations.mean(model, ids, mask, positional=positional)
    split = ablations.mean(model, ids, mask, positional=positional, batch_size=batch_size)
    torch.testing.assert_close(fields(split), fields(whole))


def test_a_position_that_no_prompt_reaches_has_mean_zero(model: MaskedModel, ids: Tensor, mask: Tensor) -> None:
    states = ablations.mean(model, ids, mask * (torch.arange(max(LENGTHS)) < 4), positional=True)
    for field in fields(states):
        assert not field[:, :, 4].any()
        assert field[:, :, 3].any()


def test_zero_is_zero_for_every_writer(model: MaskedModel, ids: Tensor) -> None:
    recorded = fields(model.record(ids))
    for found, like in zip(fields(ablations.zero(model)), recorded, strict=True):
        assert not found.any()
        assert found.dtype == like.dtype
        assert found.expand_as(like).shape == like.shape


# ---------------------------------------------------------------- over pairs
@pytest.mark.parametrize("source", ["clean", "corrupted", "both"])
def test_the_pooled_mean_of_pairs_counts_every_token_once(model: MaskedModel, source: Any) -> None:
    prompts = [prompt for pair in UNEQUAL for prompt in of_pair(pair, source)]
    alone = [fields(model.record(torch.tensor([prompt]))) for prompt in prompts]
    found = mean_of_pairs(model, [batch_of(UNEQUAL)], source=source)
    for field, *parts in zip(fields(found), *alone, strict=True):
        torch.testing.assert_close(field[:, 0, 0], torch.cat([part[:, 0] for part in parts], dim=1).mean(1))


@pytest.mark.parametrize("source", ["clean", "corrupted", "both"])
def test_the_positional_mean_of_pairs_is_at_the_clean_positions(model: MaskedModel, source: Any) -> None:
    """Corrupted prompts of another length stand where their alignment puts them."""
    alone: list[list[Tensor]] = []
    for pair in UNEQUAL:
        columns = {pair.clean: range(len(pair.clean)), pair.corrupted: pair.alignment or range(len(pair.clean))}
        for prompt in of_pair(pair, source):
            states = model.record(torch.tensor([prompt]))
            alone.append([field[:, :, list(columns[prompt])] for field in fields(states)])
    found = mean_of_pairs(model, [batch_of(UNEQUAL)], source=source, positional=True)
    longest = max(len(pair.clean) for pair in UNEQUAL)
    for field, *parts in zip(fields(found), *alone, strict=True):
        assert field.shape[1:3] == (1, longest)
        for position in range(longest):
            reached = [part[:, 0, position] for part in parts if part.shape[2] > position]
            torch.testing.assert_close(field[:, 0, position], torch.stack(reached).mean(0))


def of_pair(pair: TokenPair, source: str) -> list[tuple[int, ...]]:
    prompts = {"clean": [pair.clean], "corrupted": [pair.corrupted], "both": [pair.clean, pair.corrupted]}
    return prompts[source]


@pytest.mark.parametrize("positional", [False, True])
def test_means_are_summed_in_double_precision(positional: bool) -> None:
    """Thousands of bfloat16 numbers summed in bfloat16 stop growing: the sum of 600 ones would be 256."""
    model = tiny_in_bfloat16()
    ids = torch.randint(0, 20, (1, 2)).expand(600, 2)
    one, many = (fields(ablations.mean(model, rows, positional=positional, batch_size=600)) for rows in (ids[:1], ids))
    for expected, found in zip(one, many, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected)


def tiny_in_bfloat16() -> MaskedModel:
    torch.manual_seed(0)
    return MaskedModel(AutoModelForCausalLM.from_config(copy.deepcopy(GPT2.tiny()[0])).to(torch.bfloat16))


def test_a_mean_over_nothing_is_refused(model: MaskedModel, ids: Tensor) -> None:
    with pytest.raises(EdgepruneError, match="at least one prompt"):
        ablations.mean(model, ids[:0])
    with pytest.raises(EdgepruneError, match="at least one training pair"):
        mean_of_pairs(model, [])
