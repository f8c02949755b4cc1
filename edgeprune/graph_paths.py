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


def fed_by_embedding(graph: "EdgeGraph", keep: Tensor, attend: Tensor | None = None) -> Tensor:
    """Bool `[R, writer]`: a path of kept edges, `[R, reader, writer]`, leads from an embedding to the writer there.

    `attend`: open attention edges, bool `[layer, head, R, R]`; None: all.
    """
    fed = torch.zeros(len(keep), len(graph.writers), dtype=torch.bool)
    fed[:, : graph.arch.num_embeddings] = True
    for layer in range(graph.arch.num_layers):
        for link in graph.links[layer]:
            entered = (keep[:, link.rows] & fed[:, None]).any(2)
            fed[:, link.writers] = _written(graph, layer, link, entered, attend)
    return fed


def reaching_logits(graph: "EdgeGraph", keep: Tensor, attend: Tensor | None = None) -> Tensor:
    """Bool `[R, reader]`: a path of kept edges `[R, reader, writer]` leads from the reader there to scored logits.

    `attend` as in `fed_by_embedding`.
    """
    scored = scored_roles(graph)
    reaching = torch.zeros(len(keep), len(graph.readers), dtype=torch.bool)
    reaching[:, -1] = scored
    heard = keep[:, -1] & scored[:, None]  # writers that a reader which reaches the logits reads, by role
    for layer in reversed(range(graph.arch.num_layers)):
        for link in reversed(graph.links[layer]):
            reaching[:, link.rows] = _read(graph, layer, link, heard[:, link.writers], attend)
            heard |= (keep[:, link.rows] & reaching[:, link.rows, None]).any(1)
    return reaching


def on_a_path(graph: "EdgeGraph", keep: Tensor, attend: Tensor) -> Tensor:
    """Open attention edges on a path of kept edges `[R, reader, writer]` from an embedding to scored logits.

    Args:
        graph: With roles.
        keep: Kept edges.
        attend: Open attention edges, bool `[layer, head, R, R]`.

    Returns:
        Bool `[layer, head, R, R]`.
    """
    fed, reaching = fed_by_embedding(graph, keep, attend), reaching_logits(graph, keep, attend)
    entered, heard = (keep & fed[:, None]).any(2), (keep & reaching[..., None]).any(1)
    found = attend & seen_roles(graph)
    for layer in range(graph.arch.num_layers):
        (rows, writers, inside), num_q = graph.links[layer][0], graph.arch.num_heads
        keys = _product(entered[:, rows][:, num_q:], inside[num_q:])
        queries = heard[:, writers]
        queries = queries.any(1, keepdim=True).expand_as(queries) if graph.arch.coupled_heads else queries
        found[layer] &= queries.T[:, :, None] & keys.T[:, None]
    return found


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


def _written(graph: "EdgeGraph", layer: int, link: Link, entered: Tensor, attend: Tensor | None) -> Tensor:
    """Writers that a path into readers, bool `[R, readers]`, leads on to, bool `[R, writers]`."""
    num_q, inside = _num_queries(graph, layer, link), link.inside
    here = _product(entered[:, :num_q], inside[:num_q])
    if num_q == len(inside):
        return here
    seen = _seen(graph, layer, attend)
    if len(seen) == 1:
        return here | _product(seen[0], _product(entered[:, num_q:], inside[num_q:]))
    return here | (torch.einsum("rj,jh,hpr->ph", entered[:, num_q:].float(), inside[num_q:], seen.float()) > 0)


def _read(graph: "EdgeGraph", layer: int, link: Link, heard: Tensor, attend: Tensor | None) -> Tensor:
    """Readers from which a path leads on to writers, bool `[R, writers]`, that are heard, bool `[R, readers]`."""
    num_q, inside = _num_queries(graph, layer, link), link.inside
    here = _product(heard, inside[:num_q].T)
    if num_q == len(inside):
        return here
    seen = _seen(graph, layer, attend)
    if len(seen) == 1:
        there = _product(seen[0].T, _product(heard, inside[num_q:].T))
    else:
        there = torch.einsum("ph,jh,hpr->rj", heard.float(), inside[num_q:], seen.float()) > 0
    return torch.cat([here, there], 1)


def _num_queries(graph: "EdgeGraph", layer: int, link: Link) -> int:
    """How many of a link's readers, the first, lead to writers at their own role alone: all of an MLP."""
    return len(link.inside) if link.rows.start >= graph.rows(layer).mlp.start else graph.arch.num_heads


def _seen(graph: "EdgeGraph", layer: int, attend: Tensor | None) -> Tensor:
    """Where the heads of a layer lead from key role to query role, bool `[1 or head, R, R]`: one for all heads."""
    sees = seen_roles(graph)[None]
    if attend is None:
        return sees
    seen = attend[layer] & sees
    return seen.any(0, keepdim=True) if graph.arch.coupled_heads else seen


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
