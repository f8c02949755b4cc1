"""The order in which ACDC asks: receivers from the logits back, and for each the writers that feed it.

Receivers: logits, then from the last layer to the first the MLP, v, k and q readers. Senders of a receiver, `normal`:
from the last layer to the first its MLP, then its heads; token and position embedding last. Heads come last head
first, as the published code stores them, both as receivers and, with `normal` indices, as senders.
"""

import random
from typing import Literal, TypeVar

from edgeprune.graph import EdgeGraph

Order = Literal["normal", "reverse", "random"]
Item = TypeVar("Item")


def receiver_order(graph: EdgeGraph) -> list[int]:
    """All readers, in the order in which their edges are tested.

    >>> from edgeprune.graph import ArchSpec
    >>> graph = EdgeGraph(ArchSpec(num_layers=1, num_heads=2, num_kv_heads=2))
    >>> " ".join(graph.readers[reader] for reader in receiver_order(graph))
    'logits m0 a0.h1.v a0.h0.v a0.h1.k a0.h0.k a0.h1.q a0.h0.q'
    """
    return list(reversed(range(len(graph.readers))))


def receivers_at_roles(graph: EdgeGraph) -> list[tuple[int, ...]]:
    """All readers in that order, `(reader,)`; with roles `(role, reader)`, the last role of a reader first."""
    if graph.roles is None:
        return [(reader,) for reader in receiver_order(graph)]
    roles = list(reversed(range(len(graph.roles))))
    return [(role, reader) for reader in receiver_order(graph) for role in roles]


def sender_order(graph: EdgeGraph, reader: int, names: Order, indices: Order, seed: int) -> list[int]:
    """The writers that `reader` sees, in the order in which their edges are tested.

    Args:
        graph: The graph.
        reader: The receiver.
        names: Order of the groups: each MLP, the heads of each layer, each embedding.
        indices: Order of the heads of one layer.
        seed: Of both random orders; a receiver's order depends on this and its name only.

    >>> from edgeprune.graph import ArchSpec
    >>> graph = EdgeGraph(ArchSpec(num_layers=1, num_heads=2, num_kv_heads=2, split_embedding=True))
    >>> logits = len(graph.readers) - 1
    >>> " ".join(graph.writers[writer] for writer in sender_order(graph, logits, "normal", "reverse", seed=0))
    'm0 a0.h0 a0.h1 tok_embed pos_embed'
    """
    rng = random.Random(f"{seed} {graph.readers[reader]}")
    groups = _arranged(_groups(graph, graph.num_visible[reader]), names, rng)
    return [writer for group in groups for writer in _arranged(group, indices, rng)]


def _groups(graph: EdgeGraph, num_visible: int) -> list[list[int]]:
    """The first writers as the published code stores them: one list per name."""
    arch, groups = graph.arch, list[list[int]]()
    for layer in reversed(range(arch.num_layers)):
        heads = graph.heads(layer)
        groups += [[heads.stop]] * arch.has_mlp
        groups.append(list(reversed(range(heads.start, heads.stop))))
    groups += [[writer] for writer in range(arch.num_embeddings)]
    return [group for group in groups if group[0] < num_visible]


def _arranged(items: list[Item], order: Order, rng: random.Random) -> list[Item]:
    if order == "random":
        return rng.sample(items, len(items))
    return items if order == "normal" else items[::-1]
