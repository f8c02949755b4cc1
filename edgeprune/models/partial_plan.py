"""What changes in a circuit when the inputs of some readers change: found from the open edges alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.graph import EdgeGraph


@dataclass(frozen=True)
class LayerPlan:
    """What changes in one layer.

    Attributes:
        readers: Attention readers whose input changes, q, k and v in the graph's order.
        heads: Heads whose output changes, as rows of the graph's writers.
        mlp: Whether the MLP's input changes.
    """

    readers: list[int]
    heads: list[int]
    mlp: bool


@dataclass(frozen=True)
class Plan:
    """What changes downstream of some readers, and matters to the logits.

    Attributes:
        layers: What changes in each layer.
        writers: All writers whose output changes, in the graph's order.
        everywhere: Those of them that some attention reader hears, at once or through MLPs. Of the others only the
            scored positions count, as MLPs and logits see each position by itself.
        logits: Whether the input of the logits changes.
    """

    layers: list[LayerPlan]
    writers: list[int]
    everywhere: frozenset[int]
    logits: bool


def make_plan(graph: EdgeGraph, keep: Tensor, starts: Tensor) -> Plan:
    """Follow the open edges from some readers.

    Args:
        graph: The graph.
        keep: Open edges, bool `[reader, writer]`, False where none exists.
        starts: Readers whose input changes of itself, bool `[reader]`.
    """
    heard, heard_writers = _heard(graph, keep)
    changed = torch.zeros(len(graph.writers), dtype=torch.bool)
    layers: list[LayerPlan] = []
    for layer in range(graph.arch.num_layers):
        begin, mlp_row = graph.first_reader(layer), graph.first_reader(layer) + graph.arch.num_attention_readers
        moved = heard & (starts | (keep & changed).any(1))
        readers = [reader for reader in range(begin, mlp_row) if moved[reader]]
        behind = {writer for reader in readers for writer in writers_behind(graph, reader)}
        heads = sorted(writer for writer in behind if heard_writers[writer])
        changed[heads] = True
        mlp = graph.arch.has_mlp and bool(heard[mlp_row] & (starts[mlp_row] | (keep[mlp_row] & changed).any()))
        if mlp:
            changed[writers_behind(graph, mlp_row)] = True
        layers.append(LayerPlan(readers, heads, mlp))
    writers = changed.nonzero().flatten().tolist()
    logits = bool(starts[-1] | (keep[-1] & changed).any())
    return Plan(layers, writers, _everywhere(graph, keep, layers), logits)


def writers_behind(graph: EdgeGraph, reader: int) -> list[int]:
    """The writers that depend on `reader` directly: its MLP, its head, or the heads that share its keys or values."""
    arch, layer = graph.arch, reader // graph.arch.readers_per_layer
    row, first = reader - graph.first_reader(layer), graph.first_writer(layer)
    if row >= arch.num_attention_readers:
        return [first + arch.num_heads]
    if row < arch.num_heads:
        return [first + row]
    shared = arch.num_heads // arch.num_kv_readers
    start = first + (row - arch.num_heads) % arch.num_kv_readers * shared
    return list(range(start, start + shared))


def _heard(graph: EdgeGraph, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Bool `[reader]` and `[writer]`: a path of open edges leads from it to the logits."""
    readers = torch.zeros(len(graph.readers), dtype=torch.bool)
    readers[-1] = True
    for reader in reversed(range(len(graph.readers) - 1)):
        later = keep[:, writers_behind(graph, reader)] & readers[:, None]
        readers[reader] = later.any()
    return readers, (keep & readers[:, None]).any(0)


def _everywhere(graph: EdgeGraph, keep: Tensor, layers: list[LayerPlan]) -> frozenset[int]:
    """Changed writers whose output counts at every position."""
    listening = torch.zeros(len(graph.readers), dtype=torch.bool)
    everywhere: list[int] = []
    for layer in reversed(range(len(layers))):
        plan, mlp_row = layers[layer], graph.first_reader(layer) + graph.arch.num_attention_readers
        if plan.mlp:
            (writer,) = writers_behind(graph, mlp_row)
            listening[mlp_row] = (keep[:, writer] & listening).any()
            everywhere += [writer] * bool(listening[mlp_row])
        everywhere += [head for head in plan.heads if (keep[:, head] & listening).any()]
        listening[plan.readers] = True
    return frozenset(everywhere)
