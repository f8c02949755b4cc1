"""Faithfulness of a circuit, example by example: pure functions of logits at the scored positions.

Functions of (full, circuit, batch) compare two models or have the form of those that do; functions of (logits, batch)
measure one. `edgeprune.metrics.registry` has them all in one form, with names and units.

Shapes: `full`, `circuit` and `logits` are `[batch, positions, vocab]` of any floating type; results are `[batch]` of
that type. Examples with several scored positions get the mean over them unless a function says otherwise. NaN is the
value of an example for which a measure is not defined.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from edgeprune.batch import IGNORE, PairBatch
from edgeprune.objectives import kl_divergence
from edgeprune.objectives import squared_error as squared_difference


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `[batch, positions]` over the positions in `mask`; NaN for a row without any."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(-1) / mask.sum(-1)


def _at(logits: Tensor, tokens: Tensor) -> Tensor:
    """Values `[batch, positions]` at token ids; of no meaning at ids that are not known."""
    return logits.gather(-1, tokens.clamp(min=0)[..., None]).squeeze(-1)


def _of_several(values: Tensor, logits: Tensor) -> Tensor:
    """The values; NaN if the model has a single output, which has no distribution and no order."""
    return values if logits.shape[-1] > 1 else torch.full_like(values, torch.nan)


# -------------------------------------------------------------------- distributions
def kl(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """KL(full || circuit) in nats, mean over the example's positions; NaN for a model with a single output."""
    return _of_several(_mean(kl_divergence(full, circuit), batch.position_mask), full)


def kl_reverse(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """KL(circuit || full) in nats, otherwise as `kl`."""
    return kl(circuit, full, batch)


def js(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """Jensen-Shannon divergence in nats, 0 to ln 2; NaN for a model with a single output.

    (KL(full || middle) + KL(circuit || middle)) / 2, where `middle` is the mean of the two distributions. Its square
    root is the Jensen-Shannon distance.
    """
    first, second = full.log_softmax(-1), circuit.log_softmax(-1)
    divergence = (_kl_to_middle(first, second) + _kl_to_middle(second, first)) / 2
    return _of_several(_mean(divergence, batch.position_mask), full)


def _kl_to_middle(first: Tensor, second: Tensor) -> Tensor:
    """KL of a distribution to its mean with another, from log-probabilities; 0, not almost 0, where both are equal."""
    ratio = (second - first).masked_fill(first == -torch.inf, 0)  # any number: it counts with probability 0
    return (first.exp() * (math.log(2) - softplus(ratio))).sum(-1)


def kl_answers(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """KL(full || circuit) in nats among the right and wrong answers alone, their probabilities made to sum to 1.

    Mean over the positions with at least two answers; NaN for an example without any.
    """
    ids = _all_answers(batch)
    first, second = (at_ids(logits, ids, torch.finfo(logits.dtype).min) for logits in (full, circuit))
    return _mean(kl_divergence(first, second), _with_two(batch, ids))


def uniform_cross_entropy(logits: Tensor, batch: PairBatch) -> Tensor:
    """Cross entropy in nats of the uniform distribution and the model's among the right and wrong answers, `[batch]`.

    The loss of a circuit's complement in DiscoGP: with one answer each -(log p_right + log p_wrong) / 2. Smallest,
    log(number of answers), where all are equally likely. Mean over the positions with at least two answers; NaN for an
    example without any.
    """
    ids = _all_answers(batch)
    known = ids != IGNORE
    among = at_ids(logits, ids, torch.finfo(logits.dtype).min).log_softmax(-1)
    entropy = -among.masked_fill(~known, 0).sum(-1) / known.sum(-1).clamp(min=1)
    return _mean(entropy, _with_two(batch, ids))


def squared_error(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """Squared error of the raw outputs, summed over outputs, mean over the example's positions."""
    return _mean(squared_difference(full, circuit), batch.position_mask)


def log_likelihood(logits: Tensor, batch: PairBatch) -> Tensor:
    """Log-probability of the right answer, mean over the positions at which it is known, `[batch]`; NaN without any."""
    mask = batch.position_mask & (batch.targets != IGNORE)
    return _mean(_at(logits.log_softmax(-1), batch.targets), mask)


def nll(logits: Tensor, batch: PairBatch) -> Tensor:
    """Loss: negative log-probability of the right answer in nats, the negative of `log_likelihood`."""
    return -log_likelihood(logits, batch)


# -------------------------------------------------------------------- right against wrong answers
def logit_difference(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """Logit of the right answer minus that of the distractor; NaN where an example has no distractor."""
    del full
    mask = batch.position_mask & (batch.distractors != IGNORE) & (batch.targets != IGNORE)
    return _mean(_at(circuit, batch.targets) - _at(circuit, batch.distractors), mask)


def logit_difference_percent_per_example(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """100 x logit difference of the circuit / logit difference of the full model on the same example.

    The mean of these is a mean of ratios: an example on which the full model is undecided has a small denominator and
    can outweigh all others. NaN where the full model's difference is 0, and without a distractor.
    """
    whole = logit_difference(full, full, batch)
    return 100 * logit_difference(full, circuit, batch) / whole.masked_fill(whole == 0, torch.nan)


def logit_difference_sets(logits: Tensor, batch: PairBatch) -> Tensor:
    """Mean logit of all right answers minus mean logit of all wrong ones, `[batch]`.

    Mean over the positions at which a right and a wrong answer are known; NaN for an example without any.
    """
    right, wrong = (
        at_ids(logits, ids, 0.0).sum(-1) / (ids != IGNORE).sum(-1).clamp(min=1)  # gradients must not see 0 / 0
        for ids in (batch.answers, batch.wrong_answers)
    )
    return _mean(right - wrong, batch.position_mask & _known(batch.answers) & _known(batch.wrong_answers))


def logit_difference_max(logits: Tensor, batch: PairBatch) -> Tensor:
    """Logit of the right answer minus the largest of the wrong ones, the docstring measure of ACDC, `[batch]`.

    Mean over the positions at which the target and a wrong answer are known; NaN for an example without any.
    `logits` may be log-probabilities: the difference is the same.
    """
    wrong = at_ids(logits, batch.wrong_answers, -torch.inf).amax(-1)
    mask = batch.position_mask & (batch.targets != IGNORE) & wrong.isfinite()
    return _mean(_at(logits, batch.targets) - wrong, mask)


def probability_difference_sets(logits: Tensor, batch: PairBatch) -> Tensor:
    """Probability of all right answers together minus that of all wrong ones, over the full softmax, `[batch]`.

    From -1 to 1; mean over the positions at which a right answer is known; NaN for an example without any.
    `logits` may be log-probabilities: their softmax is the same.
    """
    probabilities = logits.softmax(-1)
    right, wrong = (at_ids(probabilities, ids, 0.0).sum(-1) for ids in (batch.answers, batch.wrong_answers))
    return _mean(right - wrong, batch.position_mask & _known(batch.answers))


# -------------------------------------------------------------------- order
def answer_rank(logits: Tensor, batch: PairBatch) -> Tensor:
    """Place of the right answer among all outputs, 1 for the most likely, `[batch]`.

    Equal logits share the mean of their places, so that a model which prefers nothing gets the middle, not the first.
    Mean over the positions at which the target is known; NaN without any, and for a model with a single output.
    """
    target = _at(logits, batch.targets)[..., None]
    above, equal = (logits > target).sum(-1), (logits == target).sum(-1)
    rank = (above + (equal + 1) / 2).to(logits.dtype)
    return _of_several(_mean(rank, batch.position_mask & (batch.targets != IGNORE)), logits)


def accuracy(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """1 where the answer is right at every position: above the distractor if there is one, else the most likely token.

    NaN where no target is known.
    """
    del full
    above = _at(circuit, batch.targets) > _at(circuit, batch.distractors)
    best = circuit.argmax(-1) == batch.targets
    return _right_everywhere(torch.where(batch.distractors == IGNORE, best, above), circuit, batch)


def accuracy_top1(logits: Tensor, batch: PairBatch) -> Tensor:
    """1 where the right answer is the most likely token at every position, distractor or not, `[batch]`.

    NaN where no target is known, and for a model with a single output.
    """
    return _of_several(_right_everywhere(logits.argmax(-1) == batch.targets, logits, batch), logits)


def _right_everywhere(right: Tensor, logits: Tensor, batch: PairBatch) -> Tensor:
    """1 where `right` `[batch, positions]` holds at every position with a known target, NaN without any."""
    mask = batch.position_mask & (batch.targets != IGNORE)
    return torch.where(mask.any(-1), (right | ~mask).all(-1).to(logits.dtype), torch.nan)


def exact_match(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """1 where the most likely token is the full model's at every position; NaN for a model with a single output."""
    same = circuit.argmax(-1) == full.argmax(-1)
    return _of_several((same | ~batch.position_mask).all(-1).to(circuit.dtype), full)


def kendall_tau(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """Kendall's tau-b (corrected for ties) of both models' logits over the right and wrong answers, -1 to 1.

    Probabilities have the same order, so theirs is the same unless rounding makes some of them equal. Mean over the
    positions with at least two answers; NaN for an example without any, and where a model gives all the same logit.
    """
    ids = _all_answers(batch)
    known = ids != IGNORE
    pairs = known[..., :, None] & known[..., None, :]
    first, second = (_order(at_ids(logits, ids, 0.0)).masked_fill(~pairs, 0.0) for logits in (full, circuit))
    untied = first.abs().sum((-2, -1)) * second.abs().sum((-2, -1))
    return _mean((first * second).sum((-2, -1)) / untied.sqrt(), _with_two(batch, ids))


def _order(values: Tensor) -> Tensor:
    """Sign of each difference, `[..., n, n]`."""
    return (values[..., :, None] - values[..., None, :]).sign()


# -------------------------------------------------------------------- direction of the logits
def cosine_similarity(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """Cosine of the angle between the two vectors of raw logits, -1 to 1.

    A number added to all logits of a position changes it but no probability; `cosine_similarity_centred` has not that
    fault. NaN for a model with a single output, and where all logits are 0.
    """
    cosine = (full * circuit).sum(-1) / (_norm(full) * _norm(circuit))
    return _of_several(_mean(cosine, batch.position_mask), full)


def cosine_similarity_centred(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """As `cosine_similarity`, of logits minus their mean over the vocabulary: Pearson's correlation of the logits."""
    first, second = (logits - logits.mean(-1, keepdim=True) for logits in (full, circuit))
    return cosine_similarity(first, second, batch)


def _norm(logits: Tensor) -> Tensor:
    return logits.square().sum(-1).sqrt()


# -------------------------------------------------------------------- sets of answers
def _all_answers(batch: PairBatch) -> Tensor:
    """Right and wrong answers in one set, `[batch, positions, num]`, filled up with `IGNORE`."""
    return torch.cat([batch.answers, batch.wrong_answers], -1)


def _known(ids: Tensor) -> Tensor:
    return (ids != IGNORE).any(-1)


def _with_two(batch: PairBatch, ids: Tensor) -> Tensor:
    """Scored positions with at least two known ids."""
    return batch.position_mask & ((ids != IGNORE).sum(-1) > 1)


def at_ids(values: Tensor, ids: Tensor, absent: float) -> Tensor:
    """`values` at each token id of `[batch, positions, num]`; `absent` where there is none."""
    return values.gather(-1, ids.clamp(min=0)).masked_fill(ids == IGNORE, absent)
