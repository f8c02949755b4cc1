"""The measures against enumeration of the numbers 00 to 99, in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgeprune.batch import IGNORE, PairBatch
from edgeprune.metrics import greater_than as measures

VOCAB = 130
TAILS = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))[:100].tolist()  # token of each number
DIGITS = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))[:10].tolist()
YEARS = (2, 5, 37, 50, 89, 98)
FULL_MEASURES = (measures.probability_difference, measures.probability_difference_two_digit)
Measure = Callable[[Tensor, PairBatch], Tensor]


def logits(*shape: int, seed: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_batch(answers: list[list[list[int]]], wrong: list[list[list[int]]], targets: list[list[int]]) -> PairBatch:
    """Rows of one or two scored positions; the last is repeated, as the data module does it."""
    num = max(map(len, targets))
    width = max(len(ids) for row in (*answers, *wrong) for ids in row)

    def sets(rows: list[list[list[int]]]) -> Tensor:
        full = [[*row, *[row[-1]] * (num - len(row))] for row in rows]
        return torch.tensor([[ids + [IGNORE] * (width - len(ids)) for ids in row] for row in full])

    ids = torch.zeros(len(targets), 4, dtype=torch.long)
    return PairBatch(
        clean=ids,
        corrupted=ids,
        attention_mask=ids + 1,
        positions=ids[:, :num],
        position_mask=torch.tensor([[i < len(row) for i in range(num)] for row in targets]),
        targets=torch.tensor([[*row, *[IGNORE] * (num - len(row))] for row in targets]),
        distractors=torch.full((len(targets), num), IGNORE),
        index=torch.arange(len(targets)),
        answers=sets(answers),
        wrong_answers=sets(wrong),
    )


def by_tails(years: tuple[int, ...] = YEARS) -> PairBatch:
    return make_batch(
        [[TAILS[year + 1 :]] for year in years],
        [[TAILS[: year + 1]] for year in years],
        [[TAILS[year + 1]] for year in years],
    )


def by_digits(years: tuple[int, ...]) -> PairBatch:
    parts = [divmod(year, 10) for year in years]
    return make_batch(
        [[DIGITS[a:], DIGITS[b + 1 :]] for a, b in parts],
        [[DIGITS[:a], DIGITS[: b + 1]] for a, b in parts],
        [[DIGITS[a], DIGITS[b + 1]] for a, b in parts],
    )


def enumerated(probs: list[float], year: int) -> dict[str, float]:
    """All measures of one row from the probability of each number, by their definitions."""
    total = sum(probs)
    above, below = sum(probs[year + 1 :]), sum(probs[:year])
    near_above, near_below = (
        sum(p for number, p in enumerate(probs) if 1 <= side * (number - year) <= 10) for side in (1, -1)
    )
    return {
        "probability_difference": above - sum(probs[: year + 1]),
        "probability_difference_two_digit": (above - below) / total,
        "probability_difference_10": (near_above - near_below) / total,
    }


@pytest.mark.parametrize("measure", [*FULL_MEASURES, measures.probability_difference_10])
def test_tails_against_enumeration(measure: Measure) -> None:
    values = logits(len(YEARS), 1, VOCAB, seed=2)
    probs = values.softmax(-1)[:, 0, TAILS].tolist()
    expected = [enumerated(row, year)[measure.__name__] for row, year in zip(probs, YEARS, strict=True)]
    found = measure(values, by_tails())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-14, rtol=0)
    torch.testing.assert_close(measure(values.log_softmax(-1), by_tails()), found, atol=1e-14, rtol=0)


def joint(seed: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the first token, and of the second after each digit: after a digit comes a digit."""
    first = logits(VOCAB, seed=seed).log_softmax(-1)
    allowed = torch.full((10, VOCAB), -math.inf, dtype=torch.float64)
    allowed[:, DIGITS] = 0
    return first, (logits(10, VOCAB, seed=seed + 1) + allowed).log_softmax(-1)


@pytest.mark.parametrize("measure", FULL_MEASURES)
def test_digits_equal_enumeration_of_the_joint_distribution(measure: Measure) -> None:
    first, second = joint(3)
    years = (10, 25, 48, 60, 81, 98)
    rows = torch.stack([torch.stack([first, second[year // 10]]) for year in years])
    numbers = [float((first[DIGITS[n // 10]] + second[n // 10, DIGITS[n % 10]]).exp()) for n in range(100)]
    expected = [enumerated(numbers, year)[measure.__name__] for year in years]
    found = measure(rows, by_digits(years))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-13, rtol=0)


@pytest.mark.parametrize("measure", FULL_MEASURES)
def test_digits_and_tails_agree_on_the_same_distribution(measure: Measure) -> None:
    first, second = joint(5)
    years = (10, 34, 88)
    numbers = torch.stack([(first[DIGITS[n // 10]] + second[n // 10, DIGITS[n % 10]]) for n in range(100)])
    rest = [token for token in range(VOCAB) if token not in TAILS]
    tails = torch.full((VOCAB,), -math.inf, dtype=torch.float64)
    tails[TAILS] = numbers
    tails[rest] = ((1 - numbers.exp().sum()) / len(rest)).log()  # what is no number at all
    rows = torch.stack([torch.stack([first, second[year // 10]]) for year in years])
    whole = measure(tails.expand(len(years), 1, -1), by_tails(years))
    torch.testing.assert_close(measure(rows, by_digits(years)), whole, atol=1e-13, rtol=0)


def test_a_number_worked_by_hand() -> None:
    probs = torch.full((VOCAB,), 1e-30, dtype=torch.float64)
    for number, p in ((20, 0.1), (36, 0.1), (37, 0.2), (38, 0.3), (90, 0.1)):
        probs[TAILS[number]] = p
    values, batch = probs.log()[None, None], by_tails((37,))
    # the numbers hold 0.8 in all; log_softmax spreads the missing 0.2, so everything is divided by 0.8
    assert measures.probability_difference(values, batch).item() == pytest.approx((0.4 - 0.4) / 0.8)
    assert measures.probability_difference_two_digit(values, batch).item() == pytest.approx((0.4 - 0.2) / 0.8)
    assert measures.probability_difference_10(values, batch).item() == pytest.approx((0.3 - 0.1) / 0.8)


def test_rows_of_both_kinds_share_a_batch() -> None:
    """A row with one position ignores the repeated one."""
    mixed = make_batch(
        [[TAILS[38:]], [DIGITS[3:], DIGITS[8:]]],
        [[TAILS[:38]], [DIGITS[:3], DIGITS[:8]]],
        [[TAILS[40]], [DIGITS[3], DIGITS[8]]],
    )
    values = logits(2, 2, VOCAB, seed=7)
    for measure in FULL_MEASURES:
        tail, digits = measure(values, mixed)
        assert tail.item() == pytest.approx(measure(values[:1, :1], by_tails((37,))).item(), abs=1e-14)
        assert digits.item() == pytest.approx(measure(values[1:], by_digits((37,))).item(), abs=1e-14)
    assert measures.probability_difference_10(values, mixed).isnan().tolist() == [False, True]
    assert measures.kendall_tau(values, values.flip(-1), mixed).isnan().tolist() == [False, True]


def tau_b(first: list[float], second: list[float]) -> float:
    """Kendall's tau-b by its definition, pair by pair."""
    concordant = ties_first = ties_second = pairs = 0
    for i in range(len(first)):
        for j in range(i):
            a, b = first[i] - first[j], second[i] - second[j]
            pairs, ties_first, ties_second = pairs + 1, ties_first + (a == 0), ties_second + (b == 0)
            concordant += (a * b > 0) - (a * b < 0)
    return concordant / math.sqrt((pairs - ties_first) * (pairs - ties_second))


@pytest.mark.parametrize("step", [None, 0.5], ids=["all different", "with ties"])
def test_kendall_tau_against_its_definition(step: float | None) -> None:
    full, noise = logits(3, 1, VOCAB, seed=8), logits(3, 1, VOCAB, seed=9)
    circuit = full + noise
    if step is not None:
        full, circuit = (step * (values / step).round() for values in (full, circuit))
    batch = by_tails((2, 37, 98))
    found = measures.kendall_tau(full, circuit, batch)
    expected = [tau_b(*(values[row, 0, TAILS].softmax(-1).tolist() for values in (full, circuit))) for row in range(3)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert 0 < min(expected) < max(expected) < 1


def test_kendall_tau_is_one_for_itself_and_minus_one_for_its_reverse() -> None:
    full, batch = logits(2, 1, VOCAB, seed=10), by_tails((2, 60))
    assert measures.kendall_tau(full, full, batch).tolist() == pytest.approx([1, 1])
    assert measures.kendall_tau(full, -full, batch).tolist() == pytest.approx([-1, -1])
    assert measures.kendall_tau(full, torch.zeros_like(full), batch).isnan().all()


def test_gradients_reach_the_logits() -> None:
    values = logits(len(YEARS), 1, VOCAB, seed=11).requires_grad_()
    for measure in FULL_MEASURES:
        assert torch.autograd.gradcheck(lambda x, f=measure: f(x, by_tails()), [values], atol=1e-8)
