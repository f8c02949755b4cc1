"""The write-once stack of deltas, and the reads and writes that touch it, each with its own backward.

Every writer leaves `delta = ablated - own` in its row, once. A reader's input x is one matrix product, to which the
stream comes as one row more, with the coefficient 1; its projection q follows:

    x = stream + (1 - gates) @ delta                                                                      (1) input
    q = c + s x W                                                                                         (2) projection

W is the reader's weight, the norm's included, and c what a normed input of zero gives. s is the norm's scale, a number
per token; where the norm takes the mean away, W does it instead: its sum over the width is 0. With every gate open all
inputs are the stream, and the model's own projection of it is taken: the logits are then the model's, bit for bit.

Layers are read in *segments*: what all readers of a few layers get from the writers before the segment is one product,
and each layer adds what it gets from the segment's own writers. That is the same work, but the stack is read and its
gradient updated once per segment instead of once per layer, and the products have a shape that keeps a processor busy.
The backward makes inputs anew instead of keeping them, and adds to one gradient stack. Reads and writes are chained by
a *chain*, a scalar that each takes and returns: it carries no value, but makes autograd visit them in exactly reverse
order, so a writer's row of the gradient stack is complete when its backward needs it.

Shapes: T tokens (batch x seq), D residual width, A attention readers of a layer, H heads, C head width. The tokens fall
into G groups of equal size, one after the other, each with its own gates: G = 1 where all share them.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgeprune.models.projections import Projection

CHUNK_BYTES = 8 * 2**20  # readers' inputs that are scaled and projected at a time
PIECES = 8  # that long sums of products fall into
SEGMENT_READERS = 96  # of a segment, about: docs/performance.md says what other numbers cost


class Span(NamedTuple):
    """Where a layer lies in its segment.

    Attributes:
        readers: Its readers' rows in `DeltaStack.mixed`: attention readers, then the MLP if there is one.
        writers: The segment's writers that come before it.
        earlier: What the segment's readers close of edges from earlier writers, `[G, readers of the segment, writer]`.
        base: The stream before the segment `[T, D]`.
        num_streams: How many of the layer's readers take in the stream here: those of attention, which come first.
    """

    readers: slice
    writers: slice
    earlier: Tensor
    base: Tensor
    num_streams: int


class Workspace:
    """The large buffers of a model's runs, kept for the next one: asking the system for new memory takes long."""

    def __init__(self) -> None:
        self._spare: dict[str, Tensor] = {}

    def take(self, name: str, size: int, like: Tensor) -> Tensor:
        """A buffer `[size or more]` with the dtype and device of `like`; what it holds is not defined."""
        spare = self._spare.pop(name, None)
        if spare is None or spare.numel() < size or (spare.dtype, spare.device) != (like.dtype, like.device):
            with torch.inference_mode(False):  # a later run may want gradients
                spare = torch.empty(size, dtype=like.dtype, device=like.device)
        return spare

    def give_back(self, name: str, buffer: Tensor) -> None:
        """Keep a buffer `[size]` that nobody uses any more."""
        self._spare[name] = buffer

    def __reduce__(self) -> tuple[type["Workspace"], tuple[()]]:
        """A copy of a model starts without buffers."""
        return Workspace, ()


class DeltaStack:
    """Storage shared by the reads and writes of one forward pass.

    Attributes:
        delta: `ablated - own` of every writer, `[writer, T, D]`.
        mixed: Of one segment at a time, `[reader, T, D]`: attention readers' inputs, and what closed edges add to those
            of MLPs; in the backward their gradients.
        grad: Gradient of `delta`, while there is one; none with `all_open`.
        all_open: No edge is closed, as in attribution: there is nothing to mix, and no delta has a gradient.
    """

    def __init__(
        self, num_writers: int, stream: Tensor, segment_readers: int, workspace: Workspace, all_open: bool
    ) -> None:
        """Make room.

        Args:
            num_writers: Rows of `delta`.
            stream: The embedding output `[T, D]`, whose dtype, device and size the stack takes over.
            segment_readers: Rows of `mixed`.
            workspace: Where buffers come from, and go when the stack is no longer used.
            all_open: No edge is closed.
        """
        self.all_open = all_open
        self._workspace, self._made_anew = workspace, False
        self._buffers: dict[str, Tensor] = {}
        self.delta = self._take("delta", (num_writers, *stream.shape), stream)
        self.mixed = self._take("mixed", (segment_readers, *stream.shape), stream)
        self.grad: Tensor | None = None

    def _take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
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

    def make_anew(self, span: Span) -> None:
        """In the backward, mix the segment's inputs again, once."""
        if not self._made_anew:
            self.mix_earlier(span.earlier, span.base, span.num_streams)
            self._made_anew = True

    def mix_earlier(self, closed: Tensor, stream: Tensor, num_streams: int) -> None:
        """Put into `mixed` what `closed` `[G, reader, writer]` of a segment lets through; the stream as in `mix`."""
        self.mix(closed, *_from_first(closed), stream, num_streams, anew=True)

    def mix(
        self, closed: Tensor, writers: slice, readers: slice, stream: Tensor, num_streams: int, anew: bool = False
    ) -> None:
        """Add to the rows `readers` of `mixed`, or put there, what `closed` `[G, reader, writer]` lets through.

        The first `num_streams` of these rows get `stream` `[T, D]` too: it borrows the row of `delta` behind `writers`.
        """
        if self.all_open or writers.start == writers.stop:
            return
        closed = _with_stream(closed, num_streams)
        borrowed = self.delta[writers.stop]
        its_own = borrowed.clone()  # a second backward through the same graph wants it
        borrowed.copy_(stream)
        delta, out = self.delta[writers.start : writers.stop + 1], self.mixed[readers]
        for own, rows, part in zip(closed, _groups(delta, len(closed)), _groups(out, len(closed)), strict=True):
            part.addmm_(own, rows, beta=0 if anew else 1)
        borrowed.copy_(its_own)

    def unmix_earlier(self, closed: Tensor, collect: bool) -> Tensor:
        """Backward of `mix_earlier` from the gradients in `mixed`: returns that of `closed`, collects `delta`'s."""
        writers, readers = _from_first(closed)
        if collect and not self.all_open:
            self._collect(closed, writers, readers)
        return self._slopes(closed, writers, readers)

    def unmix(self, closed: Tensor, writers: slice, readers: slice, num_streams: int) -> tuple[Tensor, Tensor]:
        """Backward of `mix` from the gradients in `mixed`: collects those of `delta`.

        Returns:
            The gradients of the stream `[T, D]` and of `closed`.
        """
        if self.all_open or writers.start == writers.stop:
            grad_stream = self.mixed[readers][:num_streams].sum(0)
        else:  # as `mix`; the gradient of the writer behind is used up
            borrowed = self.take_grad()[writers.stop].zero_()
            self._collect(_with_stream(closed, num_streams), slice(writers.start, writers.stop + 1), readers)
            grad_stream = borrowed.clone()
        return grad_stream, self._slopes(closed, writers, readers)

    def _collect(self, closed: Tensor, writers: slice, readers: slice) -> None:
        """Add to the gradients of `delta` what comes from those in `mixed`."""
        num, grad = len(closed), self.take_grad()[writers]
        for rows, own, part in zip(_groups(grad, num), closed, _groups(self.mixed[readers], num), strict=True):
            rows.addmm_(own.T, part)

    def _slopes(self, closed: Tensor, writers: slice, readers: slice) -> Tensor:
        """The gradient of `closed` from the gradients in `mixed`."""
        if writers.start == writers.stop:
            return torch.zeros_like(closed)
        pairs = (_groups(rows, len(closed)) for rows in (self.mixed[readers], self.delta[writers]))
        return torch.stack([_sums_of_products(grad, delta) for grad, delta in zip(*pairs, strict=True)])

    def select(self, first: int, n: int, tokens: Tensor | None) -> Tensor:
        """Deltas of writers `first` to `first + n`, `[n, tokens * D]`: a view for all tokens, a copy for some.

        There is one copy at a time.
        """
        part = self.delta[first : first + n]
        if tokens is not None:  # whole rows of one matrix are copied several times faster than along the middle
            room = self._take("selected", (n * len(tokens), part.shape[-1]), part)
            part = torch.index_select(part.flatten(0, 1), 0, _places(n, part.shape[1], tokens), out=room)
        return part.reshape(n, -1)

    def done_with_segment(self) -> None:
        """The next layer in the backward is of another segment."""
        self._made_anew = False


class ReadSegment(torch.autograd.Function):
    """What all readers of a segment get from the writers before it, left in `mixed`.

    Inputs: the chain; closed `[G, readers, writers]`; the stream before the segment `[T, D]`, which the first
    `num_streams` readers take in; that number; the stack; whether the segment is the first. Returns: the next chain.
    """

    @staticmethod
    def forward(
        ctx: Any, chain: Tensor, closed: Tensor, stream: Tensor, num_streams: int, stack: DeltaStack, first: bool
    ) -> Tensor:
        ctx.save_for_backward(closed)
        ctx.stack, ctx.first = stack, first
        with _no_autocast(closed):
            stack.mix_earlier(closed, stream, num_streams)
        return chain.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_chain: Tensor) -> tuple[Tensor | None, ...]:
        (closed,), stack = ctx.saved_tensors, ctx.stack
        if ctx.first:
            stack.drop_grad()  # what is left is the gradient of the embeddings, which nothing needs
        with _no_autocast(closed):
            grad_closed = stack.unmix_earlier(closed, collect=not ctx.first)
        stack.done_with_segment()
        return grad_chain, grad_closed, None, None, None, None  # of the stream: see `ReadLayer`


class ReadLayer(torch.autograd.Function):
    """Inputs of one layer's readers, from the segment's own writers too: q, k, v of the one kind, the mix of the other.

    Inputs: the chain; stream `[T, D]`; closed `[G, readers of the layer, writers of the segment before it]`; the
    model's own projection of the stream `[T, A, C]` if every gate is open, else None; a function that makes the
    readers' `Projection`; the stack; the layer's `Span`.
    Returns: q, k, v as one `[T, A, C]`; what closed edges add to the MLP's input `[T, D]` (nothing, `[0]`, without an
    MLP); the next chain.
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
        with _no_autocast(stream):
            if fused is not None:
                readers[span.num_streams :].zero_()
                exact = _exact(stream.dtype)
                mean = stream.mean(-1, dtype=exact) * projection.centred
                out, scale = fused.clone(), _scale(stream, mean, projection)
            else:
                stack.mix(closed, span.writers, span.readers, stream, span.num_streams)
                out, scale, mean = _project(readers[: span.num_streams], projection)
        ctx.save_for_backward(stream, closed, out, scale, mean)
        ctx.projection_of = (lambda: projection) if projection.stays else projection_of
        ctx.stack, ctx.span = stack, span
        return out, readers[span.num_streams :].flatten(0, 1).clone(), chain.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mlp: Tensor, grad_chain: Tensor) -> tuple[Tensor | None, ...]:
        stream, closed, out, scale, mean = ctx.saved_tensors
        projection, stack, span = ctx.projection_of(), ctx.stack, ctx.span
        readers = stack.mixed[span.readers]
        attention = readers[: span.num_streams]
        with _no_autocast(stream):
            if projection.eps is not None and not stack.all_open:  # without a norm, inputs are not needed
                stack.make_anew(span)
                stack.mix(closed, span.writers, span.readers, stream, span.num_streams)
            _unproject(attention, stream if stack.all_open else None, grad, out, scale, mean, projection)
            readers[span.num_streams :] = grad_mlp.view(-1, *stream.shape)
            grad_stream, grad_closed = stack.unmix(closed, span.writers, span.readers, span.num_streams)
        return grad_chain, grad_stream, grad_closed, None, None, None, None


class ReadStream(torch.autograd.Function):
    """Input of one reader: `base + closed @ delta[first : first + n]`, at all tokens or at `tokens` only.

    Inputs: the chain; base `[T, D]`, the stream with the corrections it has already; closed `[G, 1, n]`; the stack; the
    first writer; optionally `tokens`, long `[P]`, as many from each group. Returns: input `[T, D]` (or `[P, D]`; base
    has then P rows); next chain.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chain: Tensor,
        base: Tensor,
        closed: Tensor,
        stack: DeltaStack,
        first: int,
        tokens: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(closed, tokens)
        ctx.stack, ctx.first = stack, first
        delta = stack.select(first, closed.shape[-1], tokens)
        with _no_autocast(base):
            parts = zip(base.reshape(len(closed), 1, -1), closed, _groups(delta, len(closed)), strict=True)
            out = torch.cat([torch.addmm(own_base, own, rows) for own_base, own, rows in parts]).view_as(base)
        return out, chain.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_chain: Tensor) -> tuple[Tensor | None, ...]:
        closed, tokens = ctx.saved_tensors
        stack, first, n = ctx.stack, ctx.first, closed.shape[-1]
        flat = grad.reshape(len(closed), 1, -1)
        with _no_autocast(grad):
            delta = stack.select(first, n, tokens)
            pairs = zip(flat, _groups(delta, len(closed)), strict=True)
            grad_closed = torch.stack([own @ rows.T for own, rows in pairs])
            if stack.all_open:
                return grad_chain, grad, grad_closed, None, None, None
            grad_rows = stack.take_grad()[first : first + n]
            if tokens is None:
                for rows, own, part in zip(_groups(grad_rows, len(closed)), closed, flat, strict=True):
                    rows.addmm_(own.T, part)
            else:
                for rows, own, part in zip(_groups(delta, len(closed)), closed, flat, strict=True):  # used up
                    torch.mul(own.T, part, out=rows)
                places, moves = _places(n, grad_rows.shape[1], tokens), delta.view(-1, grad.shape[-1])
                grad_rows.flatten(0, 1).index_add_(0, places, moves)
        return grad_chain, grad, grad_closed, None, None, None


class WriteHeads(torch.autograd.Function):
    """Leave the deltas of one layer's heads in the stack.

    Inputs: the chain; own and ablated values `[T, H, C]` before the output projection; a function that gives its weight
    `[H, C, D]`; the stack; the first head's row. Returns: the next chain.
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
        with _no_autocast(own):
            weight = weight_of()
            difference = (ablated - own).transpose(0, 1).to(weight.dtype)
            torch.bmm(difference, weight, out=stack.delta[first : first + weight.shape[0]])
        return chain.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_chain: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.stack.all_open:
            return grad_chain, None, None, None, None, None
        with _no_autocast(grad_chain):
            weight = ctx.weight_of()
            grad = ctx.stack.take_grad()[ctx.first : ctx.first + weight.shape[0]]
            grad_own = torch.bmm(grad, weight.transpose(1, 2)).neg_().transpose(0, 1).to(ctx.dtype)
        return grad_chain, grad_own, None, None, None, None


class WriteOne(torch.autograd.Function):
    """Leave the delta of one writer, `ablated - own` `[T, D]`, in row `row` of the stack. Returns the next chain."""

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


def _project(inputs: Tensor, projection: Projection) -> tuple[Tensor, Tensor, Tensor]:
    """Equation (2) for inputs `[A, T, D]`: projections `[T, A, C]`, and the norm's scale and mean, `[A, T]` each."""
    offset, exact = projection.offset, _exact(inputs.dtype)
    weight, width = projection.weight.to(offset.dtype), offset.shape[-1]
    out = offset.new_empty((inputs.shape[1], *offset.shape))
    scale, mean = inputs.new_empty((2, *inputs.shape[:2]), dtype=exact)
    offset = offset.to(exact)
    for readers in _chunks(inputs):
        product = torch.bmm(inputs[readers].to(weight.dtype), weight[readers]).to(exact)
        mean[readers] = product[..., -1] / inputs.shape[-1] if projection.centred else 0
        scale[readers] = _scale(inputs[readers], mean[readers], projection)
        product = product[..., :width].mul_(scale[readers, :, None]).add_(offset[readers, None])
        out[:, readers] = product.transpose(0, 1)
    return out, scale, mean


def _scale(inputs: Tensor, mean: Tensor, projection: Projection) -> Tensor:
    """What the norm multiplies inputs `[..., D]` by, `[...]`, given their mean, or 0 if it takes none away."""
    if projection.eps is None:
        return torch.ones_like(mean)
    length = torch.linalg.vector_norm(inputs, dim=-1, dtype=mean.dtype)
    return (length.square() / inputs.shape[-1] - mean.square() + projection.eps).rsqrt()


def _unproject(
    inputs: Tensor,
    stream: Tensor | None,
    grad: Tensor,
    out: Tensor,
    scale: Tensor,
    mean: Tensor,
    projection: Projection,
) -> None:
    """Backward of `_project` from `grad` `[T, A, C]`: `inputs` `[A, T, D]` become their gradients.

    With `stream`, that is every input, whatever is in `inputs`; `scale` and `mean` are then those of the stream, `[T]`.
    """
    exact, weight = _exact(inputs.dtype), projection.weight.to(inputs.dtype).mT
    scaled, pull = grad.new_empty((len(inputs), len(grad), weight.shape[1]), dtype=exact), None
    head, grad = scaled[..., : grad.shape[-1]], grad.to(exact)
    head.copy_(grad.transpose(0, 1))
    if projection.eps is not None:
        scale, mean = (part.expand(len(inputs), -1) for part in (scale, mean))
        along = (grad * (out - projection.offset)).sum(-1).T  # through the scale: along the input
        pull = scale.square() * along / inputs.shape[-1]
        head.mul_(scale[..., None])
        if projection.centred:
            scaled[..., -1] = pull * mean
        pull = pull.neg_().to(inputs.dtype)[..., None]
    scaled = scaled.to(inputs.dtype)
    for readers in _chunks(inputs):
        part = inputs[readers]
        if pull is None:
            torch.bmm(scaled[readers], weight[readers], out=part)
        else:
            torch.mul(part if stream is None else stream, pull[readers], out=part)
            part.baddbmm_(scaled[readers], weight[readers])


def _with_stream(closed: Tensor, num_streams: int) -> Tensor:
    """`closed` `[G, reader, writer]` with one writer more, the stream, which the first readers take in as it is."""
    column = (torch.arange(closed.shape[1], device=closed.device) < num_streams).to(closed)
    return torch.cat([closed, column[:, None].expand(len(closed), -1, 1)], -1)


def _sums_of_products(rows: Tensor, others: Tensor) -> Tensor:
    """`rows @ others.T` for few very long rows, `[a, n]` and `[b, n]`.

    In float32 as a sum over pieces of them, which threads share better: up to twice as fast on two.
    """
    pieces = PIECES if rows.dtype.itemsize >= 4 and not rows.shape[1] % PIECES else 1
    if pieces == 1:
        return rows @ others.T
    return torch.bmm(
        rows.unflatten(1, (pieces, -1)).transpose(0, 1), others.unflatten(1, (pieces, -1)).permute(1, 2, 0)
    ).sum(0)


def _from_first(closed: Tensor) -> tuple[slice, slice]:
    """The writers and the readers that `closed` `[G, reader, writer]` is for, both from the first one on."""
    return slice(0, closed.shape[-1]), slice(0, closed.shape[1])


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the norms' statistics: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _places(n: int, num_tokens: int, tokens: Tensor) -> Tensor:
    """Where `tokens` of `n` writers lie in a stack's rows of one token each, long `[n * P]`."""
    return (torch.arange(n, device=tokens.device)[:, None] * num_tokens + tokens).flatten()


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
