"""The fused read in Triton's interpreter, on a processor, against the operations that keep every reader's input."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.models.masked import MaskedModel
from edgeprune.models.projections import Projection
from edgeprune.models.read_ops import HOST, exact_dtype
from tests.models.test_conformance import CASES, build, prompts, random_gates

# the interpreter of older ones does not go with the NumPy of today
pytest.importorskip("triton", minversion="3.9", reason="Triton 3.9 or later is not installed")

from edgeprune.models.triton_ops import TRITON

NORMS = {"none": (None, False), "mean kept": (1e-5, False), "mean taken away": (1e-5, True)}
# groups, readers, writers, tokens, width, columns of a head; blocks hold 16 readers, 32 writers, 16 tokens, 16 of the
# width, and 128 columns forward, 32 backward
SIZES = {
    "less than a block": (1, 5, 7, 12, 8, 3),
    "one block": (1, 16, 32, 16, 16, 16),
    "odd, groups": (2, 19, 35, 2 * 18, 21, 35),
    "wide heads": (1, 2, 1, 5, 18, 130),
    "each token a group": (3, 3, 4, 3, 16, 8),
}
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
MODELS = ("GPT2-gpt20", "Llama-llama1", "Gemma2-gemma20", "Cohere-cohere1", "Compiled-edgeprune_compiled1")
WIRED = [case for case in CASES if case.id in MODELS]


def values(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def operands(size: tuple[int, ...], norm: str) -> tuple[tuple[Tensor, ...], Projection, Tensor, Tensor]:
    """Closed, delta and stream; the projection; gradients of what is projected, and of delta so far."""
    groups, readers, writers, tokens, width, head = size
    eps, centred = NORMS[norm]
    weight = values(1, readers, width, head) / width**0.5
    if centred:
        weight = torch.cat([weight - weight.mean(1, keepdim=True), torch.ones(readers, width, 1).double()], -1)
    projection = Projection(weight, values(2, readers, head), eps, centred, True)
    closed = torch.rand(groups, readers + 1, writers + 2, generator=torch.Generator().manual_seed(3)).double()
    inputs = closed[:, :readers, :writers], values(4, writers, tokens, width), values(5, tokens, width)
    return inputs, projection, values(6, tokens, readers, head), values(7, writers, tokens, width)


def to(dtype: torch.dtype, inputs: tuple[Tensor, ...], projection: Projection) -> tuple[list[Tensor], Projection]:
    closed, *rest = inputs
    cast = projection._replace(weight=projection.weight.to(dtype), offset=projection.offset.to(dtype))
    return [closed.to(exact_dtype(dtype)), *(part.to(dtype) for part in rest)], cast


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    error = (found.double() - expected).norm() / expected.norm().clamp(min=1e-6)
    assert error < tolerance


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", SIZES)
def test_fused_reads_are_those_of_separate_operations(size: str, norm: str, dtype: torch.dtype) -> None:
    """In half precision against float64, where operands are rounded too: the error is that of a few roundings."""
    inputs, projection, grad, rows = operands(SIZES[size], norm)
    read, rows_of = HOST.read_layer(*inputs, projection), rows.clone()
    backward = HOST.unread_layer(*inputs, grad, read, projection, rows_of, all_open=False)
    (closed, delta, stream, grad, found_rows), projection = to(dtype, (*inputs, grad, rows), projection)
    before = closed.clone(), delta.clone(), stream.clone()
    found = TRITON.read_layer(closed, delta, stream, projection)
    back = TRITON.unread_layer(closed, delta, stream, grad, found, projection, found_rows, all_open=False)
    assert [part.dtype for part in (*found, *back)] == [dtype, *2 * [exact_dtype(dtype)], dtype, exact_dtype(dtype)]
    pairs = zip((*found, *back, found_rows), (*read, *backward, rows_of), strict=True)
    for one, other in pairs:
        assert_near(one, other, TOLERANCES[dtype])
    assert all(map(torch.equal, before, (closed, delta, stream)))  # nothing else is written


@pytest.mark.parametrize("norm", NORMS)
def test_with_open_gates_inputs_are_the_stream(norm: str) -> None:
    (closed, delta, stream), projection, grad, rows = operands(SIZES["odd, groups"], norm)
    closed = torch.zeros_like(closed)
    out, scale, mean = HOST.read_layer(closed, delta, stream, projection)
    read, kept = (out, scale[0], mean[0]), rows.clone()
    expected = HOST.unread_layer(closed, delta, stream, grad, read, projection, None, all_open=True)
    found = TRITON.unread_layer(closed, torch.nan_to_num(delta), stream, grad, read, projection, None, all_open=True)
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, 1e-13)
    assert torch.equal(rows, kept)


@pytest.mark.parametrize("kind", ["one", "groups", "tokens", "open"])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_whole_models_agree(family: Any, index: int, kind: str) -> None:
    """Logits, and the gradients of gates, through layers of every kind of norm."""
    model = build(family, index)
    fused = MaskedModel(model.hf, read_ops="triton")
    clean, corrupted = prompts(batch=2, seq=5)
    ablated, shape = model.record(corrupted), model.graph.shape
    sizes = {"one": (), "groups": (2,), "tokens": clean.shape, "open": ()}
    gates = torch.rand(*sizes[kind], *shape, generator=torch.Generator().manual_seed(0)).double()
    gates = (torch.ones_like(gates) if kind == "open" else gates).requires_grad_()
    expected, found = (either(clean, gates, ablated) for either in (model, fused))
    torch.testing.assert_close(found, expected, atol=0 if kind == "open" else 1e-10, rtol=0)
    weights = values(8, *expected.shape)
    (right,), (mine,) = (torch.autograd.grad((part * weights).sum(), gates) for part in (expected, found))
    torch.testing.assert_close(mine, right, atol=1e-9, rtol=1e-9)
    assert right.abs().max() > 1e-3


def test_groups_of_keys_read_by_head() -> None:
    (case,) = [case for case in CASES if case.id == "Llama-llama1"]
    model = build(*case.values, torch.float32, kv_readers="head")
    fused = MaskedModel(model.hf, kv_readers="head", read_ops="triton")
    clean, corrupted = prompts()
    gates = random_gates(model, fractional=True).float().requires_grad_()
    expected, found = (either(clean, gates, model.record(corrupted)) for either in (model, fused))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from edgeprune.models.triton_kernels import read_kernel, unread_kernel

BLOCKS = dict(NORM=True, CENTRED=True, READERS=16, WRITERS=32, TOKENS=16, WIDTH=16)
HALF, EXACT = "delta stream weight offset out scaled of_delta of_stream", "closed scale mean pull centre of_closed"
FORWARD, BACKWARD = dict(HEAD=128, **BLOCKS), dict(MIXES=True, COLLECTS=True, HEAD=32, **BLOCKS)
for kernel, constants, dtype, exact in (
    (read_kernel, FORWARD, "*bf16", "*fp32"),
    (unread_kernel, BACKWARD, "*bf16", "*fp32"),
    (read_kernel, FORWARD | dict(HEAD=64), "*fp64", "*fp64"),
    (unread_kernel, BACKWARD, "*fp64", "*fp64"),
):
    kinds = {
        name: "constexpr" if name in constants
        else dtype if name in HALF.split()
        else exact if name in EXACT.split()
        else "fp32" if name == "eps"
        else "i32"
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, kinds, places)
    options = dict(num_warps=8, **dict(num_stages=1) if kernel is unread_kernel else {})  # as they are called
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert made.metadata.shared <= 227 * 1024, made.metadata.shared
    assert "mma.sync" in made.asm["ptx"]
"""


def test_kernels_compile_for_a_gpu() -> None:
    """For sm_90, which takes no GPU; in a process of its own, for here kernels are interpreted."""
    own = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILE], env=own, check=True)
