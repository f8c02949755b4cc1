"""Axes of plots: their ends, round ticks, and where a value lies."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

_MAX_TICKS = 8


@final
@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: What is on it, with its unit.
        low: Its lower end.
        high: Its upper end, above `low`.
        log: Logarithmic; both ends are then positive.
        named: Ticks that have other labels than their values; empty for round values.
    """

    label: str
    low: float
    high: float
    log: bool = False
    named: Sequence[tuple[float, str]] = ()

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the lower end and 1 at the upper."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def holds(self, value: float) -> bool:
        """Whether the value has a place on the axis."""
        return self.low <= value <= self.high

    def ticks(self) -> list[tuple[float, str]]:
        """Values between the ends, with their labels."""
        if self.named:
            return [(value, label) for value, label in self.named if self.holds(value)]
        return [(value, f"{value:,.6g}") for value in (self._powers() if self.log else _steps(self.low, self.high))]

    def _powers(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1,)):
            ticks = [digit * 10.0**power for power in powers for digit in digits]
            ticks = [tick for tick in ticks if self.holds(tick)]
            if len(ticks) <= _MAX_TICKS:
                break
        else:
            ticks = ticks[:: math.ceil(len(ticks) / _MAX_TICKS)]
        return ticks if len(ticks) > 1 else _steps(self.low, self.high)


def _steps(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 6  # a step as large gives four to seven ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [min(max(place * step, low), high) for place in range(first, last + 1)]  # rounding may lead outside


def axis(label: str, values: Iterable[float], *, log: bool = False, zero: bool = False) -> Axis:
    """An axis with room for all values.

    Args:
        label: Of the axis.
        values: What must have a place.
        log: Logarithmic, where all values are positive.
        zero: A linear axis begins at 0 where no value is below.
    """
    values = list(values) or [0.0, 1.0]
    low, high = min(values), max(values)
    if log and low > 0:
        margin = max(high / low, 2.0) ** 0.06
        return Axis(label, low / margin, high * margin, log=True)
    margin = 0.05 * (high - low or abs(high) or 1.0)
    return Axis(label, 0.0 if zero and low >= 0 else low - margin, high + margin)


def bin_axis(label: str, bounds: Sequence[float]) -> Axis:
    """An axis on which all bins are equally wide, whatever their bounds; bin i is from i to i + 1.

    Ticks are at bounds that lie alike from both ends, so that bins which are symmetrical about 0 get symmetrical ticks.
    """
    last = len(bounds) - 1
    step = 1 if last <= _MAX_TICKS else 2 * math.ceil(last / (2 * _MAX_TICKS))
    left = range(0, last // 2 + 1 if step == 1 else (last + 1 - step) // 2, step)
    places = sorted({*left, *(last - place for place in left)})
    return Axis(label, 0.0, float(last), named=[(float(place), f"{bounds[place]:.3g}") for place in places])


def place_in_bins(value: float, bounds: Sequence[float]) -> float | None:
    """Where a value lies on a `bin_axis`; None outside."""
    for place, (low, high) in enumerate(pairwise(bounds)):
        if low <= value <= high and low < high:
            return place + (value - low) / (high - low)
    return None
