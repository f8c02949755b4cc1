"""The measures against hand computation and torch's own divergence, on random log-probabilities."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.regression import KLDivergence

from edgeprune.batch import IGNORE, PairBatch
from edgeprune.metrics import functional
from edgeprune.metrics.faithfulness import faithfulness

ROWS, POSITIONS, VOCAB = 6, 3, 11


def log_probs(seed: int) -> Tensor:
    """Random log-probabilities, float32 as the measures get them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, POSITIONS, VOCAB, generator=generator).log_softmax(-1)


FULL, CIRCUIT = log_probs(0), log_probs(1)
LENGTHS = [3, 1, 2, 3, 2, 1]  # scored positions of each row


def make_batch(**changes: Tensor) -> PairBatch:
    """Rows with one to three scored positions; targets are token 2, distractors token 5."""
    mask = torch.arange(POSITIONS) < torch.tensor(LENGTHS)[:, None]
    ids = torch.zeros(ROWS, POSITIONS, dtype=torch.long)
    fields: dict[str, Any] = {
        "clean": ids,
        "corrupted": ids,
        "attention_mask": ids + 1,
        "positions": ids,
        "position_mask": mask,
        "targets": torch.where(mask, 2, IGNORE),
        "distractors": torch.where(mask, 5, IGNORE),
        "index": torch.arange(ROWS),
    }
    return PairBatch(**(fields | changes))


def test_kl_is_torch_s_own_divergence_over_the_scored_positions() -> None:
    values = functional.kl(FULL, CIRCUIT, make_batch())
    for row, length in enumerate(LENGTHS):
        expected = torch.nn.functional.kl_div(
            CIRCUIT[row, :length], FULL[row, :length], log_target=True, reduction="batchmean"
        )
        torch.testing.assert_close(values[row], expected)


def test_kl_is_the_one_of_torchmetrics_where_all_positions_count() -> None:
    batch = make_batch(position_mask=torch.ones(ROWS, POSITIONS, dtype=torch.bool))
    reference = KLDivergence(log_prob=True)
    reference.update(FULL.flatten(0, 1), CIRCUIT.flatten(0, 1))
    torch.testing.assert_close(functional.kl(FULL, CIRCUIT, batch).mean(), reference.compute())


def test_kl_of_a_model_with_itself_is_zero() -> None:
    assert torch.equal(functional.kl(FULL, FULL, make_batch()), torch.zeros(ROWS))


def test_logit_difference_by_hand() -> None:
    values = functional.logit_difference(FULL, CIRCUIT, make_batch())
    for row, length in enumerate(LENGTHS):
        by_hand = sum(float(CIRCUIT[row, p, 2] - CIRCUIT[row, p, 5]) for p in range(length)) / length
        assert float(values[row]) == pytest.approx(by_hand, abs=1e-6)  # float32 sums of three numbers below 10


def test_logit_difference_leaves_out_rows_without_a_distractor() -> None:
    batch = make_batch()
    batch.distractors[0] = IGNORE
    values = functional.logit_difference(FULL, CIRCUIT, batch)
    assert values[0].isnan()
    metric = faithfulness()
    metric.update(FULL, CIRCUIT, batch)
    assert float(metric.compute()["logit_difference"]) == pytest.approx(float(values[1:].mean()), abs=1e-6)


def test_measures_without_any_distractor_are_nan_for_the_difference_alone() -> None:
    metric = faithfulness()
    metric.update(FULL, CIRCUIT, make_batch(distractors=torch.full((ROWS, POSITIONS), IGNORE)))
    values = {name: float(value) for name, value in metric.compute().items()}
    assert math.isnan(values.pop("logit_difference"))
    assert not any(math.isnan(value) for value in values.values())


def test_squared_error_by_hand() -> None:
    values = functional.squared_error(FULL, CIRCUIT, make_batch())
    for row, length in enumerate(LENGTHS):
        by_hand = sum(float((FULL[row, p] - CIRCUIT[row, p]).double().square().sum()) for p in range(length)) / length
        assert float(values[row]) == pytest.approx(by_hand, rel=1e-5)  # float32 sums


def test_a_single_output_has_a_squared_error_but_no_kl_and_no_most_likely_token() -> None:
    full, circuit = FULL[..., :1], CIRCUIT[..., :1]
    metric = faithfulness()
    unknown = torch.full((ROWS, POSITIONS), IGNORE)
    metric.update(full, circuit, make_batch(targets=unknown, distractors=unknown))
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values.pop("squared_error") > 0
    assert all(math.isnan(value) for value in values.values())


def test_accuracy_without_targets_is_nan() -> None:
    unknown = torch.full((ROWS, POSITIONS), IGNORE)
    assert functional.accuracy(FULL, CIRCUIT, make_batch(targets=unknown)).isnan().all()


def test_accuracy_needs_every_position_above_its_distractor() -> None:
    values = functional.accuracy(CIRCUIT, FULL, make_batch())
    by_hand = [all(FULL[row, p, 2] > FULL[row, p, 5] for p in range(n)) for row, n in enumerate(LENGTHS)]
    assert values.tolist() == [float(right) for right in by_hand]
    assert 0 < sum(by_hand) < ROWS  # both outcomes occur in this draw


def test_accuracy_without_distractors_is_the_most_likely_token() -> None:
    best = FULL.argmax(-1)
    batch = make_batch(targets=best, distractors=torch.full_like(best, IGNORE))
    assert functional.accuracy(FULL, FULL, batch).tolist() == [1.0] * ROWS
    batch.targets[3, 2] = (best[3, 2] + 1) % VOCAB  # one wrong position is enough ...
    batch.targets[1, 2] = (best[1, 2] + 1) % VOCAB  # ... but not one that is not scored
    assert functional.accuracy(FULL, FULL, batch).tolist() == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]


def test_exact_match_looks_at_scored_positions_only() -> None:
    other = FULL.clone()
    other[1, 2] = FULL[1, 2].roll(1)  # not scored
    other[2, 1] = FULL[2, 1].roll(1)  # scored
    assert functional.exact_match(FULL, other, make_batch()).tolist() == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_means_do_not_depend_on_the_batch_size(size: int) -> None:
    batch = make_batch()
    batch.distractors[4] = IGNORE
    whole, split = faithfulness(), faithfulness()
    whole.update(FULL, CIRCUIT, batch)
    for start in range(0, ROWS, size):
        part = slice(start, start + size)
        split.update(FULL[part], CIRCUIT[part], batch.rows(part))
    # values of an example are float32 sums, whose order may depend on the shape
    torch.testing.assert_close(split.compute(), whole.compute(), rtol=1e-6, atol=1e-7)
