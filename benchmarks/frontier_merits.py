"""What the circuits of a method are worth together: areas over their sizes, and how far they are nested.

Each of MIB's ten shares takes the largest circuit that fits it, the empty circuit where none does, and the full model
at 100 %; areas are those of `edgeprune.evaluation.size_areas`, by logit difference. A method's area is the mean over
its seeds, with an interval over pairs from the same resamples for all methods, so that differences have theirs too.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.comparison.nested import by_size, nestedness
from edgeprune.evaluation.mib_circuits import SHARES, largest_fitting
from edgeprune.evaluation.size_areas import accuracy_area, mib_areas
from edgeprune.metrics.examples import ExampleValues
from edgeprune.statistics.uncertainty import Intervals, bootstrap_of

AREAS = ("cpr", "cmd", "accuracy_area")
MEASURES = ("logit_difference", "accuracy")


class Found(NamedTuple):
    """The circuits of a run, and `MEASURES` of each on each pair, `[circuit, measure, pair]`."""

    circuits: Sequence[Circuit]
    values: Tensor


def merits(methods: Mapping[str, Sequence[Found]], ends: Tensor, against: str) -> dict[str, Any]:
    """Of each method areas, the difference to those of one of them, and nestedness.

    Args:
        methods: By name the run of each seed.
        ends: `MEASURES` of the full model and of the empty circuit, `[2, measure, pair]`.
        against: Name of the method that others are compared with.

    Returns:
        By method: `areas`, by name `value`, `low`, `high` and `seeds` (of each seed); `minus`, by name `value`, `low`,
        `high`, for all but the one; `nested`: of each seed `share`, `expected`, `every_two`.
    """
    curves = {name: torch.cat([_points(run, ends) for run in runs]) for name, runs in methods.items()}
    found: dict[str, Any] = {}
    for name, runs in methods.items():
        own = _areas([curves[name]], ends)
        alone = [_areas([points], ends).value.tolist() for points in curves[name].split(len(SHARES))]
        found[name] = {
            "areas": {
                area: figure | {"seeds": [round(values[place], 4) for values in alone]}
                for place, (area, figure) in enumerate(_figures(own))
            },
            "minus": None,
            "nested": list(map(_nested, runs)),
        }
        if name != against and against in methods:
            found[name]["minus"] = dict(_figures(_areas([curves[name], curves[against]], ends)))
    return found


def _points(run: Found, ends: Tensor) -> Tensor:
    """Values at each of MIB's shares, `[share, measure, pair]`."""
    chosen = largest_fitting(run.circuits[0].graph, run.circuits)
    full, empty = ends
    return torch.stack(
        [empty if one.stands_in else full if one.circuit is None else run.values[one.circuit] for one in chosen]
    )


def _areas(curves: Sequence[Tensor], ends: Tensor) -> Intervals:
    """Areas of one method `[seed and share, measure, pair]`, or of the first minus the second."""
    values = torch.cat([ends, *curves]).double()
    sizes = [len(points) for points in curves]

    def difference(figures: Tensor) -> Tensor:
        both = figures[:, :2]
        means = [_mean_over_seeds(both, points) for points in figures[:, 2:].split(sizes, 1)]
        return means[0] - sum(means[1:])

    examples = ExampleValues(MEASURES, values, torch.ones_like(values), torch.arange(values.shape[-1]))
    return bootstrap_of(examples, difference)


def _mean_over_seeds(ends: Tensor, points: Tensor) -> Tensor:
    """`[draw, area]` from figures of the ends `[draw, 2, measure]`, and of points `[draw, seed and share, measure]`."""
    seeds = points.unflatten(1, (-1, len(SHARES)))
    whole = torch.cat([ends[:, None].expand(-1, seeds.shape[1], -1, -1), seeds], 2)
    areas = torch.cat([mib_areas(whole[..., 0])[..., :2], accuracy_area(seeds[..., 1])[..., None]], -1)
    return areas.mean(1)


def _figures(found: Intervals) -> Iterator[tuple[str, dict[str, float]]]:
    for place, name in enumerate(AREAS):
        one = found.at(place)
        yield name, {"value": round(one.value, 4), "low": round(one.low, 4), "high": round(one.high, 4)}


def _nested(run: Found) -> dict[str, float | None]:
    """Of the sizes of one run."""
    places = by_size(run.circuits, range(len(run.circuits)))
    found = nestedness([run.circuits[place] for place in places])
    names = ("share", "expected", "every_two")
    return {name: None if found[name] is None else round(found[name], 4) for name in names}
