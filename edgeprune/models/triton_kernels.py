# pyright: basic, reportMissingImports=false
# ruff: noqa: ANN001, ANN201, ANN202, N803 -- kernels are in a language of their own: no types, constants in capitals
"""The kernels of `triton_ops.py`, which says what they are called with.

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

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # as Triton asks, when it defines kernels


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
        total = _dot((exact - high.to(exact.dtype)).to(rows.dtype), rows, total)
    return _dot(high, rows, total)


@triton.jit
def _dot(left, right, total):
    """`total + left @ right`, float32 as such and not rounded to 19 bits."""
    if INTERPRETED:  # which would multiply the bits of bfloat16
        left, right = left.to(total.dtype), right.to(total.dtype)
    return tl.dot(left, right, total, input_precision="ieee", out_dtype=total.dtype)


@triton.jit
def read_kernel(
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
        product = _dot(inputs.to(weights.dtype), weights, product)
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
def unread_kernel(
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
                of_inputs = _dot(grads, weights, of_inputs)
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
                tl.store(sums, _dot(grad, tl.trans(rows), before), mask=pair)
                if COLLECTS:
                    edge = reader[None, :] * closed_reader + writer[:, None] * closed_writer
                    part = tl.load(
                        closed + group * closed_group + edge,
                        mask=(reader < readers)[None, :] & (writer < writers)[:, None],
                        other=0.0,
                    )
                    before = tl.load(of_delta + in_row, mask=in_stack, other=0.0).to(exact)
                    tl.store(of_delta + in_row, _added(before, part, grad).to(kept), mask=in_stack)
            tl.debug_barrier()  # the next readers add to what these have stored
        tl.store(of_stream + at, total.to(kept), mask=inside)
