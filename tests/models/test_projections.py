"""What readers are projected with: the model's own projection after its norm, whether weights are kept or not."""

from typing import Any

import pytest
import torch

from edgeprune.models import projections
from edgeprune.models.block import repeat_kv
from edgeprune.models.family import registry
from edgeprune.models.masked import MaskedModel
from edgeprune.models.projections import Projection
from tests.models.test_conformance import CASES, build, prompts, random_gates


def projected(made: Projection, stream: torch.Tensor) -> torch.Tensor:
    """The projection of a stream `[T, D]`, `[T, A, C]`, in the plainest form."""
    width = made.offset.shape[-1]
    scale = torch.ones(len(stream), 1, 1, dtype=stream.dtype)
    if made.eps is not None:
        square = stream.var(-1, unbiased=False) if made.centred else stream.square().mean(-1)
        scale = (square + made.eps).rsqrt()[:, None, None]
    return made.offset + scale * torch.einsum("td,adc->tac", stream, made.weight[..., :width])


@pytest.mark.parametrize("kept_bytes", [2**28, 0], ids=["kept", "one at a time"])
@pytest.mark.parametrize(("family", "index"), CASES)
def test_they_are_the_models_own(family: Any, index: int, kept_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projections, "KEPT_BYTES", kept_bytes)
    model = build(family, index)
    stream = 1 + torch.randn(5, model.width, dtype=torch.float64)
    for layer, block in enumerate(model.blocks):
        qkv = repeat_kv(block.project(block.norm(stream[None])), model.graph.arch.kv_readers_per_head)
        made = model.projections(layer)
        torch.testing.assert_close(projected(made, stream), torch.cat(qkv, 2)[0], rtol=1e-10, atol=1e-10)


def gradient(model: MaskedModel, gates: torch.Tensor) -> torch.Tensor:
    clean, corrupted = prompts()
    live = gates.clone().requires_grad_()
    return torch.autograd.grad(model(clean, live, model.record(corrupted)).square().sum(), live)[0]


@pytest.mark.parametrize(("family", "index"), CASES)
def test_kept_or_not_is_the_same(family: Any, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[torch.Tensor] = []
    sizes: list[int] = []
    for kept_bytes in (2**28, 0):
        monkeypatch.setattr(projections, "KEPT_BYTES", kept_bytes)
        model = build(family, index)
        found.append(gradient(model, random_gates(model, fractional=True)))
        sizes.append(model.projections.num_bytes)
    assert torch.equal(*found)
    assert sizes[0] == sizes[1] * model.graph.arch.num_layers


def edit_counted(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.mul_(3)


def edit_data(weight: torch.Tensor) -> None:
    weight.data.mul_(3)


def edit_one_number(weight: torch.Tensor) -> None:
    weight.data[0, 5, 1] += 0.05


def swap_two_inputs(weight: torch.Tensor) -> None:
    weight.data[..., [2, 3], :] = weight.data[..., [3, 2], :]


def edit_numpy(weight: torch.Tensor) -> None:
    """Torch does not see it at all."""
    array = weight.detach().view(torch.int16 if weight.dtype == torch.bfloat16 else weight.dtype).numpy()
    array[..., 1, :] = array[..., 0, :]


EDITS = [edit_counted, edit_data, edit_one_number, swap_two_inputs, edit_numpy]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept_bytes", [2**28, 0], ids=["kept", "one at a time"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "edgeprune_compiled"])
def test_changed_weights_are_noticed(
    name: str, kept_bytes: int, dtype: torch.dtype, edit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projections, "KEPT_BYTES", kept_bytes)
    changed, fresh = (build(registry()[name], 0, dtype) for _ in range(2))
    gates = random_gates(changed, fractional=True)
    before = gradient(changed, gates)
    for model in (changed, fresh):
        edit(model.blocks[1].qkv_weights()[0])
    after = gradient(changed, gates)
    assert not torch.equal(before, after)
    assert torch.equal(after, gradient(fresh, gates))


@pytest.mark.parametrize("kind", ["norm", "new tensor"])
def test_other_changes_are_noticed(kind: str) -> None:
    changed, fresh = (build(registry()["gpt2"], 0) for _ in range(2))
    gates = random_gates(changed, fractional=True)
    before = gradient(changed, gates)
    for model in (changed, fresh):
        block = model.hf.transformer.h[1]
        if kind == "norm":
            block.ln_1.weight.data[3] += 0.1
        else:
            block.attn.c_attn.weight.data = 2 * block.attn.c_attn.weight.data
    after = gradient(changed, gates)
    assert not torch.equal(before, after)
    assert torch.equal(after, gradient(fresh, gates))


def test_unchanged_weights_are_made_once() -> None:
    model = build(registry()["gpt2"], 0)
    gates = random_gates(model, fractional=True)
    gradient(model, gates)
    before = [model.projections(layer).weight for layer in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        gradient(model, gates)
    with torch.inference_mode():
        model(prompts()[0], gates, model.record(prompts()[1]))
    assert all(model.projections(layer).weight is weight for layer, weight in enumerate(before))
