"""Readers' inputs that stay until the backward: within a bound, and with the gradients of those that are made anew."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from edgeprune.models.read_ops import ReadOps
from edgeprune.models.reads import KEEP, input_rows
from edgeprune.models.stack import DeltaStack
from tests.models.test_conformance import WIRED, build, prompts

FEW = ("GPT2-gpt20", "Llama-llama1", "Cohere-cohere1", "Compiled-edgeprune_compiled1")


class Short(ReadOps):
    """Every layer is a segment."""

    segment_readers = 1


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Short:
    ops = Short()
    monkeypatch.setattr("edgeprune.models.reads.ops_for", lambda *_: ops)
    return ops


def gradients(model: MaskedModel, seq: int = 5) -> list[Tensor]:
    """Twice through the same graph."""
    clean, corrupted = prompts(batch=2, seq=seq)
    gates = torch.rand(2, *model.graph.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = model(clean, gates.requires_grad_(), model.record(corrupted)).logsumexp(-1).sum()
    return [torch.autograd.grad(loss, gates, retain_graph=True)[0] for _ in range(2)]


@pytest.mark.parametrize(("family", "index"), [case for case in WIRED if case.id in FEW])
def test_gradients_are_the_same_with_any_room(
    family: Any, index: int, short: Short, monkeypatch: pytest.MonkeyPatch
) -> None:
    remade: list[int] = []
    before = DeltaStack.mix_before

    def counted(self: DeltaStack, *args: Any) -> None:
        remade.append(1)
        before(self, *args)

    monkeypatch.setattr(DeltaStack, "mix_before", counted)
    model = build(family, index)
    layers = model.graph.arch.num_layers
    segment = model.graph.arch.readers_per_layer * 2 * 5 * model.width * 8
    found: dict[int, tuple[list[Tensor], int]] = {}
    for room in (0, 1, layers):
        short.keep_bytes = room * segment
        remade.clear()
        found[room] = gradients(model), len(remade)
    normed = model.blocks[0].input_spec().eps is not None
    again = layers * normed  # by the second backward, which finds gradients
    own = [again + max(0, layers - 1 - room) * normed for room in (0, 1, layers)]
    assert [count - layers for _, count in found.values()] == own
    first = found[0][0][0]
    assert first.abs().max() > 1e-3
    assert all(torch.equal(other, first) for both, _ in found.values() for other in both)


def test_room_is_bounded_and_late_layers_have_it_first(short: Short) -> None:
    arch = build(*WIRED[0].values).graph.arch
    each = arch.readers_per_layer
    assert arch.num_layers >= 2
    short.keep_bytes = each * 100
    assert input_rows(arch, short, 100).own == {arch.num_layers - 2: each}
    assert input_rows(arch, short, 101).own == {}
    assert input_rows(arch, short, 1, backward=False).own == {}
    assert input_rows(arch, short, 100).total == 2 * each


def test_the_environment_sets_the_room(short: Short, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = build(*WIRED[0].values).graph.arch
    monkeypatch.setenv(KEEP, "1")
    assert input_rows(arch, short, 2**20 // arch.readers_per_layer).own
    assert not input_rows(arch, short, 2**20 // arch.readers_per_layer + 1).own
    monkeypatch.setenv(KEEP, "0")
    assert not input_rows(arch, short, 1).own
    monkeypatch.setenv(KEEP, "much")
    with pytest.raises(EdgepruneError, match="EDGEPRUNE_KEEP_MIB must be a number of MiB, 0 for none, got 'much'"):
        input_rows(arch, short, 1)


def test_runs_without_a_backward_keep_nothing() -> None:
    model = build(*WIRED[0].values)
    clean, corrupted = prompts()
    with torch.no_grad():
        model(clean, torch.rand(model.graph.shape).requires_grad_(), model.record(corrupted))
    assert set(model.workspace._spare) == {"delta", "mixed"}
    gradients(model)
    assert "mixed 0" in model.workspace._spare
