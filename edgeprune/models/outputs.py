"""What writers put on the residual stream and what readers take in, in a run with every edge open."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
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
    model.require_sums("what each writer puts on the stream")
    yield from states.embeddings
    for layer, block in enumerate(model.blocks):
        weight = block.output_weight()
        for head in range(len(weight)):
            yield states.heads[layer][:, :, head] @ weight[head].to(states.heads.dtype)
        if states.mlps is not None:
            yield states.mlps[layer]


def output_biases(model: MaskedModel) -> Tensor:
    """What attention adds where its heads write nothing: the biases that no writer owns, `[layer, d_model]`."""
    nothing = torch.zeros(1, 1, *model.head_shape[:2], dtype=model.dtype, device=model.device)
    return torch.stack([block.sum_heads(nothing)[0, 0] for block in model.blocks])


def reader_inputs(model: MaskedModel, states: WriterStates) -> Iterator[ReaderInput]:
    """Inputs of all readers of the run that `states` were recorded in; readers with the same input come together."""
    graph, stream = model.graph, states.embeddings.sum(0)
    for layer, block in enumerate(model.blocks):
        attention, mlp = graph.rows(layer).attention, graph.rows(layer).mlp
        yield ReaderInput(attention, graph.num_visible[attention.start], stream)
        added = block.sum_heads(states.heads[layer])
        if states.mlps is not None:
            yield ReaderInput(mlp, graph.num_visible[mlp.start], block.mlp_input(stream, added))
        stream = block.join(stream, added, None if states.mlps is None else states.mlps[layer])
    yield ReaderInput(slice(len(graph.readers) - 1, len(graph.readers)), len(graph.writers), stream)
