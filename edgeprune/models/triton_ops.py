# pyright: basic, reportMissingImports=false
"""A layer's read in one kernel: mix, norm and projection, and their backward, with no `[readers, T, D]` in memory.

No GPU has run these kernels: they are held against `ReadOps` in Triton's interpreter on a processor, and chosen by name
alone (`ops_for`). Block sizes are guesses that keep a program's tiles within the registers of one multiprocessor.

Forward: a program has some readers and some tokens of one group. It goes over the width; for each part of it the input
`x = stream + closed @ delta` is made in registers, adds to the sums that the norm needs, and is multiplied by the
weight at once. Wide heads are cut, and inputs made anew for each cut.

Backward: a program has parts of one group's `[T, D]`, one after the other. For each part and some readers it makes x
again, and from it the gradient of x,

    gx = scale grad W^T + pull (mean - x),    pull = scale^2 sum_c(grad (out - offset)) / D

of which it adds `closed^T gx` to the gradient of delta, `gx delta^T` to the slopes, and its sum to that of the stream.
Each part of `[T, D]` belongs to one program, and each program has slopes of its own that are added up afterwards: there
are no atomic operations, so results are the same in every run. The gradient of delta is rounded once per block of
readers. Shapes as in `read_ops.py`.
"""

from typing import final

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgeprune.models.projections import Projection
from edgeprune.models.read_ops import CudaReadOps, exact_dtype

READER_BLOCK, WRITER_BLOCK, TOKEN_BLOCK, WIDTH_BLOCK = 16, 32, 16, 32
HEAD_BLOCK = 128  # of the forward: columns of a head that a program has
HEAD_STEP = 32  # of the backward: columns at a time
PROGRAMS = 264  # of the backward, about: two for each multiprocessor of an H100


@final
class TritonReadOps(CudaReadOps):
    """For GPUs: attention readers by the fused kernels, other readers as `CudaReadOps`."""

    fused = True

    def read_layer(
        self, closed: Tensor, delta: Tensor, stream: Tensor, projection: Projection
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `ReadOps.read_layer`."""
        (groups, readers, writers), (tokens, width), offset = closed.shape, stream.shape, projection.offset
        head, exact = offset.shape[-1], exact_dtype(stream.dtype)
        offset, weight = offset.contiguous(), projection.weight.to(offset.dtype)
        stream = stream.contiguous()
        out = offset.new_empty((tokens, *offset.shape))
        scale, mean = stream.new_empty((2, readers, tokens), dtype=exact)
        columns = min(HEAD_BLOCK, _block(head))
        blocks = tokens // groups, readers, head
        sizes = TOKEN_BLOCK, READER_BLOCK, columns
        by_token, by_reader, by_column = (-(-n // size) for n, size in zip(blocks, sizes, strict=True))
        # heads that are wide take narrow parts of the width, so that a tile of weights fits
        part = WIDTH_BLOCK if columns * offset.dtype.itemsize <= 128 else WIDTH_BLOCK // 2
        _read[(groups * by_token * by_reader * by_column,)](
            closed,
            delta,
            stream,
            weight,
            offset,
            out,
            scale,
            mean,
            projection.eps or 0.0,
            groups,
            readers,
            writers,
            tokens,
            width,
            head,
            *closed.stride(),
            delta.stride(0),
            *weight.stride(),
            by_token,
            by_reader,
            NORM=projection.eps is not None,
            CENTRED=projection.centred,
            READERS=READER_BLOCK,
            WRITERS=WRITER_BLOCK,
            TOKENS=TOKEN_BLOCK,
            WIDTH=part,
            HEAD=columns,
            num_warps=8,
        )
        return out, scale, mean

    def unread_layer(
        self,
        closed: Tensor,
        delta: Tensor,
        stream: Tensor,
        grad: Tensor,
        read: tuple[Tensor, Tensor, Tensor],
        projection: Projection,
        rows: Tensor | None,
        *,
        all_open: bool,
    ) -> tuple[Tensor, Tensor]:
        """As `ReadOps.unread_layer`."""
        (groups, readers, writers), (tokens, width) = closed.shape, stream.shape
        head, exact, weight = grad.shape[-1], exact_dtype(stream.dtype), projection.weight.to(stream.dtype)
        out, scale, mean = read
        scale, mean = (part.expand(readers, -1) for part in (scale, mean))
        wide = grad.to(exact)
        along = (wide * (out - projection.offset)).sum(-1).T
        pull = (scale.square() * along / width).contiguous()
        centre = (pull * mean).contiguous()
        if projection.eps is not None:
            wide = wide * scale.T[..., None]
        scaled = wide.to(stream.dtype).transpose(0, 1).contiguous()
        stream = stream.contiguous()
        of_stream = torch.empty_like(stream)
        tiles = -(-(tokens // groups) // TOKEN_BLOCK) * -(-width // WIDTH_BLOCK)
        slots = max(1, min(tiles, PROGRAMS // groups))
        of_closed = scale.new_zeros((slots, groups, readers, writers))
        _unread[(slots * groups,)](
            closed,
            delta,
            stream,
            weight,
            scaled,
            pull,
            centre,
            of_stream if rows is None else rows,
            of_stream,
            of_closed,
            groups,
            slots,
            readers,
            writers,
            tokens,
            width,
            head,
            *closed.stride(),
            delta.stride(0),
            *weight.stride(),
            NORM=projection.eps is not None,
            CENTRED=projection.centred,
            MIXES=not all_open,
            COLLECTS=rows is not None,
            READERS=READER_BLOCK,
            WRITERS=WRITER_BLOCK,
            TOKENS=TOKEN_BLOCK,
            WIDTH=WIDTH_BLOCK,
            HEAD=min(HEAD_STEP, _block(head)),
            num_warps=8,
            num_stages=1,
        )
        return of_stream, of_closed.sum(0)


def _block(size: int) -> int:
    """The power of two that holds `size`, 16 at least: less a tile of a product cannot be."""
    return max(16, triton.next_power_of_2(size))


@triton.jit
def _mixed(
    total, closed, delta, group, reader, at, is_token, readers, writers, closed_group, closed_reader, closed_writer,
    delta_writer, WRITERS: tl.constexpr,
):  # fmt: skip
    """`total` `[readers, tokens * width]` with `closed @ delta` added; `at`: the places in a row of delta."""
    for first in range(0, writers, WRITERS):
        writer = first + tl.arange(0, WRITERS)
        part = tl.load(
            closed + group * closed_group + reader[:, None] * closed_reader + writer[None, :] * closed_writer,
            mask=(reader < readers)[:, None] & (writer < writers)[None, :],
            other=0.0,
        )
        rows = tl.load(
            delta + writer[:, None].to(tl.int64) * delta_writer + at[None, :],
            mask=(writer < writers)[:, None] & is_token[None, :],
            other=0.0,
        )
        total = _added(total, part, rows)
    return total


@triton.jit
def _added(total, exact, rows):
    """`total + exact @ rows`; rows of fewer bits take the exact values in two terms."""
    high = exact.to(rows.dtype)
    if exact.dtype != rows.dtype:
        total = tl.dot((exact - high.to(exact.dtype)).to(rows.dtype), rows, total)
    return tl.dot(high, rows, total, input_precision="ieee")


@triton.jit
def _read(
    closed, delta, stream, weight, offset, out, scale, mean, eps, groups, readers, writers, tokens, width, head,
    closed_group, closed_reader, closed_writer, delta_writer, weight_reader, weight_row, weight_column,
    by_token, by_reader, NORM: tl.constexpr, CENTRED: tl.constexpr, READERS: tl.constexpr, WRITERS: tl.constexpr,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Norm and projection of `stream + closed @ delta`; one program for some readers, tokens and columns of heads."""
    program = tl.program_id(0)
    reader = program % by_reader * READERS + tl.arange(0, READERS)
    cut = program // by_reader // (groups * by_token)
    column = cut * HEAD + tl.arange(0, HEAD)
    place = program // by_reader % (groups * by_token)
    group, size = place // by_token, tokens // groups
    own = place % by_token * TOKENS + tl.arange(0, TOKENS)  # tokens, counted in the group
    flat = tl.arange(0, TOKENS * WIDTH)
    flat_own = place % by_token * TOKENS + flat // WIDTH
    exact: tl.constexpr = scale.dtype.element_ty
    total = tl.zeros((READERS, TOKENS), exact)
    squares = tl.zeros((READERS, TOKENS), exact)
    product = tl.zeros((READERS, TOKENS, HEAD), exact)
    for first in range(0, width, WIDTH):
        flat_row = first + flat % WIDTH
        at = (group * size + flat_own) * width + flat_row
        inside = (flat_own < size) & (flat_row < width)
        start = tl.load(stream + at, mask=inside, other=0.0).to(exact)
        inputs = tl.zeros((READERS, TOKENS * WIDTH), exact) + start[None, :]
        inputs = _mixed(
            inputs, closed, delta, group, reader, at, inside, readers, writers, closed_group, closed_reader,
            closed_writer, delta_writer, WRITERS,
        )  # fmt: skip
        inputs = tl.reshape(inputs.to(stream.dtype.element_ty), (READERS, TOKENS, WIDTH))
        if NORM:
            values = inputs.to(exact)
            total += tl.sum(values, 2)
            squares += tl.sum(values * values, 2)
        row = first + tl.arange(0, WIDTH)
        weights = tl.load(
            weight
            + reader[:, None, None].to(tl.int64) * weight_reader
            + row[None, :, None] * weight_row
            + column[None, None, :] * weight_column,
            mask=(reader < readers)[:, None, None] & (row < width)[None, :, None] & (column < head)[None, None, :],
            other=0.0,
        )
        product = tl.dot(inputs.to(weights.dtype), weights, product, input_precision="ieee")
    middle = tl.zeros((READERS, TOKENS), exact)
    if CENTRED:
        middle = total / width
    factor = tl.zeros((READERS, TOKENS), exact) + 1
    if NORM:
        factor = 1 / tl.sqrt(squares / width - middle * middle + eps)
    token = group * size + own
    found = (reader < readers)[:, None] & (own < size)[None, :]
    at = reader[:, None] * tokens + token[None, :]
    if cut == 0:
        tl.store(scale + at, factor, mask=found)
        tl.store(mean + at, middle, mask=found)
    beside = reader[:, None, None] * head + column[None, None, :]
    there = (reader < readers)[:, None, None] & (column < head)[None, None, :]
    product = product * factor[:, :, None] + tl.load(offset + beside, mask=there, other=0.0).to(exact)
    at = token[None, :, None].to(tl.int64) * (readers * head) + beside
    tl.store(out + at, product.to(out.dtype.element_ty), mask=there & (own < size)[None, :, None])


@triton.jit
def _unread(
    closed, delta, stream, weight, scaled, pull, centre, of_delta, of_stream, of_closed, groups, slots, readers,
    writers, tokens, width, head, closed_group, closed_reader, closed_writer, delta_writer, weight_reader, weight_row,
    weight_column, NORM: tl.constexpr, CENTRED: tl.constexpr, MIXES: tl.constexpr, COLLECTS: tl.constexpr,
    READERS: tl.constexpr, WRITERS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """The gradients of delta, the stream and closed; one program for some parts of one group's `[T, D]`."""
    group, slot, size = tl.program_id(0) % groups, tl.program_id(0) // groups, tokens // groups
    by_token = (size + TOKENS - 1) // TOKENS
    tiles = by_token * ((width + WIDTH - 1) // WIDTH)
    flat = tl.arange(0, TOKENS * WIDTH)
    exact: tl.constexpr = of_closed.dtype.element_ty
    kept: tl.constexpr = stream.dtype.element_ty
    for tile in range(slot, tiles, slots):
        first, left = tile % by_token * TOKENS, tile // by_token * WIDTH
        own, row = first + tl.arange(0, TOKENS), left + tl.arange(0, WIDTH)
        flat_token = group * size + first + flat // WIDTH
        at = flat_token * width + left + flat % WIDTH
        inside = (first + flat // WIDTH < size) & (left + flat % WIDTH < width)
        start = tl.load(stream + at, mask=inside, other=0.0).to(exact)
        total = tl.zeros((TOKENS * WIDTH,), exact)
        for reader_first in range(0, readers, READERS):
            reader = reader_first + tl.arange(0, READERS)
            of_inputs = tl.zeros((READERS, TOKENS, WIDTH), exact)
            for head_first in range(0, head, HEAD):
                column = head_first + tl.arange(0, HEAD)
                grads = tl.load(
                    scaled
                    + (reader[:, None, None].to(tl.int64) * tokens + group * size + own[None, :, None]) * head
                    + column[None, None, :],
                    mask=(reader < readers)[:, None, None]
                    & (own < size)[None, :, None]
                    & (column < head)[None, None, :],
                    other=0.0,
                )
                weights = tl.load(
                    weight
                    + reader[:, None, None].to(tl.int64) * weight_reader
                    + row[None, None, :] * weight_row
                    + column[None, :, None] * weight_column,
                    mask=(reader < readers)[:, None, None]
                    & (row < width)[None, None, :]
                    & (column < head)[None, :, None],
                    other=0.0,
                )
                of_inputs = tl.dot(grads, weights, of_inputs, input_precision="ieee")
            grad = tl.reshape(of_inputs, (READERS, TOKENS * WIDTH))
            found = (reader < readers)[:, None] & inside[None, :]
            if NORM:
                inputs = tl.zeros((READERS, TOKENS * WIDTH), exact) + start[None, :]
                if MIXES:
                    inputs = _mixed(
                        inputs, closed, delta, group, reader, at, inside, readers, writers, closed_group,
                        closed_reader, closed_writer, delta_writer, WRITERS,
                    )  # fmt: skip
                by_reader = reader[:, None] * tokens + flat_token[None, :]
                grad -= tl.load(pull + by_reader, mask=found, other=0.0) * inputs.to(kept).to(exact)
                if CENTRED:
                    grad += tl.load(centre + by_reader, mask=found, other=0.0)
            total += tl.sum(grad, 0)
            grad = grad.to(kept)
            for writer_first in range(0, writers, WRITERS):
                writer = writer_first + tl.arange(0, WRITERS)
                in_stack = (writer < writers)[:, None] & inside[None, :]
                in_row = writer[:, None].to(tl.int64) * delta_writer + at[None, :]
                rows = tl.load(delta + in_row, mask=in_stack, other=0.0)
                pair = (reader < readers)[:, None] & (writer < writers)[None, :]
                sums = (
                    of_closed
                    + ((slot * groups + group).to(tl.int64) * readers + reader[:, None]) * writers
                    + writer[None, :]
                )
                before = tl.load(sums, mask=pair, other=0.0)
                tl.store(sums, tl.dot(grad, tl.trans(rows), before, input_precision="ieee"), mask=pair)
                if COLLECTS:
                    part = tl.load(
                        closed + group * closed_group + reader[None, :] * closed_reader + writer[:, None] * closed_writer,
                        mask=(reader < readers)[None, :] & (writer < writers)[:, None],
                        other=0.0,
                    )
                    before = tl.load(of_delta + in_row, mask=in_stack, other=0.0).to(exact)
                    tl.store(of_delta + in_row, _added(before, part, grad).to(kept), mask=in_stack)
            tl.debug_barrier()  # the next readers add to what these have stored
        tl.store(of_stream + at, total.to(kept), mask=inside)


TRITON = TritonReadOps()
