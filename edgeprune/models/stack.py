"""The write-once stack of deltas, and the reads and writes that touch it, each with its own backward.

Every writer leaves `delta = ablated - own` in its row, once. A read is one matrix product `(1 - gates) @ delta[:n]`
added to the run's own stream, in chunks of tokens small enough for the cache:

    x_reader = stream + (1 - gates) @ delta                                      (1) reading as a correction
    q_head   = q_fused_head + W_head (norm(x_head) - norm(stream))               (2) projecting as a correction

With every gate open both corrections are exactly zero. The backward recomputes the readers' inputs chunk by chunk
instead of keeping them, and adds to one gradient stack. Reads and writes are chained by a *token*, a scalar that each
takes and returns: it carries no value, but makes autograd visit them in exactly reverse order, so a writer's row of
the gradient stack is complete when its backward needs it.

Shapes: T tokens (batch x seq), D residual width, R attention readers, H heads, K key/value heads, C head width. The
tokens fall into G groups of equal size, one after the other, each with its own gates: G = 1 where all share them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Norm = Callable[[Tensor], Tensor]
CHUNK_BYTES = (
    8 * 2**20
)  # readers' inputs worked on at a time; 2 to 16 MiB were measured, 8 was fastest (docs/performance.md)


class DeltaStack:
    """Storage shared by the reads and writes of one forward pass: `delta` `[writer, T, D]`, and its gradient."""

    def __init__(self, num_writers: int, stream: Tensor) -> None:
        """`stream`: the embedding output `[T, D]`, whose dtype, device and size the stack takes over."""
        self.delta = stream.new_empty((num_writers, *stream.shape))
        self.grad: Tensor | None = None

    def take_grad(self) -> Tensor:
        """The gradient stack, made of zeros when the last read of the forward asks first."""
        if self.grad is None:
            self.grad = torch.zeros_like(self.delta)
        return self.grad


class ReadLayer(torch.autograd.Function):
    """Corrections for q, k, v of one layer, and for the part of its MLP's input that precedes the layer.

    Inputs: token; stream `[T, D]`; closed `[G, 1 + R, n]`, row 0 the MLP's, then all q, k, v; the stack; the layer's
    attention norm; q, k, v weights `[H or K, D, C]`.
    Returns: corrections of q `[T, H*C]`, k and v `[T, readers*C]`; of the MLP's input `[T, D]`; the next token.
    """

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        stream: Tensor,
        closed: Tensor,
        stack: DeltaStack,
        norm: Norm,
        weights: tuple[Tensor, Tensor, Tensor],
        sizes: tuple[int, int, int],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(stream, closed)
        ctx.stack, ctx.norm, ctx.weights, ctx.sizes = stack, norm, weights, sizes
        dtype = _compute_dtype(stream)
        outputs = [
            stream.new_empty((len(stream), size * weight.shape[-1]), dtype=dtype)
            for size, weight in zip(sizes, weights, strict=True)
        ]
        mlp = torch.empty_like(stream)
        with _no_autocast(stream):
            for own, rows in _chunks(stream, closed):
                inputs = _reader_inputs(stream[rows], own, stack.delta, rows, mlp[rows])
                normed = norm(inputs)
                normed = (normed[1:] - normed[:1]).to(dtype)
                for part, weight, out in zip(normed.split(sizes), weights, outputs, strict=True):
                    out[rows] = _project(part, weight.to(dtype))
        return *outputs, mlp, token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        stream, closed = ctx.saved_tensors
        stack, (*grad_outputs, grad_mlp, grad_token) = ctx.stack, grads
        grad_stack, n = stack.take_grad(), closed.shape[-1]
        grad_stream, grad_closed = torch.empty_like(stream), torch.zeros_like(closed)
        with _no_autocast(stream):
            for (own, rows), (grad_own, _) in zip(_chunks(stream, closed), _chunks(stream, grad_closed), strict=True):
                inputs = _reader_inputs(stream[rows], own, stack.delta, rows, None)
                grad_normed = torch.empty_like(inputs)
                parts = grad_normed[1:].split(ctx.sizes)
                for part, weight, grad in zip(parts, ctx.weights, grad_outputs, strict=True):
                    _unproject(grad[rows], weight, part)
                torch.sum(grad_normed[1:], dim=0, out=grad_normed[0]).neg_()
                with torch.enable_grad():
                    inputs.requires_grad_()
                    normed = ctx.norm(inputs)
                (grad_inputs,) = torch.autograd.grad(normed, inputs, grad_normed)
                torch.sum(grad_inputs, dim=0, out=grad_stream[rows])
                grad_inputs[0] = grad_mlp[rows]  # row 0 is now the MLP's, as in `closed`
                flat = grad_inputs.view(len(own), -1)
                grad_own.addmm_(flat, _rows(stack.delta, n, rows).T)
                _rows(grad_stack, n, rows).addmm_(own.T, flat)
        if not ctx.needs_input_grad[1]:
            stack.grad = None  # the first read of the forward: nothing is left to collect
        return grad_token, grad_stream, grad_closed, None, None, None, None


class ReadStream(torch.autograd.Function):
    """Input of one reader: `base + closed @ delta[first : first + n]`, at all tokens or at `tokens` only.

    Inputs: token; base `[T, D]`, the stream with the corrections it has already; closed `[G, 1, n]`; the stack; the
    first writer; optionally `tokens`, long `[P]`, as many from each group. Returns: input `[T, D]` (or `[P, D]`; base
    has then P rows); next token.
    """

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        base: Tensor,
        closed: Tensor,
        stack: DeltaStack,
        first: int,
        tokens: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(closed, tokens)
        ctx.stack, ctx.first = stack, first
        delta = _select(stack.delta, first, closed.shape[-1], tokens)
        with _no_autocast(base):
            parts = zip(base.reshape(len(closed), 1, -1), closed, _groups(delta, len(closed)), strict=True)
            out = torch.cat([torch.addmm(own_base, own, rows) for own_base, own, rows in parts]).view_as(base)
        return out, token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_token: Tensor) -> tuple[Tensor | None, ...]:
        closed, tokens = ctx.saved_tensors
        stack, first, n = ctx.stack, ctx.first, closed.shape[-1]
        grad_stack = stack.take_grad()
        flat = grad.reshape(len(closed), 1, -1)
        with _no_autocast(grad):
            delta = _groups(_select(stack.delta, first, n, tokens), len(closed))
            grad_closed = torch.stack([own @ rows.T for own, rows in zip(flat, delta, strict=True)])
            if tokens is None:
                grad_delta = _groups(_select(grad_stack, first, n, None), len(closed))
                for rows, own, own_grad in zip(grad_delta, closed, flat, strict=True):
                    rows.addmm_(own.T, own_grad)
            else:
                parts = [own.T @ own_grad for own, own_grad in zip(closed, flat, strict=True)]
                grad_stack[first : first + n].index_add_(1, tokens, torch.cat(parts, 1).view(n, *grad.shape))
        return grad_token, grad, grad_closed, None, None, None


class WriteHeads(torch.autograd.Function):
    """Leave the deltas of one layer's heads in the stack.

    Inputs: token; own and ablated values `[T, H, C]` before the output projection; its weight `[H, C, D]`; the stack;
    the first head's row. Returns: the next token.
    """

    @staticmethod
    def forward(
        ctx: Any, token: Tensor, own: Tensor, ablated: Tensor, weight: Tensor, stack: DeltaStack, first: int
    ) -> Tensor:
        ctx.stack, ctx.first, ctx.weight, ctx.dtype = stack, first, weight, own.dtype
        with _no_autocast(own):
            difference = (ablated - own).transpose(0, 1).to(weight.dtype)
            torch.bmm(difference, weight, out=stack.delta[first : first + weight.shape[0]])
        return token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_token: Tensor) -> tuple[Tensor | None, ...]:
        grad = ctx.stack.take_grad()[ctx.first : ctx.first + ctx.weight.shape[0]]
        with _no_autocast(grad):
            grad_own = torch.bmm(grad, ctx.weight.transpose(1, 2)).neg_().transpose(0, 1).to(ctx.dtype)
        return grad_token, grad_own, None, None, None, None


class WriteOne(torch.autograd.Function):
    """Leave the delta of one writer, `ablated - own` `[T, D]`, in row `row` of the stack. Returns the next token."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, own: Tensor, ablated: Tensor, stack: DeltaStack, row: int) -> Tensor:
        ctx.stack, ctx.row, ctx.dtype = stack, row, own.dtype
        torch.sub(ablated, own, out=stack.delta[row])
        return token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_token: Tensor) -> tuple[Tensor | None, ...]:
        return grad_token, ctx.stack.take_grad()[ctx.row].neg().to(ctx.dtype), None, None, None


def _reader_inputs(stream: Tensor, closed: Tensor, delta: Tensor, rows: slice, mlp: Tensor | None) -> Tensor:
    """`[1 + R, chunk, D]`: the plain stream, then each attention reader's input. Row 0's mix goes to `mlp`."""
    mixed = (closed @ _rows(delta, closed.shape[1], rows)).view(len(closed), *stream.shape)
    if mlp is not None:
        mlp.copy_(mixed[0])
    mixed[0].zero_()
    return mixed.add_(stream)


def _project(inputs: Tensor, weight: Tensor) -> Tensor:
    """`[readers, chunk, D]` by `[K, D, C]` to `[chunk, readers * C]`; readers may share one of the K weights."""
    readers, chunk, _ = inputs.shape
    out = torch.bmm(inputs.view(weight.shape[0], -1, inputs.shape[-1]), weight)
    return out.view(readers, chunk, -1).transpose(0, 1).reshape(chunk, -1)


def _unproject(grad: Tensor, weight: Tensor, out: Tensor) -> None:
    """Backward of `_project` into `out` `[readers, chunk, D]` from `grad` `[chunk, readers * C]`."""
    readers, chunk, width = out.shape
    grad = grad.view(chunk, readers, -1).transpose(0, 1).to(out.dtype)
    grouped = grad.reshape(weight.shape[0], -1, weight.shape[-1])
    torch.bmm(grouped, weight.transpose(1, 2).to(out.dtype), out=out.view(weight.shape[0], -1, width))


def _rows(stack: Tensor, n: int, rows: slice) -> Tensor:
    """View of the first `n` writers at a chunk of tokens, `[n, chunk * D]`."""
    return stack[:n, rows].view(n, -1)


def _select(stack: Tensor, first: int, n: int, tokens: Tensor | None) -> Tensor:
    """Writers `first` to `first + n`, `[n, tokens * D]`: a view for all tokens, a copy for some."""
    part = stack[first : first + n]
    return (part if tokens is None else part.index_select(1, tokens)).view(n, -1)


def _groups(rows: Tensor, num_groups: int) -> tuple[Tensor, ...]:
    """Views of the groups' parts, `[n, tokens of one group * D]`, of `rows` `[n, tokens * D]`."""
    return rows.view(len(rows), num_groups, -1).unbind(1)


def _chunks(stream: Tensor, per_group: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Slices of tokens of one group whose readers' inputs fill about `CHUNK_BYTES`, with its part of `per_group`."""
    (num_groups, num_readers, _), (tokens, width) = per_group.shape, stream.shape
    total = tokens // num_groups
    size = max(1, CHUNK_BYTES // (num_readers * width * stream.element_size()))
    size = -(-total // -(-total // size))  # the same number of chunks, evenly filled
    for group, own in enumerate(per_group):
        first = group * total
        for start in range(0, total, size):
            yield own, slice(first + start, first + min(start + size, total))


def _no_autocast(tensor: Tensor) -> torch.autocast:
    """Mixing and norms run in the stream's own dtype, whatever autocast says."""
    return torch.autocast(tensor.device.type, enabled=False)


def _compute_dtype(stream: Tensor) -> torch.dtype:
    """Dtype of projections: autocast's if it is on, else the stream's."""
    kind = stream.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else stream.dtype
