"""What autograd sees of reads and writes: functions with a backward of their own over the stack of deltas.

They are linked by a *chain*, a scalar that each takes and returns: it carries no value, but makes autograd visit them
in exactly reverse order, so a writer's row of the gradient stack is complete when its backward needs it. Shapes: T
tokens (batch x seq) as the stack has them, D residual width, A attention readers of a layer, H heads, C head width, G
groups (`token_groups.py`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgeprune.models.projections import Projection, no_autocast
from edgeprune.models.read_ops import exact_dtype, norm_scale
from edgeprune.models.stack import DeltaStack, Span, places
from edgeprune.models.token_groups import TokenGroups


class ReadSegment(torch.autograd.Function):
    """What all readers of a segment get from the writers before it, left in `mixed`.

    Inputs: the latest link; closed `[G, readers, writers]`; the stream before the segment `[T, D]`, which the
    `num_streams` first readers take in; this number; the stack; the segment's number. Returns: the next link.
    """

    @staticmethod
    def forward(
        ctx: Any, chain: Tensor, closed: Tensor, stream: Tensor, num_streams: int, stack: DeltaStack, segment: int
    ) -> Tensor:
        ctx.save_for_backward(closed)
        ctx.stack, ctx.first = stack, segment == 0
        stack.enter(segment)
        with no_autocast(closed):
            stack.mix_before(closed, stream, num_streams)
        return chain.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_chain: Tensor) -> tuple[Tensor | None, ...]:
        (closed,), stack = ctx.saved_tensors, ctx.stack
        if ctx.first:
            stack.drop_grad()  # what is left is the gradient of the embeddings, which nothing needs
        with no_autocast(closed):
            grad_closed = stack.unmix_before(closed, collect=not ctx.first)
        stack.done_with_segment()
        return grad_chain, grad_closed, None, None, None, None  # of the stream: see `ReadLayer`


class ReadLayer(torch.autograd.Function):
    """Inputs of one layer's readers, from the segment's own writers too: q, k, v of the one kind, the mix of the other.

    Inputs: the latest link; stream `[T, D]`; closed `[G, readers of the layer, writers of the segment before it]`;
    the model's own projection of the stream `[T, A, C]` if every gate is open, else None; a function that makes the
    readers' `Projection`; the stack; the layer's `Span`. Returns: q, k, v as one `[T, A, C]`; what closed edges add
    to the MLP's input `[T, D]` (nothing, `[0]`, without an MLP); the next link.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chain: Tensor,
        stream: Tensor,
        closed: Tensor,
        fused: Tensor | None,
        projection_of: Callable[[], Projection],
        stack: DeltaStack,
        span: Span,
    ) -> tuple[Tensor, Tensor, Tensor]:
        readers, projection = stack.mixed[span.readers], projection_of()
        with no_autocast(stream):
            if fused is not None:
                readers[span.num_streams :].zero_()
                exact = exact_dtype(stream.dtype)
                mean = stream.mean(-1, dtype=exact) * projection.centred
                out, scale = fused.clone(), norm_scale(stream, mean, projection)
            else:
                stack.mix(closed, span.writers, span.readers, stream, span.num_streams)
                out, scale, mean = stack.ops.project(readers[: span.num_streams], projection)
                stack.made(span)
        ctx.save_for_backward(stream, closed, out, scale, mean)
        ctx.projection_of = (lambda: projection) if projection.stays else projection_of
        ctx.stack, ctx.span = stack, span
        return out, readers[span.num_streams :].flatten(0, 1).clone(), chain.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mlp: Tensor, grad_chain: Tensor) -> tuple[Tensor | None, ...]:
        stream, closed, out, scale, mean = ctx.saved_tensors
        projection, stack, span = ctx.projection_of(), ctx.stack, ctx.span
        stack.enter(span.segment)
        readers = stack.mixed[span.readers]
        attention = readers[: span.num_streams]
        with no_autocast(stream):
            needed = projection.eps is not None and not stack.all_open  # without a norm, inputs are not
            if needed and not stack.use_up(span):
                stack.remake(span)
                stack.mix(closed, span.writers, span.readers, stream, span.num_streams)
            stack.ops.unproject(attention, stream if stack.all_open else None, grad, out, scale, mean, projection)
            readers[span.num_streams :] = grad_mlp.view(-1, *stream.shape)
            grad_stream, grad_closed = stack.unmix(closed, span.writers, span.readers, span.num_streams)
        return grad_chain, grad_stream, grad_closed, None, None, None, None


class ReadAlone(torch.autograd.Function):
    """What `ReadSegment` and `ReadLayer` do together, for one layer, by operations that are `fused`.

    Inputs: the latest link; stream `[T, D]`; closed `[G, readers of the layer, writers before it]`; the model's own
    projection, the function and the stack as in `ReadLayer`; the number of attention readers; whether the layer is the
    first. Returns: as `ReadLayer`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chain: Tensor,
        stream: Tensor,
        closed: Tensor,
        fused: Tensor | None,
        projection_of: Callable[[], Projection],
        stack: DeltaStack,
        num_streams: int,
        first: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        projection, delta = projection_of(), stack.delta[: closed.shape[-1]]
        mlp = stream.new_zeros((closed.shape[1] - num_streams, *stream.shape))
        with no_autocast(stream):
            if fused is not None:
                exact = exact_dtype(stream.dtype)
                mean = stream.mean(-1, dtype=exact) * projection.centred
                out, scale = fused.clone(), norm_scale(stream, mean, projection)
            else:
                out, scale, mean = stack.ops.read_layer(closed[:, :num_streams], delta, stream, projection)
                if len(mlp):
                    stack.ops.mix(closed[:, num_streams:], delta, mlp, add=True)
        ctx.save_for_backward(stream, closed, out, scale, mean)
        ctx.projection_of = (lambda: projection) if projection.stays else projection_of
        ctx.stack, ctx.num_streams, ctx.first = stack, num_streams, first
        return out, mlp.flatten(0, 1), chain.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mlp: Tensor, grad_chain: Tensor) -> tuple[Tensor | None, ...]:
        stream, closed, out, scale, mean = ctx.saved_tensors
        stack, n = ctx.stack, ctx.num_streams
        delta, rows = stack.delta[: closed.shape[-1]], None
        if ctx.first:
            stack.drop_grad()  # what is left is the gradient of the embeddings, which nothing needs
        elif not stack.all_open:
            rows = stack.take_grad()[: closed.shape[-1]]
        with no_autocast(stream):
            grad_mlp = grad_mlp.reshape(-1, *stream.shape)
            if len(grad_mlp) and rows is not None:
                stack.ops.collect(closed[:, n:], grad_mlp, rows)
            of_mlp = stack.ops.slopes(grad_mlp, delta, len(closed))
            grad_stream, of_attention = stack.ops.unread_layer(
                closed[:, :n],
                delta,
                stream,
                grad,
                (out, scale, mean),
                ctx.projection_of(),
                rows,
                all_open=stack.all_open,
            )
        return grad_chain, grad_stream, torch.cat([of_attention, of_mlp], 1), None, None, None, None, None


class ReadStream(torch.autograd.Function):
    """Input of one reader: `base + closed @ delta[first : first + n]`, at all tokens or at `tokens` only.

    Inputs: the latest link; base `[T, D]`, the stream with the corrections it has already; closed `[G, 1, n]`; the
    stack; the first writer; optionally columns of the stack, long `[P]`, and the groups that they are of. Returns:
    input `[T, D]` (or `[P, D]`; base has then P rows); next link.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chain: Tensor,
        base: Tensor,
        closed: Tensor,
        stack: DeltaStack,
        first: int,
        tokens: Tensor | None = None,
        groups: TokenGroups | None = None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(closed, tokens)
        ctx.stack, ctx.first, ctx.sizes = stack, first, (groups or stack.groups).sizes
        delta = stack.select(first, closed.shape[-1], tokens)
        out = base.clone(memory_format=torch.contiguous_format)
        with no_autocast(base):
            stack.ops.mix(closed, delta, out[None], add=True, sizes=ctx.sizes)
        return out, chain.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_chain: Tensor) -> tuple[Tensor | None, ...]:
        closed, tokens = ctx.saved_tensors
        stack, first, n = ctx.stack, ctx.first, closed.shape[-1]
        with no_autocast(grad):
            delta, grad = stack.select(first, n, tokens), grad.contiguous()
            grad_closed = stack.ops.slopes(grad[None], delta, len(closed), ctx.sizes)
            if not stack.all_open:
                rows = stack.take_grad()[first : first + n]
                if tokens is None:
                    stack.ops.collect(closed, grad[None], rows, ctx.sizes)
                else:
                    _collect_at(tokens, _of_tokens(closed[:, 0], len(tokens), ctx.sizes), grad, delta, rows)
        return grad_chain, grad, grad_closed, None, None, None, None


def _of_tokens(closed: Tensor, num_tokens: int, sizes: tuple[int, ...] | None) -> Tensor:
    """What `closed` `[G, n]` is at each of P tokens, `[n, P, 1]`."""
    if sizes is not None:
        return closed.repeat_interleave(torch.tensor(sizes, device=closed.device), 0).T[..., None]
    shares = closed.T[..., None].expand(-1, -1, num_tokens // len(closed))
    return shares.reshape(closed.shape[1], -1, 1)


def _collect_at(tokens: Tensor, shares: Tensor, grad: Tensor, room: Tensor, rows: Tensor) -> None:
    """Add to the gradients `rows` `[n, T, D]` what one reader's `grad` `[P, D]` at `tokens` brings; uses up `room`."""
    torch.mul(shares, grad, out=room)
    rows.flatten(0, 1).index_add_(0, places(len(rows), rows.shape[1], tokens), room.flatten(0, 1))


class WriteHeads(torch.autograd.Function):
    """Leave the deltas of one layer's heads in the stack.

    Inputs: the latest link; own and ablated values `[T, H, C]` before the output projection; a function that gives
    its weight `[H, C, D]`; the stack; the first head's row. Returns: the next link.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chain: Tensor,
        own: Tensor,
        ablated: Tensor,
        weight_of: Callable[[], Tensor],
        stack: DeltaStack,
        first: int,
    ) -> Tensor:
        ctx.stack, ctx.first, ctx.weight_of, ctx.dtype = stack, first, weight_of, own.dtype
        with no_autocast(own):
            weight = weight_of()
            difference = (ablated - own).transpose(0, 1).to(weight.dtype)
            torch.bmm(difference, weight, out=stack.delta[first : first + weight.shape[0]])
        return chain.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_chain: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.stack.all_open:
            return grad_chain, None, None, None, None, None
        with no_autocast(grad_chain):
            weight = ctx.weight_of()
            grad = ctx.stack.take_grad()[ctx.first : ctx.first + weight.shape[0]]
            grad_own = torch.bmm(grad, weight.transpose(1, 2)).neg_().transpose(0, 1).to(ctx.dtype)
        return grad_chain, grad_own, None, None, None, None


class WriteOne(torch.autograd.Function):
    """Leave the delta of one writer, `ablated - own` `[T, D]`, in row `row` of the stack. Returns the next link."""

    @staticmethod
    def forward(ctx: Any, chain: Tensor, own: Tensor, ablated: Tensor, stack: DeltaStack, row: int) -> Tensor:
        ctx.stack, ctx.row, ctx.dtype = stack, row, own.dtype
        torch.sub(ablated, own, out=stack.delta[row])
        return chain.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_chain: Tensor) -> tuple[Tensor | None, ...]:
        stack = ctx.stack
        grad_own = None if stack.all_open else stack.take_grad()[ctx.row].neg().to(ctx.dtype)
        return grad_chain, grad_own, None, None, None


class ScaleGradient(torch.autograd.Function):
    """A tensor `[...]` as it is; its gradient `[...]` is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.factor, None
