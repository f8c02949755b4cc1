"""Two circuits on the same examples: the difference of their figures, with an interval and a p-value."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.plain import plain
from edgeprune.evaluation.uncertainty import BLOCK, DRAWS, LEVEL, ROUNDING, Figure, Resampling, bootstrap_of, only
from edgeprune.metrics.examples import ExampleValues

PERMUTATIONS = 10_000  # the smallest p-value is then 1e-4


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
    figure: Figure
    p_value: float
    exact: bool
    permutations: int
    resampling: Resampling

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        about = {"exact": self.exact, "permutations": self.permutations, **vars(self.resampling)}
        return {"measure": self.measure, **self.figure.to_dict(), "p_value": plain(self.p_value), **about}


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
    if permutations < 1:
        raise EdgepruneError(f"permutations must be at least 1, got {permutations}")
    pair = only(values.circuits([first, second]), [measure])
    pair = pair.examples(pair.known.all(0)[0])
    intervals = bootstrap_of(pair, _first_minus_second, draws, level, seed)
    exact = 2**pair.num_examples <= permutations
    signs = _all_signs(pair.num_examples) if exact else _random_signs(pair.num_examples, permutations, seed)
    found = torch.cat([_exchanged(pair, block) for block in signs]).abs()
    as_large = int((found >= found.new_tensor(abs(intervals.at().value)) * (1 - ROUNDING)).sum())
    p_value = as_large / len(found) if exact else (as_large + 1) / (len(found) + 1)
    known = math.isfinite(intervals.at().value)
    return Difference(measure, intervals.at(), p_value if known else math.nan, exact, len(found), intervals.resampling)


def _first_minus_second(figures: Tensor) -> Tensor:
    return figures[:, 0, 0] - figures[:, 1, 0]


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


def _exchanged(pair: ExampleValues, signs: Tensor) -> Tensor:
    """Differences of the figures `[choice]` where the values of both circuits change places at negative signs.

    Values and weights change places together: half the sum of both circuits, and the sign times half the difference.
    """
    sums, weights = (part[:, 0] for part in pair.terms)  # [2, example]
    value, weight = (
        [(part.sum() + way * (signs @ (part[0] - part[1]))) / 2 for way in (1, -1)] for part in (sums, weights)
    )
    return value[0] / weight[0] - value[1] / weight[1]
