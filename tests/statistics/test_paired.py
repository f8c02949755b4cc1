"""Paired differences against enumeration of all exchanges, and their p-values where nothing differs."""

import itertools
import json
import math
from collections.abc import Sequence

import pytest
import torch

from edgeprune.errors import EdgepruneError
from edgeprune.metrics.examples import ExampleValues
from edgeprune.statistics import paired
from edgeprune.statistics.paired import paired_difference, paired_differences
from edgeprune.statistics.uncertainty import Estimate, bootstrap_of
from tests.statistics.test_uncertainty import NAN, normal, of


def by_enumeration(first: Sequence[float], second: Sequence[float], weights: Sequence[float]) -> float:
    """Two-sided p-value over all ways to exchange the values of the examples."""

    def figure(pairs: Sequence[tuple[float, float]]) -> float:
        return sum(a - b for a, b in pairs) / sum(weights)

    pairs = list(zip(first, second, strict=True))
    ways = itertools.product(*[(pair, pair[::-1]) for pair in pairs])
    return sum(abs(figure(way)) >= abs(figure(pairs)) - 1e-12 for way in ways) / 2 ** len(pairs)


@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1], [1, 2, 3, 4, 5]])
def test_a_few_pairs_are_exchanged_in_every_way(weights: list[float]) -> None:
    first, second = [3.0, 1.0, 4.0, 1.0, 5.5], [2.0, 1.5, 1.0, 1.0, 2.0]
    found = paired_difference(of([second, first], torch.tensor(weights)), 1, 0, "kl")
    assert found.exact
    assert found.permutations == 32
    assert found.p_value == by_enumeration(first, second, weights)
    assert found.figure.value == pytest.approx(sum(a - b for a, b in zip(first, second, strict=True)) / sum(weights))
    assert found.to_dict()["p_value"] == found.p_value
    assert json.loads(json.dumps(found.to_dict()))["num_examples"] == 5


def test_weights_change_places_with_their_values() -> None:
    """With weights of the circuits' own, the figures are those of the exchanged circuits."""
    values, weights = normal(2, 1, 4), normal(2, 1, 4, seed=1).exp()
    found = paired_difference(ExampleValues(("kl",), values, weights, torch.arange(4)), 0, 1, "kl")
    stacked, differences = torch.stack([values[:, 0], weights[:, 0]]), list[float]()
    for way in itertools.product((False, True), repeat=4):
        chosen = torch.where(torch.tensor(way), stacked.flip(1), stacked).sum(-1)
        differences.append(float(chosen[0, 0] / chosen[1, 0] - chosen[0, 1] / chosen[1, 1]))
    assert found.figure.value == pytest.approx(differences[0])
    assert found.p_value == sum(abs(one) >= abs(differences[0]) - 1e-12 for one in differences) / 16


def test_random_exchanges_come_near_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    data = normal(2, 12, seed=4)
    monkeypatch.setattr(paired, "BLOCK", 1000)
    every, some = (paired_difference(of(data), 0, 1, "kl", permutations=number) for number in (4096, 4000))
    assert (every.exact, some.exact) == (True, False)
    assert some.p_value == pytest.approx(every.p_value, abs=0.03)


def test_p_values_are_uniform_where_the_circuits_do_not_differ() -> None:
    """200 pairs of circuits of 8 examples: standard errors below 0.03."""
    values = of(normal(400, 8, seed=2))
    found = [paired_difference(values, 2 * row, 2 * row + 1, "kl", draws=1).p_value for row in range(200)]
    for level in (0.1, 0.25, 0.5, 0.75):
        assert sum(p_value <= level for p_value in found) / 200 == pytest.approx(level, abs=0.1)


def test_differences_at_the_ends() -> None:
    """Equal circuits, clearly different ones, none defined; and only pairs count of which both are defined."""
    base = normal(30)
    equal, apart = (paired_difference(of(torch.stack([base + by, base])), 0, 1, "kl") for by in (0, 1))
    assert (equal.p_value, equal.figure) == (1.0, Estimate(0.0, 0.0, 0.0, 30))
    assert apart.p_value == 1 / 10_001  # none of the random exchanges comes near
    some = paired_difference(of([[1.0, 2.0, NAN], [0.0, NAN, 7.0]]), 0, 1, "kl")
    assert (some.figure, some.p_value) == (Estimate(1.0, 1.0, 1.0, 1), 1.0)
    none = paired_difference(of([[NAN, 1.0], [1.0, NAN]]), 0, 1, "kl").to_dict()
    assert (none["value"], none["p_value"], none["num_examples"]) == (None, None, 0)


# -------------------------------------------------------------------- every two of several circuits
def several(num_examples: int) -> ExampleValues:
    """Five circuits, two of them equal. `kl`: weights of each circuit's own; `accuracy`: not defined everywhere."""
    values, weights = normal(5, 2, num_examples), normal(5, 2, num_examples, seed=1).exp()
    values[4], weights[4], weights[:, 1] = values[0], weights[0], 1.0
    values[1, 1, 3], values[2, 1, :2], values[3, 1] = NAN, NAN, NAN
    return ExampleValues(("kl", "accuracy"), values, weights, torch.arange(num_examples))


def one_pair(values: ExampleValues, measure: str, draws: int, permutations: int) -> tuple[float, float, float, float]:
    """Difference, interval and p-value of the two circuits, each exchange made as such."""
    pair = values.only([measure])
    pair = pair.examples(pair.known.all(0)[0])
    interval = bootstrap_of(pair, lambda figures: figures[:, 0, 0] - figures[:, 1, 0], draws)
    number, exact = pair.num_examples, 2**pair.num_examples <= permutations
    if exact:
        ways = torch.tensor(list(itertools.product((False, True), repeat=number))).bool()
    else:
        ways = torch.randint(2, (permutations, number), generator=torch.Generator().manual_seed(0)) == 1
    sums, weights = (torch.where(ways, part[:, 0].flip(0)[:, None], part[:, 0][:, None]).sum(-1) for part in pair.terms)
    found, least = (sums / weights).diff(dim=0).abs()[0], float(interval.value.abs())
    as_large = int((found >= least - 1e-10).sum())
    p_value = as_large / len(ways) if exact else (as_large + 1) / (len(ways) + 1)
    value, low, high = (float(part) for part in (interval.value, interval.low, interval.high))
    return value, low, high, NAN if math.isnan(value) else p_value


@pytest.mark.parametrize("num_examples", [7, 40])
def test_every_two_circuits_are_compared_as_each_two_alone(num_examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All or random exchanges, in one block or several; equal circuits; examples that one circuit has no value of."""
    values = several(num_examples)
    for block, at_once in ((2**20, 2**17), (1500, 900)):
        monkeypatch.setattr(paired, "BLOCK", block)
        monkeypatch.setattr(paired, "AT_ONCE", at_once)
        found = paired_differences(values, draws=50, permutations=200)
        assert len(found) == 10
        for (a, b), by_measure in zip(itertools.combinations(range(5), 2), found, strict=True):
            assert list(by_measure) == ["kl", "accuracy"]
            for measure, one in by_measure.items():
                value, low, high, p_value = one_pair(values.circuits([a, b]), measure, 50, 200)
                got = (one.figure.value, one.figure.low, one.figure.high, one.p_value)
                assert got == pytest.approx((value, low, high, p_value), rel=1e-12, abs=1e-14, nan_ok=True)
    assert found[3]["kl"].figure == Estimate(0.0, 0.0, 0.0, num_examples)  # circuits 0 and 4
    assert found[3]["kl"].p_value == 1.0
    assert found[0]["accuracy"].figure.num_examples == num_examples - 1


def test_an_infinite_value_leaves_no_number_of_its_pairs_alone() -> None:
    first, second, third = (
        paired_differences(of([[1.0, torch.inf], [2.0, 5.0], [0.0, 1.0]]))[at]["kl"] for at in range(3)
    )
    assert (first.figure.value, second.figure.value) == (torch.inf, torch.inf)
    assert first.to_dict()["p_value"] is second.to_dict()["p_value"] is None
    assert (third.figure.value, third.p_value) == (3.0, 0.5)


def test_draws_are_made_once_for_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for every number of examples: 40 for one measure, 40, 39, 38, 37 and none for the other."""
    made: dict[str, list[int]] = {"resamples": [], "_random_signs": []}

    def counted(name: str) -> None:
        own = getattr(paired, name)

        def make(num_examples: int, *rest: object) -> object:
            made[name].append(num_examples)
            return own(num_examples, *rest)

        monkeypatch.setattr(paired, name, make)

    for name in made:
        counted(name)
    seen: list[tuple[int, int]] = []
    paired_differences(several(40), draws=10, report=lambda what, done, total: seen.append((done, total)))
    assert made == {"resamples": [0, 37, 38, 39, 40], "_random_signs": [37, 38, 39, 40]}
    assert seen == sorted(seen)
    assert seen[-1] == (20, 20)


def test_one_circuit_has_no_pairs() -> None:
    assert paired_differences(of([[1.0]])) == []


def test_no_exchanges_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="permutations must be at least 1, got 0"):
        paired_difference(of([[1.0]]), 0, 0, "kl", permutations=0)
