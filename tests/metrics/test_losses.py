"""Losses that circuits are searched for by: their signs, `cmd` by hand, the complement's, and their gradients."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from edgeprune.batch import IGNORE, PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.functional import uniform_cross_entropy
from edgeprune.metrics.losses import TRAINING_OBJECTIVES, Metric, cmd, losses, require_defined
from edgeprune.metrics.registry import MEASURES
from tests.metrics.test_functional import BATCH, CIRCUIT, FULL
from tests.metrics.test_functional_sets import batch

ONE = batch([[[0]]], [[[1]]], [[0]])


def difference(of: float) -> Tensor:
    """Logits of one pair whose right answer is above the wrong one by this much."""
    return torch.tensor([[[of, 0.0, 7.0]]], dtype=torch.float64)


@pytest.mark.parametrize("metric", sorted(set(get_args(Metric)) - {"greater_than"}))
def test_losses_are_measures_of_which_low_is_good(metric: Metric) -> None:
    measure = MEASURES[metric]
    sign = -1 if measure.better == "high" else 1
    torch.testing.assert_close(
        losses(metric, FULL, CIRCUIT, BATCH), sign * measure.values(FULL, CIRCUIT, BATCH), equal_nan=True
    )


def test_training_knows_every_metric_and_cmd() -> None:
    assert set(TRAINING_OBJECTIVES) == {*get_args(Metric), "cmd"}


@pytest.mark.parametrize(
    ("full", "circuit", "empty", "expected"),
    [
        (4.0, 4.0, -2.0, 0.0),
        (4.0, -2.0, -2.0, 1.0),
        (4.0, 1.0, -2.0, 0.5),
        (4.0, 7.0, -2.0, 0.5),  # too much counts as too little does
        (-3.0, 1.0, 1.0, 1.0),  # the empty circuit may be better
        (-3.0, -1.0, 1.0, 0.5),
        (0.5, 0.25, 0.0, 0.75),  # the gap counts as 1
        (0.5, 0.5, 0.0, 0.5),
        (0.0, 0.25, 0.25, 1.0),  # as -1
        (1.0, 0.0, 1.0, 2.0),  # none at all: as 1
    ],
)
def test_cmd_by_hand(full: float, circuit: float, empty: float, expected: float) -> None:
    found = cmd(difference(full), difference(circuit), difference(empty), ONE)
    assert found.tolist() == pytest.approx([expected], abs=1e-12)


def test_cmd_of_several_answers_is_that_of_their_means() -> None:
    several = batch([[[0, 3, IGNORE]]], [[[2, 1, 4]]], [[0]])
    full, circuit, empty = (torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3))

    def mean_difference(logits: Tensor) -> Tensor:
        row = logits[0, 0]
        return (row[0] + row[3]) / 2 - (row[1] + row[2] + row[4]) / 3

    d, model, least = (mean_difference(3 * logits) for logits in (circuit, full, empty))
    assert (model - least).abs() > 1
    expected = (1 - (d - least) / (model - least)).abs()
    torch.testing.assert_close(cmd(3 * full, 3 * circuit, 3 * empty, several)[0], expected)


# -------------------------------------------------------------------- what is left out must not do the task
def test_the_complement_s_loss_is_log_2_where_it_cannot_tell() -> None:
    assert uniform_cross_entropy(difference(0.0), ONE).tolist() == pytest.approx([math.log(2)], abs=1e-12)
    right, wrong = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))
    expected = -(math.log(right) + math.log(wrong)) / 2
    for way in (3.0, -3.0):  # sure of the wrong one is as bad
        assert uniform_cross_entropy(difference(way), ONE).tolist() == pytest.approx([expected], abs=1e-12)
    assert expected > math.log(2)


def test_the_complement_s_loss_of_several_answers_is_that_of_the_uniform_distribution() -> None:
    pair = batch([[[0, 3, IGNORE], [4, IGNORE, IGNORE]]], [[[2, 1, 4], [2, IGNORE, IGNORE]]], [[0, 4]])
    logits = torch.randn(1, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = torch.nn.functional.cross_entropy(logits[0, 0, :5], torch.full((5,), 0.2, dtype=torch.float64))
    second = torch.nn.functional.cross_entropy(logits[0, 1, [4, 2]], torch.full((2,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(uniform_cross_entropy(logits, pair)[0], (first + second) / 2)
    assert uniform_cross_entropy(torch.zeros_like(logits), pair).item() == pytest.approx(math.log(10) / 2)


@pytest.mark.parametrize("loss", ["cmd", "complement"])
def test_unknown_answers_reach_neither_value_nor_gradient(loss: str) -> None:
    """A second position that is not scored, whose answers are not known."""
    pair = batch([[[0], [IGNORE]]], [[[1], [IGNORE]]], [[0, IGNORE]], [[True, False]])
    logits = torch.tensor([[[3.0, 1.0, 0.0], [5.0, 6.0, 7.0]]], requires_grad=True)
    zeros = torch.zeros(1, 2, 3)
    value = cmd(zeros, logits, zeros, pair) if loss == "cmd" else uniform_cross_entropy(logits, pair)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert slope[0, 1].tolist() == [0.0, 0.0, 0.0]
    assert slope[0, 0, 0] > 0 > slope[0, 0, 1]


@pytest.mark.parametrize("missing", ["answers", "wrong_answers"])
def test_pairs_without_answers_have_no_loss_and_are_refused(missing: str) -> None:
    pair: PairBatch = batch(
        [[[0 if missing != "answers" else IGNORE]]], [[[IGNORE if missing != "answers" else 1]]], [[0]]
    )
    values = cmd(difference(1.0), difference(1.0), difference(0.0), pair)
    assert values.isnan().all()
    assert uniform_cross_entropy(difference(1.0), pair).isnan().all()
    with pytest.raises(EdgepruneError, match=r"cmd is not defined for some pairs .*: choose another$"):
        require_defined(values, "cmd", "choose another")
