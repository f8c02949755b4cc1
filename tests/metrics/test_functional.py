"""Measures per example against scipy, torchmetrics and torch, position by position in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine as cosine_distance
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, kendalltau, pearsonr, rankdata
from torch import Tensor
from torchmetrics.functional import kl_divergence
from torchmetrics.functional.classification import multiclass_accuracy

from edgeprune.batch import IGNORE, PairBatch
from edgeprune.metrics import functional, greater_than
from tests.metrics.test_greater_than import by_tails
from tests.metrics.test_greater_than import logits as year_logits

ROWS, POSITIONS, VOCAB = 6, 3, 17
LENGTHS = [3, 1, 2, 3, 2, 1]  # scored positions of each row
NUM_RIGHT, NUM_WRONG = 2, 4


def random_logits(seed: int, *, step: float | None = None) -> Tensor:
    """Random logits; with a step they are multiples of it, so that some are equal."""
    generator = torch.Generator().manual_seed(seed)
    values = 2 * torch.randn(ROWS, POSITIONS, VOCAB, generator=generator, dtype=torch.float64) + 3
    return values if step is None else step * (values / step).round()


FULL, CIRCUIT = random_logits(0), random_logits(1)


def make_batch() -> PairBatch:
    """Rows with different numbers of scored positions, of right answers and of wrong ones."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.stack([torch.randperm(VOCAB, generator=generator) for _ in range(ROWS * POSITIONS)])
    ids = ids.view(ROWS, POSITIONS, VOCAB)
    answers, wrong = ids[..., :NUM_RIGHT].clone(), ids[..., NUM_RIGHT : NUM_RIGHT + NUM_WRONG].clone()
    answers[::2, :, 1:] = IGNORE
    wrong[1::2, :, 2:] = IGNORE
    tokens = torch.zeros(ROWS, POSITIONS, dtype=torch.long)
    return PairBatch(
        clean=tokens,
        corrupted=tokens,
        attention_mask=tokens + 1,
        positions=tokens,
        position_mask=torch.arange(POSITIONS) < torch.tensor(LENGTHS)[:, None],
        targets=answers[..., 0].clone(),
        distractors=wrong[..., 0].clone(),
        index=torch.arange(ROWS),
        answers=answers,
        wrong_answers=wrong,
    )


BATCH = make_batch()
SETS = torch.cat([BATCH.answers, BATCH.wrong_answers], -1)


def mean_over_positions(value: Callable[[int, int], float]) -> Tensor:
    """Mean of `value(row, position)` over the scored positions of each row."""
    return torch.tensor(
        [np.mean([value(row, position) for position in range(length)]) for row, length in enumerate(LENGTHS)],
        dtype=torch.float64,
    )


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of sums of a few float64 numbers of size 1 to 10."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def probabilities(logits: Tensor, row: int, position: int) -> np.ndarray:
    return logits[row, position].softmax(-1).numpy()


def known(row: int, position: int, ids: Tensor = SETS) -> Tensor:
    return ids[row, position][ids[row, position] != IGNORE]


# -------------------------------------------------------------------- distributions
def test_kl_in_both_directions_is_scipy_s_and_torchmetrics() -> None:
    p, q = (lambda row, at, x=logits: probabilities(x, row, at) for logits in (FULL, CIRCUIT))
    forward, backward = functional.kl(FULL, CIRCUIT, BATCH), functional.kl_reverse(FULL, CIRCUIT, BATCH)
    assert_equal(forward, mean_over_positions(lambda row, at: entropy(p(row, at), q(row, at))))
    assert_equal(backward, mean_over_positions(lambda row, at: entropy(q(row, at), p(row, at))))
    first = kl_divergence(CIRCUIT[:1, 0].log_softmax(-1), FULL[:1, 0].log_softmax(-1), log_prob=True)
    one = PairBatch(**{**vars(BATCH), "position_mask": torch.arange(POSITIONS) < torch.ones(ROWS, 1)})
    assert_equal(functional.kl_reverse(FULL, CIRCUIT, one)[0], first)


def test_js_is_the_square_of_scipy_s_distance() -> None:
    def distance(row: int, position: int) -> float:
        return jensenshannon(*(probabilities(logits, row, position) for logits in (FULL, CIRCUIT)))

    found = functional.js(FULL, CIRCUIT, BATCH)
    assert_equal(found, mean_over_positions(lambda row, at: distance(row, at) ** 2))
    assert_equal(functional.js(CIRCUIT, FULL, BATCH), found)


def test_js_of_models_that_share_nothing_is_log_2() -> None:
    far = torch.full_like(FULL, -200.0)
    first, second = far.clone(), far.clone()
    first[..., 0], second[..., 1] = 0.0, 0.0
    assert_equal(functional.js(first, second, BATCH), torch.full((ROWS,), 2.0, dtype=torch.float64).log())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_js_of_a_model_with_itself_is_zero_and_not_almost_zero(dtype: torch.dtype) -> None:
    assert torch.equal(functional.js(FULL.to(dtype), FULL.to(dtype), BATCH), torch.zeros(ROWS, dtype=dtype))


def test_kl_among_the_answers_is_scipy_s_which_renormalises() -> None:
    def value(row: int, position: int) -> float:
        full, circuit = (probabilities(x, row, position)[known(row, position)] for x in (FULL, CIRCUIT))
        return entropy(full, circuit)

    assert_equal(functional.kl_answers(FULL, CIRCUIT, BATCH), mean_over_positions(value))


def test_the_loss_is_torch_s_cross_entropy_which_leaves_out_unknown_targets() -> None:
    targets = torch.where(BATCH.position_mask, BATCH.targets, IGNORE)
    targets[0, 1] = IGNORE
    batch = PairBatch(**{**vars(BATCH), "targets": targets})
    expected = torch.stack(
        [torch.nn.functional.cross_entropy(logits, ids) for logits, ids in zip(CIRCUIT, targets, strict=True)]
    )
    assert_equal(functional.nll(CIRCUIT, batch), expected)


def test_the_loss_among_the_answers_is_torch_s_cross_entropy_of_their_logits() -> None:
    def value(row: int, position: int) -> float:
        ids = [int(i) for i in torch.cat([BATCH.answers, BATCH.wrong_answers], -1)[row, position] if i != IGNORE]
        among = CIRCUIT[row, position, ids][None]
        return float(torch.nn.functional.cross_entropy(among, torch.tensor([ids.index(BATCH.targets[row, position])])))

    assert_equal(functional.nll_answers(CIRCUIT, BATCH), mean_over_positions(value))


# -------------------------------------------------------------------- right against wrong answers
def test_the_difference_of_sets_is_one_of_means() -> None:
    def value(row: int, position: int) -> float:
        logits = CIRCUIT[row, position]
        right, wrong = (logits[known(row, position, ids)].numpy() for ids in (BATCH.answers, BATCH.wrong_answers))
        return right.mean() - wrong.mean()

    assert_equal(functional.logit_difference_sets(CIRCUIT, BATCH), mean_over_positions(value))


def test_one_answer_each_makes_all_logit_differences_one() -> None:
    batch = PairBatch(**{**vars(BATCH), "answers": None, "wrong_answers": None})
    expected = functional.logit_difference(FULL, CIRCUIT, batch)
    assert_equal(functional.logit_difference_sets(CIRCUIT, batch), expected)
    assert_equal(functional.logit_difference_max(CIRCUIT, batch), expected)
    assert not torch.equal(functional.logit_difference_sets(CIRCUIT, BATCH), expected)  # with more answers it is not


def test_percent_per_example_divides_before_the_mean() -> None:
    found = functional.logit_difference_percent_per_example(FULL, CIRCUIT, BATCH)

    def difference(logits: Tensor) -> Tensor:
        right, wrong = BATCH.targets, BATCH.distractors
        return mean_over_positions(
            lambda row, at: float(logits[row, at, right[row, at]] - logits[row, at, wrong[row, at]])
        )

    assert_equal(found, 100 * difference(CIRCUIT) / difference(FULL))


def test_percent_is_not_defined_where_the_full_model_is_undecided() -> None:
    full = FULL.clone()
    full[1, 0] = 0.0
    found = functional.logit_difference_percent_per_example(full, CIRCUIT, BATCH)
    assert found.isnan().tolist() == [False, True, False, False, False, False]


# -------------------------------------------------------------------- order
@pytest.mark.parametrize("step", [None, 1.0], ids=["all different", "with ties"])
def test_the_rank_is_scipy_s(step: float | None) -> None:
    logits = random_logits(3, step=step)

    def value(row: int, position: int) -> float:
        return rankdata(-logits[row, position].numpy(), method="average")[BATCH.targets[row, position]]

    found = functional.answer_rank(logits, BATCH)
    assert_equal(found, mean_over_positions(value))
    assert 1 <= found.min() < found.max() <= VOCAB


def test_the_rank_is_first_last_or_in_the_middle() -> None:
    place = torch.zeros_like(FULL).scatter(-1, BATCH.targets[..., None], 1.0)
    for logits, rank in ((place, 1), (-place, VOCAB), (0 * place, (VOCAB + 1) / 2)):
        assert functional.answer_rank(logits, BATCH).tolist() == [rank] * ROWS


def test_top_1_accuracy_is_torchmetrics_and_heeds_no_distractor() -> None:
    one = PairBatch(**{**vars(BATCH), "position_mask": torch.arange(POSITIONS) < torch.ones(ROWS, 1)})
    targets = torch.where(torch.arange(ROWS)[:, None] % 2 == 0, CIRCUIT.argmax(-1), BATCH.targets)
    found = functional.accuracy_top1(CIRCUIT, PairBatch(**{**vars(one), "targets": targets}))
    expected = multiclass_accuracy(CIRCUIT[:, 0], targets[:, 0], num_classes=VOCAB, average="micro")
    assert found.mean().item() == pytest.approx(expected.item())
    assert 0 < expected < 1


def test_top_1_accuracy_needs_every_position() -> None:
    best = CIRCUIT.argmax(-1)
    best[0, 2] = (best[0, 2] + 1) % VOCAB  # scored
    best[1, 2] = (best[1, 2] + 1) % VOCAB  # not scored
    found = functional.accuracy_top1(CIRCUIT, PairBatch(**{**vars(BATCH), "targets": best}))
    assert found.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("step", [None, 1.0], ids=["all different", "with ties"])
def test_kendall_tau_is_scipy_s_over_the_answers_of_each_position(step: float | None) -> None:
    full, circuit = (random_logits(seed, step=step) for seed in (4, 5))

    def value(row: int, position: int) -> float:
        ids = known(row, position)
        return kendalltau(full[row, position, ids].numpy(), circuit[row, position, ids].numpy(), variant="b").statistic

    assert_equal(functional.kendall_tau(full, circuit, BATCH), mean_over_positions(value))


def test_the_tau_of_years_is_the_same_function() -> None:
    full, circuit, batch = year_logits(2, 1, 130, seed=0), year_logits(2, 1, 130, seed=1), by_tails((5, 60))
    found = greater_than.kendall_tau(full, circuit, batch)
    assert torch.equal(found, functional.kendall_tau(full, circuit, batch))
    assert found.isfinite().all()


# -------------------------------------------------------------------- direction of the logits
def test_the_cosine_is_scipy_s_and_the_centred_one_its_correlation() -> None:
    def plain(row: int, position: int) -> float:
        return 1 - cosine_distance(FULL[row, position].numpy(), CIRCUIT[row, position].numpy())

    def centred(row: int, position: int) -> float:
        return pearsonr(FULL[row, position].numpy(), CIRCUIT[row, position].numpy()).statistic

    assert_equal(functional.cosine_similarity(FULL, CIRCUIT, BATCH), mean_over_positions(plain))
    assert_equal(functional.cosine_similarity_centred(FULL, CIRCUIT, BATCH), mean_over_positions(centred))


def test_only_the_centred_cosine_ignores_what_softmax_ignores() -> None:
    moved = CIRCUIT + torch.arange(ROWS, dtype=torch.float64)[:, None, None]
    found, expected = (functional.cosine_similarity_centred(FULL, x, BATCH) for x in (moved, CIRCUIT))
    assert_equal(found, expected)
    plain = functional.cosine_similarity(FULL, moved, BATCH) - functional.cosine_similarity(FULL, CIRCUIT, BATCH)
    assert (plain[1:].abs() > 1e-3).all()


# -------------------------------------------------------------------- accuracy among the answers
def test_right_among_the_answers_is_above_all_wrong_ones_and_chance_counts_them() -> None:
    logits = torch.tensor([[[0.0, 3.0, 2.0, 1.0]] * 2, [[0.0, 3.0, 2.0, 1.0]] * 2], dtype=torch.float64)
    ids = torch.zeros(2, 2, dtype=torch.long)
    batch = PairBatch(
        clean=ids, corrupted=ids, attention_mask=ids + 1, positions=ids, index=ids[:, 0],
        position_mask=torch.tensor([[True, True], [True, False]]),
        targets=torch.tensor([[2, 1], [3, 0]]), distractors=torch.tensor([[0, 0], [2, 0]]),
        answers=torch.tensor([[[2, 0], [1, IGNORE]], [[3, IGNORE], [0, IGNORE]]]),
        wrong_answers=torch.tensor([[[3, IGNORE], [0, 2]], [[2, 0], [1, IGNORE]]]),
    )  # fmt: skip
    assert functional.accuracy_answers(logits, batch).tolist() == [1.0, 0.0]
    assert functional.chance_answers(logits, batch).tolist() == pytest.approx([2 / 3 * 1 / 3, 1 / 3])
    alone = PairBatch(**{**vars(batch), "wrong_answers": torch.full_like(batch.wrong_answers, IGNORE)})
    for of in (functional.accuracy_answers, functional.chance_answers):
        assert of(logits, alone).isnan().all()
