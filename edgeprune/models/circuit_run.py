"""A circuit on one batch, and what it says with one edge changed: only what that changes is run again.

With own_w what writer w puts out in the circuit, closing the edge from w moves the input of its reader by

    d_w = ablated_w - own_w                                                                                        (1)

and opening one that is closed moves it by -d_w; nothing else changes that comes before or beside it. Downstream the
rule of `edgeprune.models.downstream` holds, with the circuit in the place of the clean run: a reader's input moves by
what its open edges bring. Unlike there, edges may be changed anywhere. Shapes: B examples, S positions, T = B * S,
P = B * scored positions, D width, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.models.attention_edges import attend
from edgeprune.models.block import weights_per_reader
from edgeprune.models.changes import Changes, alike, find_changes
from edgeprune.models.clean_run import LayerValues, StartingRun
from edgeprune.models.masked import MaskedModel
from edgeprune.models.read_ops import exact_dtype
from edgeprune.models.reads import LayerReads
from edgeprune.models.rerun import KeptInputs, ReferenceState, Rerun
from edgeprune.models.stack import Workspace
from edgeprune.models.states import WriterStates

ONE_LAYER = 16  # rows of width D per token: what a layer that is run again works with, at most


@final
class CircuitRun(StartingRun):
    """A circuit on one batch, ready for questions about one edge less, or more.

    Args:
        model: The masked model.
        batch: On the model's device.
        ablated: What closed edges carry in this batch.
        keep: The circuit, bool `[reader, writer]`.
        opening: Whether edges will be opened, too: readers that have none open are then made ready as well.

    Attributes:
        logits: Of the circuit itself, float32 `[B, positions, V]`.
    """

    @torch.no_grad()
    def __init__(
        self, model: MaskedModel, batch: PairBatch, ablated: WriterStates, keep: Tensor, *, opening: bool = False
    ) -> None:
        super().__init__(model, batch, "looking at single edges of a circuit's run")
        graph = model.graph
        self.keep = keep.cpu().bool() & graph.exists
        self.closed = (graph.exists & ~self.keep).to(self.embedded)
        self.attention = KeptInputs()  # of the readers that can change; of those that take in the same, the first
        self.mlps: dict[int, Tensor] = {}  # inputs of the MLPs that can change, [T, D]
        self._changing = find_changes(graph, self.keep, self.keep.any(1) | opening)
        start = self.embedded.flatten(0, 1)
        closed = self.closed.to(exact_dtype(start.dtype))[None]
        reads = LayerReads(graph, model.blocks, model.projections, closed, start, Workspace(), read_ops=model.read_ops)
        self._stack = reads.stack  # whose memory `delta` is
        self.delta = reads.stack.delta
        self.put_embeddings(ablated)
        stream = self._run(reads, ablated)
        last = self.closed[-1:] @ self.delta[:, self.tokens].flatten(1)
        self.last = last.view(len(self.tokens), -1) + stream[self.tokens]  # input of the logits, [P, D]
        self.logits = model.logits(self.last.view(*batch.positions.shape, -1)).float()

    def _run(self, reads: LayerReads, ablated: WriterStates) -> Tensor:
        """All layers, as the masked model runs them; what they computed is kept. Returns the stream at their end."""
        model, graph, shape = self.model, self.model.graph, self.embedded.shape
        stream, chain = self.embedded.flatten(0, 1), self.embedded.new_zeros(())
        same = self._same = alike(graph, self.keep)
        for layer, block in enumerate(model.blocks):
            changed = self._changing.layers[layer]
            if changed.readers:
                readers = list(dict.fromkeys(same[reader] for reader in changed.readers))
                self.attention.readers[layer] = readers
                self.attention.inputs[layer] = self.mixed(readers, self.closed, stream)
            qkv, _, chain = reads(layer, chain, stream, shape[0])
            values = attend(block, qkv, self.first_context, graph.arch.kv_readers_per_head, reads.stack.all_open)
            written, attention = block.write(values)
            chain = model.write_heads(chain, written, ablated.heads[layer], reads.stack, block)
            attention, mlp = attention.flatten(0, 1), None
            if ablated.mlps is not None:
                inputs = self.mixed([graph.mlp_reader(layer)], self.closed, block.mlp_input(stream, attention))[0]
                mlp = block.mlp(inputs.view(shape)).flatten(0, 1)
                self.delta[graph.mlp_writer(layer)] = ablated.mlps[layer].expand(shape).flatten(0, 1) - mlp
                if changed.mlp:
                    self.mlps[layer] = inputs
            stream = block.join(stream, attention, mlp)
            self.layers.append(LayerValues(tuple(part.flatten(0, 1) for part in qkv), written.flatten(0, 1), mlp))
        return stream

    # ---------------------------------------------------------------- one edge changed
    @torch.no_grad()
    def moving(self, reader: int, writers: Sequence[int]) -> Tensor:
        """Whether changing the edge from each of `writers` changes what is computed from `reader` first.

        False is exact: the projection, or the MLP's output, is bitwise the same, so nothing follows. Edges into a
        reader from which no open edges lead to the logits move nothing. True promises nothing.

        Args:
            reader: The reader; with `opening` any.
            writers: Writers that it sees, open or closed.

        Returns:
            Bool `[writers]`.
        """
        graph = self.model.graph
        moves = self._moves(reader, writers)
        found = moves.flatten(1).any(1)
        layer = graph.layer_of(reader)
        if layer == graph.arch.num_layers or not found.any():
            return found
        changed = self._changing.layers[layer]
        block = self.model.blocks[layer]
        if reader == graph.mlp_reader(layer) and graph.arch.has_mlp:
            if not changed.mlp:
                return torch.zeros_like(found)
            outputs = block.mlp(torch.cat([torch.zeros_like(moves[:1]), moves[found]]) + self.mlps[layer])
        else:
            if reader not in changed.readers:
                return torch.zeros_like(found)
            inputs = self.attention.inputs[layer][self.attention.readers[layer].index(self._same[reader])]
            inputs = torch.cat([torch.zeros_like(moves[:1]), moves[found]]) + inputs
            outputs = block.norm(inputs) @ self._weight(layer, reader)
        found[found.clone()] = (outputs[1:] != outputs[:1]).flatten(1).any(1)
        return found

    def _weight(self, layer: int, reader: int) -> Tensor:
        """What an attention reader's input is projected with, `[D, C]`."""
        for rows, weights in zip(
            self.model.graph.rows(layer)[:3],
            weights_per_reader(self.model.blocks[layer], self.model.graph.arch.kv_readers_per_head),
            strict=True,
        ):
            if rows.start <= reader < rows.stop:
                return weights[reader - rows.start]
        raise AssertionError(reader)

    def _moves(self, reader: int, writers: Sequence[int]) -> Tensor:
        """How the input of `reader` moves if each edge is changed, `[writers, T, D]`."""
        sign = (2 * self.keep[reader, list(writers)].long() - 1).to(self.delta)
        return self.delta[list(writers)] * sign[:, None, None]

    @torch.no_grad()
    def without(
        self, reader: int, writers: Sequence[int], memory_gb: float, at: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Logits with the edge from one of `writers` into `reader` closed, one after the other.

        Args:
            reader: The reader.
            writers: Kept edges' writers.
            memory_gb: As many edges are asked about at once as this holds, in 1e9 bytes; one at least.
            at: The positions at which each is closed, bool `[writers, T]`; None: at all. A writer may then be named
                several times.

        Yields:
            Float32 `[B, positions, V]` for each writer.
        """
        changes = self._changes({reader})
        at_once = max(1, int(memory_gb * 1e9 / self._rerun_bytes(changes)))
        for start in range(0, len(writers), at_once):
            moves = self._moves(reader, writers[start : start + at_once])
            if at is not None:
                moves = moves * at[start : start + at_once, :, None]
            rerun = Rerun(self, self.keep, changes, self._reference(), len(moves))
            yield from rerun.run({reader: moves})[0]

    @torch.no_grad()
    def changed(self, edges: Sequence[tuple[int, int]], memory_gb: float) -> Iterator[Tensor]:
        """Logits with one edge changed, one after the other: kept edges are closed, others opened.

        Edges into different readers are run together, so it pays to give them in the order of the readers.

        Args:
            edges: (reader, writer) of each; one that is not kept needs `opening`.
            memory_gb: As many edges are asked about at once as this holds, in 1e9 bytes; one at least.

        Yields:
            Float32 `[B, positions, V]` for each edge.
        """
        at_once = max(1, int(memory_gb * 1e9 / self._rerun_bytes(self._changes({reader for reader, _ in edges}))))
        for start in range(0, len(edges), at_once):
            some = edges[start : start + at_once]
            changes = self._changes({reader for reader, _ in some})
            moves: dict[int, Tensor] = {}
            for place, (reader, writer) in enumerate(some):
                if reader not in moves:
                    moves[reader] = self.delta.new_zeros((len(some), *self.delta.shape[1:]))
                moves[reader][place] = self._moves(reader, [writer])[0]
            rerun = Rerun(self, self.keep, changes, self._reference(), len(some))
            yield from rerun.run(moves)[0]

    def _changes(self, readers: Collection[int]) -> Changes:
        starts = torch.zeros(len(self.keep), dtype=torch.bool)
        starts[list(readers)] = True
        return find_changes(self.model.graph, self.keep, starts)

    def _reference(self) -> ReferenceState:
        """The circuit's state."""
        return ReferenceState(self.attention, self.mlps, self.last, self.layers)

    def _rerun_bytes(self, changes: Changes) -> int:
        """Memory of one copy in a rerun: changes of the writers, one layer's values, the logits."""
        tokens, width = self.delta.shape[1:]
        rows = (len(changes.everywhere) + ONE_LAYER) * tokens + 2 * len(changes.writers) * len(self.tokens)
        return rows * width * self.delta.element_size() + 2 * self.logits.numel() * self.logits.element_size()


def state_bytes(model: MaskedModel) -> int:
    """Memory per token of a `StartingRun`, at most: deltas, inputs of all readers, values of all layers."""
    graph = model.graph
    rows = len(graph.writers) + len(graph.readers) + ONE_LAYER * graph.arch.num_layers
    return rows * model.width * model.dtype.itemsize
