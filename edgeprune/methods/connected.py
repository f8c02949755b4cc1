"""The best connected circuit of a size, exactly: an integer programme over edges, writers and readers (HiGHS)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgeprune.console import warn
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.graph_paths import is_key_or_value, scored_roles, seen_roles

LARGEST = 1e3  # the largest score as the solver sees it: it holds sums for equal that differ by less than 1e-6
SECONDS = 120.0
_PROVEN, _INFEASIBLE = 0, 2  # what the solver says


class Connected(NamedTuple):
    """A connected circuit.

    Attributes:
        keep: Bool `[..., reader, writer]`.
        gap: By how much the sum of a better one may be larger, at most, relative to this sum; 0: there is none.
    """

    keep: Tensor
    gap: float


def connected(
    graph: EdgeGraph,
    scores: Tensor,
    num_edges: int,
    *,
    absolute: bool = False,
    num_positive: int = 0,
    seconds: float = SECONDS,
) -> Connected:
    """The `num_edges` edges with the largest sum of scores among all sets in which no edge dangles.

    Every kept edge then lies on a path of kept edges from an embedding to the logits. For that it is enough that a kept
    edge whose writer is no embedding has a kept edge into the writer, and one whose reader is not the logits a kept
    edge behind the reader: there are no cycles.

    Args:
        graph: The graph.
        scores: Float `[..., reader, writer]`.
        num_edges: Edges to keep.
        absolute: Add up absolute values.
        num_positive: At least so many of the edges are to score above 0.
        seconds: When the solver has not proven by then that none is better, the best one found counts, with a warning.

    Raises:
        EdgepruneError: There is no such set, or none was found in time.
    """
    from scipy import optimize, sparse

    plain = graph.to_vector(scores).detach().double().cpu().numpy()
    values = np.abs(plain) if absolute else plain
    scored = scored_roles(graph)
    roles, readers, writers = (part.numpy() for part in graph.exists.reshape(-1, *graph.shape[-2:]).nonzero().unbind(1))
    logits = len(graph.readers) - 1
    ends = (readers == logits) & scored.numpy()[roles]  # edges into logits that are scored
    readers, writers = readers + roles * len(graph.readers), writers + roles * len(graph.writers)
    count, num_readers, num_writers = len(values), len(scored) * len(graph.readers), len(scored) * len(graph.writers)

    def matrix(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
        return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)

    def eye_of(size: int) -> sparse.csr_array:
        return matrix(np.arange(size), np.arange(size), (size, size))

    edges = np.arange(count)
    into, out_of = (
        matrix(ends, edges, (size, count)) for ends, size in ((readers, num_readers), (writers, num_writers))
    )
    behind = np.array(_behind(graph)).reshape(-1, 2)
    crosses = matrix(behind[:, 1], behind[:, 0], (num_writers, num_readers))  # from a reader to what depends on it

    # unknowns: is the edge kept, is the writer fed, does the reader lead to the logits; each row is at most 0
    inner, early = writers % len(graph.writers) >= graph.arch.num_embeddings, ~ends
    fed = eye_of(num_writers)[np.arange(num_writers) % len(graph.writers) >= graph.arch.num_embeddings]
    outside = np.arange(num_readers) % len(graph.readers) != logits
    outside[logits :: len(graph.readers)] = ~scored.numpy()  # nothing is behind these, so they lead nowhere
    leads = eye_of(num_readers)[outside]
    rows = sparse.block_array(
        [
            [eye_of(count)[inner], -out_of.T.tocsr()[inner], None],
            [eye_of(count)[early], None, -into.T.tocsr()[early]],
            [-(fed @ crosses @ into), fed, None],
            [-(leads @ crosses.T @ out_of), None, leads],
        ]
    )
    others = np.zeros(num_writers + num_readers)
    largest = np.abs(values).max(initial=0.0) or 1.0
    found = optimize.milp(
        np.concatenate([-values * (LARGEST / largest), others]),
        integrality=np.concatenate([np.ones(count), others]),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(rows, -np.inf, 0),
            optimize.LinearConstraint(np.concatenate([np.ones(count), others])[None], num_edges, num_edges),
            optimize.LinearConstraint(np.concatenate([plain > 0, others])[None], num_positive, np.inf),
        ],
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise EdgepruneError(_why_none(found.status, num_edges, num_positive, seconds))
    keep = torch.zeros(graph.shape, dtype=torch.bool)
    keep[graph.exists] = torch.from_numpy(found.x[:count] > 0.5)
    gap = 0.0 if found.status == _PROVEN else float(found.mip_gap)
    if gap:
        warn(
            f"connected circuit of {num_edges:,} edges: not proven to be the best within {seconds:g} s; the sum of "
            f"scores may be up to {gap:.2g} of itself too small. Raise selection.seconds"
        )
    return Connected(keep, gap)


def _behind(graph: EdgeGraph) -> list[tuple[int, int]]:
    """Readers and the writers that depend on them, each counted on over roles."""
    sees, found = seen_roles(graph), list[tuple[int, int]]()
    for reader in range(len(graph.readers)):
        heard = sees if is_key_or_value(graph, reader) else torch.eye(len(sees))
        for at, other in heard.nonzero().tolist():
            row, column = other * len(graph.readers) + reader, at * len(graph.writers)
            found += [(row, column + writer) for writer in graph.behind(reader)]
    return found


def _why_none(status: int, num_edges: int, num_positive: int, seconds: float) -> str:
    if status == _INFEASIBLE:
        positive = f" of which {num_positive:,} score above 0" if num_positive else ""
        return f"no {num_edges:,} edges{positive} make a circuit in which none dangles; ask for another sparsity" + (
            ", or a smaller positive_first" if num_positive else ""
        )
    return (
        f"no connected circuit of {num_edges:,} edges found within {seconds:g} s; raise selection.seconds, or take "
        "selection rule greedy with prune_dangling"
    )
