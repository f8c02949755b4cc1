"""The reads of all layers of one run, which layers form a segment, and whose inputs stay until the backward."""

import os
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.models.block import Block, Projected, repeat_kv
from edgeprune.models.projections import Projections
from edgeprune.models.read_functions import ReadAlone, ReadLayer, ReadSegment
from edgeprune.models.read_ops import ReadOps, ops_for
from edgeprune.models.stack import DeltaStack, InputRows, Span, Workspace
from edgeprune.models.token_groups import ALIKE, TokenGroups

KEEP = "EDGEPRUNE_KEEP_MIB"


class Segment(NamedTuple):
    """Layers that are read together.

    Attributes:
        first: The first of them.
        end: The first that is none of them.
    """

    first: int
    end: int


def segments(num_layers: int, readers_per_layer: int, readers: int = ReadOps.segment_readers) -> list[Segment]:
    """Segments of nearly equal size with about `readers` readers.

    >>> [segment.end for segment in segments(12, 37)]
    [3, 6, 9, 12]
    """
    size = max(1, round(readers / readers_per_layer))
    count = -(-num_layers // size)
    ends = [number * num_layers // count for number in range(count + 1)]
    return [Segment(first, end) for first, end in pairwise(ends)]


def input_rows(arch: ArchSpec, ops: ReadOps, row_bytes: int, backward: bool = True) -> InputRows:
    """Which inputs are kept: there is a bound on the memory; others are mixed again in the backward.

    Args:
        arch: The graph's shape.
        ops: The operations.
        row_bytes: Of one reader's input.
        backward: There will be one.
    """
    if ops.fused:
        return InputRows(0, {})
    found = segments(arch.num_layers, arch.readers_per_layer, ops.segment_readers)
    rows = [arch.readers_per_layer * (end - first) for first, end in found]
    own: dict[int, int] = {}
    room = _keep_bytes(ops) if backward else 0
    for number in range(len(rows) - 2, -1, -1):  # late ones have more writers before them
        room -= rows[number] * row_bytes
        if room < 0:
            break
        own[number] = rows[number]
    return InputRows(max(rows, default=0), own)


def _keep_bytes(ops: ReadOps) -> int:
    """What the environment variable says in MiB, else what the operations take."""
    text = os.environ.get(KEEP)
    if not text:
        return ops.keep_bytes
    if not text.isdecimal():
        raise EdgepruneError(f"{KEEP} must be a number of MiB, 0 for none, got {text!r}")
    return int(text) * 2**20


@final
class LayerReads:
    """What the attention readers and the MLP of each layer take in, layer by layer.

    Args:
        graph: The graph.
        blocks: The model's layers.
        projections: What their readers are projected with.
        closed: 1 - gates, `[G, reader, writer]`, in `exact_dtype` of the stream.
        stream: The embedding output `[T, D]`.
        workspace: Where buffers come from.
        all_open: Whether no edge is closed, if that is known; see `MaskedModel.forward`.
        read_ops: Name of the operations; see `ops_for`.
        groups: Of tokens, G in all.

    Raises:
        EdgepruneError: The operations cannot take groups of any size.

    Attributes:
        stack: Where the run's writers leave their deltas; the embeddings' must be there before the first layer is read.
        closed: The same by layer, `[G, readers of the layer, writer]`, and of the logits at the end.
    """

    def __init__(
        self,
        graph: EdgeGraph,
        blocks: Sequence[Block],
        projections: Projections,
        closed: Tensor,
        stream: Tensor,
        workspace: Workspace,
        all_open: bool | None = None,
        read_ops: str | None = None,
        groups: TokenGroups = ALIKE,
    ) -> None:
        self.graph, self.blocks, self.projections = graph, blocks, projections
        arch, ops = graph.arch, ops_for(stream.device, read_ops)
        if ops.fused and groups.group_of is not None:
            raise EdgepruneError("read_ops='triton' does not read edges by role; take 'cuda'")
        found = segments(arch.num_layers, arch.readers_per_layer, ops.segment_readers)
        if all_open is None:
            all_open = not bool(closed.where(graph.exists.to(closed.device), 0).any())
            projections.forget_edited()
        normed = blocks[0].input_spec().eps is not None  # else the backward needs no inputs
        rows = input_rows(arch, ops, stream.nbytes, closed.requires_grad and normed and not all_open)
        self.stack = DeltaStack(len(graph.writers), stream, rows, workspace, ops, all_open=all_open, groups=groups)
        sizes = [arch.readers_per_layer * (end - first) for first, end in found]
        *by_segment, logits = closed.split([*sizes, 1], dim=1)
        self.segments = {
            own.first: (number, part) for number, (own, part) in enumerate(zip(found, by_segment, strict=True))
        }
        layers = [part.split(arch.readers_per_layer, dim=1) for part in by_segment]
        self.closed = [*(layer for part in layers for layer in part), logits]
        self._first, self._segment = 0, 0  # of the present segment: first layer, number
        self._before = closed, stream  # as in `Span`
        self._sort, self._unsort = groups.sort, groups.unsort

    def __call__(self, layer: int, chain: Tensor, stream: Tensor, batch: int) -> tuple[Projected, Tensor, Tensor]:
        """Read one layer.

        Args:
            layer: Its number; layers are read in order.
            chain: The latest link of the chain; see `read_functions.py`.
            stream: The stream before the layer, `[T, D]`.
            batch: Examples in T.

        Returns:
            q, k, v as `Block.project` gives them, one for each reader, `[batch, seq, readers, C]`; what closed edges
            add to the MLP's input, `[T, D]`; the next link. Tokens are in their own order here.
        """
        arch, graph = self.graph.arch, self.graph
        num_streams = arch.num_attention_readers
        fused = self._sort(self._fused(layer, stream, batch)) if self.stack.all_open else None
        stream = self._sort(stream)
        projection_of = partial(self.projections, layer)
        if self.stack.ops.fused:
            closed = self.closed[layer][..., : graph.first_writer(layer)]
            out, mlp, chain = ReadAlone.apply(
                chain, stream, closed, fused, projection_of, self.stack, num_streams, layer == 0
            )
            return self._projected(out, batch), mlp, chain
        if layer in self.segments:
            (self._segment, closed), before = self.segments[layer], stream.detach()
            closed = closed[..., : graph.first_writer(layer)]
            self._first, self._before = layer, (closed.detach(), before)
            chain = ReadSegment.apply(chain, closed, before, num_streams, self.stack, self._segment)
        begin, end = graph.first_writer(self._first), graph.first_writer(layer)
        start = (layer - self._first) * arch.readers_per_layer
        rows = slice(start, start + arch.readers_per_layer)
        out, mlp, chain = ReadLayer.apply(
            chain,
            stream,
            self.closed[layer][..., begin:end],
            fused,
            projection_of,
            self.stack,
            Span(self._segment, rows, slice(begin, end), *self._before, num_streams),
        )
        return self._projected(self._unsort(out), batch), self._unsort(mlp) if arch.has_mlp else mlp, chain

    def _projected(self, out: Tensor, batch: int) -> Projected:
        """q, k, v `[batch, seq, readers, C]` each, of `[T, A, C]`."""
        q, k, v = out.view(batch, -1, *out.shape[1:]).split(self.graph.arch.reader_counts, dim=2)
        return q, k, v

    @torch.no_grad()
    def _fused(self, layer: int, stream: Tensor, batch: int) -> Tensor:
        """The model's own projection of the stream, `[T, A, C]`."""
        block = self.blocks[layer]
        qkv = block.project(block.norm(stream.view(batch, -1, stream.shape[-1])))
        return torch.cat(repeat_kv(qkv, self.graph.arch.kv_readers_per_head), 2).flatten(0, 1)
