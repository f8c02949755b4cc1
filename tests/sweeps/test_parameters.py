"""Distributions against their definitions, by quantiles: a latent number's quantile is its value's."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import scipy.stats
import yaml

from edgeprune.errors import EdgepruneError
from edgeprune.sweeps.parameters import Choice, Continuous, IntegerRange, Parameter, nested, read_parameters, short

HALF = [0.1, 0.25, 0.5, 0.75, 0.9]


def one(text: str) -> Any:
    (parameter,) = read_parameters({"x": yaml.safe_load(text)}, "s.yaml")
    return parameter.distribution


def quantiles(distribution: Continuous, at: Sequence[float] = HALF) -> list[float]:
    """Values at quantiles of the latent number, whose own distribution is uniform or log-uniform."""
    low, high = distribution.low, distribution.high
    if distribution.log:
        return [distribution.value(low * (high / low) ** part) for part in at]
    return [distribution.value(low + part * (high - low)) for part in at]


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("{min: 2.0, max: 5.0}", scipy.stats.uniform(2, 3)),
        ("{distribution: log_uniform_values, min: 0.01, max: 10}", scipy.stats.loguniform(0.01, 10)),
        ("{distribution: log_uniform, min: -3, max: 2}", scipy.stats.loguniform(math.exp(-3), math.exp(2))),
        ("{distribution: inv_log_uniform_values, min: 0.01, max: 10}", scipy.stats.loguniform(0.01, 10)),
        ("{distribution: normal, mu: 3, sigma: 0.5}", scipy.stats.norm(3, 0.5)),
        ("{distribution: log_normal, mu: 1, sigma: 0.5}", scipy.stats.lognorm(0.5, scale=math.e)),
    ],
)
def test_continuous_distributions_have_their_quantiles(text: str, reference: Any) -> None:
    # 1e-4: a normal distribution is cut at its quantiles 1e-6 and 1 - 1e-6
    assert quantiles(one(text)) == pytest.approx([float(reference.ppf(part)) for part in HALF], rel=1e-4)


def test_the_inverse_falls_where_the_other_rises() -> None:
    values = quantiles(one("{distribution: inv_log_uniform, min: -3, max: 2}"))
    assert values == pytest.approx([math.exp(-(-3 + 5 * part)) for part in HALF])


def test_steps() -> None:
    uniform = one("{distribution: q_uniform, min: 0, max: 100, q: 25}")
    assert {uniform.value(number) for number in range(101)} == {0, 25, 50, 75, 100}
    normal = one("{distribution: q_normal, mu: 10, sigma: 4, q: 2}")
    assert {normal.value(part) % 2 for part in HALF} == {0}


def test_lists_and_constants() -> None:
    assert one("{values: [a, null, 3]}") == Choice(("a", None, 3))
    assert one("{value: 7}") == Choice((7,))
    assert one("{min: 2, max: 4}") == IntegerRange(2, 4)
    assert one("{min: 2, max: 4.5}") == Continuous(2.0, 4.5)


def test_probabilities() -> None:
    weighted = one("{values: [a, b, c], probabilities: [0.2, 0.0, 0.8]}")
    drawn = [weighted.value((number + 0.5) / 1000) for number in range(1000)]
    assert {value: drawn.count(value) for value in "abc"} == {"a": 200, "b": 0, "c": 800}


def test_nested_parameters_come_back_nested() -> None:
    text = "{model: {parameters: {recipe: {parameters: {lr: {value: 0.1}}}, name: {value: m}}}, seed: {value: 1}}"
    parameters = read_parameters(yaml.safe_load(text), "s.yaml")
    assert [parameter.name for parameter in parameters] == ["model.recipe.lr", "model.name", "seed"]
    values = {"model.recipe.lr": 0.1, "model.name": "m", "seed": 1}
    assert nested(parameters, values) == {"model": {"recipe": {"lr": 0.1}, "name": "m"}, "seed": 1}


def test_dotted_names_stay_as_they_are() -> None:
    parameters = [Parameter(("model.lr",), Choice((1,)))]
    assert nested(parameters, {"model.lr": 1}) == {"model.lr": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{x: 3}", "parameter x must be a mapping, got 3; write {value: 3}"),
        ("{}", "parameters is empty"),
        ("{x: {}}", "parameter x: give value, values, or min and max"),
        ("{x: {values: 3}}", "values must be a list"),
        ("{x: {values: []}}", "values must be a list with at least one entry"),
        ("{x: {min: 3}}", "uniform needs max"),
        ("{x: {min: 3, max: 3}}", "min must be below max"),
        ("{x: {min: 1e-3, max: 1}}", "YAML reads 1e-3 as a text, write 1.0e-3"),
        (
            "{x: {distribution: byes, min: 0, max: 1}}",
            "distribution 'byes' cannot be drawn from here; known are constant",
        ),
        ("{x: {distribution: beta, a: 1, b: 2}}", "distribution 'beta' cannot be drawn"),
        ("{x: {distribution: log_uniform_values, min: 0, max: 1}}", "needs a positive min, got 0"),
        ("{x: {distribution: q_uniform, min: 0, max: 1, q: 0}}", "q must be positive"),
        ("{x: {distribution: normal, sigma: -1}}", "sigma must be positive"),
        ("{x: {distribution: int_uniform, min: 0.5, max: 2}}", "int_uniform needs whole numbers"),
        ("{x: {values: [1, 2], probabilities: [0.5]}}", "probabilities must be a list of 2 numbers"),
        ("{x: {values: [1, 2], probabilities: [0.5, 0.6]}}", "must add up to 1"),
        ("{x: {value: 1, min: 0}}", "'min' has no place in constant"),
        ("{x: {value: 1, probabilities: [1]}}", "'probabilities' has no place in constant"),
        ("{a.b: {value: 1}, a: {parameters: {b: {value: 2}}}}", "parameter a.b is given twice"),
        ("{a: {parameters: 3}}", "parameters of a must be a mapping"),
    ],
)
def test_a_bad_parameter_is_named(text: str, said: str) -> None:
    with pytest.raises(EdgepruneError) as error:
        read_parameters(yaml.safe_load(text), "s.yaml")
    assert said in str(error.value)
    assert str(error.value).startswith("s.yaml: ")


def test_names_are_as_short_as_they_stay_apart() -> None:
    names = ["a.target", "b.target", "seed"]
    assert [short(name, names) for name in names] == ["a.target", "b.target", "seed"]
