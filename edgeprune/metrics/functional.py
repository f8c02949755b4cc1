"""Faithfulness of a circuit, example by example: pure functions of logits at the scored positions.

Shapes: `full` and `circuit` are logits `[batch, positions, vocab]` in float32; results are `[batch]`.
"""

import torch
from torch import Tensor

from edgeprune.batch import IGNORE, PairBatch
from edgeprune.objectives import kl_divergence
from edgeprune.objectives import squared_error as squared_difference


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `[batch, positions]` over the positions in `mask`; NaN for a row without any."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(-1) / mask.sum(-1)


def _at(logits: Tensor, tokens: Tensor) -> Tensor:
    """Values `[batch, positions]` at token ids; whatever at ids that are not known."""
    return logits.gather(-1, tokens.clamp(min=0)[..., None]).squeeze(-1)


def kl(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """KL(full || circuit) in nats, mean over the example's positions; NaN for a model with a single output."""
    values = _mean(kl_divergence(full, circuit), batch.position_mask)
    return values if full.shape[-1] > 1 else torch.full_like(values, torch.nan)


def squared_error(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """Squared error of the raw outputs, summed over outputs, mean over the example's positions."""
    return _mean(squared_difference(full, circuit), batch.position_mask)


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
    """1 where the most likely token is the full model's at every position; NaN for a model with a single output."""
    same = circuit.argmax(-1) == full.argmax(-1)
    values = (same | ~batch.position_mask).all(-1).float()
    return values if full.shape[-1] > 1 else torch.full_like(values, torch.nan)


def log_likelihood(logits: Tensor, batch: PairBatch) -> Tensor:
    """Log-probability of the right answer, mean over the positions at which it is known, `[batch]`; NaN without any."""
    mask = batch.position_mask & (batch.targets != IGNORE)
    return _mean(_at(logits.log_softmax(-1), batch.targets), mask)


def logit_difference_max(logits: Tensor, batch: PairBatch) -> Tensor:
    """Logit of the right answer minus the largest of the wrong ones, the docstring measure of ACDC, `[batch]`.

    Mean over the positions at which the target and a wrong answer are known; NaN for an example without any.
    `logits` may be log-probabilities: the difference is the same.
    """
    wrong = _at_sets(logits, batch.wrong_answers, -torch.inf).amax(-1)
    mask = batch.position_mask & (batch.targets != IGNORE) & wrong.isfinite()
    return _mean(_at(logits, batch.targets) - wrong, mask)


def probability_difference_sets(logits: Tensor, batch: PairBatch) -> Tensor:
    """Probability of all right answers together minus that of all wrong ones, over the full softmax, `[batch]`.

    From -1 to 1; mean over the positions at which a right answer is known; NaN for an example without any.
    `logits` may be log-probabilities: their softmax is the same.
    """
    probabilities = logits.softmax(-1)
    right, wrong = (_at_sets(probabilities, ids, 0.0).sum(-1) for ids in (batch.answers, batch.wrong_answers))
    mask = batch.position_mask & (batch.answers != IGNORE).any(-1)
    return _mean(right - wrong, mask)


def _at_sets(values: Tensor, ids: Tensor, absent: float) -> Tensor:
    """`values` at each token id of `[batch, positions, num]`; `absent` where there is none."""
    return values.gather(-1, ids.clamp(min=0)).masked_fill(ids == IGNORE, absent)
