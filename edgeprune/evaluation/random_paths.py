"""Random paths from an embedding to the logits: circuits made of them, and circuits with one more of them.

A path goes through an edge that is drawn uniformly. From its writer it goes back, each time to a random input of that
node and a random writer that this input sees, until it is at an embedding; from its reader it goes on, each time to a
random reader of that node's output, until it is at the logits. No edge of such a circuit is dangling. With roles it
stays at its role, but from k and v leads on at a random role that sees theirs, and back to them at one that is seen; it
goes only where it can end in logits that are scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.graph_paths import is_key_or_value, seen_roles

BLOCK = 4096  # random numbers drawn at once

Item = TypeVar("Item")
Place = tuple[int, ...]  # (reader, writer), or (role, reader, writer)


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
        self._graph = graph
        self._useful = graph.reaching_logits(graph.exists).view(-1, len(graph.readers)).tolist()
        self._sees = seen_roles(graph)
        self._num_visible = graph.num_visible
        self._inputs = graph.inputs
        self._nodes: list[list[int]] = [[] for _ in graph.readers]  # of each reader, the writers that it is an input of
        for writer, readers in enumerate(self._inputs):
            for reader in readers:
                self._nodes[reader].append(writer)
        self._readers: list[list[int]] = [
            column.nonzero().flatten().tolist() for column in graph.without_roles.exists.T
        ]
        self._numbers = _uniform(generator)

    def _choose(self, places: Sequence[Item]) -> Item:
        return places[int(next(self._numbers) * len(places))]

    def through(self, *place: int) -> list[Place]:
        """Edges of a random path through one, `(reader, writer)` or `(role, reader, writer)`."""
        *role, reader, writer = place
        start = role[0] if role else 0
        at, path = start, [(start, reader, writer)]
        while self._inputs[writer]:
            entered = self._choose(self._inputs[writer])
            seen = self._across(entered, self._sees[at], at)
            at = self._choose(seen) if len(seen) > 1 else at
            writer = int(next(self._numbers) * self._num_visible[entered])
            path.append((at, entered, writer))
        at = start
        while self._nodes[reader]:
            left = self._choose(self._nodes[reader])
            heard = self._across(reader, self._sees[:, at], at)
            onward = [(there, to) for there in heard for to in self._readers[left] if self._useful[there][to]]
            at, reader = self._choose(onward)
            path.append((at, reader, left))
        return path if role else [edge[1:] for edge in path]

    def _across(self, reader: int, roles: Tensor, at: int) -> list[int]:
        """Where a path may go on through the node of a reader: at these roles, bool `[R]`, if it is k or v."""
        return roles.nonzero().flatten().tolist() if is_key_or_value(self._graph, reader) else [at]


def useful_edges(graph: EdgeGraph) -> Tensor:
    """Bool `[..., reader, writer]`: edges that lie on a path to scored logits if all are open; without roles all."""
    return graph.exists & graph.reaching_logits(graph.exists)[..., None]


def _shuffled(edges: Tensor, generator: torch.Generator) -> list[Place]:
    """The True entries in random order."""
    found = edges.nonzero()
    return [tuple(place) for place in found[torch.randperm(len(found), generator=generator)].tolist()]


def path_circuit(graph: EdgeGraph, num_edges: int, seed: int = 0) -> Tensor:
    """A random circuit of whole paths, bool `[..., reader, writer]`, without dangling edges.

    Paths through random edges that are not there yet are added until there are enough edges; the last one may bring a
    few more than were asked for, at most a path's length.

    Args:
        graph: The graph.
        num_edges: At least so many, or all that a path to scored logits can have.
        seed: Of the draws.
    """
    if not 0 <= num_edges <= graph.num_edges:
        raise EdgepruneError(f"num_edges must be 0 to {graph.num_edges}, the edges of this graph, got {num_edges}")
    generator = torch.Generator().manual_seed(seed)
    order = _shuffled(useful_edges(graph), generator)
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
        keep[tuple(torch.tensor(sorted(edges)).T)] = True
    return keep


# -------------------------------------------------------------------- inflated circuits
@final
@dataclass(frozen=True, eq=False)
class InflatedCircuits:
    """A circuit with a random path more, several times, and the same without one edge of that path.

    Attributes:
        edges: For each inflated circuit the edge that is removed, long `[number, 2]`: reader, writer; with roles
            `[number, 3]`.
        gates: The inflated circuits, then each without its edge, bool `[..., reader, writer]`: what is to be run.
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
    outside = (useful_edges(graph) & ~keep).nonzero()
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
    for matrix, place in zip(without, edges.tolist(), strict=True):
        matrix[tuple(place)] = False
    return InflatedCircuits(edges, (*inflated, *without))
