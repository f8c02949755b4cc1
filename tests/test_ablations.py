"""What closed edges carry, against sums made by hand."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from edgeprune import ablations
from edgeprune.models.families.gpt2 import GPT2
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates

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


def fields(states: WriterStates) -> list[Tensor]:
    assert states.mlps is not None
    return [states.embeddings, states.heads, states.mlps]


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
