"""Scores of a circuit's edges: how they are checked, and which edges are the highest."""

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.gates.base import top_k
from edgeprune.graph import EdgeGraph


def check(graph: EdgeGraph, keep: Tensor, scores: Tensor | None) -> None:
    """Refuse matrices of another shape than the graph's, and NaN as the score of an edge that exists."""
    for name, matrix in (("keep", keep), ("scores", scores)):
        if matrix is not None and tuple(matrix.shape) != graph.shape:
            raise EdgepruneError(f"{name} has shape {tuple(matrix.shape)}, this graph is {graph.axes} = {graph.shape}")
    if scores is not None and (places := scores.cpu().isnan() & graph.exists).any():
        raise EdgepruneError(
            f"the score of {graph.edge_name(*places.nonzero()[0].tolist())} is NaN, as that of "
            f"{int(places.sum()):,} edges in all; NaN cannot be ranked: find what made it, or leave the scores out"
        )


def highest(graph: EdgeGraph, scores: Tensor, sparsity: float | None, num_edges: int | None) -> Tensor:
    """The existing edges with the highest scores, as many as a sparsity leaves or `num_edges`, bool as the graph."""
    if (sparsity is None) == (num_edges is None):
        raise EdgepruneError(f"give either a sparsity or num_edges, got {sparsity=}, {num_edges=}")
    count = num_edges if sparsity is None else edges_at(graph, sparsity)
    if count is None or not 0 <= count <= graph.num_edges:
        raise EdgepruneError(f"num_edges must be 0 to {graph.num_edges}, the edges of this graph, got {num_edges}")
    if not graph.to_vector(scores).isfinite().all():
        raise EdgepruneError("scores of existing edges must be finite: NaN or infinity cannot be ranked")
    keep = torch.zeros(graph.shape, dtype=torch.bool)
    keep[graph.exists] = top_k(graph.to_vector(scores), count)
    return keep


def edges_at(graph: EdgeGraph, sparsity: float) -> int:
    """How many edges a circuit of this sparsity keeps."""
    if not 0 <= sparsity <= 1:
        raise EdgepruneError(f"sparsity must be in [0, 1], got {sparsity}; 0.95 keeps 5 % of the edges")
    return round((1 - sparsity) * graph.num_edges)
