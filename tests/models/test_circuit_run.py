"""A circuit with one edge less, against the masked model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.methods.problem import Problem
from edgeprune.models.circuit_run import CircuitRun, state_bytes
from edgeprune.models.masked import MaskedModel
from tests.methods.small_problems import problem, tiny
from tests.models.test_conformance import KV, WIRED, build


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits stay in float64, so that what is compared is the arithmetic and not its last rounding."""
    monkeypatch.setattr(Tensor, "float", lambda self: self)


def some_edges(model: MaskedModel, share: float, seed: int = 0) -> Tensor:
    noise = torch.rand(model.graph.shape, generator=torch.Generator().manual_seed(seed))
    return model.graph.exists & (noise < share)


def assert_is_the_masked_model(asked: Problem, keep: Tensor, memory_gb: float = 1.0, atol: float = 1e-10) -> None:
    """The circuit itself, and kept edges of every fifth reader closed alone, three of each."""
    model = asked.model
    ((batch, _, ablated),) = asked.batches_with_runs()
    run = CircuitRun(model, batch, ablated, keep)

    def plain(gates: Tensor) -> Tensor:
        return model(batch.clean, gates, ablated, batch.attention_mask, batch.positions)

    torch.testing.assert_close(run.logits, plain(keep.double()), atol=atol, rtol=0)
    for reader in keep.any(1).nonzero().flatten().tolist()[::-5]:
        writers = keep[reader].nonzero().flatten().tolist()[:3]
        found = list(run.without(reader, writers, memory_gb))
        assert len(found) == len(writers)
        for writer, logits in zip(writers, found, strict=True):
            gates = keep.double()
            gates[reader, writer] = 0
            torch.testing.assert_close(logits, plain(gates), atol=atol, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kv_readers", KV)
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_one_edge_less_is_the_masked_model_s(family: Any, index: int, kv_readers: str) -> None:
    model = build(family, index, kv_readers=kv_readers)
    assert_is_the_masked_model(problem(model, cuts=()), some_edges(model, 0.3, seed=index))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("share", [0.05, 1.0])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_at_every_size_and_under_zero_ablation(name: str, share: float) -> None:
    """A norm of an input that is almost zero multiplies rounding by a thousand."""
    model = tiny(name)
    asked = problem(model, cuts=(), ablation="zero")
    assert_is_the_masked_model(asked, some_edges(model, share), atol=1e-9)


@pytest.mark.usefixtures("double")
def test_little_memory_asks_one_edge_at_a_time() -> None:
    model = tiny("llama", 1)
    assert_is_the_masked_model(problem(model, cuts=()), some_edges(model, 0.5), memory_gb=0)


def test_state_takes_no_more_than_said() -> None:
    model = tiny()
    ((batch, _, ablated),) = problem(model, cuts=()).batches_with_runs()
    run = CircuitRun(model, batch, ablated, model.graph.exists)
    kept = [run.delta, *run.attention.inputs.values(), *run.mlps.values()]
    kept += [part for layer in run.layers for part in (*layer.qkv, layer.heads, layer.mlp)]
    assert 0 < sum(part.numel() * part.element_size() for part in kept) <= state_bytes(model) * batch.clean.numel()
