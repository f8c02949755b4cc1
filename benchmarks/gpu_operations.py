"""The operations of a read on a device against the reference in float64 on the processor, and their time."""

import statistics
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_steps import Row, one_line
from edgeprune.models.projections import Projection
from edgeprune.models.read_ops import HOST, ReadOps, exact_dtype, ops_for
from edgeprune.selfcheck_costs import timed

# the largest error relative to the length of what is right, of values and of gradients
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
NORMS = {"none": (None, False), "RMSNorm": (1e-5, False), "LayerNorm": (1e-5, True)}


class Size(NamedTuple):
    """Of a layer that is read: G groups, A readers, N writers, T tokens, D width, C head width."""

    groups: int
    readers: int
    writers: int
    tokens: int
    width: int
    head: int


CHECKED = (Size(1, 36, 100, 512, 768, 64), Size(4, 19, 35, 4 * 33, 200, 37), Size(1, 16, 40, 64, 512, 256))
TIMED = {
    "middle of gpt2, 32x64": Size(1, 36, 79, 2048, 768, 64),
    "middle of llama-3.1-8b, 16x64": Size(1, 48, 529, 1024, 4096, 128),
    "middle of codellama-13b, 16x64": Size(1, 120, 821, 1024, 5120, 128),
}
SMALL = Size(2, 5, 7, 2 * 9, 24, 8)


class Problem(NamedTuple):
    """A read and its backward, ready to run on a device; shapes as in `edgeprune.models.read_ops`."""

    closed: Tensor
    delta: Tensor
    stream: Tensor
    projection: Projection
    grad: Tensor
    rows: Tensor

    @classmethod
    def of(cls, size: Size, norm: str, dtype: torch.dtype, device: str) -> "Problem":
        """Random values, those of a processor whatever the device."""
        generator = torch.Generator().manual_seed(0)
        eps, centred = NORMS[norm]

        def values(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        weight = values(size.readers, size.width, size.head) / size.width**0.5
        if centred:
            ones = torch.ones(size.readers, size.width, 1)
            weight = torch.cat([weight - weight.mean(1, keepdim=True), ones], -1)
        projection = Projection(
            weight.to(device, dtype), values(size.readers, size.head).to(device, dtype), eps, centred, True
        )
        closed = torch.rand(size.groups, size.readers, size.writers, generator=generator)
        stack, narrow = (size.writers, size.tokens, size.width), (size.tokens, size.readers, size.head)
        delta, stream, grad, rows = (values(*shape) for shape in (stack, stack[1:], narrow, stack))
        delta, stream, grad, rows = (part.to(device, dtype) for part in (delta, stream, grad, rows))
        return cls(closed.to(device, exact_dtype(dtype)), delta, stream, projection, grad, rows)

    def double(self) -> "Problem":
        """The same numbers, in float64 on the processor."""
        closed, delta, stream, grad, rows = (
            part.to("cpu", torch.float64) for part in (self.closed, self.delta, self.stream, self.grad, self.rows)
        )
        weight, offset = (part.to("cpu", torch.float64) for part in self.projection[:2])
        return Problem(closed, delta, stream, self.projection._replace(weight=weight, offset=offset), grad, rows)

    def run(self, ops: ReadOps) -> dict[str, Tensor]:
        """Forward and backward; the gradients in `rows` are added to."""
        read = ops.read_layer(self.closed, self.delta, self.stream, self.projection)
        of_stream, of_closed = ops.unread_layer(
            self.closed, self.delta, self.stream, self.grad, read, self.projection, self.rows, all_open=False
        )
        return {"values": read[0], "of stream": of_stream, "of gates": of_closed, "of delta": self.rows}


def operations(device: str, names: list[str], tiny: bool) -> Iterator[Row]:
    """Errors of each form, and then their times."""
    dtypes = (torch.float32, torch.bfloat16) if tiny else tuple(LIMITS)
    for size, norm, dtype in product((SMALL,) if tiny else CHECKED, NORMS, dtypes):
        right = Problem.of(size, norm, dtype, device).double().run(HOST)
        for name in names:
            row: Row = {"ops": name, "size": "x".join(map(str, size)), "norm": norm, "dtype": str(dtype)[6:]}
            try:
                found = Problem.of(size, norm, dtype, device).run(ops_for(torch.device(device), name))
                errors = {key: relative(found[key], value) for key, value in right.items()}
                row |= errors
                if not max(errors.values()) <= LIMITS[dtype]:
                    row["error"] = f"more than {LIMITS[dtype]:.0e}"
            except Exception as error:
                row["error"] = one_line(error)
            yield row
    for label, size in ({"tiny": SMALL} if tiny else TIMED).items():
        for name in names:
            row = {"ops": name, "size": label, "norm": "RMSNorm", "dtype": "bfloat16"}
            try:
                yield row | times(size, device, ops_for(torch.device(device), name))
            except Exception as error:
                yield row | {"error": one_line(error)}


def times(size: Size, device: str, ops: ReadOps) -> Row:
    """Milliseconds of the two directions."""
    problem = Problem.of(size, "RMSNorm", torch.bfloat16, device)
    closed, delta, stream, projection, grad, rows = problem
    read = ops.read_layer(closed, delta, stream, projection)
    measured = timed(
        {
            "forward, ms": lambda: ops.read_layer(closed, delta, stream, projection),
            "backward, ms": lambda: ops.unread_layer(
                closed, delta, stream, grad, read, projection, rows, all_open=False
            ),
        }
    )
    return {name: 1e3 * statistics.median(seconds) for name, seconds in measured.items()}


def relative(found: Tensor, right: Tensor) -> float:
    """The error's length relative to that of what is right."""
    return float((found.to("cpu", torch.float64) - right).norm() / right.norm())
