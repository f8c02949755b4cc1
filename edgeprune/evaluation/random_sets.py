"""Random sets of nodes and of edges, all from one seeded generator."""

import torch
from torch import Tensor

Nodes = tuple[str, ...]


def even_sizes(largest: int, num: int) -> list[int]:
    """So many sizes, spread evenly over 1 to `largest`: each occurs if there are enough, else both ends and between.

    >>> even_sizes(3, 7), even_sizes(9, 3), even_sizes(9, 1)
    ([1, 2, 3, 1, 2, 3, 1], [1, 5, 9], [5])
    """
    if not largest or not num:
        return []
    if num >= largest:
        return [number % largest + 1 for number in range(num)]
    if num == 1:
        return [(largest + 1) // 2]
    return [1 + round(number * (largest - 1) / (num - 1)) for number in range(num)]


def random_sets(nodes: Nodes, num: int, generator: torch.Generator) -> list[Nodes]:
    """So many random sets of nodes, their sizes as in `even_sizes`."""
    return [draw(nodes, size, generator) for size in even_sizes(len(nodes), num)]


def draw(nodes: Nodes, size: int, generator: torch.Generator) -> Nodes:
    """So many of the nodes at random, in their order."""
    chosen = torch.randperm(len(nodes), generator=generator)[:size].sort().values
    return tuple(nodes[place] for place in chosen.tolist())


def at_most(nodes: Nodes, limit: int | None, generator: torch.Generator) -> Nodes:
    """All nodes, or so many at random; None: no limit."""
    return nodes if limit is None or limit >= len(nodes) else draw(nodes, limit, generator)


def edge_sets(keep: Tensor, num: int, generator: torch.Generator) -> list[Tensor]:
    """Random sets of kept edges, bool `[reader, writer]`, their sizes as in `even_sizes`."""
    kept = keep.nonzero()
    sets: list[Tensor] = []
    for size in even_sizes(len(kept), num):
        gone = torch.zeros_like(keep)
        gone[tuple(kept[torch.randperm(len(kept), generator=generator)[:size]].T)] = True
        sets.append(gone)
    return sets
