"""The write-once stack of deltas, and the reads and writes that touch it, each with its own backward.

Every writer leaves `delta = ablated - own` in its row, once. What closed edges add to a reader's input x is one matrix
product, and the reader's projection follows from the model's own, f, of its stream:

    x = stream + m,   m = (1 - gates) @ delta                                                             (1) input
    q = f + (norm x - norm stream) W                                                                      (2) projection

With every gate open both corrections are exactly zero. W is the reader's weight, the norm's included; where the norm
takes a mean away, that is done after the product, not before. With c what a normed input of zero gives, (2) equals
c + (norm x) W, and that form is what the backward goes through: the parts of f and of the stream's norm cancel.

Layers are read in *blocks*: what all readers of a few layers get from the writers before the block is one product, and
each layer adds what it gets from the block's own writers. That is the same work, but the stack is read and its gradient
updated once per block instead of once per layer, and the products have a shape that keeps a processor busy. The
backward makes inputs anew instead of keeping them, and adds to one gradient stack. Reads and writes are chained by a
*token*, a scalar that each takes and returns: it carries no value, but makes autograd visit them in exactly reverse
order, so a writer's row of the gradient stack is complete when its backward needs it.

Shapes: T tokens (batch x seq), D residual width, A attention readers of a layer, H heads, C head width. The tokens fall
into G groups of equal size, one after the other, each with its own gates: G = 1 where all share them.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 8 * 2**20  # readers' inputs that are scaled and projected at a time
BLOCK_READERS = 96  # of a block, about: docs/performance.md says what other numbers cost


class Projection(NamedTuple):
    """How the attention readers of a layer see their inputs.

    Attributes:
        weight: By reader, the norm's weight included, `[A, C, D]`; with one row more, of ones, if the norm is centred.
        offset: What a normed input of zero gives, `[A, C]`.
        eps: The norm's; None: there is no norm.
        centred: The norm takes the mean over the width away.
    """

    weight: Tensor
    offset: Tensor
    eps: float | None
    centred: bool


class Span(NamedTuple):
    """Where a layer lies in its block.

    Attributes:
        readers: Its readers' rows in `DeltaStack.mixed`: attention readers, then the MLP if there is one.
        writers: The block's writers that come before it.
        far: What the block's readers close of the edges from earlier writers, `[G, readers of the block, writer]`.
    """

    readers: slice
    writers: slice
    far: Tensor


class Workspace:
    """The large buffers of a model's runs, kept for the next one: asking the system for new memory takes long."""

    def __init__(self) -> None:
        self._spare: dict[str, Tensor] = {}

    def take(self, name: str, size: int, like: Tensor) -> Tensor:
        """A buffer of at least `size` values, with the dtype and device of `like`; what it holds is not defined."""
        spare = self._spare.pop(name, None)
        if spare is None or spare.numel() < size or (spare.dtype, spare.device) != (like.dtype, like.device):
            with torch.inference_mode(False):  # a later run may want gradients
                spare = torch.empty(size, dtype=like.dtype, device=like.device)
        return spare

    def give_back(self, name: str, buffer: Tensor) -> None:
        """Keep `buffer`, which nobody uses any more."""
        self._spare[name] = buffer

    def __reduce__(self) -> tuple[type["Workspace"], tuple[()]]:
        """A copy of a model starts without buffers."""
        return Workspace, ()


class DeltaStack:
    """Storage shared by the reads and writes of one forward pass.

    Attributes:
        delta: `ablated - own` of every writer, `[writer, T, D]`.
        mixed: Of one block at a time, `[reader, T, D]`: what closed edges add to the readers' inputs; in the backward
            these inputs, and then their gradients.
        grad: Gradient of `delta`, while there is one.
        all_open: No edge is closed, as in attribution: there is nothing to mix, only gates' gradients to collect.
    """

    def __init__(
        self, num_writers: int, stream: Tensor, block_readers: int, workspace: Workspace, all_open: bool
    ) -> None:
        """Make room.

        Args:
            num_writers: Rows of `delta`.
            stream: The embedding output `[T, D]`, whose dtype, device and size the stack takes over.
            block_readers: Rows of `mixed`.
            workspace: Where buffers come from, and go when the stack is no longer used.
            all_open: No edge is closed.
        """
        self.all_open = all_open
        self._workspace, self._made_anew = workspace, False
        self._buffers: dict[str, Tensor] = {}
        self.delta = self._take("delta", (num_writers, *stream.shape), stream)
        self.mixed = self._take("mixed", (block_readers, *stream.shape), stream)
        self.grad: Tensor | None = None

    def _take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        size = math.prod(shape)
        self._buffers[name] = self._workspace.take(name, size, like)
        return self._buffers[name][:size].view(shape)

    def __del__(self) -> None:
        """Give the buffers back."""
        for name, buffer in self._buffers.items():
            self._workspace.give_back(name, buffer)

    def take_grad(self) -> Tensor:
        """The gradient stack, made of zeros when the last read of the forward asks first."""
        if self.grad is None:
            self.grad = self._take("grad", tuple(self.delta.shape), self.delta).zero_()
        return self.grad

    def drop_grad(self) -> None:
        """Nobody needs the gradients any more."""
        if self.grad is not None:
            self.grad = None
            self._workspace.give_back("grad", self._buffers.pop("grad"))

    def make_anew(self, far: Tensor) -> None:
        """In the backward, mix the block's inputs again, once: `far` is that of a `Span`."""
        if not self._made_anew:
            self.mix(far, *_from_first(far), anew=True)
            self._made_anew = True

    def mix(self, closed: Tensor, writers: slice, readers: slice, anew: bool = False) -> None:
        """Add to the rows `readers` of `mixed`, or put there, what `closed` `[G, reader, writer]` lets through."""
        delta = self.delta[writers]
        if self.all_open or not len(delta):
            return
        out = self.mixed[readers]
        for own, rows, part in zip(closed, _groups(delta, len(closed)), _groups(out, len(closed)), strict=True):
            part.addmm_(own, rows, beta=0 if anew else 1)

    def unmix(self, closed: Tensor, writers: slice, readers: slice, collect: bool = True) -> Tensor:
        """Backward of `mix` from the gradients in `mixed`: collects those of `delta`, returns that of `closed`."""
        delta, num = self.delta[writers], len(closed)
        if not len(delta):
            return torch.zeros_like(closed)
        grads = _groups(self.mixed[readers], num)
        if collect and not self.all_open:
            for rows, own, part in zip(_groups(self.take_grad()[writers], num), closed, grads, strict=True):
                rows.addmm_(own.T, part)
        return torch.stack([part @ rows.T for part, rows in zip(grads, _groups(delta, num), strict=True)])

    def done_with_block(self) -> None:
        """The next layer in the backward is of another block."""
        self._made_anew = False


class ReadBlock(torch.autograd.Function):
    """What all readers of a block get from the writers before it, left in `mixed`.

    Inputs: token; closed `[G, readers, writers]`; the stack; whether the block is the first. Returns: the next token.
    """

    @staticmethod
    def forward(ctx: Any, token: Tensor, closed: Tensor, stack: DeltaStack, first: bool) -> Tensor:
        ctx.save_for_backward(closed)
        ctx.stack, ctx.first = stack, first
        with _no_autocast(closed):
            stack.mix(closed, *_from_first(closed), anew=True)
        return token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_token: Tensor) -> tuple[Tensor | None, ...]:
        (closed,), stack = ctx.saved_tensors, ctx.stack
        if ctx.first:
            stack.drop_grad()  # what is left is the gradient of the embeddings, which nothing needs
        with _no_autocast(closed):
            grad_closed = stack.unmix(closed, *_from_first(closed), collect=not ctx.first)
        stack.done_with_block()
        return grad_token, grad_closed, None, None


class ReadLayer(torch.autograd.Function):
    """Inputs of one layer's readers, from the block's own writers too: q, k, v of the one kind, the mix of the other.

    Inputs: token; stream `[T, D]`; closed `[G, readers of the layer, writers of the block before it]`; the model's own
    projection `[T, A, C]`; the readers' `Projection`; the stack; the layer's `Span`.
    Returns: q, k, v as one `[T, A, C]`; what closed edges add to the MLP's input `[T, D]` (nothing, `[0]`, without an
    MLP); the next token.
    """

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        stream: Tensor,
        closed: Tensor,
        fused: Tensor,
        projection: Projection,
        stack: DeltaStack,
        span: Span,
    ) -> tuple[Tensor, Tensor, Tensor]:
        readers = stack.mixed[span.readers]
        with _no_autocast(stream):
            if stack.all_open:
                readers[fused.shape[1] :].zero_()
                out, scale, mean = fused.clone(), *_statistics(stream, projection)
            else:
                stack.mix(closed, span.writers, span.readers)
                out, scale, mean = _project(readers[: fused.shape[1]], stream, fused, projection)
        ctx.save_for_backward(stream, closed, out, scale, mean)
        ctx.projection, ctx.stack, ctx.span = projection, stack, span
        return out, readers[fused.shape[1] :].flatten(0, 1).clone(), token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mlp: Tensor, grad_token: Tensor) -> tuple[Tensor | None, ...]:
        stream, closed, out, scale, mean = ctx.saved_tensors
        projection, stack, span = ctx.projection, ctx.stack, ctx.span
        readers = stack.mixed[span.readers]
        attention = readers[: out.shape[1]]
        with _no_autocast(stream):
            if projection.eps is not None and not stack.all_open:  # without a norm, inputs are not needed
                stack.make_anew(span.far)
                stack.mix(closed, span.writers, span.readers)
            grad_stream = _unproject(attention, stream, grad, out, scale, mean, projection, stack.all_open)
            readers[out.shape[1] :] = grad_mlp.view(-1, *stream.shape)
            grad_closed = stack.unmix(closed, span.writers, span.readers)
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


def _project(mix: Tensor, stream: Tensor, fused: Tensor, projection: Projection) -> tuple[Tensor, Tensor, Tensor]:
    """Equation (2) for mixes `[A, T, D]`: projections `[T, A, C]`, and the norm's scale and mean, `[A, T]` each."""
    width, out = fused.shape[-1], torch.empty_like(fused)
    weight = projection.weight[:, :width].to(fused.dtype).transpose(1, 2)
    scale, mean = (mix.new_empty(mix.shape[:2], dtype=_exact(mix.dtype)) for _ in range(2))
    base, base_mean = _statistics(stream, projection)
    exact = stream.to(base.dtype)
    normed = exact * base[:, None]
    sums = projection.weight[:, :width].sum(-1, dtype=base.dtype) if projection.centred else None
    room = _room(mix, exact)
    for readers in _chunks(mix):
        inputs = mix[readers]
        if projection.eps is not None:
            inputs = _add(inputs, exact, room)
            scale[readers], mean[readers] = _statistics(inputs, projection)
            inputs.mul_(scale[readers, :, None]).sub_(normed)
        change = torch.bmm(inputs.to(fused.dtype), weight[readers])
        if sums is not None:
            shift = mean[readers] * scale[readers] - base_mean * base
            change = change - shift[..., None] * sums[readers, None]
        out[:, readers] = fused[:, readers] + change.transpose(0, 1).to(out.dtype)
    return out, scale, mean


def _statistics(inputs: Tensor, projection: Projection) -> tuple[Tensor, Tensor]:
    """What the norm multiplies inputs `[..., D]` by, and their mean if it takes it away (else 0), `[...]` each."""
    dtype, eps = _exact(inputs.dtype), projection.eps
    scale, mean = (inputs.new_full(inputs.shape[:-1], value, dtype=dtype) for value in (1.0, 0.0))
    if eps is None:
        return scale, mean
    inputs = inputs.to(dtype)
    variance = torch.linalg.vector_norm(inputs, dim=-1).square() / inputs.shape[-1]
    if projection.centred:
        mean = inputs.mean(-1)
        variance -= mean.square()
    return (variance + eps).rsqrt(), mean


def _unproject(
    mix: Tensor,
    stream: Tensor,
    grad: Tensor,
    out: Tensor,
    scale: Tensor,
    mean: Tensor,
    projection: Projection,
    all_open: bool,
) -> Tensor:
    """Backward of `_project` from `grad` `[T, A, C]`: `mix` becomes the gradient of the inputs; their sum `[T, D]`.

    With `all_open` every input is the stream, whatever is in `mix`; `scale` and `mean` are those of the stream, `[T]`.
    """
    weight, (width, total) = projection.weight.to(mix.dtype), (mix.shape[-1], torch.zeros_like(stream))
    scaled, pull = grad.to(_exact(mix.dtype)).transpose(0, 1), None
    if projection.eps is not None:
        scale, mean = (part.expand(len(mix), -1) for part in (scale, mean))
        along = (grad * (out - projection.offset)).sum(-1, dtype=scale.dtype).T  # through the scale: along the input
        pull, scaled = scale.square() * along / width, scaled * scale[..., None]
        if projection.centred:
            sums = weight[:, :-1].sum(-1, dtype=scaled.dtype)
            shift = pull * mean - (scaled * sums[:, None]).sum(-1) / width
            scaled = torch.cat([scaled, shift[..., None]], -1)
        pull = pull.neg_()[..., None]
    scaled, exact = scaled.to(mix.dtype), stream.to(scaled.dtype)
    room = _room(mix, exact)
    for readers in _chunks(mix):
        inputs = mix[readers]
        if pull is None:
            torch.bmm(scaled[readers], weight[readers], out=inputs)
        else:
            whole = exact if all_open else _add(inputs, exact, room)
            same = inputs.dtype == whole.dtype
            scaled_inputs = torch.mul(whole, pull[readers], out=inputs if same else room[: len(inputs)])
            if not same:
                inputs.copy_(scaled_inputs)
            inputs.baddbmm_(scaled[readers], weight[readers])
        total += inputs.sum(0)
    return total


def _from_first(closed: Tensor) -> tuple[slice, slice]:
    """The writers and the readers that `closed` `[G, reader, writer]` is for, both from the first one on."""
    return slice(0, closed.shape[-1]), slice(0, closed.shape[1])


def _room(mix: Tensor, exact: Tensor) -> Tensor:
    """Space for the inputs of one chunk of readers, in the dtype of `exact`."""
    return exact.new_empty((next(_chunks(mix)).stop, *exact.shape))


def _add(mix: Tensor, exact: Tensor, room: Tensor) -> Tensor:
    """`mix + exact` in `room`. Adding tensors of two dtypes at once would be many times slower."""
    room = room[: len(mix)]
    return torch.add(mix, exact, out=room) if mix.dtype == exact.dtype else room.copy_(mix).add_(exact)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the norms' statistics: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _select(stack: Tensor, first: int, n: int, tokens: Tensor | None) -> Tensor:
    """Writers `first` to `first + n`, `[n, tokens * D]`: a view for all tokens, a copy for some."""
    part = stack[first : first + n]
    if tokens is not None:  # whole rows of one matrix are copied several times faster than along the middle
        rows = torch.arange(n, device=tokens.device)[:, None] * part.shape[1] + tokens
        part = part.flatten(0, 1).index_select(0, rows.flatten())
    return part.reshape(n, -1)


def _groups(rows: Tensor, num_groups: int) -> tuple[Tensor, ...]:
    """Views of the groups' parts, `[n, tokens of one group * D]`, of `rows` `[n, tokens * D]`."""
    return rows.view(len(rows), num_groups, -1).unbind(1)


def _chunks(mix: Tensor) -> Iterator[slice]:
    """Slices of the readers of `[readers, T, D]` that hold about `CHUNK_BYTES`, evenly filled."""
    size = max(1, CHUNK_BYTES // (mix[0].numel() * _exact(mix.dtype).itemsize))
    size = -(-len(mix) // -(-len(mix) // size))
    for start in range(0, len(mix), size):
        yield slice(start, min(start + size, len(mix)))


def _no_autocast(tensor: Tensor) -> torch.autocast:
    """Mixing and norms run in the stream's own dtype, whatever autocast says."""
    return torch.autocast(tensor.device.type, enabled=False)
