"""Measures of the greater-than task: pure functions of logits at the scored positions and the batch.

Several measures are in use under one name. Here each has its own, so that a figure says what it is; YY is the last two
digits of the start year, and sums run over the numbers 00 to 99 as the end of the span:

    probability_difference             P(end > YY) - P(end <= YY), over the full softmax (arXiv 2305.00586, ACDC)
    probability_difference_two_digit   (P(end > YY) - P(end < YY)) / P(00 <= end <= 99) (Edge Pruning, arXiv 2406.16778)
    probability_difference_10          the same numerator over YY-10 ... YY-1 and YY+1 ... YY+10 only (Edge Pruning)
    kendall_tau                        rank correlation with the full model over the 100 numbers (Edge Pruning)

They read `answers` and `wrong_answers` of the batch as `GreaterThan` makes them, in order of size. Where each digit is
a token there are two positions, and the target of the first is the tens digit a of YY: with b the ones digit,

    P(end > YY) = P1(d > a) + P1(a) P2(d > b | a),

likewise for the others. This is exact: a first digit other than a decides, whatever comes next (if the model goes on
with something that is no digit, the first digit still counts). It gives no probability for a single number beside those
of YY's own ten, so the last two measures are NaN there.

Shapes: logits or log-probabilities `[batch, positions, vocab]` of any floating type; results `[batch]` of that type.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from edgeprune.batch import IGNORE, PairBatch
from edgeprune.metrics import functional

WINDOW = 10  # years on each side, as in Edge Pruning


class _Masses(NamedTuple):
    """Probability of the numbers above, below and equal to YY, each `[batch]`."""

    above: Tensor
    below: Tensor
    equal: Tensor


def probability_difference(logits: Tensor, batch: PairBatch) -> Tensor:
    """P(end > YY) - P(end <= YY) over the full softmax, -1 to 1."""
    above, below, equal = _masses(logits, batch)
    return above - below - equal


def probability_difference_two_digit(logits: Tensor, batch: PairBatch) -> Tensor:
    """P(end > YY) - P(end < YY) among the two-digit numbers, -1 to 1; YY itself is only in the denominator."""
    above, below, equal = _masses(logits, batch)
    return (above - below) / (above + below + equal)


def probability_difference_10(logits: Tensor, batch: PairBatch) -> Tensor:
    """P(YY < end <= YY + 10) - P(YY - 10 <= end < YY) among the two-digit numbers; NaN where digits are tokens."""
    probs = logits[:, :1].log_softmax(-1).exp()
    above, below = (functional.at_ids(probs, ids[:, :1], 0.0)[:, 0] for ids in (batch.answers, batch.wrong_answers))
    total = above.sum(-1) + below.sum(-1)
    num_below = _known(batch.wrong_answers[:, 0]).sum(-1, keepdim=True)  # with YY, the last
    distance = num_below - 1 - _places(below)  # of each number from YY
    near = (distance >= 1) & (distance <= WINDOW)
    difference = above[:, :WINDOW].sum(-1) - (below * near).sum(-1)
    return torch.where(_one_token(batch), difference / total, torch.nan)


def kendall_tau(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """Kendall's tau-b of both models (`functional.kendall_tau`) over the 100 numbers; NaN where digits are tokens."""
    return torch.where(_one_token(batch), functional.kendall_tau(full, circuit, batch), torch.nan)


def _masses(logits: Tensor, batch: PairBatch) -> _Masses:
    """Sums over all numbers: those that a position decides count as often as its teacher-forced prefix is likely."""
    probs = logits.log_softmax(-1).exp()
    above, wrong = (
        functional.at_ids(probs, ids, 0.0) for ids in (batch.answers, batch.wrong_answers)
    )  # [batch, positions, tokens]
    ends = _places(batch.targets) == batch.position_mask.sum(-1, keepdim=True) - 1  # where the number ends
    undecided = (batch.answers == batch.targets[..., None]) & ~ends[..., None]
    above = above.masked_fill(undecided, 0.0)
    target = functional.at_ids(probs, batch.targets[..., None], 0.0).squeeze(-1)  # [batch, positions]
    reached = torch.cat([torch.ones_like(target[:, :1]), target[:, :-1]], -1).cumprod(-1) * batch.position_mask
    last = _known(batch.wrong_answers).sum(-1, keepdim=True) - 1
    at_start = wrong.gather(-1, last.clamp(min=0)).squeeze(-1)
    equal = (reached * at_start * ends).sum(-1)
    return _Masses((reached * above.sum(-1)).sum(-1), (reached * wrong.sum(-1)).sum(-1) - equal, equal)


def _known(ids: Tensor) -> Tensor:
    return ids != IGNORE


def _places(values: Tensor) -> Tensor:
    """0, 1, ... along the last dimension."""
    return torch.arange(values.shape[-1], device=values.device)


def _one_token(batch: PairBatch) -> Tensor:
    """Rows whose numbers are single tokens."""
    return batch.position_mask.sum(-1) == 1
