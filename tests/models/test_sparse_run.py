"""Circuits with few edges, of which only what they change is run, against the masked model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.metrics import measure
from edgeprune.metrics.measure import logits_of_each, measure_examples
from edgeprune.models.sparse_run import EmptyRun
from tests.methods.small_problems import problem, tiny
from tests.models.test_circuit_run import double, some_edges  # noqa: F401 (a fixture)
from tests.models.test_conformance import KV, WIRED, build

SHARES = (0.0, 0.02, 0.1, 0.5, 1.0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kv_readers", KV)
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_circuits_of_every_size_are_the_masked_model_s(family: Any, index: int, kv_readers: str) -> None:
    asked = problem(build(family, index, kv_readers=kv_readers), cuts=())
    model = asked.model
    ((batch, _, ablated),) = asked.batches_with_runs()
    runs = [EmptyRun(model, batch, ablated, like_batch=like) for like in (True, False)]
    for share in SHARES:
        keep = some_edges(model, share, seed=index)
        expected = model(batch.clean, keep.double(), ablated, batch.attention_mask, batch.positions)
        for run in runs:
            torch.testing.assert_close(run.logits(keep), expected, atol=1e-10, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("ablation", ["zero", "mean", "mean:positional"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_other_ablations(name: str, ablation: str) -> None:
    """Closed edges carry no run of the model: with every edge closed, writers put out something else than that.

    Under zero ablation a norm of an input that is almost zero multiplies the masked model's rounding, layer by layer.
    """
    asked = problem(tiny(name), cuts=(), ablation=ablation)
    model = asked.model
    asked.runs.prepare(asked.batches)
    ((batch, _, ablated),) = asked.batches_with_runs()
    run = EmptyRun(model, batch, ablated, like_batch=False)
    for share in SHARES:
        keep = some_edges(model, share)
        expected = model(batch.clean, keep.double(), ablated, batch.attention_mask, batch.positions)
        torch.testing.assert_close(run.logits(keep), expected, atol=1e-6 if ablation == "zero" else 1e-9, rtol=0)


@pytest.mark.parametrize("ablation", ["interchange", "zero"])
def test_figures_are_those_of_whole_runs(ablation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Circuits of one call are all run in one way: equal circuits have equal figures."""
    asked = problem(tiny(), ablation=ablation)
    model, made = asked.model, list[Tensor]()
    keeps = [some_edges(model, 0.01, seed) for seed in range(4)]
    gates = [*(keep.double() for keep in keeps), None]
    run = EmptyRun.logits

    def counted(self: EmptyRun, keep: Tensor) -> Tensor:
        made.append(keep)
        return run(self, keep)

    monkeypatch.setattr(EmptyRun, "logits", counted)
    found = measure_examples(model, asked.runs, asked.batches, gates, "train")
    assert len(made) == 4 * len(asked.batches)
    monkeypatch.setattr(measure, "FEW_EDGES", -1.0)
    whole = measure_examples(model, asked.runs, asked.batches, gates, "train")
    assert len(made) == 4 * len(asked.batches)
    torch.testing.assert_close(found.values, whole.values, atol=1e-6, rtol=1e-5, equal_nan=True)
    monkeypatch.undo()
    monkeypatch.setattr(EmptyRun, "logits", None)
    for other in (some_edges(model, 0.6), 0.5 * keeps[0]):  # one with many edges, one between open and closed
        mixed = measure_examples(model, asked.runs, asked.batches, [*gates, other], "train")
        assert torch.equal(mixed.circuits(slice(5)).values, whole.values)


def test_equal_circuits_of_a_call_have_equal_figures() -> None:
    asked = problem(tiny())
    first, other = some_edges(asked.model, 0.08, 0).double(), some_edges(asked.model, 0.05, 1).double()
    found = measure_examples(asked.model, asked.runs, asked.batches, [first, other, first.clone()], "train")
    assert torch.equal(found.circuits(slice(1)).values, found.circuits(slice(2, 3)).values)
    assert not torch.equal(found.circuits(slice(1)).values, found.circuits(slice(1, 2)).values)


def test_few_circuits_that_would_need_a_run_of_their_own_are_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem(tiny(), cuts=(), ablation="zero")
    ((batch, _, ablated),) = asked.batches_with_runs()
    monkeypatch.setattr(EmptyRun, "logits", None)
    assert len(list(logits_of_each(asked.model, batch, [some_edges(asked.model, 0.01)] * 3, ablated))) == 3


def test_only_prompts_laid_out_alike_count_as_a_run_like_the_batch_s() -> None:
    asked = problem(tiny(), cuts=())
    (batch,) = asked.batches
    assert asked.runs.like_batch(batch)
    assert not problem(tiny(), cuts=(), ablation="zero").runs.like_batch(batch)
    longer = torch.nn.functional.pad(batch.corrupted_mask, (0, 1))
    aligned = torch.arange(batch.clean.shape[1]).expand(len(batch), -1)
    for change in ({"corrupted_mask": longer}, {"alignment": aligned}):
        other = type(batch)(**{**vars(batch), **change})
        assert not asked.runs.like_batch(other)
