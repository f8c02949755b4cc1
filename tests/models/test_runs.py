"""Kept reference runs give what fresh ones give, whatever the padding, and stay within their budget."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import IGNORE, PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.models.families.gpt2 import GPT2
from edgeprune.models.masked import MaskedModel

LENGTHS, POSITIONS = [6, 3, 4, 2], [2, 1, 2, 1]


@pytest.fixture(scope="module")
def model() -> MaskedModel:
    torch.manual_seed(0)
    return MaskedModel(AutoModelForCausalLM.from_config(copy.deepcopy(GPT2.tiny()[0])))


def make_batch(index: list[int], seq: int | None = None) -> PairBatch:
    """Examples of different length, right-padded to `seq`; example i has LENGTHS[i] tokens of its own."""
    seq = seq or max(LENGTHS[number] for number in index)
    num = max(POSITIONS[number] for number in index)
    rows = [torch.randint(1, 20, (2, 6), generator=torch.Generator().manual_seed(number)) for number in index]
    lengths = torch.tensor([LENGTHS[number] for number in index])[:, None]
    counts = torch.tensor([POSITIONS[number] for number in index])[:, None]
    mask = (torch.arange(seq) < lengths).long()
    padded = [torch.nn.functional.pad(row, (0, 6))[:, :seq] for row in rows]
    ids = torch.stack(padded, 1) * mask
    positions = lengths - counts + torch.arange(num).clamp(max=counts - 1)
    unknown = torch.full_like(positions, IGNORE)
    return PairBatch(
        clean=ids[0],
        corrupted=ids[1],
        attention_mask=mask,
        positions=positions,
        position_mask=torch.arange(num) < counts,
        targets=unknown,
        distractors=unknown,
        index=torch.tensor(index),
    )


def circuit_logits(model: MaskedModel, runs: ReferenceRuns, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """What both runs are for: the full log-probabilities, and a circuit's logits, at real scored positions."""
    gates = (torch.rand(model.graph.shape, generator=torch.Generator().manual_seed(3)) > 0.5).float()
    full, ablated = runs(batch, "train")
    logits = model(batch.clean, gates, ablated, batch.attention_mask, batch.positions)
    return full[batch.position_mask], logits[batch.position_mask]


@pytest.mark.parametrize("ablation", ["interchange", "zero", "resample", "mean:corrupted", "mean:both:positional"])
@pytest.mark.parametrize(("index", "seq"), [([0, 1, 2, 3], None), ([3, 1], None), ([1, 0], 8), ([2], 4)])
def test_kept_runs_equal_fresh_ones(model: MaskedModel, ablation: str, index: list[int], seq: int | None) -> None:
    kept, fresh = ReferenceRuns(model, ablation, budget_gb=1), ReferenceRuns(model, ablation)
    for runs in (kept, fresh):
        runs.prepare([make_batch([0, 1, 2, 3])])
    for group in ([0, 1], [2, 3]):
        kept(make_batch(group), "train")
    before = model.full
    model.full = None  # type: ignore[method-assign]  # a kept batch needs no run of the model
    try:
        kept(make_batch(index, seq), "train")
    finally:
        model.full = before  # type: ignore[method-assign]
    batch = make_batch(index, seq)
    # float32, other batch shapes: sums in another order
    torch.testing.assert_close(
        circuit_logits(model, kept, batch), circuit_logits(model, fresh, batch), atol=1e-5, rtol=1e-5
    )


def test_splits_are_kept_apart(model: MaskedModel) -> None:
    runs = ReferenceRuns(model, "interchange", budget_gb=1)
    runs(make_batch([0]), "train")
    assert not torch.equal(runs(make_batch([0]), "train")[0], _renumbered(runs, model))


def _renumbered(runs: ReferenceRuns, model: MaskedModel) -> Tensor:
    """Another prompt that has number 0 in another split."""
    batch = make_batch([2])
    batch.index[0] = 0
    full = runs(batch, "validation")[0]
    assert torch.equal(full, ReferenceRuns(model, "interchange")(batch, "validation")[0])
    return full


def test_the_full_run_is_the_model_s(model: MaskedModel) -> None:
    batch = make_batch([0, 1, 2, 3])
    full, _ = ReferenceRuns(model, "interchange")(batch, "train")
    logits = model.hf(batch.clean, attention_mask=batch.attention_mask).logits
    rows = torch.arange(len(batch))[:, None]
    # float32: the head runs on some positions here, on all there
    torch.testing.assert_close(full, logits[rows, batch.positions], atol=1e-5, rtol=1e-5)


def test_a_budget_of_zero_keeps_nothing(model: MaskedModel) -> None:
    runs = ReferenceRuns(model, "interchange", budget_gb=0)
    runs(make_batch([0, 1]), "train")
    assert len(runs.store) == 0


def test_the_budget_is_never_passed_and_each_example_is_charged_once(model: MaskedModel) -> None:
    roomy = ReferenceRuns(model, "interchange", budget_gb=1)
    roomy(make_batch([3]), "train")
    cost = int(1e9) - roomy.store.free["memory"]
    assert cost > 0
    roomy(make_batch([3, 0]), "train")
    roomy(make_batch([3]), "train")
    alone = ReferenceRuns(model, "interchange", budget_gb=cost / 1e9)
    alone.store.free["memory"] = cost
    alone(make_batch([0, 3, 1]), "train")
    assert [("train", number) in alone.store for number in range(4)] == [False, False, False, True]
    assert alone.store.free["memory"] == 0


def test_zero_ablation_is_zero(model: MaskedModel) -> None:
    _, states = ReferenceRuns(model, "zero")(make_batch([0, 1]), "train")
    assert not states.embeddings.any()
    assert not states.heads.any()


@pytest.mark.parametrize("field", ["clean", "corrupted", "targets", "distractors"])
def test_pairs_of_another_model_are_refused(model: MaskedModel, field: str) -> None:
    batch = make_batch([0, 1])
    tokens = getattr(batch, field).clone()
    tokens[0, 0] = model.hf.config.vocab_size
    with pytest.raises(EdgepruneError, match=f"pair 0 has .* {tokens[0, 0]}, .* made for another model"):
        ReferenceRuns(model, "zero")(dataclasses.replace(batch, **{field: tokens}), "train")


def test_a_wrong_ablation_names_the_right_ones(model: MaskedModel) -> None:
    with pytest.raises(EdgepruneError, match="interchange, zero, resample, mean, optimal, got 'noise'"):
        ReferenceRuns(model, "noise")
