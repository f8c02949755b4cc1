"""The edges of a drawing: which ones, in what order, how strong, and of which colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from edgeprune import circuit_attention
from edgeprune.circuit import Circuit
from edgeprune.comparison.overlap import cut_to
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.nodes import reader_kind

MAX_EDGES = 10_000
AT_ROLE = "at_role"  # in the header of a part: the role that its edges are at


class DrawnEdge(NamedTuple):
    """One edge: row and column of a graph without roles, its strength from 0 to 1, and the name of its colour."""

    row: int
    column: int
    strength: float
    colour: str


@final
@dataclass(frozen=True)
class NamedCircuit:
    """A circuit and what it is called in the drawing.

    Attributes:
        name: In sliders and legends.
        circuit: What is drawn.
        whole: The circuit that this is a part of, if it is one.
    """

    name: str
    circuit: Circuit
    whole: Circuit | None = None


def strongest_edges(named: NamedCircuit, max_edges: int) -> NamedCircuit:
    """The strongest edges of a circuit that has more of them than can be drawn.

    Raises:
        EdgepruneError: It has more, and no scores to choose by.
    """
    circuit = named.circuit
    if circuit.num_edges <= max_edges:
        return named
    if circuit.scores is None:
        raise EdgepruneError(
            f"{named.name} has {circuit.num_edges:,} edges, more than {max_edges:,}, and no scores to choose "
            "by; give a larger --max-edges"
        )
    return _part(named, circuit & cut_to(circuit, max_edges))


def on_paths(named: NamedCircuit) -> NamedCircuit:
    """The edges of a circuit that lie on a path of its edges from an embedding to the logits."""
    return _part(named, named.circuit.without_dangling()) if named.circuit.num_dangling else named


def without_roles(named: NamedCircuit, role: str | None = None) -> NamedCircuit:
    """The edges of a circuit with roles that it keeps at one of them, or at any; without roles it stays as it is.

    Raises:
        EdgepruneError: It has no such role.
    """
    circuit, roles = named.circuit, named.circuit.graph.roles
    if roles is None:
        if role is not None:
            raise EdgepruneError(f"{named.name} has no roles, so none is {role!r}; leave --role out")
        return named
    if role is None:
        return NamedCircuit(named.name, circuit.union(), None if named.whole is None else named.whole.union())
    place = roles.index(role)
    scores = None if circuit.scores is None else circuit.scores[place]
    seen = circuit_attention.number(None if circuit.attend is None else circuit.attend[:, :, place])
    header = {**circuit.header, "derived": [*circuit.header.get("derived", []), {AT_ROLE: role, **seen}]}
    at_role = Circuit(circuit.graph.without_roles, circuit.keep[place], scores, header)
    return NamedCircuit(named.name, at_role, named.whole or circuit)


def _part(named: NamedCircuit, circuit: Circuit) -> NamedCircuit:
    """A part of what is drawn; its header says nothing of what was measured of the whole."""
    return NamedCircuit(named.name, circuit, named.whole or named.circuit)


def ranked(circuit: Circuit) -> list[tuple[int, ...]]:
    """Places of kept edges, the strongest first; without scores, and among equals, in the graph's order."""
    kept = circuit.keep.nonzero()
    if circuit.ranking is not None:
        kept = kept[circuit.ranking[circuit.keep].double().argsort(descending=True, stable=True)]
    return [tuple(place) for place in kept.tolist()]


def strengths(circuit: Circuit) -> Tensor:
    """Strength of each kept edge in [0, 1], in a matrix like `keep`; 1 without scores, or if all are equal.

    1 is the best score; 0 is a score of 0, or the worst one where that is below 0.
    """
    ranking, found = circuit.ranking, circuit.keep.double()
    if ranking is None or not circuit.num_edges:
        return found
    values = ranking[circuit.keep].double()
    low = min(float(values.min()), 0.0)
    high = float(values.max())
    found[circuit.keep] = (values - low) / (high - low) if high > low else torch.ones_like(values)
    return found


def edges_of(circuit: Circuit, other: Circuit | None = None) -> list[DrawnEdge]:
    """What an image draws, the weakest first, so that the strongest lie on top.

    Args:
        circuit: A circuit without roles; an edge has the colour of its reader's kind.
        other: Draw the difference instead: edges of `circuit` alone (`first`), of this one alone (`second`), of both.

    Raises:
        EdgepruneError: The circuits are of different graphs, or have roles.
    """
    circuit.require_no_roles("an image")
    graph, strength = circuit.graph, strengths(circuit)
    if other is None:
        return [
            DrawnEdge(row, column, float(strength[row, column]), reader_kind(graph.readers[row]))
            for row, column in reversed(ranked(circuit))
        ]
    other.check_fits(graph, "the circuit it is compared with", attention=True)
    strength = torch.maximum(strength, strengths(other))
    parts = {
        "both": circuit.keep & other.keep,
        "first": circuit.keep & ~other.keep,
        "second": other.keep & ~circuit.keep,
    }
    found: list[DrawnEdge] = []
    for name, keep in parts.items():
        here = [DrawnEdge(row, column, float(strength[row, column]), name) for row, column in keep.nonzero().tolist()]
        found += sorted(here, key=lambda edge: edge.strength)
    return found


def union(circuits: Sequence[Circuit]) -> tuple[EdgeGraph, Tensor]:
    """The graph of all circuits, and the edges that any of them keeps.

    Raises:
        EdgepruneError: They are of different graphs.
    """
    graph, keep = circuits[0].graph, circuits[0].keep
    for circuit in circuits[1:]:
        circuit.check_fits(graph, "the circuit beside it", attention=True)
        keep = keep | circuit.keep
    return graph, keep
