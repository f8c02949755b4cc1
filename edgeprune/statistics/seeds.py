"""Circuits that differ in little but the seed that they were found with: how far their figures lie apart.

A group has circuits of one method, objective and ablation, each of another seed, whose numbers of edges are within 10 %
of the smallest, and those of open attention edges likewise: a method that trains keeps not quite as many edges with
every seed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, final

from edgeprune import circuit_attention
from edgeprune.circuit import Circuit
from edgeprune.json_numbers import json_fields

ALIKE = 1.1  # most edges of a group / fewest
KINDS = ("measures", "normalised")
SETTINGS = ("method", "objective", "ablation")  # of a header

Section = dict[str, Any]


def seed_groups(circuits: Sequence[Circuit]) -> list[list[int]]:
    """Places of the circuits of each group, by their number of edges; circuits without seed or company are in none."""
    order = sorted(range(len(circuits)), key=lambda place: (circuits[place].num_edges, _num_attention(circuits[place])))
    groups: list[list[int]] = []
    for place in order:
        circuit = circuits[place]
        if circuit.header.get("seed") is None:
            continue
        group = next((group for group in groups if _belongs(circuit, [circuits[other] for other in group])), None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    return [group for group in groups if len(group) > 1]


def _belongs(circuit: Circuit, group: Sequence[Circuit]) -> bool:
    first, seeds = group[0], [other.header["seed"] for other in group]
    same = circuit.graph == first.graph and all(circuit.header.get(name) == first.header.get(name) for name in SETTINGS)
    inside = [_num_attention(one) for one in (circuit, *group)]
    alike = circuit.num_edges <= ALIKE * first.num_edges and max(inside) <= ALIKE * min(inside)
    return same and alike and circuit.header["seed"] not in seeds


def _num_attention(circuit: Circuit) -> int:
    """Open attention edges; 0 in a graph without roles, which has none."""
    return circuit_attention.num_open(circuit.graph, circuit.attend) if circuit.roles else 0


def spread_of_seeds(circuits: Sequence[Circuit], rows: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    """For each group, figures over its seeds.

    Args:
        circuits: The circuits.
        rows: Of each circuit, `ablations`: by name `measures` and `normalised`, figures by measure.

    Yields:
        `method`, `objective`, `ablation` (from the headers); `circuits` (places), `seeds` and `edges` of each, and
        where some close attention edges the `attention_edges` that are open; `ablations`: by name `measures` and
        `normalised`, by measure as `Spread.to_dict`.
    """
    for group in seed_groups(circuits):
        header, chosen = circuits[group[0]].header, [circuits[place] for place in group]
        inside = any(circuit.attend is not None for circuit in chosen)
        yield {
            **{name: header.get(name) for name in SETTINGS},
            "circuits": group,
            "seeds": [circuit.header["seed"] for circuit in chosen],
            "edges": [circuit.num_edges for circuit in chosen],
            **({"attention_edges": [_num_attention(circuit) for circuit in chosen]} if inside else {}),
            "ablations": {
                name: {kind: _spread([rows[place]["ablations"][name][kind] for place in group]) for kind in KINDS}
                for name in rows[group[0]]["ablations"]
            },
        }


def _spread(figures: Sequence[Mapping[str, Mapping[str, float | None]]]) -> Section:
    values = [{name: figure["value"] for name, figure in row.items()} for row in figures]
    return {name: spread.to_dict() for name, spread in over_seeds(values).items()}


# -------------------------------------------------------------------- figures over seeds
@final
@dataclass(frozen=True)
class Spread:
    """One figure over seeds.

    `to_dict` has the same keys, None where undefined.

    Attributes:
        mean: Over the seeds for which the figure is defined; NaN where there is none.
        deviation: Standard deviation with n - 1 in the denominator; NaN for fewer than two seeds.
        minimum: The smallest.
        maximum: The largest.
        num_seeds: Seeds for which it is defined.
    """

    mean: float
    deviation: float
    minimum: float
    maximum: float
    num_seeds: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain values."""
        return json_fields(self)


def over_seeds(figures: Sequence[Mapping[str, float | None]]) -> dict[str, Spread]:
    """How a figure varies between circuits that differ in nothing but the seed they were found with.

    Args:
        figures: For each seed its figures by name; a name may be missing, None or NaN for some.
    """
    found: dict[str, list[float]] = {name: [] for row in figures for name in row}
    for row in figures:
        for name, value in row.items():
            if value is not None and math.isfinite(value):
                found[name].append(value)
    return {name: _spread_of(values) for name, values in found.items()}


def _spread_of(values: Sequence[float]) -> Spread:
    if not values:
        return Spread(math.nan, math.nan, math.nan, math.nan, 0)
    deviation = stdev(values) if len(values) > 1 else math.nan
    return Spread(fmean(values), deviation, min(values), max(values), len(values))
