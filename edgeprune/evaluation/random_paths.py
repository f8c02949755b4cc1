"""Random paths from an embedding to the logits: circuits made of them, and circuits with one more of them.

A path goes through an edge that is drawn uniformly. From its writer it goes back, each time to a random input of that
node and a random writer that this input sees, until it is at an embedding; from its reader it goes on, each time to a
random reader of that node's output, until it is at the logits. No edge of such a circuit is dangling.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph

BLOCK = 4096  # random numbers drawn at once

Place = tuple[int, int]  # (reader, writer)


def _uniform(generator: torch.Generator) -> Iterator[float]:
    """Numbers in [0, 1)."""
    while True:
        yield from torch.rand(BLOCK, generator=generator, dtype=torch.float64).tolist()


@final
class RandomPaths:
    """Draws paths of one graph.

    Args:
        graph: The graph.
        generator: Where all draws come from.
    """

    def __init__(self, graph: EdgeGraph, generator: torch.Generator) -> None:
        self._num_visible = graph.num_visible
        self._inputs = graph.inputs
        self._nodes: list[list[int]] = [[] for _ in graph.readers]  # of each reader, the writers that it is an input of
        for writer, readers in enumerate(self._inputs):
            for reader in readers:
                self._nodes[reader].append(writer)
        self._readers: list[list[int]] = [column.nonzero().flatten().tolist() for column in graph.exists.T]
        self._numbers = _uniform(generator)

    def _choose(self, places: Sequence[int]) -> int:
        return places[int(next(self._numbers) * len(places))]

    def through(self, reader: int, writer: int) -> list[Place]:
        """Edges `(reader, writer)` of a random path through this one."""
        path = [(reader, writer)]
        while self._inputs[writer]:
            entered = self._choose(self._inputs[writer])
            writer = int(next(self._numbers) * self._num_visible[entered])
            path.append((entered, writer))
        while self._nodes[reader]:
            left = self._choose(self._nodes[reader])
            reader = self._choose(self._readers[left])
            path.append((reader, left))
        return path


def _shuffled(edges: Tensor, generator: torch.Generator) -> list[Place]:
    """The True entries of `[reader, writer]` in random order."""
    found = edges.nonzero()
    return [(reader, writer) for reader, writer in found[torch.randperm(len(found), generator=generator)].tolist()]


def path_circuit(graph: EdgeGraph, num_edges: int, seed: int = 0) -> Tensor:
    """A random circuit of whole paths, bool `[reader, writer]`, without dangling edges.

    Paths through random edges that are not there yet are added until there are enough edges; the last one may bring a
    few more than were asked for, at most a path's length.

    Args:
        graph: The graph.
        num_edges: At least so many.
        seed: Of the draws.
    """
    if not 0 <= num_edges <= graph.num_edges:
        raise EdgepruneError(f"num_edges must be 0 to {graph.num_edges}, the edges of this graph, got {num_edges}")
    generator = torch.Generator().manual_seed(seed)
    order = _shuffled(graph.exists, generator)
    paths, chosen = RandomPaths(graph, generator), set[Place]()
    for edge in order:
        if len(chosen) >= num_edges:
            break
        if edge not in chosen:
            chosen.update(paths.through(*edge))
    return _matrix(graph, chosen)


def _matrix(graph: EdgeGraph, edges: set[Place]) -> Tensor:
    keep = torch.zeros(graph.shape, dtype=torch.bool)
    if edges:
        readers, writers = zip(*edges, strict=True)
        keep[list(readers), list(writers)] = True
    return keep


# -------------------------------------------------------------------- inflated circuits
@final
@dataclass(frozen=True, eq=False)
class InflatedCircuits:
    """A circuit with a random path more, several times, and the same without one edge of that path.

    Attributes:
        edges: For each inflated circuit the edge that is removed, long `[number, 2]`: reader, writer.
        gates: The inflated circuits, then each of them without its edge, bool `[reader, writer]`: what is to be run.
    """

    edges: Tensor
    gates: tuple[Tensor, ...]

    def effects(self, losses: Tensor) -> Tensor:
        """How much the loss rises when the edge is removed, `[number]`, from the losses of `gates`, `[2 * number]`."""
        number = len(self.edges)
        if losses.shape != (2 * number,):
            raise EdgepruneError(f"{2 * number} circuits need as many losses, got shape {tuple(losses.shape)}")
        return losses[number:] - losses[:number]


def inflated_circuits(graph: EdgeGraph, keep: Tensor, number: int, seed: int = 0) -> InflatedCircuits:
    """Circuits with one more path: how much do edges matter that nobody chose?

    For each, an edge outside the circuit is drawn uniformly, and a random path through it is added, whether other edges
    of the path were in the circuit or not. That edge is the one to remove. The source (arXiv 2410.13032, minimality)
    draws a random walk from an embedding and then one of its new edges: it favours edges at the ends of the model,
    and may take long to find a new one when the circuit is nearly complete.

    Args:
        graph: The graph.
        keep: The circuit, bool `[reader, writer]`.
        number: How many.
        seed: Of the draws.

    Raises:
        EdgepruneError: The circuit has every edge, or `number` is below 1.
    """
    keep = keep.cpu().bool() & graph.exists
    outside = (graph.exists & ~keep).nonzero()
    if number < 1 or not len(outside):
        raise EdgepruneError(
            f"cannot add {number} random paths to a circuit with {int(keep.sum())} of {graph.num_edges} edges: ask for "
            "at least one, of a circuit that lacks an edge"
        )
    generator = torch.Generator().manual_seed(seed)
    edges = outside[torch.randint(len(outside), (number,), generator=generator)]
    paths = RandomPaths(graph, generator)
    inflated = [keep | _matrix(graph, set(paths.through(*place))) for place in edges.tolist()]
    without = [matrix.clone() for matrix in inflated]
    for matrix, (reader, writer) in zip(without, edges.tolist(), strict=True):
        matrix[reader, writer] = False
    return InflatedCircuits(edges, (*inflated, *without))
