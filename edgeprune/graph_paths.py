"""Paths of kept edges through an edge graph, from the embeddings to the logits that are scored.

With roles a node at a role reads and writes there, and attention alone leads elsewhere: from the k and v readers of a
head at one role to its output at every role that sees it. Without, all is one place. What roles see is what is observed
of the prompts, so a path of tokens is always a path of roles; the reverse need not be, as two prompts may have their
roles in another order. Shapes: R roles, 1 without.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edgeprune.graph import EdgeGraph


def fed_by_embedding(graph: "EdgeGraph", keep: Tensor) -> Tensor:
    """Bool `[R, writer]`: a path of kept edges, `[R, reader, writer]`, leads from an embedding to the writer there."""
    sees = seen_roles(graph)
    fed = torch.zeros(len(keep), len(graph.writers), dtype=torch.bool)
    fed[:, : graph.arch.num_embeddings] = True
    for layer in range(graph.arch.num_layers):
        for rows, writers, inside in graph.links[layer]:
            entered = (keep[:, rows] & fed[:, None]).any(2)
            fed[:, writers] = _product(_cross(graph, layer, rows, entered, sees), inside)
    return fed


def reaching_logits(graph: "EdgeGraph", keep: Tensor) -> Tensor:
    """Bool `[R, reader]`: a path of kept edges `[R, reader, writer]` leads from the reader there to scored logits."""
    sees, scored = seen_roles(graph), scored_roles(graph)
    reaching = torch.zeros(len(keep), len(graph.readers), dtype=torch.bool)
    reaching[:, -1] = scored
    heard = keep[:, -1] & scored[:, None]  # writers that a reader which reaches the logits reads, by role
    for layer in reversed(range(graph.arch.num_layers)):
        for rows, writers, inside in reversed(graph.links[layer]):
            left = _product(heard[:, writers], inside.T)
            reaching[:, rows] = _cross(graph, layer, rows, left, sees.T)
            heard |= (keep[:, rows] & reaching[:, rows, None]).any(1)
    return reaching


class Link(NamedTuple):
    """How a layer's attention, or its MLP, leads from its readers to its writers.

    Attributes:
        rows: The readers.
        writers: The writers.
        inside: 1 where a writer depends on a reader directly, float `[readers, writers]`.
    """

    rows: slice
    writers: slice
    inside: Tensor


def links_of(graph: "EdgeGraph", layer: int) -> tuple[Link, Link]:
    """Attention, then the MLP, if there is one: what one of them reads, the other of the layer may have written."""
    rows, heads = graph.rows(layer), graph.heads(layer)
    attention = _inside(graph, rows.attention, heads)
    return attention, _inside(graph, rows.mlp, slice(heads.stop, heads.stop + graph.arch.has_mlp))


def _inside(graph: "EdgeGraph", rows: slice, writers: slice) -> Link:
    found = torch.zeros(rows.stop - rows.start, writers.stop - writers.start)
    for row in range(rows.start, rows.stop):
        found[row - rows.start, [writer - writers.start for writer in graph.behind(row)]] = 1
    return Link(rows, writers, found)


def _cross(graph: "EdgeGraph", layer: int, rows: slice, at: Tensor, sees: Tensor) -> Tensor:
    """What is so of readers at a role, bool `[R, readers]`; of k and v: at a role that `sees` `[R, R]` gives for it."""
    k = graph.rows(layer).k
    if rows.start > k.start or len(at) == 1:
        return at
    num_q = k.start - rows.start
    return torch.cat([at[:, :num_q], _product(sees, at[:, num_q:])], 1)


def scored_roles(graph: "EdgeGraph") -> Tensor:
    """Bool `[R]`: whether logits are scored there."""
    return torch.ones(1, dtype=torch.bool) if graph.roles is None else graph.roles.is_scored


def seen_roles(graph: "EdgeGraph") -> Tensor:
    """Bool `[R, R]`: whether a token of the first may attend to one of the second."""
    return torch.ones(1, 1, dtype=torch.bool) if graph.roles is None else graph.roles.sees_matrix


def is_key_or_value(graph: "EdgeGraph", reader: int) -> bool:
    """Whether a reader is k or v, of which heads hear at other tokens too."""
    layer = graph.layer_of(reader)
    return layer < graph.arch.num_layers and graph.rows(layer).k.start <= reader < graph.rows(layer).v.stop


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Where a product of matrices of zeros and ones, `[a, b]` and `[b, c]`, is not 0."""
    return left.to(torch.float32) @ right.to(torch.float32) > 0
