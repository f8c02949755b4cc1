"""What must hold under every ablation, on tiny random models in double precision."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.tasks.base import TokenPair
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.measure import gated_logits, measure_examples
from edgeprune.models.masked import MaskedModel
from edgeprune.objectives import kl_divergence
from tests.ablations.cases import KINDS, PAIRS, UNEQUAL, against_the_right_edge, batch_of, fields, padded, runs_of
from tests.methods.small_problems import tiny
from tests.models.test_conformance import random_gates

PREPARED = [kind for kind in KINDS if kind not in ("interchange", "zero", "optimal:FILE")]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> MaskedModel:
    return tiny(request.param)


def logits_of(model: MaskedModel, runs: ReferenceRuns, batch: PairBatch, gates: Tensor) -> Tensor:
    """Of a gated run at the real scored positions, `[position, vocab]`."""
    ablated = runs(batch, "train")[1]
    logits = model(batch.clean, gates, ablated, batch.attention_mask, batch.positions)
    return logits[batch.position_mask]


# ---------------------------------------------------------------- open and closed
@pytest.mark.parametrize("pairs", [PAIRS, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("kind", KINDS)
def test_open_gates_give_divergence_zero(model: MaskedModel, kind: str, pairs: Any, tmp_path: Path) -> None:
    batch = batch_of(pairs)
    runs = runs_of(model, kind, [batch], tmp_path)
    full, ablated = runs(batch, "train")
    circuit = gated_logits(model, batch, model.graph.all_open(), ablated)
    assert kl_divergence(full.double(), circuit.double())[batch.position_mask].abs().max() < 1e-6
    closed = gated_logits(model, batch, model.graph.all_closed(), ablated)
    assert kl_divergence(full, closed)[batch.position_mask].max() > 1e-3  # the ablation does something


@pytest.mark.parametrize("kind", KINDS)
def test_closed_gates_depend_on_the_ablated_values_alone(model: MaskedModel, kind: str, tmp_path: Path) -> None:
    batch, closed = batch_of(PAIRS), model.graph.all_closed()
    runs = runs_of(model, kind, [batch], tmp_path)
    ablated = runs(batch, "train")[1]
    other = dataclasses.replace(batch, clean=batch.clean.roll(1, 0))
    found = [model(item.clean, closed, ablated, batch.attention_mask) for item in (batch, other)]
    real = batch.attention_mask.bool()
    torch.testing.assert_close(found[0][real], found[1][real], atol=1e-10, rtol=0)
    if kind in ("zero", "mean", "mean:corrupted", "mean:both", "optimal:FILE"):  # the same value at every token
        torch.testing.assert_close(found[0][real], found[0][real][:1].expand_as(found[0][real]), atol=1e-10, rtol=0)


# ---------------------------------------------------------------- means
@pytest.mark.parametrize("pair", [*PAIRS[:2], *UNEQUAL[:3]], ids=["equal", "equal1", "longer", "shorter", "longer2"])
def test_the_positional_mean_over_one_corrupted_prompt_is_interchange_with_it(
    model: MaskedModel, pair: TokenPair
) -> None:
    batch = batch_of([pair])
    runs = ReferenceRuns(model, "mean:corrupted:positional")
    runs.prepare([batch])
    expected = ReferenceRuns(model, "interchange")(batch, "train")[1]
    for found, wanted in zip(fields(runs(batch, "train")[1]), fields(expected), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("source", ["clean", "corrupted", "both"])
def test_pooled_and_positional_means_of_single_tokens_coincide(model: MaskedModel, source: str) -> None:
    pairs = [TokenPair((3 + n,), (9 + n,), (0,), (n,), (n + 1,)) for n in range(4)]
    batch, found = batch_of(pairs), list[Tensor]()
    for kind in (f"mean:{source}", f"mean:{source}:positional"):
        runs = ReferenceRuns(model, kind)
        runs.prepare([batch])
        found.append(logits_of(model, runs, batch, random_gates(model, fractional=True)))
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["mean:positional", "mean:corrupted:positional"])
def test_a_longer_prompt_than_those_of_the_mean_is_refused(model: MaskedModel, kind: str) -> None:
    runs = ReferenceRuns(model, kind)
    runs.prepare([padded(batch_of(PAIRS, [0, 1, 3]), 0, 3)])  # padding makes no prompt longer
    with pytest.raises(EdgepruneError, match=r"6 tokens, ablation 'mean:.*' knows the first 5 positions.*'mean'"):
        runs(batch_of(PAIRS, [0, 2]), "train")
    runs(padded(batch_of(PAIRS, [0, 1]), 2, 2), "train")


# ---------------------------------------------------------------- padding, batches
@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_leak(model: MaskedModel, kind: str, tmp_path: Path) -> None:
    """Neither that of the pairs from which values come, nor that of the pairs which get them."""
    plain, gates = batch_of(PAIRS), random_gates(model, fractional=True)
    expected = logits_of(model, runs_of(model, kind, [plain], tmp_path), plain, gates)
    for batch in (padded(plain, 0, 3), padded(plain, 3, 0), against_the_right_edge(plain)):
        runs = runs_of(model, kind, [batch], tmp_path)
        for item in (plain, batch):
            found = logits_of(model, runs, item, gates)
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["interchange", "mean:corrupted", "mean:both:positional"])
def test_padding_of_prompts_of_unequal_length_does_not_leak(model: MaskedModel, kind: str, tmp_path: Path) -> None:
    plain, gates = batch_of(UNEQUAL), random_gates(model, fractional=True)
    expected = logits_of(model, runs_of(model, kind, [plain], tmp_path), plain, gates)
    for batch in (padded(plain, 0, 3), padded(plain, 3, 0)):
        found = logits_of(model, runs_of(model, kind, [batch], tmp_path), batch, gates)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("pairs", [PAIRS, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("kind", KINDS)
def test_neither_batches_nor_order_matter(model: MaskedModel, kind: str, pairs: Any, tmp_path: Path) -> None:
    whole, gates = batch_of(pairs), random_gates(model, fractional=False)
    parts = [batch_of(pairs, numbers) for numbers in ([2], [3, 0], list(range(4, len(pairs))), [1]) if numbers]
    expected = runs_of(model, kind, [whole], tmp_path)
    cut = runs_of(model, kind, parts, tmp_path)
    measures = [
        measure_examples(model, runs, batches, [gates], "train").as_dicts()[0]
        for runs, batches in ((expected, [whole]), (cut, parts), (cut, parts[::-1]))
    ]
    assert measures[1] == pytest.approx(measures[0], rel=1e-5, abs=1e-7, nan_ok=True)  # measures are made in float32
    assert measures[2] == pytest.approx(measures[0], rel=1e-5, abs=1e-7, nan_ok=True)
    assert measures[0]["kl"] > 1e-3


# ---------------------------------------------------------------- kept runs
@pytest.mark.parametrize("kind", KINDS)
def test_kept_runs_are_bit_equal(model: MaskedModel, kind: str, tmp_path: Path) -> None:
    batch = batch_of(PAIRS)
    runs = runs_of(model, kind, [batch], tmp_path, budget_gb=1)
    fresh, kept = runs(batch, "train"), runs(batch, "train")
    assert len(runs.store) == len(PAIRS)
    assert torch.equal(fresh[0][batch.position_mask], kept[0][batch.position_mask])
    real = batch.attention_mask.bool()
    for first, second in zip(fields(fresh[1]), fields(kept[1]), strict=True):
        shape = first.shape[0], *real.shape, *first.shape[3:]
        assert torch.equal(first.expand(shape)[:, real], second.expand(shape)[:, real])


def test_values_that_are_the_same_for_every_example_are_not_kept(model: MaskedModel) -> None:
    batch, left = batch_of(PAIRS), list[int]()
    for kind in ("zero", "mean", "mean:positional", "interchange", "resample"):
        runs = ReferenceRuns(model, kind, 1.0)
        runs.prepare([batch])
        runs(batch, "train")
        left.append(runs.store.free["memory"])
    assert left[0] == left[1] == left[2] > left[3] == left[4]


# ---------------------------------------------------------------- where values come from
@pytest.mark.parametrize("kind", PREPARED)
def test_runs_say_that_they_were_not_prepared(model: MaskedModel, kind: str) -> None:
    runs = ReferenceRuns(model, kind)
    assert runs.wants("train")
    with pytest.raises(EdgepruneError, match=rf"ablation '{kind}' takes .* the train pairs.*runs.prepare\(batches, 't"):
        runs(batch_of(PAIRS), "train")


@pytest.mark.parametrize("kind", ["interchange", "zero", "mean:corrupted"])
def test_pairs_that_are_not_wanted_are_not_read(model: MaskedModel, kind: str) -> None:
    runs = ReferenceRuns(model, kind)
    runs.prepare([batch_of(PAIRS)])
    nothing: Any = None  # would fail, if read
    for split in ("train", "validation", "test"):
        assert not runs.wants(split)
        runs.prepare(nothing, split)


def test_shared_values_can_be_asked_for(model: MaskedModel) -> None:
    runs = ReferenceRuns(model, "mean")
    with pytest.raises(EdgepruneError, match="was not given"):
        runs.states()
    runs.prepare([batch_of(PAIRS)])
    assert runs.states().heads.shape[1:3] == (1, 1)
    with pytest.raises(EdgepruneError, match="'interchange' closed edges carry other values in every example"):
        ReferenceRuns(model, "interchange").states()


@pytest.mark.parametrize("kind", ["mean", "mean:positional", "resample"])
def test_values_taken_in_inference_mode_serve_training(model: MaskedModel, kind: str) -> None:
    """As Lightning's validation, which may come before the first step, does."""
    with torch.inference_mode():
        runs, batch = ReferenceRuns(model, kind), batch_of(PAIRS)
        runs.prepare([batch])
    batch = batch_of(PAIRS)
    gates = random_gates(model, fractional=True).requires_grad_()
    logits_of(model, runs, batch, gates).square().sum().backward()
    assert gates.grad is not None
    assert gates.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["mean", "mean:both:positional"])
def test_pairs_of_another_model_are_refused_before_they_are_run(model: MaskedModel, kind: str) -> None:
    batch = batch_of(PAIRS)
    wrong = dataclasses.replace(batch, clean=batch.clean + model.hf.config.vocab_size)
    with pytest.raises(EdgepruneError, match="made for another model"):
        ReferenceRuns(model, kind).prepare([wrong])
