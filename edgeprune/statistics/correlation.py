"""Correlations of two lists of numbers: Pearson, and Spearman and Kendall of their ranks with ties.

Values are `[n]` of any dtype. Pairs of which one is NaN are left out. A correlation is NaN where fewer than two pairs
are left, or where one of the lists is constant.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from edgeprune.errors import EdgepruneError


def pearson(first: Tensor, second: Tensor) -> float:
    """Covariance / product of the standard deviations, in [-1, 1].

    >>> import torch
    >>> round(pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 2.0])), 4)
    0.866
    """
    return _of_known_pairs(lambda left, right: np.corrcoef(left, right)[0, 1], first, second)


def spearman(first: Tensor, second: Tensor) -> float:
    """Pearson correlation of the ranks, ties with the mean of their ranks, in [-1, 1].

    >>> import torch
    >>> round(spearman(torch.tensor([1, 2, 2, 4]), torch.tensor([10, 30, 20, 40])), 4)
    0.9487
    """
    return _of_known_pairs(lambda left, right: stats.spearmanr(left, right)[0], first, second)


def kendall(first: Tensor, second: Tensor) -> float:
    """Kendall's tau-b: (concordant - discordant pairs) / sqrt(pairs not tied in the one * pairs not tied in the other).

    >>> import torch
    >>> round(kendall(torch.tensor([1, 2, 2, 4]), torch.tensor([10, 30, 20, 40])), 4)
    0.9129
    """
    return _of_known_pairs(lambda left, right: stats.kendalltau(left, right)[0], first, second)


def _of_known_pairs(function: Callable[[Any, Any], Any], first: Tensor, second: Tensor) -> float:
    """A function of both as float64 arrays, without pairs of which one is NaN; NaN where it is not defined."""
    if first.shape != second.shape or first.dim() != 1:
        raise EdgepruneError(
            f"a correlation takes two lists of one length, got shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    both = np.stack([values.detach().cpu().double().numpy() for values in (first, second)])
    both = both[:, ~np.isnan(both).any(0)]
    constant = both.shape[1] < 2 or (both == both[:, :1]).all(1).any()
    return math.nan if constant else float(function(*both))
