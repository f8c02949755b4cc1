"""The operations of a read: the forms of two devices against float64, and what half precision keeps of a gate."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.models.family import registry
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.models.projections import Projection
from edgeprune.models.read_ops import CudaReadOps, ReadOps, exact_dtype, ops_for
from edgeprune.models.reads import input_rows
from tests.models.test_conformance import WIRED, build, prompts

FORMS = [ReadOps(), CudaReadOps()]
HALF = [torch.bfloat16, torch.float16]
FEW = ("GPT2-gpt20", "Llama-llama1", "GPTNeoX-gpt_neox0", "Gemma2-gemma20", "Compiled-edgeprune_compiled1")
READERS, WRITERS, TOKENS, WIDTH = 5, 7, 12, 16


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(closed: Tensor, rows: Tensor) -> Tensor:
    """What each reader gets, token by token."""
    size = rows.shape[1] // len(closed)
    parts = [torch.einsum("rn,ntd->rtd", own, rows[:, n * size : (n + 1) * size]) for n, own in enumerate(closed)]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("ops", FORMS)
def test_mixing_and_its_backward_are_those_of_a_sum(ops: ReadOps, groups: int) -> None:
    closed, rows = values(groups, READERS, WRITERS).requires_grad_(), values(WRITERS, TOKENS, WIDTH, seed=1)
    rows.requires_grad_()
    grad = values(READERS, TOKENS, WIDTH, seed=2)
    expected = by_hand(closed, rows)
    of_closed, of_rows = torch.autograd.grad(expected, (closed, rows), grad)
    kept, before = rows.detach().clone(), values(READERS, TOKENS, WIDTH, seed=3)
    out = torch.full_like(before, torch.nan)
    ops.mix(closed.detach(), kept, out.nan_to_num_(), add=False)
    torch.testing.assert_close(out, expected.detach())
    ops.mix(closed.detach(), kept, out.copy_(before), add=True)
    torch.testing.assert_close(out, expected.detach() + before)
    torch.testing.assert_close(ops.slopes(grad, kept, groups), of_closed)
    collected = torch.ones_like(kept)
    ops.collect(closed.detach(), grad, collected)
    torch.testing.assert_close(collected, of_rows + 1)
    assert torch.equal(kept, rows)  # nothing is written but what is handed over for it


@pytest.mark.parametrize("dtype", [torch.float64, *HALF])
@pytest.mark.parametrize("ops", FORMS)
def test_groups_of_any_size_are_those_of_one_size_each(ops: ReadOps, dtype: torch.dtype) -> None:
    sizes, closed = (5, 1, 6), values(3, READERS, WRITERS).to(exact_dtype(dtype))
    rows, grad = values(WRITERS, TOKENS, WIDTH, seed=1).to(dtype), values(READERS, TOKENS, WIDTH, seed=2).to(dtype)
    out, collected = torch.ones_like(grad), torch.ones_like(rows)
    ops.mix(closed, rows, out, add=True, sizes=sizes)
    ops.collect(closed, grad, collected, sizes)
    slopes = ops.slopes(grad, rows, len(sizes), sizes)
    close = {"atol": 1e-12, "rtol": 1e-12} if dtype == torch.float64 else {"atol": 1e-2, "rtol": 1e-2}
    for number, own in enumerate(closed):
        part = slice(sum(sizes[:number]), sum(sizes[: number + 1]))
        some, of_grad = rows[:, part].contiguous(), grad[:, part].contiguous()
        expected, of_rows = torch.ones_like(of_grad), torch.ones_like(some)
        ops.mix(own[None], some, expected, add=True)
        ops.collect(own[None], of_grad, of_rows)
        torch.testing.assert_close(out[:, part], expected, **close)
        torch.testing.assert_close(collected[:, part], of_rows, **close)
        torch.testing.assert_close(slopes[number], ops.slopes(of_grad, some, 1)[0], **close)
    assert slopes.dtype == exact_dtype(dtype)


@pytest.mark.parametrize("groups", [1, 4])
def test_without_writers_there_are_no_slopes(groups: int) -> None:
    for ops in FORMS:
        assert ops.slopes(values(READERS, TOKENS, WIDTH), values(0, TOKENS, WIDTH), groups).shape == (
            groups,
            READERS,
            0,
        )


@pytest.mark.parametrize(("eps", "centred"), [(None, False), (1e-5, False), (1e-5, True)])
@pytest.mark.parametrize("ops", FORMS)
def test_projections_are_those_of_the_norm_and_the_weight(ops: ReadOps, eps: float | None, centred: bool) -> None:
    width, inputs = 3, values(READERS, TOKENS, WIDTH, seed=4).requires_grad_()
    weight, offset = values(READERS, WIDTH, width, seed=5), values(READERS, width, seed=6)
    stored = weight
    if centred:
        stored = torch.cat([weight - weight.mean(1, keepdim=True), torch.ones(READERS, WIDTH, 1).double()], -1)
    projection = Projection(stored, offset, eps, centred, True)
    middle = inputs - inputs.mean(-1, keepdim=True) if centred else inputs
    normed = middle if eps is None else middle * (middle.square().mean(-1, keepdim=True) + eps).rsqrt()
    expected = torch.einsum("atd,adc->tac", normed, weight) + offset
    grad = values(*expected.shape, seed=7)
    (of_inputs,) = torch.autograd.grad(expected, inputs, grad)
    out, scale, mean = ops.project(inputs.detach(), projection)
    torch.testing.assert_close(out, expected.detach())
    found = inputs.detach().clone()
    ops.unproject(found, None, grad, out, scale, mean, projection)
    torch.testing.assert_close(found, of_inputs)


# -------------------------------------------------------------------- half precision
@pytest.mark.parametrize("dtype", HALF)
def test_a_small_move_of_a_gate_is_not_lost(dtype: torch.dtype) -> None:
    """Rounded to the model's dtype, many gates that moved by 1e-3 would not have moved at all."""
    closed = torch.rand(1, 200, 1, generator=torch.Generator().manual_seed(0))
    moved = closed + 1e-3
    rows = torch.full((1, 1, 8), 1.0, dtype=dtype)
    terms = [
        sum((term.double() for term in ReadOps()._terms(part, dtype)), torch.zeros(())) for part in (closed, moved)
    ]
    assert ((terms[1] - terms[0]) - 1e-3).abs().max() < 4e-5
    assert (moved.to(dtype) - closed.to(dtype)).eq(0).any() == (dtype == torch.bfloat16)
    out = torch.zeros(200, 1, 8, dtype=dtype)
    ReadOps().mix(closed, rows, out, add=False)
    assert torch.equal(out[:, 0, 0], closed.flatten().to(dtype))  # the output is rounded once


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("groups", [1, 3])
def test_slopes_are_sums_in_float32(dtype: torch.dtype, groups: int) -> None:
    grad, rows = (values(n, 48, 1000, seed=n).to(dtype) for n in (READERS, WRITERS))
    exact = ReadOps().slopes(grad.double(), rows.double(), groups)
    found = ReadOps().slopes(grad, rows, groups)
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 2e-5 * exact.norm()
    rounded = torch.stack([ReadOps().slopes(grad.double(), rows.double(), groups)]).to(dtype)[0]
    assert (rounded - exact).norm() > 1e-4 * exact.norm()  # what a sum in the model's dtype would give at best


def test_sums_of_float16_do_not_overflow() -> None:
    grad, rows = (
        torch.full((1, 4, 1000), 20.0, dtype=torch.float16),
        torch.full((2, 4, 1000), 30.0, dtype=torch.float16),
    )
    assert ReadOps().slopes(grad, rows, 1).tolist() == [[[2.4e6, 2.4e6]]]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_open_and_closed_gates_enter_as_they_are(dtype: torch.dtype) -> None:
    closed = torch.tensor([[0.0, 1.0]], dtype=exact_dtype(dtype))
    (only,) = ReadOps()._terms(closed, dtype)
    assert torch.equal(only, closed.to(dtype))


@pytest.mark.parametrize(("device", "kind"), [("cpu", ReadOps), ("cuda", CudaReadOps)])
def test_a_device_has_its_form(device: str, kind: Any) -> None:
    assert type(ops_for(torch.device(device))) is kind


# -------------------------------------------------------------------- which operations
class Alone(ReadOps):
    """Layers read one at a time, by the separate operations."""

    fused = True


@pytest.mark.parametrize("kind", ["one", "groups", "tokens", "open"])
@pytest.mark.parametrize(("family", "index"), [case for case in WIRED if case.id in FEW])
@pytest.mark.parametrize("ops", [Alone(), CudaReadOps()])
def test_whole_models_agree(ops: ReadOps, family: Any, index: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and gradients, twice through the same graph, whether layers are read together or one at a time."""
    model = build(family, index)
    clean, corrupted = prompts(batch=2, seq=5)
    sizes = {"one": (), "groups": (2,), "tokens": clean.shape, "open": ()}
    gates = torch.rand(*sizes[kind], *model.graph.shape, dtype=torch.float64)
    gates = (torch.ones_like(gates) if kind == "open" else gates).requires_grad_()
    ablated = model.record(corrupted)
    expected = model(clean, gates, ablated)
    (right,) = torch.autograd.grad(expected.logsumexp(-1).sum(), gates)
    monkeypatch.setattr("edgeprune.models.reads.ops_for", lambda *_: ops)
    found = model(clean, gates, ablated)
    torch.testing.assert_close(found, expected, atol=0 if kind == "open" else 1e-10, rtol=0)
    for _ in range(2):
        (mine,) = torch.autograd.grad(found.logsumexp(-1).sum(), gates, retain_graph=True)
        torch.testing.assert_close(mine, right, atol=1e-10, rtol=1e-10)
    assert right.abs().max() > 1e-3


def test_layers_read_alone_keep_no_inputs() -> None:
    arch = build(*WIRED[0].values).graph.arch
    assert input_rows(arch, Alone(), 1).total == 0 < input_rows(arch, ReadOps(), 1).total


def test_the_name_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert type(ops_for(cpu, "cuda")) is CudaReadOps
    assert type(ops_for(cuda, "host")) is ReadOps
    monkeypatch.setenv("EDGEPRUNE_READ_OPS", "cuda")
    assert type(ops_for(cpu)) is CudaReadOps
    assert type(ops_for(cpu, "host")) is ReadOps  # what is given comes first
    hf = build(*WIRED[0].values).hf
    assert MaskedModel(hf).read_ops == "cuda"
    monkeypatch.setenv("EDGEPRUNE_READ_OPS", "gpu")
    with pytest.raises(EdgepruneError, match=r"^EDGEPRUNE_READ_OPS must be one of host, cuda, triton, got 'gpu'$"):
        MaskedModel(hf)
    assert MaskedModel(hf, read_ops="host").read_ops == "host"
    with pytest.raises(EdgepruneError, match=r"^read_ops must be one of host, cuda, triton, got 'fast'$"):
        load_model("no such model", read_ops="fast")  # before anything is loaded


def test_without_triton_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgeprune.models.triton_ops", raising=False)
    monkeypatch.delattr("edgeprune.models.triton_ops", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(EdgepruneError, match=r"^read_ops='triton' needs the package triton, .* or take 'cuda'$"):
        MaskedModel(build(*WIRED[0].values).hf, read_ops="triton")


def test_steep_slopes_of_float16_do_not_overflow() -> None:
    """A loss a hundred times as steep as most, and a batch of a few: nothing inside reaches 65,504."""
    model = build(registry()["gpt2"], 0, torch.float16)
    exact = build(registry()["gpt2"], 0, torch.float32)
    clean, corrupted = prompts()
    found: list[Tensor] = []
    for own in (model, exact):
        gates = torch.full(own.graph.shape, 0.5).requires_grad_()
        loss = own(clean, gates, own.record(corrupted)).float().logsumexp(-1).sum() * 100
        found += torch.autograd.grad(loss, gates)
    assert found[1].abs().max() > 10
    assert (found[0] - found[1]).norm() < 0.02 * found[1].norm()
