"""The JSON of an evaluation as the sections of the page look it up. Missing parts are allowed: they are empty."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, final

from edgeprune.errors import EdgepruneError
from edgeprune.report import plots
from edgeprune.report.blocks import Cell, Column
from edgeprune.report.text import UNDEFINED, counted, finite, number

SCHEMA = "edgeprune-evaluation/1"
# Measures that a summary shows, in this order; others fill the places that are left.
MAIN = ("kl", "logit_difference", "logit_difference_percent", "accuracy", "exact_match")
_NUM_MAIN = 6
ENDS = {"full": "full model", "empty": "empty circuit"}
_ARROWS = {"low": "↓", "high": "↑", "100": "near 100"}

Json = Mapping[str, Any]


def part(data: Any, *keys: str) -> Json:
    """A dict inside; empty where a key is absent or holds something else."""
    for name in keys:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def items(data: Json, name: str) -> list[Any]:
    """A list inside; empty where it is absent."""
    found = data.get(name)
    return list(found) if isinstance(found, list | tuple) else []


def entries(data: Json, name: str) -> list[Json]:
    """The dicts of a list inside."""
    return [item for item in items(data, name) if isinstance(item, Mapping)]


def numbers(data: Json, name: str) -> list[float]:
    """The finite numbers of a list inside."""
    return [known for value in items(data, name) if (known := finite(value)) is not None]


@final
class Result:
    """A result of `edgeprune evaluate`.

    Args:
        data: As read from the JSON file.

    Raises:
        EdgepruneError: It is of another schema.
    """

    def __init__(self, data: Json) -> None:
        if data.get("schema") != SCHEMA:
            raise EdgepruneError(
                f"a report is made of a result of schema {SCHEMA!r}, got {data.get('schema')!r}; "
                "write one with `edgeprune evaluate CIRCUIT... --json FILE`"
            )
        self.data = data
        self.about = part(data, "about")
        self.measures = part(data, "measures")
        self.circuits = entries(data, "circuits")

    # ---------------------------------------------------------------- names
    @cached_property
    def names(self) -> list[str]:
        """A name for each circuit; where two have the same, their paths, or else their numbers."""
        names = [str(circuit.get("name") or f"circuit {place + 1}") for place, circuit in enumerate(self.circuits)]
        paths = [str(circuit.get("path") or name) for circuit, name in zip(self.circuits, names, strict=True)]
        names = [path if Counter(names)[name] > 1 else name for name, path in zip(names, paths, strict=True)]
        return [f"{name} ({place + 1})" if Counter(names)[name] > 1 else name for place, name in enumerate(names)]

    def name_at(self, place: Any) -> str:
        """The name of the circuit at a place."""
        return self.names[place] if isinstance(place, int) and 0 <= place < len(self.names) else UNDEFINED

    @cached_property
    def named(self) -> list[tuple[str, Json]]:
        """Each circuit with its name."""
        return list(zip(self.names, self.circuits, strict=True))

    @cached_property
    def ablations(self) -> list[str]:
        """All ablations, the main one first."""
        found = [name for _, circuit in self.named for name in part(circuit, "ablations")]
        return list(dict.fromkeys([self.ablation, *found])) if found else []

    @cached_property
    def ablation(self) -> str:
        """The main ablation: that of every section which does not say otherwise."""
        first = [name for circuit in self.circuits for name in part(circuit, "ablations")]
        return str(self.about.get("ablation") or (first[0] if first else "interchange"))

    # ---------------------------------------------------------------- measures
    @cached_property
    def taken(self) -> list[str]:
        """Measures that some circuit has a value of under the main ablation, the main ones first."""
        found = dict.fromkeys(
            name
            for circuit in self.circuits
            for name, figure in part(circuit, "ablations", self.ablation, "measures").items()
            if finite(part(figure).get("value")) is not None
        )
        return [name for name in MAIN if name in found] + [name for name in found if name not in MAIN]

    @cached_property
    def main(self) -> list[str]:
        """The measures of a summary."""
        return self.taken[:_NUM_MAIN]

    def heading(self, measure: Any) -> str:
        """A measure as tables call it."""
        return str(part(self.measures, str(measure)).get("heading") or measure)

    def axis_label(self, measure: str) -> str:
        """A measure with its unit."""
        unit = part(self.measures, measure).get("unit")
        return f"{self.heading(measure)} ({unit})" if unit else self.heading(measure)

    def direction(self, measure: str) -> str:
        """An arrow to where values are good."""
        better = str(part(self.measures, measure).get("better", ""))
        return _ARROWS.get(better, better)

    def column(self, measure: str) -> Column:
        """The column of a measure."""
        about = part(self.measures, measure)
        unit, direction = str(about.get("unit") or ""), self.direction(measure)
        return Column(self.heading(measure), f"{unit} {direction}".strip(), str(about.get("definition") or ""))

    def series(
        self, points: Callable[[str, Json], Sequence[plots.Point]], most_marks: float = math.inf
    ) -> list[plots.Series]:
        """A line for each circuit that has points; of more than `most_marks`, no point is marked."""
        found = [(plots.key(name, place), points(name, one)) for place, (name, one) in enumerate(self.named)]
        return [plots.Series(key, some, line=True, marks=len(some) <= most_marks) for key, some in found if some]

    def pairs(self, found: Iterable[Sequence[Any]]) -> str:
        """On how many pairs a test ran: `, first 50 of 1,000 pairs`; empty where that is not known.

        Args:
            found: What the test found of each circuit, with the circuit's name in front.
        """
        counts = dict.fromkeys(count for one in found if (count := finite(one[-1].get("num_examples"))) is not None)
        whole = finite(self.about.get("num_examples"))
        texts = [
            f"first {count:,.0f} of {whole:,.0f} pairs"
            if whole is not None and count < whole
            else counted(int(count), "pair")
            for count in counts
        ]
        return f", {' or '.join(texts)}" if texts else ""

    # ---------------------------------------------------------------- cells
    @cached_property
    def resampling(self) -> Json:
        """How intervals were made."""
        return part(self.about, "resampling")

    @cached_property
    def interval(self) -> str:
        """What intervals are called."""
        level = finite(self.resampling.get("level"))
        return "interval" if level is None else f"{100 * level:g} % interval"

    def figure(self, figures: Json, measure: str) -> Cell:
        """A figure: its value, and its interval; the number of examples where it is not that of all."""
        found = part(figures, measure)
        value, low, high = (finite(found.get(name)) for name in ("value", "low", "high"))
        if value is None:
            return self._undefined(measure)
        count, small, title = found.get("num_examples"), list[str](), [f"{self.axis_label(measure)} {value:.6g}"]
        if low is not None and high is not None:
            small.append(f"[{number(low)}, {number(high)}]")
            title.append(f"{self.interval} {low:.6g} to {high:.6g}")
        if count is not None:
            title.append(counted(count, "example"))
            small += [f"n = {number(count)}"] if count != self.about.get("num_examples") else []
        return cell(value, number, " ".join(small), ", ".join(title))

    def spread(self, spreads: Json, measure: str) -> Cell:
        """A figure over seeds: its mean, and the standard deviation."""
        found = part(spreads, measure)
        mean, deviation, low, high = (finite(found.get(name)) for name in ("mean", "deviation", "minimum", "maximum"))
        if mean is None:
            return self._undefined(measure)
        seeds = found.get("num_seeds")
        title = [f"{'' if seeds == 1 else 'mean '}{self.axis_label(measure)} {mean:.6g}"]
        title += [f"from {number(low)} to {number(high)}"] if low is not None and high is not None else []
        title += [counted(seeds, "seed")] if seeds else []
        return cell(mean, number, "" if deviation is None else f"± {number(deviation)}", ", ".join(title))

    def _undefined(self, measure: str) -> Cell:
        return Cell(UNDEFINED, title=f"{self.heading(measure)}: not defined")


def circuits_with(result: Result, *keys: str) -> list[tuple[str, Json]]:
    """The circuits that have a part, by name, with that part."""
    return [(name, found) for name, circuit in result.named if (found := part(circuit, *keys))]


def cell(
    value: Any,
    show: Callable[[Any], str] = number,
    small: str = "",
    title: str = "",
    *,
    heat: float | None = None,
    bar: float | None = None,
) -> Cell:
    """A number, written by `show`, or a text; what is neither is not defined."""
    if isinstance(value, str):
        return Cell(value, small, title, value, heat, bar)
    return Cell(show(value), small, title, finite(value), heat, bar)
