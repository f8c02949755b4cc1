"""Paired differences against enumeration of all exchanges, and their p-values where nothing differs."""

import itertools
import json
from collections.abc import Sequence

import pytest
import torch

from edgeprune.errors import EdgepruneError
from edgeprune.evaluation import paired
from edgeprune.evaluation.paired import paired_difference
from edgeprune.evaluation.uncertainty import Figure
from edgeprune.metrics.examples import ExampleValues
from tests.evaluation.test_uncertainty import NAN, normal, of


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
    assert (equal.p_value, equal.figure) == (1.0, Figure(0.0, 0.0, 0.0, 30))
    assert apart.p_value == 1 / 10_001  # none of the random exchanges comes near
    some = paired_difference(of([[1.0, 2.0, NAN], [0.0, NAN, 7.0]]), 0, 1, "kl")
    assert (some.figure, some.p_value) == (Figure(1.0, 1.0, 1.0, 1), 1.0)
    none = paired_difference(of([[NAN, 1.0], [1.0, NAN]]), 0, 1, "kl").to_dict()
    assert (none["value"], none["p_value"], none["num_examples"]) == (None, None, 0)


def test_no_exchanges_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="permutations must be at least 1, got 0"):
        paired_difference(of([[1.0]]), 0, 0, "kl", permutations=0)
