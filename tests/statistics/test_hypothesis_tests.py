"""The hypothesis tests on numbers: closed forms, enumeration, scipy, and p-values where the null hypothesis holds."""

import itertools
import json
import math

import pytest
import torch
from scipy.stats import binom, binomtest
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.statistics.hypothesis_tests import (
    equivalence,
    independence,
    partial_necessity,
    sufficiency,
)

NAN = float("nan")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(num_above: int, num_below: int, num_equal: int = 0) -> tuple[Tensor, Tensor]:
    """Scores of a circuit and of the model."""
    apart = torch.tensor([1.0] * num_above + [-1.0] * num_below + [0.0] * num_equal)
    return 5 + apart, torch.full_like(apart, 5)


# -------------------------------------------------------------------- equivalence
@pytest.mark.parametrize(
    ("above", "below", "epsilon", "expected"),
    [
        (4, 0, 0.1, 0.6**4 + 0.4**4),  # a lead of 4 either way
        (0, 4, 0.1, 0.6**4 + 0.4**4),
        (3, 1, 0.1, 1 - 6 * 0.6**2 * 0.4**2),  # all but the draw of 2 : 2
        (2, 2, 0.1, 1.0),
        (1, 0, 0.3, 1.0),
        (5, 0, 0.0, 2 / 32),
    ],
)
def test_equivalence_by_hand(above: int, below: int, epsilon: float, expected: float) -> None:
    found = equivalence(*scores(above, below), epsilon=epsilon)
    assert found.p_value == pytest.approx(expected, rel=1e-12)
    assert found.statistic == abs(above / (above + below) - 0.5)
    assert found.n == above + below


def test_equivalence_is_the_sum_of_the_paper_at_any_size() -> None:
    n, above, epsilon = 997, 620, 0.1
    far = [k for k in range(n + 1) if abs(k / n - 0.5) >= above / n - 0.5]
    expected = sum(binom.pmf(k, n, 0.5 + epsilon) for k in far)
    assert equivalence(*scores(above, n - above)).p_value == pytest.approx(expected, rel=1e-9)
    far_out = equivalence(*scores(5000, 0))
    assert far_out.p_value == 0.0  # underflows, the logarithm does not
    assert far_out.details["log10_p_value"] == pytest.approx(5000 * math.log10(0.6))


def test_equal_scores_count_half_for_either_side() -> None:
    """One in ten below, the rest equal: within the tolerance; all equal: no lead at all; float32 noise is none."""
    assert equivalence(*scores(0, 100, 900)).statistic == pytest.approx(0.05)
    assert equivalence(*scores(0, 100, 900)).rejected is False
    assert equivalence(*scores(0, 100)).rejected is True
    assert equivalence(*scores(0, 0, 50)).p_value == 1.0
    model = 10 * normal(200)
    assert equivalence(model + 1e-6, model).details["num_equal"] == 200
    assert equivalence(model + 1e-6, model, ties=0).rejected is True


def test_equivalence_is_rejected_at_most_as_often_as_said() -> None:
    """At the edge of the tolerance, over 150 data sets of 60 examples; and often beyond it."""
    uniform = torch.rand(150, 60, generator=torch.Generator().manual_seed(3))

    def rejections(probability: float) -> float:
        rows = torch.where(uniform < probability, 1.0, -1.0)
        return sum(equivalence(row, torch.zeros(60)).rejected is True for row in rows) / 150

    assert rejections(0.5) < 0.01
    assert rejections(0.6) < 0.08
    assert rejections(0.85) > 0.9


def test_equivalence_where_scores_are_missing() -> None:
    circuit, model = scores(3, 0)
    assert equivalence(torch.cat([circuit, torch.tensor([NAN])]), torch.cat([model, torch.ones(1)])).n == 3
    nothing = equivalence(torch.tensor([NAN]), torch.ones(1))
    assert nothing.reading.startswith("not tested")
    plain = json.loads(json.dumps(nothing.to_dict()))
    assert (plain["p_value"], plain["rejected"], plain["n"], plain["statistic"]) == (None, None, 0, None)


def test_readings() -> None:
    found = equivalence(*scores(20, 0))
    assert found.reading.startswith("rejected at 5 %: circuit and model are not equivalent")
    assert equivalence(*scores(10, 10)).reading.startswith("not rejected at 5 %: no sign")
    assert found.to_dict()["settings"] == {"epsilon": 0.1, "ties": 1e-5}
    assert found.to_dict()["details"]["least_p_value"] == found.p_value
    assert json.loads(json.dumps(found.to_dict()))["reading"] == found.reading


def test_a_test_that_cannot_reject_says_so() -> None:
    """Of four examples, all on one side: .6^4 + .4^4 = .155."""
    assert equivalence(*scores(4, 0)).reading == (
        "not rejected at 5 %, and could not be: whatever the outcome, p is at least 0.16 here"
    )
    three = independence(torch.tensor([1.0, 2, 4]), torch.tensor([1.0, 2, 4]))
    assert three.reading.endswith("p is at least 0.17 here")  # 1 / 3!
    assert independence(normal(30), normal(30, seed=1), permutations=99).details["least_p_value"] == 0.01
    assert sufficiency(0.0, torch.ones(18)).reading.startswith("not rejected at 5 %, and could not be")  # 1 / 19
    assert sufficiency(0.0, torch.ones(19)).reading.startswith("rejected at 5 %")  # 1 / 20


# -------------------------------------------------------------------- independence
def hsic(first: Tensor, second: Tensor) -> float:
    """The definition, entry by entry."""

    def kernel(x: Tensor) -> Tensor:
        apart = [abs(float(a - b)) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
        bandwidth = float(torch.tensor(apart, dtype=torch.float64).median())
        return torch.tensor([[math.exp(-(float(a - b) ** 2) / (2 * bandwidth**2)) for b in x] for a in x]).double()

    n = len(first)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    return float((kernel(first) @ centre @ kernel(second) @ centre).trace()) / (n - 1) ** 2


def test_hsic_is_its_definition() -> None:
    first, second = normal(2, 30)
    assert independence(first, second, permutations=1).statistic == pytest.approx(hsic(first, second), rel=1e-5)


def test_few_examples_are_put_in_every_order() -> None:
    first, second = normal(2, 5, seed=1)
    every = [hsic(first, second[list(order)]) for order in itertools.permutations(range(5))]
    found = independence(first, second)
    assert found.details["num_orders"] == 120
    assert found.p_value == sum(other >= every[0] * (1 - 1e-6) for other in every) / 120
    by_chance = independence(first, second, permutations=119, seed=5)
    assert by_chance.details["num_orders"] == 119
    assert by_chance.p_value == pytest.approx(found.p_value, abs=0.15)


def test_dependence_is_found_without_correlation() -> None:
    """A score that is the square of the other's is uncorrelated with it."""
    model = torch.linspace(-1, 1, 61, dtype=torch.float64)
    found = independence(model**2, model)
    assert abs(float(torch.corrcoef(torch.stack([model, model**2]))[0, 1])) < 1e-12
    assert found.p_value == 1 / 1001
    assert found.reading.startswith("rejected at 5 %: the complement still carries")
    assert independence(normal(61), model).rejected is False


def test_p_values_of_independent_scores_are_uniform() -> None:
    """150 pairs, 49 orders each: standard errors below 0.041."""
    pairs = normal(150, 2, 12, seed=7)
    found = torch.tensor([independence(*pair, permutations=49).p_value for pair in pairs])
    for level in (0.1, 0.3, 0.5, 0.8):
        assert (found <= level).double().mean().item() == pytest.approx(level, abs=0.12)


def test_scores_that_do_not_vary_are_independent_of_everything() -> None:
    model = normal(20)
    for constant in (torch.zeros(20), torch.full((20,), 0.1), 0.1 + 1e-8 * model):
        found = independence(constant, model, permutations=50)
        assert (found.statistic, found.p_value) == (0.0, 1.0)
    mostly = torch.zeros(20)
    mostly[3] = 1.0  # the median distance is 0, the bandwidth then that of the distances there are
    assert 0 < independence(mostly, model, permutations=50).statistic < 1
    assert independence(torch.tensor([1.0]), torch.tensor([1.0])).rejected is None
    assert independence(normal(20), model, most_examples=7).n == 7


# -------------------------------------------------------------------- against random circuits
def test_sufficiency_is_the_rank_among_random_circuits() -> None:
    random = torch.tensor([0.5, 0.1, 0.3, 0.2, NAN], dtype=torch.float64)
    found = sufficiency(0.2, random)
    assert (found.statistic, found.p_value, found.n) == (0.5, 3 / 5, 4)  # 0.1 and the tie
    assert found.details["quantile_p_value"] == pytest.approx(binomtest(3, 4, 0.9, alternative="greater").pvalue)
    best = sufficiency(0.0, torch.ones(99))
    assert (best.p_value, best.rejected) == (0.01, True)
    assert best.details["quantile_p_value"] == pytest.approx(0.9**99)
    assert "more faithful" in best.reading
    assert sufficiency(float("inf"), torch.ones(99)).p_value == 1.0


def test_partial_necessity_is_the_rank_of_what_is_lost() -> None:
    found = partial_necessity(3.0, torch.tensor([1.0, 2.0, 4.0]))
    assert (found.statistic, found.p_value) == (1 / 3, 2 / 4)
    assert partial_necessity(9.0, torch.arange(8.0)).p_value == 1 / 9
    for nothing in (partial_necessity(NAN, torch.ones(3)), partial_necessity(1.0, torch.ones(0))):
        assert nothing.to_dict()["p_value"] is None
        assert nothing.rejected is None


def test_what_is_refused() -> None:
    with pytest.raises(EdgepruneError, match=r"epsilon must be at least 0 and below 1/2, got 0\.5"):
        equivalence(torch.ones(2), torch.ones(2), epsilon=0.5)
    with pytest.raises(EdgepruneError, match=r"one per example for both, got \(2,\), \(3,\)"):
        independence(torch.ones(2), torch.ones(3))
    with pytest.raises(EdgepruneError, match="permutations must be at least 1, got 0"):
        independence(torch.ones(2), torch.ones(2), permutations=0)
    with pytest.raises(EdgepruneError, match="quantile must be between 0 and 1, got 1"):
        sufficiency(0.0, torch.ones(2), quantile=1)
