"""Areas below what circuits of rising size do, from figures: for any number of samples of the examples at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.evaluation.mib_circuits import SHARES
from edgeprune.metrics.normalise import normalise


def mib_areas(figures: Tensor, shares: Sequence[float] | Tensor = SHARES) -> Tensor:
    """CPR, CMD and average from figures alone, for any number of samples of examples at once.

    >>> full, empty = 3.0, 1.0
    >>> mib_areas(torch.tensor([full, empty, *[3.0] * 10], dtype=torch.float64))
    tensor([0.9990, 0.0000, 1.0000], dtype=torch.float64)

    Args:
        figures: One measure of the full model, of the empty circuit, and of the circuits in the order of `shares`,
            `[..., 2 + points]`.
        shares: Place of each circuit on the axis, `[points]`, rising.

    Returns:
        `[..., 3]`; NaN where the full model and the empty circuit do not differ, or a figure is not defined.
    """
    faithfulness = mib_faithfulness(figures)
    axis = torch.as_tensor(shares, dtype=faithfulness.dtype, device=faithfulness.device)
    areas = (torch.trapezoid(values, axis) for values in (faithfulness, (1 - faithfulness).abs()))
    return torch.stack([*areas, faithfulness.mean(-1)], -1)


def mib_faithfulness(figures: Tensor) -> Tensor:
    """The f of every point, `[..., points]`, from figures as in `mib_areas`."""
    return normalise(figures[..., 2:, None], figures[..., :2, None])[..., 0]


def accuracy_area(accuracies: Tensor, shares: Sequence[float] | Tensor = SHARES) -> Tensor:
    """Area below the accuracy over the logarithm of the share of edges, divided by the length of that axis.

    So it is a mean accuracy, in [0, 1] where accuracies are, to which the circuits between 0.1 and 1 % of the edges
    count as much as those between 10 and 100 %.

    Source: Matryoshka Attribution (arXiv 2609.25518), `acc-AUC`: trapezoids, accuracy being the share of examples with
    a logit difference above 0.

    >>> accuracy_area(torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64), (0.01, 0.1, 1.0))
    tensor(0.6250, dtype=torch.float64)

    Args:
        accuracies: Of the circuits in the order of `shares`, `[..., points]`.
        shares: Place of each circuit on the axis, `[points]`, above 0 and rising.

    Returns:
        `[...]`; NaN where an accuracy is not defined.
    """
    axis = torch.as_tensor(shares, dtype=accuracies.dtype, device=accuracies.device).log()
    return torch.trapezoid(accuracies, axis) / (axis[-1] - axis[0])
