"""Measures over sets of right and wrong answers, against sums and maxima written out."""

import math

import pytest
import torch
from torch import Tensor

from edgeprune.batch import IGNORE, PairBatch
from edgeprune.metrics.functional import (
    log_likelihood,
    logit_difference,
    logit_difference_max,
    probability_difference_sets,
)

Sets = list[list[list[int]]]


def batch(
    answers: Sets, wrong: Sets | None, targets: list[list[int]], mask: list[list[bool]] | None = None
) -> PairBatch:
    rows, num = len(targets), len(targets[0])
    ids = torch.zeros(rows, 3, dtype=torch.long)
    return PairBatch(
        clean=ids,
        corrupted=ids,
        attention_mask=ids + 1,
        positions=ids[:, :num],
        position_mask=torch.tensor(mask) if mask else torch.ones(rows, num, dtype=torch.bool),
        targets=torch.tensor(targets),
        distractors=torch.full((rows, num), IGNORE),
        index=torch.arange(rows),
        answers=torch.tensor(answers),
        **({} if wrong is None else {"wrong_answers": torch.tensor(wrong)}),
    )


LOGITS = torch.tensor([[[1.0, 5.0, -2.0, 0.5, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]]], dtype=torch.float64)
# At the first position 0 and 3 are right, 1, 2 and 4 wrong; at the second only 4 is right and only 2 wrong.
PAIR = batch([[[0, 3, IGNORE], [4, IGNORE, IGNORE]]], [[[2, 1, 4], [2, IGNORE, IGNORE]]], [[0, 4]])


def test_the_largest_wrong_logit_counts() -> None:
    # 1 - max(-2, 5, 3) = -4 and 4 - 2 = 2
    assert logit_difference_max(LOGITS, PAIR).tolist() == [-1.0]


def test_probabilities_of_the_sets_are_summed() -> None:
    p, q = LOGITS[0].softmax(-1).tolist()
    expected = ((p[0] + p[3]) - (p[1] + p[2] + p[4]) + q[4] - q[2]) / 2
    torch.testing.assert_close(probability_difference_sets(LOGITS, PAIR), torch.tensor([expected]).double())


def test_the_likelihood_is_that_of_the_target() -> None:
    p, q = LOGITS[0].softmax(-1).tolist()
    torch.testing.assert_close(
        log_likelihood(LOGITS, PAIR), torch.tensor([(math.log(p[0]) + math.log(q[4])) / 2]).double()
    )
    unknown = batch([[[IGNORE]]], None, [[IGNORE]])
    assert log_likelihood(LOGITS[:, :1], unknown).isnan().all()


@pytest.mark.parametrize("measure", [logit_difference_max, probability_difference_sets])
def test_log_probabilities_give_the_same(measure) -> None:  # noqa: ANN001
    torch.testing.assert_close(measure(LOGITS.log_softmax(-1), PAIR), measure(LOGITS, PAIR))


@pytest.mark.parametrize("measure", [logit_difference_max, probability_difference_sets])
def test_masked_positions_and_padding_do_not_count(measure) -> None:  # noqa: ANN001
    both = batch(
        [[[0, 3], [4, IGNORE]], [[0, 3], [0, 3]]], [[[2, 1], [2, IGNORE]], [[2, 1], [2, 1]]], [[0, 4], [0, 0]],
        [[True, True], [True, False]],
    )  # fmt: skip
    alone = batch([[[0, 3]]], [[[2, 1]]], [[0]])
    logits = torch.cat([LOGITS, LOGITS])
    torch.testing.assert_close(measure(logits, both)[1], measure(LOGITS[:, :1], alone)[0])


def test_one_wrong_answer_is_the_logit_difference() -> None:
    pair = batch([[[0], [4]]], [[[1], [2]]], [[0, 4]])
    plain = PairBatch(**{**vars(pair), "distractors": torch.tensor([[1, 2]])})
    expected = logit_difference(LOGITS, LOGITS, plain)
    assert torch.equal(logit_difference_max(LOGITS, pair), expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize(
    ("measure", "pair"),
    [
        (logit_difference_max, batch([[[0], [4]]], None, [[0, 4]])),
        (logit_difference_max, batch([[[0], [4]]], [[[1], [2]]], [[IGNORE, IGNORE]])),
        (probability_difference_sets, batch([[[IGNORE], [IGNORE]]], [[[1], [2]]], [[IGNORE, IGNORE]])),
    ],
)
def test_nan_without_anything_to_compare(measure, pair: PairBatch) -> None:  # noqa: ANN001
    assert math.isnan(measure(LOGITS, pair).item())


def test_without_wrong_answers_only_the_right_ones_count() -> None:
    pair = batch([[[0], [4]]], None, [[0, 4]])
    p, q = LOGITS[0].softmax(-1).tolist()
    torch.testing.assert_close(probability_difference_sets(LOGITS, pair), torch.tensor([(p[0] + q[4]) / 2]).double())


@pytest.mark.parametrize("measure", [logit_difference_max, probability_difference_sets])
def test_gradients_are_finite_in_spite_of_padding(measure) -> None:  # noqa: ANN001
    logits: Tensor = LOGITS.clone().requires_grad_()
    measure(logits, PAIR).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0
