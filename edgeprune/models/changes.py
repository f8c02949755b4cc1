"""What changes in a circuit when the inputs of some readers change: found from the open edges alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.graph import EdgeGraph


@dataclass(frozen=True)
class LayerChanges:
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
class Changes:
    """What changes downstream of some readers, and matters to the logits.

    Attributes:
        layers: What changes in each layer.
        writers: All writers whose output changes, in the graph's order.
        everywhere: Those of them that some attention reader reads, directly or through MLPs. Of the others only the
            scored positions count, as MLPs and logits see each position by itself.
    """

    layers: list[LayerChanges]
    writers: list[int]
    everywhere: frozenset[int]


def find_changes(graph: EdgeGraph, keep: Tensor, starts: Tensor) -> Changes:
    """Follow the open edges from some readers.

    Args:
        graph: The graph.
        keep: Open edges, bool `[reader, writer]`, False where none exists; with roles those open at any.
        starts: Readers whose input changes of itself, bool `[reader]`.
    """
    reaching = graph.reaching_logits(keep)
    counts = (keep & reaching[:, None]).any(0).tolist()  # writers that reach the logits
    changed = torch.zeros(len(graph.writers), dtype=torch.bool)
    layers: list[LayerChanges] = []
    for layer in range(graph.arch.num_layers):
        attention, mlp_row = graph.rows(layer).attention, graph.mlp_reader(layer)
        moved = reaching[attention] & (starts[attention] | (keep[attention] & changed).any(1))
        readers = (moved.nonzero().flatten() + attention.start).tolist()
        behind = {writer for reader in readers for writer in graph.behind(reader)}
        heads = sorted(writer for writer in behind if counts[writer])
        changed[heads] = True
        mlp = graph.arch.has_mlp and bool(reaching[mlp_row] & (starts[mlp_row] | (keep[mlp_row] & changed).any()))
        if mlp:
            changed[graph.mlp_writer(layer)] = True
        layers.append(LayerChanges(readers, heads, mlp))
    writers = changed.nonzero().flatten().tolist()
    return Changes(layers, writers, _everywhere(graph, keep, layers))


def alike(graph: EdgeGraph, keep: Tensor) -> list[int]:
    """For each reader the first one of its layer into which the same edges are open: both take in the same.

    Args:
        graph: The graph.
        keep: Open edges, bool `[..., reader, writer]`, False where none exists.
    """
    first: dict[tuple[int, bytes], int] = {}
    rows = keep.reshape(-1, *keep.shape[-2:]).transpose(0, 1).numpy()
    keys = zip(graph.num_visible, (row.tobytes() for row in rows), strict=True)
    return [first.setdefault(key, reader) for reader, key in enumerate(keys)]


def _everywhere(graph: EdgeGraph, keep: Tensor, layers: list[LayerChanges]) -> frozenset[int]:
    """Changed writers whose output counts at every position."""
    listening = torch.zeros(len(graph.readers), dtype=torch.bool)
    everywhere: list[int] = []
    for layer in reversed(range(len(layers))):
        layer_changes, mlp_row = layers[layer], graph.mlp_reader(layer)
        if layer_changes.mlp:
            writer = graph.mlp_writer(layer)
            listening[mlp_row] = (keep[:, writer] & listening).any()
            everywhere += [writer] * bool(listening[mlp_row])
        everywhere += [head for head in layer_changes.heads if (keep[:, head] & listening).any()]
        listening[layer_changes.readers] = True
    return frozenset(everywhere)
