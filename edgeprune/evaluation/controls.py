"""Controls: what other choices of edges do on the same pairs, to hold a circuit's figures against.

Sufficiency: the circuit alone should do what the model does, random circuits as large should not. Necessity: without
the circuit the model should stop doing it. `CONTROLS` names them all, with the edges that are open in each; every
other edge carries the ablated value.

The nodes of a circuit are the embeddings, heads and MLPs that a kept edge leaves, once dangling edges (on no path of
kept edges from an embedding to the logits) are dropped: a head that is read by nothing, or reads nothing, is none of
them. A k or v reader that several heads share is an input of each. With roles a node is one if it is at any role, and
is kept or ablated at all tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator, open_edges
from edgeprune.graph import EdgeGraph
from edgeprune.json_numbers import json_fields, json_numbers
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.normalise import normalise

ATTEMPTS = 20  # swaps tried per edge; in 7,000 random edges of 70,651 half succeed, and from 10 on no more edges move


# -------------------------------------------------------------------- nodes
def circuit_nodes(graph: EdgeGraph, keep: Tensor, embeddings: bool = False) -> tuple[str, ...]:
    """The heads and MLPs that edges of the circuit leave, dangling ones dropped first.

    Args:
        graph: The graph.
        keep: Bool `[reader, writer]`.
        embeddings: Name those too.
    """
    inside = _inside(graph, keep)
    first = 0 if embeddings else graph.arch.num_embeddings
    return tuple(graph.writers[column] for column in inside.nonzero().flatten().tolist() if column >= first)


def columns(graph: EdgeGraph, nodes: Iterable[str]) -> list[int]:
    """Columns of writers, in their order.

    Raises:
        EdgepruneError: There is no writer of this name.
    """
    places = {name: column for column, name in enumerate(graph.writers)}
    wanted = set(nodes)
    unknown = sorted(wanted - places.keys())
    if unknown:
        raise EdgepruneError(
            f"no node named {unknown[0]!r} in this graph; nodes are written like {graph.writers[0]!r}, "
            f"{graph.writers[graph.arch.num_embeddings]!r} and {graph.writers[-1]!r}"
        )
    return sorted(places[name] for name in wanted)


def without_nodes(keep: Tensor, columns: Sequence[int]) -> Tensor:
    """Bool `[reader, writer]`: the kept edges but those that leave these nodes."""
    left = keep.clone()
    left[..., list(columns)] = False
    return left


def inputs_of_nodes(graph: EdgeGraph) -> Tensor:
    """Bool `[reader, writer]`: the reader is an input of the node that this writer is; the logits are none."""
    inputs = torch.zeros(graph.without_roles.shape, dtype=torch.bool)
    for column, rows in enumerate(graph.inputs):
        inputs[list(rows), column] = True
    return inputs


def _inside(graph: EdgeGraph, keep: Tensor) -> Tensor:
    """Bool `[writer]`: nodes of the circuit."""
    return (keep & ~graph.dangling(keep)).flatten(0, -2).any(0)


# -------------------------------------------------------------------- gate matrices
def circuit(graph: EdgeGraph, keep: Tensor) -> Tensor:
    """Open: the circuit's edges, dangling ones too."""
    return keep & graph.exists


def complement(graph: EdgeGraph, keep: Tensor) -> Tensor:
    """Open: every edge but the circuit's."""
    return graph.exists & ~keep


def between_nodes(graph: EdgeGraph, keep: Tensor) -> Tensor:
    """Open: every edge from a node of the circuit to any input of a node of the circuit or to the logits.

    All of q, k and v of a head count as its inputs, kept or not. An embedding that the circuit does not read is
    outside.
    """
    inside = _inside(graph, keep)
    readers = (inputs_of_nodes(graph) & inside).any(1)
    readers[-1] = True
    return graph.exists & inside & readers[:, None]


def nodes_ablated(graph: EdgeGraph, keep: Tensor) -> Tensor:
    """Open: every edge that neither leaves nor enters a head or MLP of the circuit.

    Embeddings and logits are not ablated: what joins them to other nodes stays open. A k or v reader that a head
    outside the circuit shares stays open as well: to close it would damage that head. Nothing depends on the inputs of
    a node that only closed edges leave, so closing those changes the count of edges alone.
    """
    inside = _inside(graph, keep)
    inside[: graph.arch.num_embeddings] = False
    inputs = inputs_of_nodes(graph)
    readers = inputs.any(1) & ~(inputs & ~inside).any(1)
    return graph.exists & ~inside & ~readers[:, None]


class OpenEdges(NamedTuple):
    """Open edges of a control, bool `[reader, writer]`, and of a rewired circuit the swaps tried and those made."""

    open: Tensor
    num_tried: int = 0
    num_swaps: int = 0


def random_edges(graph: EdgeGraph, keep: Tensor, seed: int = 0) -> OpenEdges:
    """Open: as many edges as the circuit has, drawn uniformly from all."""
    return OpenEdges(Circuit.random(graph, int((keep & graph.exists).sum()), seed).keep)


def rewire(graph: EdgeGraph, keep: Tensor, seed: int = 0, attempts: int = ATTEMPTS) -> OpenEdges:
    """Open: random edges, as many into every reader and out of every writer as in the circuit.

    Two kept edges u -> v and x -> y, drawn at random, become x -> v and u -> y where both exist and neither is kept (a
    reader at another role is another one);
    otherwise they stay. Each such step is as likely as the one that undoes it, so of the circuits that can be reached
    none is preferred. A circuit without a legal swap comes back as it is.

    Args:
        graph: The graph.
        keep: Bool `[..., reader, writer]`.
        seed: Fixes the draws.
        attempts: Swaps tried per edge.
    """
    original = keep & graph.exists
    readers, writers = original.flatten(0, -2).nonzero().unbind(1)
    count = len(readers)
    row, column = (readers * graph.shape[-1]).tolist(), writers.tolist()  # row + column: the cell in a flat matrix
    free = bytearray((graph.exists & ~original).flatten().tolist())
    generator = torch.Generator().manual_seed(seed)
    swaps = 0
    for a, b in torch.randint(max(count, 1), (attempts * count, 2), generator=generator).tolist():
        first, second = row[a] + column[b], row[b] + column[a]
        if free[first] and free[second]:
            free[first] = free[second] = 0
            free[row[a] + column[a]] = free[row[b] + column[b]] = 1
            column[a], column[b] = column[b], column[a]
            swaps += 1
    rewired = torch.zeros_like(original)
    rewired.view(-1, graph.shape[-1])[readers, column] = True
    return OpenEdges(rewired, attempts * count, swaps)


class Control(NamedTuple):
    """A control: its name, which edges are open, whether it is random, and its gates from graph, circuit and seed."""

    name: str
    open: str
    is_random: bool
    gates: Callable[[EdgeGraph, Tensor, int], OpenEdges]


def _fixed(function: Callable[[EdgeGraph, Tensor], Tensor]) -> Callable[[EdgeGraph, Tensor, int], OpenEdges]:
    """The gates of a control that does not depend on the seed."""

    def gates(graph: EdgeGraph, keep: Tensor, seed: int) -> OpenEdges:
        del seed
        return OpenEdges(function(graph, keep))

    return gates


_ALL = (
    Control("circuit", "the circuit's edges alone: sufficiency", False, _fixed(circuit)),
    Control("complement", "all edges but the circuit's (only inside ablated): necessity", False, _fixed(complement)),
    Control("nodes", "all edges among nodes of the circuit and from them to the logits (only outside ablated)", False,
            _fixed(between_nodes)),
    Control("nodes_ablated", "all edges that neither leave nor enter heads and MLPs of the circuit", False,
            _fixed(nodes_ablated)),
    Control("random", "as many edges as the circuit has, drawn uniformly", True, random_edges),
    Control("random_degrees", "random edges, as many into every reader and out of every writer as in the circuit",
            True, rewire),
)  # fmt: skip
CONTROLS: dict[str, Control] = {control.name: control for control in _ALL}


# -------------------------------------------------------------------- measuring
@dataclass(frozen=True, eq=False)
class ControlFigures:
    """Figures of one control.

    Attributes:
        control: Which.
        seeds: One per circuit of a random control; empty for the others, which are one circuit.
        places: Places of its circuits in `Controls.values`.
        num_open: Open edges of each.
        num_swaps: Swaps that made each; 0 where it was not rewired.
        moved: Share of the circuit's edges that each lacks; 0 to 1, 0 where the circuit has none.
        figures: Float64 `[circuit, measure]`.
        faithfulness: Normalised (`edgeprune.metrics.normalise`), float64 `[circuit, measure]`.
    """

    control: Control
    seeds: tuple[int, ...]
    places: tuple[int, ...]
    num_open: tuple[int, ...]
    num_swaps: tuple[int, ...]
    moved: tuple[float, ...]
    figures: Tensor
    faithfulness: Tensor

    def to_dict(self, measures: tuple[str, ...]) -> dict[str, Any]:
        """Plain values; see `Controls`."""
        return json_fields(
            self,
            "control",
            "places",
            open=self.control.open,
            figures=json_numbers(measures, self.figures.mean(0)),
            faithfulness=json_numbers(measures, self.faithfulness.mean(0)),
            each=[json_numbers(measures, row) for row in self.figures],
        )


@dataclass(frozen=True, eq=False)
class Controls:
    """Figures of every control, beside those of the full model and of the empty circuit.

    `to_dict`: `measures`; `num_examples`; `num_edges` (kept ones of the circuit); `nodes` (its nodes, embeddings too);
    `full` and `empty` (figures by measure); `controls`: by name `open` (which edges are), `seeds` (of random ones),
    `num_open` (edges, of each seed), `num_swaps` (that made a rewired circuit), `moved` (share of the circuit's edges
    that each seed's lacks), `figures` (by measure, mean over seeds; None unless defined for all), `faithfulness`
    (normalised, likewise) and `each` (figures of each seed).

    Attributes:
        values: Example by example, for all circuits of all controls.
        ends: Full model and empty circuit.
        nodes: Of the circuit.
        num_edges: Edges of the circuit.
        controls: In the order of `CONTROLS`.
    """

    values: ExampleValues
    ends: ExampleValues
    nodes: tuple[str, ...]
    num_edges: int
    controls: tuple[ControlFigures, ...]

    def __getitem__(self, name: str) -> ControlFigures:
        """A control by its name."""
        return next(item for item in self.controls if item.control.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; see the class."""
        measures, ends = self.values.measures, self.ends.figures()
        return {
            "measures": list(measures),
            "num_examples": self.values.num_examples,
            "num_edges": self.num_edges,
            "nodes": list(self.nodes),
            "full": json_numbers(measures, ends[0]),
            "empty": json_numbers(measures, ends[1]),
            "controls": {item.control.name: item.to_dict(measures) for item in self.controls},
        }


def run_controls(evaluator: Evaluator, keep: Tensor, seeds: Iterable[int] = range(5)) -> Controls:
    """Measure all controls of a circuit in one go.

    Args:
        evaluator: Model, pairs, ablation and measures.
        keep: The circuit, bool `[reader, writer]`.
        seeds: One random circuit of each kind for each.

    Raises:
        EdgepruneError: The circuit is of another graph, or there is no seed.
    """
    graph, keep, seeds = evaluator.graph, open_edges(evaluator, keep), tuple(seeds)
    if not seeds:
        raise EdgepruneError("random controls need at least one seed, got none; give seeds, such as range(5)")
    wanted = [(control, seed) for control in CONTROLS.values() for seed in (seeds if control.is_random else (0,))]
    gates = [control.gates(graph, keep, seed) for control, seed in wanted]
    values = evaluator([made.open for made in gates], "controls")
    faithfulness = normalise(values.figures(), evaluator.ends.figures())

    def of(control: Control) -> ControlFigures:
        places = tuple(place for place, (other, _) in enumerate(wanted) if other is control)
        chosen = list(places)
        return ControlFigures(
            control,
            seeds if control.is_random else (),
            places,
            tuple(int(gates[place].open.sum()) for place in places),
            tuple(gates[place].num_swaps for place in places),
            tuple(_missing(keep, gates[place].open) for place in places),
            values.figures()[chosen],
            faithfulness[chosen],
        )

    nodes = circuit_nodes(graph, keep, embeddings=True)
    return Controls(values, evaluator.ends, nodes, int(keep.sum()), tuple(of(control) for control in _ALL))


def _missing(keep: Tensor, gates: Tensor) -> float:
    """Share of the circuit's edges that are closed."""
    return int((keep & ~gates).sum()) / max(int(keep.sum()), 1)
