"""The circuits of MIB's circuit track: which edges stand for each share of a graph, and how they are counted."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from edgeprune.circuit import Circuit, edges_at
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.methods.selection import greedy, prune_dangling, top_n

Rule = Literal["top_n", "greedy"]
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of the edges, as MIB asks for them
GROWN = ("information_flow_routes",)  # methods whose circuits MIB grows from the logits


class ShareCircuit(NamedTuple):
    """What stands for one share.

    Attributes:
        requested: The share of edges that was asked for.
        num_asked: requested x edges of the graph, rounded down; to the nearest for circuits that were given.
        keep: Edges that are run, bool `[reader, writer]`.
        circuit: Number of the circuit given; None if it is none of them.
        stands_in: The empty circuit, because none given was small enough.
    """

    requested: float
    num_asked: int
    keep: Tensor
    circuit: int | None = None
    stands_in: bool = False

    @property
    def num_kept(self) -> int:
        """Edges that are run."""
        return int(self.keep.sum())


def rule_for(circuit: Circuit, rule: str | None) -> Rule:
    """The rule asked for; for None, MIB's for the method that made the circuit.

    Raises:
        EdgepruneError: No such rule.
    """
    if rule is None:
        return "greedy" if circuit.header.get("method") in GROWN else "top_n"
    if rule == "top_n" or rule == "greedy":
        return rule
    raise EdgepruneError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")


def chosen_edges(
    circuit: Circuit, sizes: Sequence[int], rule: Rule, absolute: bool, *, prune: bool = True
) -> Iterator[Tensor]:
    """Edges that the scores of a circuit choose, bool `[reader, writer]`, for each number of edges.

    Args:
        circuit: Whose scores; whatever edges it keeps itself.
        sizes: How many edges to choose.
        rule: How.
        absolute: By absolute score.
        prune: Drop those on no path from an embedding to the logits, so that fewer stay than `sizes` says.

    Raises:
        EdgepruneError: It has no scores.
    """
    if circuit.scores is None:
        raise EdgepruneError(
            "the circuit has no scores to cut circuits of other sizes from; give circuits of several sizes in a list"
        )
    choose = greedy if rule == "greedy" else top_n
    for size in sizes:
        keep = choose(circuit.graph, circuit.scores, size, absolute=absolute)
        yield prune_dangling(circuit.graph, keep) if prune else keep


def largest_fitting(graph: EdgeGraph, circuits: Sequence[Circuit]) -> Iterator[ShareCircuit]:
    """For each share the largest circuit that is small enough; a share is rounded as circuits of a sparsity are."""
    for share in SHARES[:-1]:
        limit = edges_at(graph, 1 - share)
        fitting = [number for number, circuit in enumerate(circuits) if circuit.num_edges <= limit]
        if fitting:
            best = max(fitting, key=lambda number: circuits[number].num_edges)
            yield ShareCircuit(share, limit, circuits[best].keep, best)
        else:
            yield ShareCircuit(share, limit, torch.zeros_like(graph.exists), stands_in=True)
    yield ShareCircuit(SHARES[-1], graph.num_edges, graph.exists)


# -------------------------------------------------------------------- what is counted
def mib_graph(graph: EdgeGraph) -> EdgeGraph:
    """The graph of the same model as MIB counts it: one embedding, k and v inputs of every query head."""
    return EdgeGraph(replace(graph.arch, split_embedding=False, kv_readers="head"))


def counted_edges(graph: EdgeGraph) -> str:
    """In words, which edges are counted.

    >>> from edgeprune.graph import ArchSpec
    >>> counted_edges(EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2)))
    'one embedding, k and v inputs of every key/value head; MIB counts otherwise'
    """
    apart, per_head = graph.arch.split_embedding, graph.arch.num_kv_readers == graph.arch.num_heads
    embeddings = "token and position embedding apart" if apart else "one embedding"
    inputs = "query" if per_head else "key/value"
    theirs = "as MIB counts" if per_head and not apart and graph.roles is None else "MIB counts otherwise"
    roles = "" if graph.roles is None else f", each at {len(graph.roles)} roles"
    return f"{embeddings}, k and v inputs of every {inputs} head{roles}; {theirs}"
