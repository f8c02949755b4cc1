"""What writers put on the residual stream and what readers take in, in a run with every edge open."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates


class ReaderInput(NamedTuple):
    """What some readers of one layer take in: rows of the graph, the writers they see, the stream `[batch, seq, d]`."""

    rows: slice
    num_visible: int
    stream: Tensor


def writer_outputs(model: MaskedModel, states: WriterStates) -> Iterator[Tensor]:
    """Output of each writer in column order, `[batch, seq, d_model]`; batch and seq are 1 where `states` share them."""
    yield from states.embeddings
    for layer in range(model.graph.arch.num_layers):
        weight = model.family.output_weight(layer)
        for head in range(len(weight)):
            yield states.heads[layer][:, :, head] @ weight[head].to(states.heads.dtype)
        if states.mlps is not None:
            yield states.mlps[layer]


def reader_inputs(model: MaskedModel, states: WriterStates) -> Iterator[ReaderInput]:
    """Inputs of all readers of the run that `states` were recorded in; readers with the same input come together."""
    graph, arch = model.graph, model.graph.arch
    stream = states.embeddings.sum(0)
    for layer in range(arch.num_layers):
        start, before = graph.first_reader(layer), stream
        mlp_row = start + arch.num_attention_readers
        yield ReaderInput(slice(start, mlp_row), graph.num_visible[start], stream)
        stream = stream + model.family.attention_output(layer, states.heads[layer])
        if states.mlps is not None:
            seen = before if arch.parallel_blocks else stream
            yield ReaderInput(slice(mlp_row, mlp_row + 1), graph.num_visible[mlp_row], seen)
            stream = stream + states.mlps[layer]
    yield ReaderInput(slice(len(graph.readers) - 1, len(graph.readers)), len(graph.writers), stream)
