"""Normalised faithfulness: where a circuit stands between the model without any edge and the whole model.

    f = (m(C) - m(empty)) / (m(full) - m(empty))

for any measure m whose figure is known for the circuit C, for the model with every edge closed (empty) and with every
edge open (full): 0 is the empty circuit, 1 the full model. For a divergence from the full model m(full) = 0, and the
same formula reads f = 1 - m(C) / m(empty). Figures are means over examples, so f is a ratio of means; it is not
clipped: above 1 the circuit has more of the measure than the model, below 0 less than no edges at all.

Source: MIB (arXiv 2504.13151), faithfulness; CD-T (arXiv 2407.00886) has the same with mean ablation.
"""

import torch
from torch import Tensor

ROUNDING = 1e-6  # share of the larger end below which full and empty do not differ: float32 logits are no finer


def normalise(figures: Tensor, ends: Tensor) -> Tensor:
    """Normalised faithfulness from figures alone, for any number of samples of examples at once.

    Args:
        figures: Of circuits, `[..., circuit, measure]`.
        ends: Of the full model and of the empty circuit, `[..., 2, measure]`, as `Evaluator.ends` has them.

    Returns:
        `[..., circuit, measure]`; NaN where the ends do not differ or a figure is not defined.
    """
    full, empty = ends[..., :1, :], ends[..., 1:, :]
    room = full - empty
    room = room.where(room.abs() > ROUNDING * torch.maximum(full.abs(), empty.abs()), torch.nan)
    return (figures - empty) / room
