"""The write-once stack of deltas: what every writer of a run leaves behind, and what readers take from it.

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
The backward turns inputs into their gradients, where they lie, and adds to one gradient stack. Inputs that there was no
room to keep are mixed anew for it.

The products themselves are in `read_ops.py`, by device; what autograd sees is in `read_functions.py`. Shapes: T tokens
(batch x seq) in the order of `DeltaStack.groups`, D residual width, G groups of them with gates of their own.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from edgeprune.models.read_ops import ReadOps
from edgeprune.models.token_groups import ALIKE, TokenGroups


class InputRows(NamedTuple):
    """Readers whose inputs lie in memory at a time.

    Attributes:
        shared: Of the longest segment. Segments take turns, and the last one is there when the backward begins.
        own: By segment, of those whose inputs stay until the backward.
    """

    shared: int
    own: Mapping[int, int]

    @property
    def total(self) -> int:
        """All of them."""
        return self.shared + sum(self.own.values())


class Span(NamedTuple):
    """Where a layer lies in its segment.

    Attributes:
        segment: Its number.
        readers: Its readers' rows in `DeltaStack.mixed`: attention readers, then the MLP if there is one.
        writers: The segment's writers that come before it.
        closed_before: What the segment's readers close of the edges from earlier writers, `[G, readers of the segment,
            writer]`.
        stream_before: The stream before the segment `[T, D]`.
        num_streams: How many of the layer's readers take in the stream here: those of attention, which come first.
    """

    segment: int
    readers: slice
    writers: slice
    closed_before: Tensor
    stream_before: Tensor
    num_streams: int


class Workspace:
    """The large buffers of a model's runs, kept for the next one: asking the system for new memory takes long."""

    def __init__(self) -> None:
        self._spare: dict[str, Tensor] = {}

    def take(self, name: str, size: int, like: Tensor) -> Tensor:
        """A buffer `[at least size]`, with the dtype and device of `like`; what it holds is not defined."""
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
        groups: Of tokens, and their order in all of this.
    """

    def __init__(
        self,
        num_writers: int,
        stream: Tensor,
        rows: InputRows,
        workspace: Workspace,
        ops: ReadOps,
        *,
        all_open: bool,
        groups: TokenGroups = ALIKE,
    ) -> None:
        """Make room.

        Args:
            num_writers: Rows of `delta`.
            stream: The embedding output `[T, D]`, whose dtype, device and size the stack takes over.
            rows: Of `mixed`.
            workspace: Where buffers come from, and go when the stack is no longer used.
            ops: The operations of the stream's device.
            all_open: No edge is closed.
            groups: Of tokens.
        """
        self.all_open, self.ops, self.groups = all_open, ops, groups
        self._workspace, self._rows, self._remade = workspace, rows, False
        self._holder = -1  # segment that has the shared rows
        self._whole: dict[int, set[int]] = {}  # by segment, layers (their first rows) whose inputs lie in its rows
        self._buffers: dict[str, Tensor] = {}
        self.delta = self._take("delta", (num_writers, *stream.shape), stream)
        self.enter(0)
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

    def enter(self, segment: int) -> None:
        """Let `mixed` be the rows of a segment; it has them until another one enters that has none of its own."""
        own = self._rows.own.get(segment)
        if own is None and segment != self._holder:
            self._whole.pop(self._holder, None)
            self._holder = segment
        name, rows = ("mixed", self._rows.shared) if own is None else (f"mixed {segment}", own)
        self.mixed = self._take(name, (rows, *self.delta.shape[1:]), self.delta)

    def made(self, span: Span) -> None:
        """The inputs of a layer are in `mixed`."""
        self._whole.setdefault(span.segment, set()).add(span.readers.start)

    def use_up(self, span: Span) -> bool:
        """Whether the inputs of a layer are in `mixed` still; they do not stay there."""
        layers = self._whole.get(span.segment, set())
        found = span.readers.start in layers
        layers.discard(span.readers.start)
        return found

    def remake(self, span: Span) -> None:
        """In the backward, mix the segment's inputs again, once."""
        if not self._remade:
            self._whole.pop(span.segment, None)
            self.mix_before(span.closed_before, span.stream_before, span.num_streams)
            self._remade = True

    def mix_before(self, closed: Tensor, stream: Tensor, num_streams: int) -> None:
        """Put into `mixed` what `closed` `[G, reader, writer]` of a segment lets through; the stream as in `mix`."""
        self.mix(closed, *_from_first(closed), stream, num_streams, add=False)

    def mix(
        self, closed: Tensor, writers: slice, readers: slice, stream: Tensor, num_streams: int, *, add: bool = True
    ) -> None:
        """Add to the rows `readers` of `mixed`, or put there, what `closed` `[G, reader, writer]` lets through.

        The first `num_streams` of these rows get `stream` `[T, D]` too: it borrows the row of `delta` behind `writers`.
        """
        if self.all_open or writers.start == writers.stop:
            return
        borrowed = self.delta[writers.stop]
        saved = borrowed.clone()  # a second backward through the same graph wants it
        borrowed.copy_(stream)
        delta = self.delta[writers.start : writers.stop + 1]
        self.ops.mix(_with_stream(closed, num_streams), delta, self.mixed[readers], add=add, sizes=self.groups.sizes)
        borrowed.copy_(saved)

    def unmix_before(self, closed: Tensor, collect: bool) -> Tensor:
        """Backward of `mix_before` from the gradients in `mixed`: that of `closed`; those of `delta` are collected."""
        writers, readers = _from_first(closed)
        if collect and not self.all_open:
            self.ops.collect(closed, self.mixed[readers], self.take_grad()[writers], self.groups.sizes)
        return self.ops.slopes(self.mixed[readers], self.delta[writers], len(closed), self.groups.sizes)

    def unmix(self, closed: Tensor, writers: slice, readers: slice, num_streams: int) -> tuple[Tensor, Tensor]:
        """Backward of `mix` from the gradients in `mixed`: collects those of `delta`.

        Returns:
            The gradients of the stream `[T, D]` and of `closed`.
        """
        grad = self.mixed[readers]
        if self.all_open or writers.start == writers.stop:
            grad_stream = grad[:num_streams].sum(0)
        else:  # as `mix`; the gradient of the writer behind is used up
            borrowed = self.take_grad()[writers.stop].zero_()
            rows = self.take_grad()[writers.start : writers.stop + 1]
            self.ops.collect(_with_stream(closed, num_streams), grad, rows, self.groups.sizes)
            grad_stream = borrowed.clone()
        return grad_stream, self.ops.slopes(grad, self.delta[writers], len(closed), self.groups.sizes)

    def select(self, first: int, n: int, tokens: Tensor | None) -> Tensor:
        """Deltas of writers `first` to `first + n`, `[n, tokens, D]`: a view for all tokens, a copy for some.

        There is one copy at a time.
        """
        part = self.delta[first : first + n]
        if tokens is not None:  # whole rows of one matrix are copied several times faster than along the middle
            room = self._take("selected", (n * len(tokens), part.shape[-1]), part)
            part = torch.index_select(part.flatten(0, 1), 0, places(n, part.shape[1], tokens), out=room)
        return part.view(n, -1, part.shape[-1])

    def done_with_segment(self) -> None:
        """The next layer in the backward is of another segment."""
        self._remade = False


def _with_stream(closed: Tensor, num_streams: int) -> Tensor:
    """`closed` `[G, reader, writer]` with one writer more, the stream, which the first readers take in as it is."""
    column = (torch.arange(closed.shape[1], device=closed.device) < num_streams).to(closed)
    return torch.cat([closed, column[:, None].expand(len(closed), -1, 1)], -1)


def _from_first(closed: Tensor) -> tuple[slice, slice]:
    """The writers and the readers that `closed` `[G, reader, writer]` is for, both from the first one on."""
    return slice(0, closed.shape[-1]), slice(0, closed.shape[1])


def places(n: int, num_tokens: int, tokens: Tensor) -> Tensor:
    """Where `tokens` of `n` writers lie in a stack's rows of one token each, long `[n * P]`."""
    return (torch.arange(n, device=tokens.device)[:, None] * num_tokens + tokens).flatten()
