"""Plots as geometry: from series of points to the coordinates that the template writes as SVG.

Colours are classes of the style sheet, so that one page serves light and dark; every class has its own marker, so
that colour is never the only difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from edgeprune.report.axes import Axis

WIDTH, HEIGHT = 400, 290
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 30, 42  # margins for tick labels and axis labels
NUM_COLOURS = 8  # classes c0 to c7 of style.css
# Paths around (0, 0): circle, square, triangle, diamond, cross. 5 and 8 share no factor: 40 pairs before one repeats.
MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.6,-3.6h7.2v7.2h-7.2z",
    "M0,-4.8L4.6,3.4H-4.6z",
    "M0,-5L5,0L0,5L-5,0z",
    "M-4,-2L-2,-4L0,-2L2,-4L4,-2L2,0L4,2L2,4L0,2L-2,4L-4,2L-2,0z",
)


class Key(NamedTuple):
    """How a series is drawn, and its line in the legend."""

    name: str
    colour: str
    marker: str


def key(name: str, place: int) -> Key:
    """The key of the series at this place."""
    return Key(name, f"c{place % NUM_COLOURS}", MARKERS[place % len(MARKERS)])


def grey(name: str) -> Key:
    """The key of controls."""
    return Key(name, "grey", MARKERS[0])


class Point(NamedTuple):
    """A point, what it says when pointed at, and the interval of its y."""

    x: float
    y: float
    title: str = ""
    low: float | None = None
    high: float | None = None


@final
@dataclass(frozen=True)
class Series:
    """Points that are drawn alike; joined by a line in their order if asked for."""

    key: Key
    points: Sequence[Point]
    line: bool = False
    marks: bool = True


class Rule(NamedTuple):
    """A line of reference: across at y, or upright at x."""

    label: str
    y: float | None = None
    x: float | None = None


class Bar(NamedTuple):
    """A bar of a histogram, from x to x."""

    low: float
    high: float
    height: float
    title: str


# -------------------------------------------------------------------- coordinates
class Tick(NamedTuple):
    """A tick: where, in units of the drawing, and its label."""

    at: float
    label: str


class Mark(NamedTuple):
    """A marker at its place."""

    x: float
    y: float
    key: Key
    title: str


class Segment(NamedTuple):
    """A straight line, its class and a label at its end."""

    x1: float
    y1: float
    x2: float
    y2: float
    colour: str
    label: str = ""


class Path(NamedTuple):
    """A line through points, as SVG has them, and its class."""

    points: str
    colour: str


class Box(NamedTuple):
    """A rectangle and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    title: str


@final
@dataclass(frozen=True)
class Plot:
    """A drawing of `WIDTH` by `HEIGHT` units, y downwards; `label` is read to those who do not see it."""

    title: str
    label: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    boxes: Sequence[Box]  # bars
    segments: Sequence[Segment]  # intervals and lines of reference
    paths: Sequence[Path]
    marks: Sequence[Mark]
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def draw(
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series] = (),
    *,
    bars: Sequence[Bar] = (),
    rules: Sequence[Rule] = (),
    diagonal: bool = False,
) -> Plot:
    """Lay out one plot. Points that have no place on an axis (0 on a logarithmic one) are left out.

    Args:
        title: Above the plot, if any.
        x: The axis below.
        y: The axis at the left.
        series: Points and lines.
        bars: Bars from the lower end of y.
        rules: Lines of reference; left out beyond the axes.
        diagonal: Draw where x and y are equal.
    """
    shown = [(one, [point for point in one.points if x.holds(point.x) and y.holds(point.y)]) for one in series]
    marks = [(one.key, point) for one, points in shown for point in points if one.marks]
    segments = [_rule(rule, x, y) for rule in rules if _has_place(rule, x, y)]
    segments += _diagonal(x, y) if diagonal else []
    segments += [part for one, points in shown for point in points for part in _interval(point, one.key, x, y)]
    count = sum(len(points) for _, points in shown)
    what = f"{len(bars)} bars" if bars else f"{count} points"
    return Plot(
        title,
        f"{f'{title}: ' if title else ''}{y.label} against {x.label}, {what}",
        x.label,
        y.label,
        [Tick(_across(x, value), label) for value, label in x.ticks()],
        [Tick(_down(y, value), label) for value, label in y.ticks()],
        [_box(bar, x, y) for bar in bars],
        segments,
        [Path(_polyline(points, x, y), one.key.colour) for one, points in shown if one.line and len(points) > 1],
        [Mark(_across(x, point.x), _down(y, point.y), of, point.title) for of, point in marks],
    )


def _across(x: Axis, value: float) -> float:
    return round(LEFT + x.share(value) * (WIDTH - LEFT - RIGHT), 1)


def _down(y: Axis, value: float) -> float:
    return round(HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM), 1)


def _polyline(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """Places that differ; thousands of points of a curve fall on few."""
    places = [(_across(x, point.x), _down(y, point.y)) for point in points]
    return " ".join(f"{across},{down}" for across, down in dict.fromkeys(places))


def _box(bar: Bar, x: Axis, y: Axis) -> Box:
    """At least one unit wide, and one high unless it is empty."""
    left, right, bottom = _across(x, bar.low), _across(x, bar.high), HEIGHT - BOTTOM
    height = max(round(bottom - _down(y, bar.height), 1), 1.0) if bar.height else 0.0
    return Box(left, round(bottom - height, 1), max(round(right - left - 1, 1), 1.0), height, bar.title)


def _interval(point: Point, of: Key, x: Axis, y: Axis) -> list[Segment]:
    if point.low is None or point.high is None:
        return []
    at, low, high = _across(x, point.x), max(point.low, y.low), min(point.high, y.high)
    return [Segment(at, _down(y, low), at, _down(y, high), of.colour)]


def _has_place(rule: Rule, x: Axis, y: Axis) -> bool:
    """Not beyond an axis, nor on one."""
    return (rule.y is None or y.low < rule.y <= y.high) and (rule.x is None or x.low < rule.x <= x.high)


def _rule(rule: Rule, x: Axis, y: Axis) -> Segment:
    if rule.y is not None:
        at = _down(y, rule.y)
        return Segment(LEFT, at, WIDTH - RIGHT, at, "rule", rule.label)
    at = _across(x, rule.x or 0.0)
    return Segment(at, HEIGHT - BOTTOM, at, TOP, "rule", rule.label)


def _diagonal(x: Axis, y: Axis) -> list[Segment]:
    low, high = max(x.low, y.low), min(x.high, y.high)
    if low >= high:
        return []
    return [Segment(_across(x, low), _down(y, low), _across(x, high), _down(y, high), "rule")]
