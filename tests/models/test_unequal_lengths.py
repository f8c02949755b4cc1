"""Corrupted prompts of another length are run as they are; closed edges carry their values to the aligned positions."""

import copy
import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from datamodules import TokenPair
from datamodules.align import align_prompts
from datamodules.collate import collate
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import IGNORE, PairBatch
from edgeprune.models.families.gpt2 import GPT2
from edgeprune.models.families.llama import Llama
from edgeprune.models.masked import MaskedModel


@pytest.fixture(scope="module", params=[GPT2, Llama], ids=lambda family: family.__name__)
def model(request: pytest.FixtureRequest) -> MaskedModel:
    torch.manual_seed(0)
    config = copy.deepcopy(request.param.tiny()[0])
    return MaskedModel(AutoModelForCausalLM.from_config(config).double())


CLEAN, CORRUPTED = [5, 2, 6, 3], [3, 6, 2, 3]  # tokens of the prompts of example i; the last pair is token for token


def unequal_pair(number: int) -> TokenPair:
    """A pair of random tokens, aligned at its end, with a teacher-forced answer token if `number` is odd."""
    rng = random.Random(number)
    clean, corrupted = ([rng.randrange(1, 20) for _ in range(length[number])] for length in (CLEAN, CORRUPTED))
    forced = [7] * (number % 2)
    num = len(forced) + 1
    alignment = align_prompts(len(clean), len(corrupted)) + [len(corrupted)] * len(forced)
    return TokenPair(
        clean=(*clean, *forced),
        corrupted=(*corrupted, *forced),
        positions=tuple(range(len(clean) - 1, len(clean) - 1 + num)),
        targets=(IGNORE,) * num,
        distractors=(IGNORE,) * num,
        alignment=() if len(clean) == len(corrupted) else tuple(alignment),
    )


def unequal_batch(numbers: list[int]) -> PairBatch:
    return collate([(number, unequal_pair(number)) for number in numbers])


def test_closed_gates_give_the_corrupted_run_whatever_its_length(model: MaskedModel) -> None:
    batch = unequal_batch([0, 1, 2, 3])
    assert batch.alignment is not None
    assert batch.corrupted.shape != batch.clean.shape
    _, states = ReferenceRuns(model, "interchange")(batch, "train")
    logits = model(batch.clean, model.graph.all_closed().double(), states, batch.attention_mask, batch.positions)
    for number in range(4):
        pair = unequal_pair(number)
        alone = model.hf(torch.tensor([pair.corrupted])).logits[0]  # at its own length, without padding
        for column, position in enumerate(pair.positions):
            expected = alone[pair.alignment[position] if pair.alignment else position]
            # float64: sums in another order
            torch.testing.assert_close(logits[number, column], expected, atol=1e-10, rtol=1e-10)


def test_open_gates_ignore_the_corrupted_prompts_length(model: MaskedModel) -> None:
    batch = unequal_batch([0, 1, 2])
    full, states = ReferenceRuns(model, "interchange")(batch, "train")
    logits = model(batch.clean, model.graph.all_open().double(), states, batch.attention_mask, batch.positions)
    found, expected = (values[batch.position_mask].float().log_softmax(-1) for values in (logits, full))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # the frozen run is handed over in float32


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3], [1, 0], [2, 3], [3], [0]])
def test_kept_runs_of_unequal_prompts_equal_fresh_ones(model: MaskedModel, numbers: list[int]) -> None:
    kept, fresh = ReferenceRuns(model, "interchange", budget_gb=1), ReferenceRuns(model, "interchange")
    for group in ([0, 3], [2, 1]):
        kept(unequal_batch(group), "train")
    batch = unequal_batch(numbers)
    assert all(("train", number) in kept.store for number in numbers)
    gates = torch.rand(model.graph.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found, expected = (
        model(batch.clean, gates, runs(batch, "train")[1], batch.attention_mask, batch.positions)
        for runs in (kept, fresh)
    )
    real = batch.position_mask
    # float64, other batch shapes: sums in another order
    torch.testing.assert_close(found[real], expected[real], atol=1e-10, rtol=1e-10)
