"""The operations of a read: the forms of two devices against float64, and what half precision keeps of a gate."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.models.projections import Projection
from edgeprune.models.read_ops import CudaReadOps, ReadOps, exact_dtype, ops_for

FORMS = [ReadOps(), CudaReadOps()]
HALF = [torch.bfloat16, torch.float16]
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
