"""A circuit on one batch, and what it says with one more edge closed: only what that changes is run again.

With own_w what writer w puts out in the circuit, closing the edge from w moves the input of its reader by

    d_w = ablated_w - own_w                                                                                        (1)

and nothing else that comes before or beside it. Downstream the rule of `edgeprune.models.downstream` holds, with the
circuit in the place of the clean run: a reader's input moves by what its open edges bring. Unlike there, edges may be
closed anywhere. Shapes: B examples, S positions, T = B * S, P = B * scored positions, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
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
    """A circuit on one batch, ready for questions about one edge less.

    Args:
        model: The masked model.
        batch: On the model's device.
        ablated: What closed edges carry in this batch.
        keep: The circuit, bool `[reader, writer]`.

    Attributes:
        logits: Of the circuit itself, float32 `[B, positions, V]`.
    """

    @torch.no_grad()
    def __init__(self, model: MaskedModel, batch: PairBatch, ablated: WriterStates, keep: Tensor) -> None:
        super().__init__(model, batch, "looking at single edges of a circuit's run")
        graph = model.graph
        self.keep = keep.cpu().bool() & graph.exists
        self.closed = (graph.exists & ~self.keep).to(self.embedded)
        self.attention = KeptInputs()  # of the readers that can change; of those that take in the same, the first
        self.mlps: dict[int, Tensor] = {}  # inputs of the MLPs that can change, [T, D]
        self._changing = find_changes(graph, self.keep, self.keep.any(1))
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
        same = alike(graph, self.keep)
        for layer, block in enumerate(model.blocks):
            changed = self._changing.layers[layer]
            if changed.readers:
                readers = list(dict.fromkeys(same[reader] for reader in changed.readers))
                self.attention.readers[layer] = readers
                self.attention.inputs[layer] = self.mixed(readers, self.closed, stream)
            qkv, _, chain = reads(layer, chain, stream, shape[0])
            written, attention = block.write(model.attend(block, qkv, self.first_context, reads.stack.all_open))
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

    # ---------------------------------------------------------------- one edge less
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
        starts = torch.zeros(len(self.keep), dtype=torch.bool)
        starts[reader] = True
        changes = find_changes(self.model.graph, self.keep, starts)
        reference = ReferenceState(self.attention, self.mlps, self.last, self.layers)
        at_once = max(1, int(memory_gb * 1e9 / self._rerun_bytes(changes)))
        for start in range(0, len(writers), at_once):
            moves = self.delta[list(writers[start : start + at_once])]
            if at is not None:
                moves = moves * at[start : start + at_once, :, None]
            rerun = Rerun(self, self.keep, changes, reference, len(moves))
            yield from rerun.run({reader: moves})[0]

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
