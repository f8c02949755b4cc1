"""Attention edges of a circuit, `[layer, head, query role, key role]`: checks, sets and figures. None: all are open."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from edgeprune.errors import EdgepruneError
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


def size(graph: EdgeGraph, attend: Tensor | None) -> dict[str, Any]:
    """What the header says of them; nothing where all are open."""
    if attend is None:
        return {}
    kept, existing = int(attend.sum()), graph.attention.num_edges
    return {"attention": {"num_edges": kept, "sparsity": 1 - kept / existing}}


def require_open(graph: EdgeGraph, attend: Tensor | None, what: str) -> None:
    """Refuse closed ones where `what` does not know of them."""
    if attend is not None and not bool(attend.eq(graph.attention.exists).all()):
        closed = graph.attention.num_edges - int(attend.sum())
        raise EdgepruneError(
            f"the circuit closes {closed:,} attention edges, which {what} does not take yet; open them: "
            "`Circuit.with_attention(None, {})`"
        )
