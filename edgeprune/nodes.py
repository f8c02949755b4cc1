"""Nodes of an edge graph, and who is upstream of whom.

A node is an embedding, a head, an MLP or `logits`. A head reads through its q, k and v readers; a k or v reader that
several heads share belongs to each of them.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from edgeprune.graph import EdgeGraph, unknown_name


def node_names(graph: EdgeGraph) -> tuple[str, ...]:
    """Writers in their order, then `logits`."""
    return (*graph.writers, "logits")


def node_rows(graph: EdgeGraph) -> tuple[tuple[int, ...], ...]:
    """For each node the rows of the readers that it reads through; none for an embedding."""
    return (*graph.inputs, (len(graph.readers) - 1,))


def nodes_of_readers(graph: EdgeGraph) -> tuple[tuple[int, ...], ...]:
    """For each reader the places of its nodes in `node_names`: several where heads share it."""
    found: list[list[int]] = [[] for _ in graph.readers]
    for node, rows in enumerate(node_rows(graph)):
        for row in rows:
            found[row].append(node)
    return tuple(map(tuple, found))


def writer_kind(name: str) -> str:
    """`embed`, `head` or `mlp`."""
    return {"a": "head", "m": "mlp"}.get(name[0], "embed")


def reader_kind(name: str) -> str:
    """`q`, `k`, `v`, `mlp` or `logits`."""
    return "mlp" if name.startswith("m") else name.rpartition(".")[2]


def layer_of(name: str, num_layers: int) -> int:
    """Layer of a node or reader; -1 for an embedding, `num_layers` for `logits`.

    >>> [layer_of(name, 12) for name in ("embed", "a3.h7", "a3.h7.q", "m11", "logits")]
    [-1, 3, 3, 11, 12]
    """
    if name == "logits":
        return num_layers
    digits = name.partition(".")[0][1:]
    return int(digits) if digits.isdigit() else -1


def present(graph: EdgeGraph, keep: Tensor) -> list[str]:
    """Nodes that a kept edge leaves or enters, at any role; a shared k or v reader counts for each of its heads."""
    keep = keep.reshape(-1, *keep.shape[-2:]).any(0)
    leaves, enters = keep.any(0).tolist(), keep.any(1).tolist()
    found = [
        any(enters[row] for row in rows) or (node < len(leaves) and leaves[node])
        for node, rows in enumerate(node_rows(graph))
    ]
    return [name for name, has in zip(node_names(graph), found, strict=True) if has]


def within(graph: EdgeGraph, keep: Tensor, names: Iterable[str]) -> Tensor:
    """Kept edges `[reader, writer]` from one of the named nodes to another one.

    Args:
        graph: The graph.
        keep: Bool `[reader, writer]`.
        names: Nodes, or single readers such as `a5.h1.q`.
    """
    writers = torch.zeros(keep.shape[1], dtype=torch.bool)
    readers = torch.zeros(keep.shape[0], dtype=torch.bool)
    for name in names:
        node, rows = _look_up(graph, name)
        readers[list(rows)] = True
        if node is not None and node < len(writers):
            writers[node] = True
    return keep & writers & readers[:, None]


def upstream(graph: EdgeGraph, keep: Tensor, name: str) -> list[str]:
    """Nodes from which a path of kept edges leads to a node or reader, which is not among them itself."""
    all_rows = node_rows(graph)
    rows = set(_look_up(graph, name)[1])
    found, todo = set[int](), rows
    while todo:
        new = set(keep[sorted(todo)].any(0).nonzero().flatten().tolist()) - found
        found |= new
        todo = {row for node in new for row in all_rows[node]} - rows
        rows |= todo
    return [graph.writers[node] for node in sorted(found)]


def downstream(graph: EdgeGraph, keep: Tensor, name: str) -> list[str]:
    """Nodes to which a path of kept edges leads from a node, or from a reader through its own nodes."""
    nodes = nodes_of_readers(graph)
    node, rows = _look_up(graph, name)
    found = set[int]() if node is not None else set(nodes[rows[0]])
    todo = found if node is None else {node}
    while todo := {one for one in todo if one < keep.shape[1]}:
        new = {one for row in keep[:, sorted(todo)].any(1).nonzero().flatten().tolist() for one in nodes[row]}
        todo = new - found
        found |= new
    return [node_names(graph)[one] for one in sorted(found)]


def _look_up(graph: EdgeGraph, name: str) -> tuple[int | None, Sequence[int]]:
    """Place and rows of a node; None and its row for a single reader of a head."""
    names = node_names(graph)
    if name in names:
        return (node := names.index(name)), node_rows(graph)[node]
    if name in graph.readers:
        return None, (graph.readers.index(name),)
    raise unknown_name(name, "node or reader", names, graph.readers)
