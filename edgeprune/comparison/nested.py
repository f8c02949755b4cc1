"""Circuits of one run: which they are, and how far the smaller ones lie inside the larger ones."""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from statistics import fmean
from typing import Any

from edgeprune.circuit import Circuit
from edgeprune.comparison.overlap import by_chance

# Of a header, what the circuits of one run need not have in common.
_OWN = {
    *("step", "reached", "metrics", "random_control", "split"),
    *("num_edges", "sparsity", "num_dangling", "union", "sha256"),
    *("selection", "tau", "nodes", "derived"),
}


def circuits_of_runs(circuits: Sequence[Circuit]) -> list[list[int]]:
    """Places of the circuits of each run, from the smallest, each size once; runs of a single size are left out.

    Circuits are of one run where their headers say the same of how they were found, that is where they differ in
    nothing but size, step, figures, selection and threshold; and where the same was done to them since, such as
    polishing. Circuits whose header names no method are of none.
    """
    groups: list[list[int]] = []
    for place, circuit in enumerate(circuits):
        if circuit.header.get("method") is None:
            continue
        group = next((group for group in groups if _made(circuits[group[0]]) == _made(circuit)), None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    runs = [by_size(circuits, group) for group in groups]
    return [run for run in runs if len(run) > 1]


def _made(circuit: Circuit) -> tuple[Mapping[str, Any], list[str], Any]:
    """How a circuit was found, what was done to it since, and its graph."""
    header = circuit.header
    done = [next(iter(how), "") for how in header.get("derived", [])]
    return {name: value for name, value in header.items() if name not in _OWN}, done, circuit.graph


def by_size(circuits: Sequence[Circuit], places: Sequence[int]) -> list[int]:
    """The places from the smallest circuit to the largest; of one size the first, none without edges or with all."""
    first: dict[int, int] = {}
    for place in places:
        first.setdefault(circuits[place].num_edges, place)
    existing = circuits[places[0]].graph.num_edges if places else 0
    return [first[size] for size in sorted(first) if 0 < size < existing]


def nestedness(circuits: Sequence[Circuit]) -> dict[str, Any]:
    """How far the smaller circuits of one run lie inside the larger ones.

    Of two circuits S and L, S the smaller, the share is |S and L| / |S|: the edges of the smaller one that the larger
    one has too. 1: nested, as circuits cut from one ranking are. Circuits taken on the way, or found anew for each
    size, need not be. Edges drawn at random would give a mean of |L| / edges of the graph.

    A figure of circuits, not of examples: it has no interval over examples, only a spread over seeds.

    Source: Matryoshka Attribution's code (arXiv 2609.25518), `ladder_nestedness.py`, there of nodes; what chance gives
    is ours.

    Args:
        circuits: Of one graph, from the smallest, each of another size, none empty.

    Returns:
        `steps`: for each circuit and the next larger one `share`, `expected` (by chance), `log10_p_value` (of as many
        edges in common or more by chance); `share`, `expected`: their means; `every_two`: mean share over all pairs of
        sizes. None where there are fewer than two circuits.
    """
    steps = [_contained(small, large) for small, large in pairwise(circuits)]
    every = [_contained(small, large)["share"] for small, large in combinations(circuits, 2)]
    return {
        **{name: fmean(step[name] for step in steps) if steps else None for name in ("share", "expected")},
        "every_two": fmean(every) if every else None,
        "steps": steps,
    }


def _contained(small: Circuit, large: Circuit) -> dict[str, float]:
    large.check_fits(small.graph, "the other one")
    existing, both = small.graph.num_edges, int((small.keep & large.keep).sum())
    chance = by_chance(both, small.num_edges, large.num_edges, existing)
    return {
        "share": both / small.num_edges,
        "expected": large.num_edges / existing,
        "log10_p_value": chance["log10_p_value"],
    }
