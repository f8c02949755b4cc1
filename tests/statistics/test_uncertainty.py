"""Intervals, breakdowns and spreads, against enumeration, closed forms and a simulation."""

import itertools
import json
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.metrics.examples import ExampleValues
from edgeprune.statistics import uncertainty
from edgeprune.statistics.seeds import over_seeds
from edgeprune.statistics.uncertainty import (
    Estimate,
    Resampling,
    bootstrap,
    bootstrap_of,
    by_label,
    resamples,
)

NAN = float("nan")


def of(data: Sequence[Sequence[float]] | Tensor, weights: Tensor | None = None) -> ExampleValues:
    """One measure, `kl`, of circuits `[circuit, example]`."""
    values = torch.as_tensor(data, dtype=torch.float64)[:, None]
    weighing = torch.ones_like(values) if weights is None else weights.double().expand(len(values), 1, -1)
    return ExampleValues(("kl",), values, weighing, torch.arange(values.shape[-1]))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -------------------------------------------------------------------- bootstrap
def test_draws_of_three_examples_are_those_of_all_27_samples() -> None:
    """The percentiles are those of the distribution that enumeration gives, up to the noise of the draws."""
    data = [0.0, 1.0, 10.0]
    means = torch.tensor([sum(drawn) / 3 for drawn in itertools.product(data, repeat=3)], dtype=torch.float64)
    found = bootstrap(of([data]), draws=20_000, level=0.6).of("kl")
    ends = [pytest.approx(means.quantile(share).item()) for share in (0.2, 0.8)]  # inside steps of the distribution
    assert found == Estimate(11 / 3, *ends, 3)


def test_intervals_of_normal_means_cover_the_truth() -> None:
    """400 samples of 50: the share that covers 0 has a standard error of 0.011."""
    found = bootstrap(of(normal(400, 50)))
    covered = ((found.low <= 0) & (found.high >= 0)).double().mean().item()
    assert 0.9 < covered < 0.98
    width = (found.high - found.low).mean().item()
    assert width == pytest.approx(2 * 1.96 / math.sqrt(50), rel=0.05)


def test_a_ratio_of_means_is_resampled_as_a_ratio() -> None:
    """Values that are twice their weights have the same ratio in every draw; a mean of the values would vary."""
    weights = torch.arange(1, 9)
    assert bootstrap(of((2 * weights)[None], weights)).of("kl") == Estimate(2.0, 2.0, 2.0, 8)


@pytest.mark.parametrize("data", [[0.1], [0.1] * 7, [0.1] * 7 + [NAN]])
def test_without_variation_the_interval_is_the_point(data: list[float]) -> None:
    found = bootstrap(of([data])).of("kl")
    assert found.value == found.low == found.high == pytest.approx(0.1)
    assert found.num_examples == len(data) - (data[-1] != data[-1])


def test_undefined_examples_and_draws_are_left_out() -> None:
    """One defined example of three: a draw lacks it with probability (2/3)^3."""
    found = bootstrap(of([[NAN, 5.0, NAN], [NAN, NAN, NAN]]), draws=4000)
    assert found.of("kl", 0) == Estimate(5.0, 5.0, 5.0, 1)
    assert found.num_draws[0, 0].item() / 4000 == pytest.approx(1 - 8 / 27, abs=0.03)
    assert found.of("kl", 1).to_dict() == {"value": None, "low": None, "high": None, "num_examples": 0}
    assert found.num_draws[1, 0].item() == 0
    assert json.loads(json.dumps(found.as_dicts()))[1]["kl"]["low"] is None


def test_no_examples_at_all() -> None:
    assert math.isnan(bootstrap(of(torch.zeros(1, 0))).of("kl").low)


def test_neither_blocks_nor_other_circuits_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = of(normal(6, 11))
    whole = bootstrap(values, draws=100)
    alone, other = (bootstrap(values.circuits([4]), draws=100, seed=seed) for seed in (0, 1))
    torch.testing.assert_close(alone.low, whole.low[4:5], rtol=1e-12, atol=1e-12)  # sums in another order
    assert abs(other.of("kl").low - alone.of("kl").low) > 1e-3
    monkeypatch.setattr(uncertainty, "BLOCK", 150)  # 13 draws and one circuit at a time
    in_blocks = bootstrap(values, draws=100)
    torch.testing.assert_close(in_blocks.low, whole.low, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(in_blocks.high, whole.high, rtol=1e-12, atol=1e-12)
    assert len(list(resamples(11, Resampling(100)))) == 8


def test_every_draw_has_as_many_examples() -> None:
    (counts,) = resamples(7, Resampling(50))
    assert counts.sum(1).tolist() == [7.0] * 50
    assert counts.mean(0).tolist() == pytest.approx([1.0] * 7, abs=0.5)


# -------------------------------------------------------------------- functions of figures
def test_a_function_sees_circuits_of_the_same_draw() -> None:
    """A circuit 3 above another on every example differs by 3 in every draw."""
    base = normal(20)
    values = of(torch.stack([base + 3, base]))
    found = bootstrap_of(values, lambda figures: figures[:, 0, 0] - figures[:, 1, 0])
    assert found.value.shape == ()
    assert found.at() == Estimate(pytest.approx(3), pytest.approx(3), pytest.approx(3), 20)
    assert bootstrap(values).of("kl", 0).high - bootstrap(values).of("kl", 0).low > 0.5


def test_a_function_that_is_undefined_in_some_draws() -> None:
    """1 / mean of (1, -1): infinite where a draw has both alike."""
    found = bootstrap_of(of([[1.0, -1.0]]), lambda figures: 1 / figures[:, 0], draws=1000)
    assert found.value.tolist() == [math.inf]
    assert found.num_draws[0].item() / 1000 == pytest.approx(0.5, abs=0.06)
    assert found.at(0).to_dict() == {"value": None, "low": -1.0, "high": 1.0, "num_examples": 2}


def test_a_function_gets_the_measures_asked_for() -> None:
    data = torch.tensor([[[1.0, 2.0], [10.0, NAN], [NAN, NAN]]], dtype=torch.float64)
    values = ExampleValues(("kl", "js", "nll"), data, torch.ones_like(data), torch.arange(2))
    found = bootstrap_of(values, lambda figures: figures[:, 0], measures=["js", "kl"])
    assert found.value.tolist() == [10.0, 1.5]
    assert found.num_examples.tolist() == [1, 1]
    with pytest.raises(EdgepruneError, match="measure 'beauty' was not taken; there are kl, js, nll"):
        bootstrap_of(values, lambda figures: figures, measures=["beauty"])


# -------------------------------------------------------------------- labels and seeds
def test_figures_by_label() -> None:
    values = of([[1.0, 2.0, 3.0, 5.0], [0.0, NAN, 0.0, NAN]])
    labels = {"order": ["ab", "ba", "ab", "ba"], "name": ["Ann", "Bob", "Cy", "Di"]}
    found = by_label(values, labels, max_values=3)
    assert found.skipped == {"name": 4}
    assert list(found.groups) == ["order"]
    assert found.groups["order"]["ba"].of("kl") == Estimate(3.5, 2.0, 5.0, 2)
    assert found.groups["order"]["ba"].of("kl", 1).num_examples == 0
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["groups"]["order"]["ab"]["num_examples"] == 2
    assert plain["groups"]["order"]["ab"]["circuits"][0]["kl"]["value"] == 2.0
    assert plain["groups"]["order"]["ba"]["circuits"][1]["kl"]["value"] is None
    assert plain["skipped"] == {"name": 4}
    assert plain["resampling"]["draws"] == 1000
    assert list(by_label(values, labels).groups) == ["order", "name"]
    with pytest.raises(EdgepruneError, match="4 examples need as many labels, got 1"):
        by_label(values, {"order": ["ab"]})


def test_spread_over_seeds() -> None:
    """Deviation of 2, 4, 9 by hand: sqrt((9 + 1 + 16) / 2)."""
    found = over_seeds([{"kl": 2.0, "js": 1.0}, {"kl": 4.0, "js": NAN}, {"kl": 9.0, "nll": NAN}])
    assert found["kl"].to_dict() == {
        "mean": 5.0,
        "deviation": pytest.approx(math.sqrt(13)),
        "minimum": 2.0,
        "maximum": 9.0,
        "num_seeds": 3,
    }
    assert found["js"].to_dict() == {"mean": 1.0, "deviation": None, "minimum": 1.0, "maximum": 1.0, "num_seeds": 1}
    assert (found["nll"].num_seeds, found["nll"].to_dict()["mean"]) == (0, None)
    assert over_seeds([]) == {}


def test_what_is_refused() -> None:
    with pytest.raises(EdgepruneError, match=r"draws of at least 1 and a level between 0 and 1, got 0 and 0\.95"):
        bootstrap(of([[1.0]]), draws=0)
    with pytest.raises(EdgepruneError, match="got 1000 and 95"):
        bootstrap(of([[1.0]]), level=95)
    with pytest.raises(EdgepruneError, match="measure 'js' has no interval; there are kl"):
        bootstrap(of([[1.0]])).of("js")
