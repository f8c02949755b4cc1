"""The reads of all layers of one run, and which layers form a block."""

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor

from edgeprune.models.stack import BLOCK_READERS, DeltaStack, ReadBlock, ReadLayer, Span, Workspace

if TYPE_CHECKING:
    from edgeprune.models.masked import MaskedModel


class Block(NamedTuple):
    """Layers that are read together.

    Attributes:
        first: The first of them.
        end: The first that is none of them.
    """

    first: int
    end: int


def blocks(num_layers: int, readers_per_layer: int) -> list[Block]:
    """Blocks of nearly equal size with about `BLOCK_READERS` readers.

    >>> [block.end for block in blocks(12, 37)]
    [3, 6, 9, 12]
    """
    size = max(1, round(BLOCK_READERS / readers_per_layer))
    count = -(-num_layers // size)
    ends = [number * num_layers // count for number in range(count + 1)]
    return [Block(first, end) for first, end in pairwise(ends)]


def block_readers(num_layers: int, readers_per_layer: int) -> int:
    """Readers of the largest block."""
    return readers_per_layer * max((end - first for first, end in blocks(num_layers, readers_per_layer)), default=0)


@final
class LayerReads:
    """What the attention readers and the MLP of each layer take in, layer by layer.

    Args:
        model: The masked model.
        closed: 1 - gates, `[G, reader, writer]`.
        stream: The embedding output `[T, D]`.
        workspace: Where buffers come from.

    Attributes:
        stack: Where the run's writers leave their deltas; the embeddings' must be there before the first layer is read.
        closed: The same by layer, `[G, readers of the layer, writer]`, and of the logits at the end.
    """

    def __init__(self, model: "MaskedModel", closed: Tensor, stream: Tensor, workspace: Workspace) -> None:
        self.model, arch = model, model.graph.arch
        found = blocks(arch.num_layers, arch.readers_per_layer)
        largest = block_readers(arch.num_layers, arch.readers_per_layer)
        all_open = not bool(closed.where(model.graph.exists.to(closed.device), 0).any())
        model.projections.forget_edited()
        self.stack = DeltaStack(len(model.graph.writers), stream, largest, workspace, all_open)
        sizes = [arch.readers_per_layer * (end - first) for first, end in found]
        *by_block, logits = closed.split([*sizes, 1], dim=1)
        self._blocks = {block.first: part for block, part in zip(found, by_block, strict=True)}
        layers = [part.split(arch.readers_per_layer, dim=1) for part in by_block]
        self.closed = [*(layer for part in layers for layer in part), logits]
        self._first, self._far, self._base = 0, closed, stream  # of the present block: its first layer, and see `Span`

    def __call__(
        self, layer: int, token: Tensor, stream: Tensor, batch: int
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        """Read one layer.

        Args:
            layer: Its number; layers are read in order.
            token: The latest token.
            stream: The stream before the layer, `[T, D]`.
            batch: Examples in T.

        Returns:
            q, k, v, `[batch, seq, readers * C]` each; what closed edges add to the MLP's input, `[T, D]`; the token.
        """
        arch, graph = self.model.graph.arch, self.model.graph
        num_streams = arch.num_attention_readers
        if layer in self._blocks:
            self._first, self._far = layer, self._blocks[layer][..., : graph.first_writer(layer)]
            self._base = stream.detach()
            token = ReadBlock.apply(token, self._far, self._base, num_streams, self.stack, layer == 0)
        begin, end = graph.first_writer(self._first), graph.first_writer(layer)
        start = (layer - self._first) * arch.readers_per_layer
        rows = slice(start, start + arch.readers_per_layer)
        out, mlp, token = ReadLayer.apply(
            token,
            stream,
            self.closed[layer][..., begin:end],
            self._fused(layer, stream, batch) if self.stack.all_open else None,
            partial(self.model.projections, layer),
            self.stack,
            Span(rows, slice(begin, end), self._far.detach(), self._base, num_streams),
        )
        sizes = (arch.num_heads, arch.num_kv_readers, arch.num_kv_readers)
        q, k, v = (part.flatten(2) for part in out.view(batch, -1, *out.shape[1:]).split(sizes, dim=2))
        return (q, k, v), mlp, token

    @torch.no_grad()
    def _fused(self, layer: int, stream: Tensor, batch: int) -> Tensor:
        """The model's own projection of the stream, `[T, A, C]`."""
        family = self.model.family
        normed = family.attention_norm(layer)(stream.view(batch, -1, stream.shape[-1]))
        fused = torch.cat(self.model._repeat_kv(family.qkv(layer, normed)), -1)
        return fused.view(len(stream), self.model.graph.arch.num_attention_readers, -1)
