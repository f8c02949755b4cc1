"""Faithfulness of a circuit, example by example: pure functions of log-probabilities at the scored positions.

Shapes: `full` and `circuit` are log-probabilities `[batch, positions, vocab]` in float32; results are `[batch]`.
"""

import torch
from torch import Tensor

from edgeprune.batch import IGNORE, PairBatch
from edgeprune.objectives import kl_divergence


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `[batch, positions]` over the positions in `mask`; NaN for a row without any."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(-1) / mask.sum(-1)


def _at(logits: Tensor, tokens: Tensor) -> Tensor:
    """Values `[batch, positions]` at token ids; whatever at ids that are not known."""
    return logits.gather(-1, tokens.clamp(min=0)[..., None]).squeeze(-1)


def kl(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """KL(full || circuit) in nats, mean over the example's positions."""
    return _mean(kl_divergence(full, circuit), batch.position_mask)


def logit_difference(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """Logit of the right answer minus that of the distractor; NaN where an example has no distractor."""
    del full
    mask = batch.position_mask & (batch.distractors != IGNORE) & (batch.targets != IGNORE)
    return _mean(_at(circuit, batch.targets) - _at(circuit, batch.distractors), mask)


def accuracy(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """1 where the answer is right at every position: above the distractor if there is one, else the most likely token.

    NaN where no target is known.
    """
    del full
    target = _at(circuit, batch.targets)
    above = target > _at(circuit, batch.distractors)
    best = circuit.argmax(-1) == batch.targets
    right = torch.where(batch.distractors == IGNORE, best, above)
    mask = batch.position_mask & (batch.targets != IGNORE)
    result = (right | ~mask).all(-1).float()
    return torch.where(mask.any(-1), result, torch.nan)


def exact_match(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """1 where the most likely token is the full model's at every position."""
    same = circuit.argmax(-1) == full.argmax(-1)
    return (same | ~batch.position_mask).all(-1).float()
