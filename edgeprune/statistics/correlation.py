"""Correlations of two lists of numbers: Pearson, and Spearman and Kendall of their ranks with ties.

Values are `[n]` of any dtype. Pairs of which one is NaN are left out. A correlation is NaN where fewer than two pairs
are left, or where one of the lists is constant.
"""

import math

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError


def pearson(first: Tensor, second: Tensor) -> float:
    """Covariance / product of the standard deviations, in [-1, 1].

    >>> round(pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 2.0])), 4)
    0.866
    """
    return _pearson(*_known_pairs(first, second))


def spearman(first: Tensor, second: Tensor) -> float:
    """Pearson correlation of the ranks, ties with the mean of their ranks, in [-1, 1].

    >>> round(spearman(torch.tensor([1, 2, 2, 4]), torch.tensor([10, 30, 20, 40])), 4)
    0.9487
    """
    left, right = _known_pairs(first, second)
    return _pearson(average_ranks(left), average_ranks(right))


def kendall(first: Tensor, second: Tensor) -> float:
    """Kendall's tau-b: (concordant - discordant pairs) / sqrt(pairs not tied in the one * pairs not tied in the other).

    Exact at any n: discordant pairs are the inversions of the second list in the order of the first, counted while
    merging sorted halves (Knight 1966), O(n log^2 n).

    >>> round(kendall(torch.tensor([1, 2, 2, 4]), torch.tensor([10, 30, 20, 40])), 4)
    0.9129
    """
    left, right = (values.unique(return_inverse=True)[1] for values in _known_pairs(first, second))
    count = len(left)
    pairs = count * (count - 1) // 2
    if not count:
        return math.nan
    both = left * (int(right.max()) + 1) + right
    in_left, in_right, in_both = (_tied_pairs(values) for values in (left, right, both))
    discordant = _inversions(right[both.argsort()])  # pairs tied in the first list are in order: no inversion
    concordant = pairs - in_left - in_right + in_both - discordant
    comparable = math.sqrt(pairs - in_left) * math.sqrt(pairs - in_right)
    return _bounded((concordant - discordant) / comparable) if comparable else math.nan


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1, float64 `[n]`; equal values share the mean of their ranks.

    >>> average_ranks(torch.tensor([5, 3, 5, 9])).tolist()
    [2.5, 1.0, 2.5, 4.0]
    """
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[place]


def _known_pairs(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 on the CPU, without pairs of which one is NaN."""
    if first.shape != second.shape or first.dim() != 1:
        raise EdgepruneError(
            f"a correlation takes two lists of one length, got shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    left, right = (values.detach().cpu().double() for values in (first, second))
    known = ~(left.isnan() | right.isnan())
    return left[known], right[known]


def _pearson(first: Tensor, second: Tensor) -> float:
    if len(first) < 2 or _constant(first) or _constant(second):
        return math.nan
    left, right = first - first.mean(), second - second.mean()
    return _bounded(float(left @ right / (left.norm() * right.norm())))


def _constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())


def _bounded(value: float) -> float:
    """In [-1, 1], from which rounding may lead out; NaN stays."""
    return value if math.isnan(value) else max(-1.0, min(1.0, value))


def _tied_pairs(values: Tensor) -> int:
    """Pairs of equal values."""
    counts = values.unique(return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _inversions(values: Tensor) -> int:
    """Pairs i < j with values[i] > values[j], for long `[n]` that are not negative."""
    levels = max(1, math.ceil(math.log2(max(2, len(values)))))
    filled = torch.full((2**levels,), int(values.max()) + 1)  # what is filled in comes last and inverts nothing
    filled[: len(values)] = values
    total = 0
    for level in range(levels):
        left, right = filled.view(-1, 2, 2**level).unbind(1)
        total += int((left.shape[1] - torch.searchsorted(left.contiguous(), right.contiguous(), right=True)).sum())
        filled = filled.view(-1, 2 ** (level + 1)).sort(1).values
    return total
