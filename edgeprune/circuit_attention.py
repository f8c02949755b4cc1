"""Attention edges of a circuit, `[layer, head, query role, key role]`: checks, sets and figures. None: all are open."""

from collections.abc import Iterable
from random import Random
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.gates.base import top_k
from edgeprune.graph import EdgeGraph
from edgeprune.graph_attention import names_attention


def checked(graph: EdgeGraph, attend: Tensor | None, scores: Tensor | None) -> Tensor | None:
    """The open ones among those that exist.

    Raises:
        EdgepruneError: The graph has no roles, a matrix is of another shape, or an existing edge's score is NaN.
    """
    if attend is None and scores is None:
        return None
    edges = graph.attention
    for name, matrix in (("attend", attend), ("attend_scores", scores)):
        if matrix is not None and tuple(matrix.shape) != edges.shape:
            raise EdgepruneError(
                f"{name} has shape {tuple(matrix.shape)}, this graph's attention edges are [layer, head, query role, "
                f"key role] = {edges.shape}"
            )
    if scores is not None and (places := scores.cpu().isnan() & edges.exists).any():
        name = edges.edge_name(*places.nonzero()[0].tolist())
        raise EdgepruneError(f"the score of {name} is NaN, which cannot be ranked: find what made it")
    return None if attend is None else attend.bool().cpu() & edges.exists


def split_names(graph: EdgeGraph, names: Iterable[str]) -> tuple[list[str], Tensor | None]:
    """Names of edges that are no attention edges, and the attention edges among them; None: there is none."""
    names = list(names)
    inside = [name for name in names if names_attention(name)]
    edges = [name for name in names if not names_attention(name)]
    return edges, graph.attention.keep_matrix(inside) if inside else None


def both(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Those open in both circuits."""
    if left is None or right is None:
        return right if left is None else left
    return left & right


def either(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Those open in one of two circuits or in both."""
    return None if left is None or right is None else left | right


def highest(graph: EdgeGraph, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of one value per existing edge, and the values, each of the edges' shape; 0 elsewhere."""
    edges = graph.attention
    values = values.detach().float().cpu()
    keep, scores = torch.zeros(edges.shape, dtype=torch.bool), torch.zeros(edges.shape)
    keep[edges.exists], scores[edges.exists] = top_k(values, count), values
    return keep, scores


def num_at(num_edges: int, sparsity: float, most: float | None) -> int:
    """How many of `num_edges` a circuit of this sparsity keeps, if they are never sparser than `most`."""
    return round((1 - (sparsity if most is None else min(sparsity, most))) * num_edges)


def of_checkpoint(graph: EdgeGraph, saved: dict[str, Any] | None, sparsity: float | None) -> dict[str, Tensor]:
    """Fields of a circuit from what a checkpoint holds of attention edges; none where it holds nothing.

    Args:
        graph: The graph.
        saved: Scores of existing edges, `num_open`, and `most`, the sparsity that they are never sparser than.
        sparsity: Of the circuit; None: the gates that are more open than closed.
    """
    if saved is None:
        return {}
    num_edges = graph.attention.num_edges
    count = int(saved["num_open"]) if sparsity is None else num_at(num_edges, sparsity, saved["most"])
    keep, scores = highest(graph, saved["scores"], count)
    return {"attend": keep, "attend_scores": scores}


def cut_of_edges(
    saved: dict[str, Any], sparsity: float | None, num_edges: int | None
) -> tuple[float | None, int | None]:
    """Sparsity or number that the edges of a checkpoint are cut at; of attention edges alone those that stayed open.

    Raises:
        EdgepruneError: These alone were learned, and a number of edges is asked for.
    """
    if saved.get("edges_open") and num_edges is not None:
        raise EdgepruneError(
            f"num_edges={num_edges} cannot be cut from a run of attention edges alone, which ranks no edges: give "
            "sparsity, that of its attention edges"
        )
    if saved.get("edges_open") or (sparsity is None and num_edges is None):
        return None, int(saved["num_open"])
    return sparsity, num_edges


def random(graph: EdgeGraph, attend: Tensor | None, seed: int) -> Tensor | None:
    """As many open ones as in `attend`, drawn uniformly from all, independently of the edges of `Circuit.random`."""
    if attend is None:
        return None
    own = Random(f"attention edges {seed}").getrandbits(32)
    noise = torch.rand(graph.attention.num_edges, generator=torch.Generator().manual_seed(own))
    return highest(graph, noise, int(attend.sum()))[0]


def num_open(graph: EdgeGraph, attend: Tensor | None) -> int:
    """How many are open."""
    return graph.attention.num_edges if attend is None else int(attend.sum())


def all_open(graph: EdgeGraph, attend: Tensor | None) -> bool:
    """Whether none is closed."""
    return attend is None or bool(attend.eq(graph.attention.exists).all())


def number(attend: Tensor | None) -> dict[str, int]:
    """How many are open, for the header of a part that has none of its own; nothing where all are."""
    return {} if attend is None else {"attention_edges": int(attend.sum())}


def size(graph: EdgeGraph, attend: Tensor | None) -> dict[str, Any]:
    """What the header says of them; nothing where all are open."""
    if attend is None:
        return {}
    kept, existing = int(attend.sum()), graph.attention.num_edges
    return {"attention": {"num_edges": kept, "sparsity": 1 - kept / existing}}


def require_open(graph: EdgeGraph, attend: Tensor | None, what: str) -> None:
    """Refuse closed ones where `what` does not know of them."""
    if attend is not None and not all_open(graph, attend):
        closed = graph.attention.num_edges - int(attend.sum())
        raise EdgepruneError(
            f"the circuit closes {closed:,} attention edges, which {what} does not take yet; open them: "
            "`Circuit.with_attention(None, {})`"
        )
