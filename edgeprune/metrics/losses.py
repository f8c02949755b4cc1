"""What circuits are searched for by: a loss for each example, low where a circuit does what it should.

Shapes: logits `[batch, positions, vocab]`; losses `[batch]`, NaN for an example for which one is not defined.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.metrics import functional
from edgeprune.metrics.registry import MEASURES

Metric = Literal[
    "kl",
    "squared_error",
    "logit_difference",
    "logit_difference_max",
    "probability_difference",
    "greater_than",
    "nll",
]
TrainingObjective = Literal[Metric, "cmd"]
TRAINING_OBJECTIVES: tuple[TrainingObjective, ...] = get_args(TrainingObjective)
LEAST_GAP = 1.0  # logits, arXiv 2609.25518: examples that the full model hardly tells from the empty circuit's


def losses(metric: Metric, full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """The measure of this name, or its negative where high is good, `[batch]`.

    Args:
        metric: A measure of the registry.
        full: Logits of the full model, `[batch, positions, vocab]`.
        circuit: Of the circuit, likewise.
        batch: The pairs.
    """
    measure = MEASURES[metric]
    values = measure.values(full, circuit, batch)
    return -values if measure.higher_is_better else values


def cmd(full: Tensor, circuit: Tensor, empty: Tensor, batch: PairBatch) -> Tensor:
    """Distance |1 - f| of the normalised faithfulness from 1, `[batch]`: what MIB's CMD averages over sizes.

        f = (d - d_empty) / (d_full - d_empty),  d: mean logit of the right answers - that of the wrong ones

    More than the full model's difference counts as less does. Denominators below 1 logit are 1, with their sign, as in
    arXiv 2609.25518: there the loss is not quite 0 at the full model.

    Args:
        full: Logits of the full model, `[batch, positions, vocab]`.
        circuit: Of the circuit, likewise.
        empty: Of the model with every edge closed, likewise.
        batch: The pairs.
    """
    model, own, least = (functional.logit_difference_sets(logits, batch) for logits in (full, circuit, empty))
    gap = model - least
    gap = torch.where(gap < 0, gap.clamp(max=-LEAST_GAP), gap.clamp(min=LEAST_GAP))
    return (1 - (own - least) / gap).abs()


def require_defined(values: Tensor, what: str, remedy: str) -> None:
    """Refuse losses `[batch]` that are not defined for some pairs.

    Args:
        values: The losses.
        what: How the message names them.
        remedy: What to do instead.

    Raises:
        EdgepruneError: Some are NaN.
    """
    if values.isnan().any():
        raise EdgepruneError(
            f"{what} is not defined for some pairs (no right or wrong answer, or a single output): {remedy}"
        )
