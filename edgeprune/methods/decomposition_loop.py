"""The circuit of nodes that contextual decomposition grows from the logits, round by round, and its pruning."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgeprune.graph import EdgeGraph
from edgeprune.nodes import within


def rounds(graph: EdgeGraph, nodes: Tensor, targets: Tensor, num_best: int) -> list[list[int]]:
    """The writers that each round finds: the best for the logits, then the best for these, and so on.

    A round's score of a writer is the sum of what it is to each of the last round's. Embeddings are no sources, nor are
    writers that were found before; a round without a score above 0 is the last.

    Args:
        graph: The graph.
        nodes: What each writer is to the logits, `[writer]`.
        targets: What it is to what others write, `[writer written to, writer]`.
        num_best: How many a round finds (published: 2).
    """
    found: list[list[int]] = []
    left = torch.ones(len(graph.writers), dtype=torch.bool)
    left[: graph.arch.num_embeddings] = False
    scores = nodes
    while True:
        ranked = torch.where(left & (scores > 0), scores, 0.0)
        best = [writer for writer in ranked.argsort(descending=True, stable=True)[:num_best].tolist() if ranked[writer]]
        if not best:
            return found
        found.append(best)
        left[best] = False
        scores = targets[best].sum(0)


def keep_among(graph: EdgeGraph, writers: Sequence[int]) -> Tensor:
    """Bool `[reader, writer]`: all edges among some writers, the embeddings and the logits."""
    names = [graph.writers[writer] for writer in (*range(graph.arch.num_embeddings), *writers)]
    return within(graph, graph.exists, [*names, "logits"])


def pruned(
    graph: EdgeGraph, writers: Sequence[int], loss_of: Callable[[Tensor], float], protected: Sequence[int] = ()
) -> list[int]:
    """Writers that stay when, again and again, the one whose removal lowers the loss most goes, until none does.

    Args:
        graph: The graph.
        writers: Those to begin with.
        loss_of: Loss of the circuit with gates `[reader, writer]`.
        protected: Those that never go (published: the ones found first).
    """
    kept = list(writers)

    def loss(chosen: Sequence[int]) -> float:
        return loss_of(keep_among(graph, chosen).float())

    lowest = loss(kept)
    while True:
        tries = {writer: loss([one for one in kept if one != writer]) for writer in kept if writer not in protected}
        best = min(tries, key=lambda writer: tries[writer], default=None)
        if best is None or not tries[best] < lowest:
            return kept
        lowest = tries[best]
        kept.remove(best)
