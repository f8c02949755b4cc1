"""Two circuits on the same examples: the difference of their figures, with an interval and a p-value."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, final

import torch
from torch import Tensor

from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.json_numbers import json_fields
from edgeprune.metrics.examples import ExampleValues
from edgeprune.statistics.uncertainty import (
    BLOCK,
    DRAWS,
    LEVEL,
    ROUNDING,
    Estimate,
    Resampling,
    interval_bounds,
    resamples,
)

PERMUTATIONS = 10_000  # the smallest p-value is then 1e-4
AT_ONCE = 2**17  # numbers of several pairs of circuits in one step: 1 MB in float64, what stays in a processor's cache


@final
@dataclass(frozen=True)
class Difference:
    """One circuit minus another on the same examples.

    `to_dict` has the keys `measure`, `value`, `low`, `high`, `num_examples`, `p_value` (None where undefined), `exact`,
    `permutations`, `seed`, `level` and `draws`.

    Attributes:
        measure: Its name.
        figure: The difference, with its interval.
        p_value: Two-sided; of the null hypothesis that it makes no difference which of the two circuits a value is of.
        exact: All exchanges were tried, rather than some at random.
        permutations: How many.
        resampling: How the interval was made; its seed is that of the exchanges too.
    """

    measure: str
    figure: Estimate
    p_value: float
    exact: bool
    permutations: int
    resampling: Resampling

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return json_fields(self, "figure", "resampling", **vars(self.figure), **vars(self.resampling))


def paired_difference(
    values: ExampleValues,
    first: int,
    second: int,
    measure: str,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Difference:
    """The figure of one circuit minus that of another, over the examples for which both are defined.

    The p-value is that of a permutation test: the two circuits' values of an example change places or not, all ways
    being equally likely (for a mean, the signs of the differences flip). It is the share of ways whose difference is at
    least as large, either way round: over all 2^n where these are at most `permutations`, else over random ones with
    the way found added, so that it is never 0 (Phipson and Smyth, arXiv 1603.05766).

    Args:
        values: Of both circuits.
        first: Place of the one circuit.
        second: Place of the other.
        measure: Name.
        draws: Resamples for the interval.
        level: Share of the draws inside the interval.
        seed: Of the draws and of the exchanges.
        permutations: Random exchanges, and the most that are tried in turn.
    """
    pair = values.circuits([first, second]).only([measure])
    return paired_differences(pair, draws, level, seed, permutations)[0][measure]


def paired_differences(
    values: ExampleValues,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    report: Progress = no_progress,
) -> list[dict[str, Difference]]:
    """`paired_difference` of every two circuits by every measure.

    Resamples and exchanges are a function of the seed and of the number of examples alone. So each is drawn once for
    all pairs, and what depends on one circuit only is computed once per circuit.

    Args:
        values: Of the circuits.
        draws: Resamples for the interval.
        level: Share of the draws inside the interval.
        seed: Of the draws and of the exchanges.
        permutations: Random exchanges, and the most that are tried in turn.
        report: Gets how many differences are found, and of how many.

    Returns:
        For every two circuits (0 and 1, 0 and 2, ...), the earlier one minus the later one, by measure.
    """
    if permutations < 1:
        raise EdgepruneError(f"permutations must be at least 1, got {permutations}")
    resampling = Resampling(draws, level, seed)
    pairs = torch.combinations(torch.arange(values.num_circuits)).T  # [2, pair], in the order of itertools
    found = [dict[str, Difference]() for _ in range(pairs.shape[1])]
    groups = [group for name in values.measures for group in _groups(values.only([name]), pairs)]
    done, total = 0.0, len(found) * len(values.measures)
    groups.sort(key=lambda group: group.num_examples)
    for num_examples, alike in groupby(groups, lambda group: group.num_examples):
        same = list(alike)
        for counts in resamples(num_examples, resampling):
            for group in same:
                group.draw(counts)
        exact = 2**num_examples <= permutations
        number = 2**num_examples if exact else permutations
        for signs in _all_signs(num_examples) if exact else _random_signs(num_examples, number, seed):
            for group in same:
                group.exchange(signs)
                done += group.num_pairs * len(signs) / number
                report("every two circuits", round(done), total)
        for group in same:
            for place, figure, as_large in group.results(level):
                p_value = as_large / number if exact else (as_large + 1) / (number + 1)
                known = p_value if math.isfinite(figure.value) else math.nan
                found[place][group.measure] = Difference(group.measure, figure, known, exact, number, resampling)
    return [{name: by_name[name] for name in values.measures} for by_name in found]


def _groups(values: ExampleValues, pairs: Tensor) -> Iterator["_Group"]:
    """Pairs `[2, pair]` by the examples for which one measure is defined for both circuits; mostly all are in one."""
    patterns, pattern_of = values.known[:, 0].unique(dim=0, return_inverse=True)
    low, high = pattern_of[pairs].sort(0).values
    codes = low * len(patterns) + high
    for code in codes.unique().tolist():
        both = patterns[code // len(patterns)] & patterns[code % len(patterns)]
        places = (codes == code).nonzero()[:, 0]
        circuits, local = pairs[:, places].unique(return_inverse=True)
        yield _Group(values.circuits(circuits.tolist()).examples(both), places, local)


@final
@dataclass(eq=False)
class _Group:
    """Pairs of circuits whose figures by one measure are over the same examples.

    Attributes:
        values: Of one measure, defined for all circuits and examples.
        places: Of the pairs in the list of all of them, `[pair]`.
        pairs: Places of their circuits in `values`, `[2, pair]`.
        drawn: Figures of each block of draws, `[circuit, draw]`.
        as_large: Exchanges whose difference is at least as large as the one found, long `[pair]`.
    """

    values: ExampleValues
    places: Tensor
    pairs: Tensor
    drawn: list[Tensor] = field(default_factory=list[Tensor])
    as_large: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.as_large = torch.zeros_like(self.places)
        self.sums, self.weights = (part[:, 0] for part in self.values.terms)  # [circuit, example]
        self.same_weights = torch.equal(self.weights, self.weights[:1].expand_as(self.weights))
        scale = self.sums.abs().sum(-1) / self.weights.sum(-1).abs()
        figures = self.values.figures()[:, 0]
        first, second = self.pairs
        self.found = figures[first] - figures[second]
        self.least = self.found.abs() - ROUNDING * (scale[first] + scale[second])

    @property
    def measure(self) -> str:
        """Its name."""
        return self.values.measures[0]

    @property
    def num_examples(self) -> int:
        """Examples."""
        return self.values.num_examples

    @property
    def num_pairs(self) -> int:
        """Pairs of circuits."""
        return len(self.places)

    def draw(self, counts: Tensor) -> None:
        """Take the figures of some draws, float64 `[draw, example]`."""
        self.drawn.append(((counts @ self.sums.T) / (counts @ self.weights.T)).T)

    def exchange(self, signs: Tensor) -> None:
        """Count large differences among those of some exchanges, float64 `[exchange, example]`, -1 where values change.

        Values and weights change places together: half the sum of both circuits, and the sign times half the
        difference. The product with the signs is taken for each circuit, not for each pair.
        """
        sums = (signs @ self.sums.T).T.contiguous()
        weights = None if self.same_weights else (signs @ self.weights.T).T.contiguous()
        whole, number = (part.sum(-1, keepdim=True) for part in (self.sums, self.weights))
        for part in self._parts(len(signs)):
            first, second = self.pairs[:, part]
            by, least = sums.index_select(0, first).sub_(sums.index_select(0, second)), self.least[part, None]
            if weights is None:  # as without the common denominator
                differences, least = by, least * number[first].abs()
            else:
                both, count = (total[first] + total[second] for total in (whole, number))
                more = weights[first] - weights[second]
                differences = (both + by) / (count + more) - (both - by) / (count - more)
            self.as_large[part] += (differences.abs_() >= least).sum(-1, dtype=torch.int32)

    def results(self, level: float) -> Iterator[tuple[int, Estimate, int]]:
        """Of each pair its place, the difference with its interval, and how many exchanges gave as large a one."""
        drawn = torch.cat(self.drawn, -1)
        for part in self._parts(drawn.shape[-1]):
            one, other = (drawn[circuits] for circuits in self.pairs[:, part])
            by = one - other
            by = by.masked_fill(by.abs() < ROUNDING * torch.maximum(one.abs(), other.abs()), 0.0)  # order of sums
            low, high, _ = interval_bounds(self.found[part], by.T, level)
            columns = (self.places[part], self.found[part], low, high, self.as_large[part])
            for place, value, lower, upper, as_large in zip(*(column.tolist() for column in columns), strict=True):
                yield place, Estimate(value, lower, upper, self.num_examples), as_large

    def _parts(self, length: int) -> Iterator[slice]:
        """The pairs, so many at once that a row of `length` numbers for each is not too much."""
        at_once = max(1, AT_ONCE // length)
        return (slice(start, start + at_once) for start in range(0, self.num_pairs, at_once))


def _all_signs(num_examples: int) -> Iterator[Tensor]:
    """Every choice of signs, float64 `[2^example, example]`."""
    numbers = torch.arange(2**num_examples)[:, None]
    yield 1 - 2 * (numbers >> torch.arange(num_examples) & 1).double()


def _random_signs(num_examples: int, number: int, seed: int) -> Iterator[Tensor]:
    """Random signs in blocks, float64 `[choices in block, example]`."""
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, BLOCK // num_examples)
    for start in range(0, number, at_once):
        shape = (min(at_once, number - start), num_examples)
        yield 1 - 2 * torch.randint(2, shape, generator=generator).double()
