"""Areas over the sizes of circuits: closed forms, values by hand, and their intervals over examples."""

import json
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.evaluation.mib import AREAS, measured_curve, mib_curve
from edgeprune.evaluation.mib_circuits import SHARES
from edgeprune.evaluation.size_areas import accuracy_area, mib_areas
from edgeprune.metrics.examples import ExampleValues
from edgeprune.statistics.uncertainty import Resampling, resamples
from tests.evaluation.test_mib import SMALL, evaluator, noise, scored
from tests.methods.small_problems import compiled_problem


def figures(*faithfulness: float) -> Tensor:
    """Of a full model with 5 and an empty circuit with 2."""
    return torch.tensor([5.0, 2.0, *(2 + 3 * value for value in faithfulness)], dtype=torch.float64)


# ---------------------------------------------------------------- areas
@pytest.mark.parametrize(
    ("values", "cpr", "cmd", "average"),
    [
        ([1.0] * 10, 0.999, 0, 1),
        ([0.0] * 10, 0, 0.999, 0),
        ([2.0] * 10, 1.998, 0.999, 2),
        (SHARES, 0.4999995, 0.4990005, sum(SHARES) / 10),  # (1 - .001^2) / 2 and (1 - .001)^2 / 2
        ([0.0] * 9 + [1.0], 0.25, 0.749, 0.1),
        ([1.5] * 9 + [1.0], 0.499 * 1.5 + 0.5 * 1.25, 0.499 * 0.5 + 0.5 * 0.25, 1.45),
    ],
)
def test_closed_forms(values: Sequence[float], cpr: float, cmd: float, average: float) -> None:
    assert mib_areas(figures(*values)).tolist() == pytest.approx([cpr, cmd, average], abs=1e-12)


def test_a_measure_that_falls_has_the_same_areas() -> None:
    """KL is 0 for the full model: f = 1 - m / c."""
    kl = torch.tensor([0.0, 4.0, *(4 * (1 - share) for share in SHARES)], dtype=torch.float64)
    torch.testing.assert_close(mib_areas(kl), mib_areas(figures(*SHARES)))


def test_an_axis_of_its_own() -> None:
    areas = mib_areas(figures(0, 0.5, 1), (0.1, 0.3, 1.0))
    assert areas.tolist() == pytest.approx([0.2 * 0.25 + 0.7 * 0.75, 0.2 * 0.75 + 0.7 * 0.25, 0.5], abs=1e-12)


def test_many_samples_at_once() -> None:
    samples = torch.rand(4, 3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = mib_areas(samples)
    assert together.shape == (4, 3, 3)
    for place in ((0, 0), (3, 2)):
        assert torch.equal(together[place], mib_areas(samples[place]))


def test_ends_that_do_not_differ() -> None:
    assert mib_areas(torch.ones(12, dtype=torch.float64)).isnan().all()


def test_the_accuracy_area_weighs_every_decade_alike() -> None:
    """0.4 to 0.6 over the first decade, to 0.9 over the second, to 1 over the third."""
    found = accuracy_area(torch.tensor([0.4, 0.6, 0.9, 1.0], dtype=torch.float64), (0.001, 0.01, 0.1, 1.0))
    assert float(found) == pytest.approx((0.5 + 0.75 + 0.95) / 3, abs=1e-12)


def test_the_accuracy_area_over_the_shares_of_mib() -> None:
    """Right from 1 % on, else a coin: log10 of 2 and 2.5 are the steps between 1, 2, 5 and 10."""
    accuracies = torch.tensor([0.5] * 3 + [1.0] * 7, dtype=torch.float64)
    assert SHARES[3] == 0.01
    step = math.log10(2)  # from 0.5 % to 1 %, where it rises
    expected = (0.5 * (1 - step) + 0.75 * step + 2) / 3
    assert float(accuracy_area(accuracies)) == pytest.approx(expected, abs=1e-12)
    both = accuracy_area(torch.stack([accuracies, torch.full_like(accuracies, 0.25)]))
    assert both.tolist() == pytest.approx([expected, 0.25], abs=1e-12)
    assert accuracy_area(torch.tensor([0.5, math.nan, 1.0]), (0.1, 0.5, 1.0)).isnan()


# ---------------------------------------------------------------- intervals
def made(*faithfulness: float, accuracies: Sequence[Sequence[float]] = ()) -> ExampleValues:
    """Two examples: of the first the full model has 5, the empty circuit 2, of the second 3 and 2; f as given."""
    full, empty = torch.tensor([5.0, 3.0]), torch.tensor([2.0, 2.0])
    rows = torch.stack([full, empty, *(empty + value * (full - empty) for value in faithfulness)]).double()
    right = torch.tensor([[1.0, 1.0], [0.0, 0.0], *accuracies], dtype=torch.float64)
    values = torch.stack([rows, right], 1)
    return ExampleValues(("logit_difference", "accuracy"), values, torch.ones_like(values), torch.arange(2))


def test_an_interval_spans_the_draws_of_two_examples() -> None:
    """One draw in four is twice the first example, one twice the second: these are the ends of a 95 % interval."""
    circuit = Circuit.random(SMALL, 1)
    # right on the first example alone; f is .75 on both
    curve = measured_curve(made(0.75, accuracies=[[1.0, 0.0]]), [circuit], "logit_difference", ("test", "zero"))
    held = [share for share in SHARES[:-1] if round(share * SMALL.num_edges) >= 1]
    assert curve.missing == tuple(share for share in SHARES[:-1] if share not in held)

    def area(accuracy: float) -> float:
        """The empty circuit stands in and is never right; then the circuit; then the model, which always is."""
        points = torch.tensor([0.0] * len(curve.missing) + [accuracy] * len(held) + [1.0], dtype=torch.float64)
        return float(torch.trapezoid(points, torch.tensor(SHARES, dtype=torch.float64).log()) / math.log(1000))

    found = curve.intervals["accuracy_area"]
    assert (found.value, found.low, found.high) == pytest.approx((area(0.5), area(0), area(1)), abs=1e-12)
    assert found.num_examples == 2
    for name in ("cpr", "cmd", "average", "cpr_pruned_size", "cmd_pruned_size"):  # the same for every mix of examples
        one = curve.intervals[name]
        assert one.low == one.high == one.value == curve.areas[name]


def test_intervals_of_the_areas_are_percentiles_over_draws() -> None:
    """One by one: the examples of each draw are put together, and the areas computed anew."""
    judge = evaluator()
    resampling = Resampling(draws=40, level=0.8, seed=3)
    curve = mib_curve(judge, scored(judge.graph, noise(judge.graph)), resampling=resampling)
    (counts,) = resamples(judge.num_examples, resampling)
    drawn: list[list[float]] = []
    for row in counts.long():
        part = curve.values.examples(torch.arange(judge.num_examples).repeat_interleave(row))
        figures = part.figures()
        kept = mib_areas(figures[:, 0], curve.kept_shares)[:2]
        drawn.append([*mib_areas(figures[:, 0]).tolist(), *kept.tolist(), float(accuracy_area(figures[2:, 1]))])
    expected = torch.tensor(drawn, dtype=torch.float64).quantile(torch.tensor([0.1, 0.9], dtype=torch.float64), 0)
    for place, name in enumerate(AREAS):
        one = curve.intervals[name]
        assert (one.low, one.high) == pytest.approx(expected[:, place].tolist(), rel=1e-9, abs=1e-12), name
    assert curve.intervals["cpr"].low < curve.areas["cpr"] < curve.intervals["cpr"].high
    written = curve.to_dict()
    assert written["intervals"]["cmd"] == curve.intervals["cmd"].to_dict()
    assert written["resampling"] == resampling.to_dict()


def test_a_measure_without_accuracy() -> None:
    """Raw outputs have no right answer: the area is not defined, the others are."""
    asked = compiled_problem("hist", number=4)
    judge = Evaluator(asked.model, asked.runs, asked.batches, "train")
    values = judge([None, judge.graph.all_closed(), judge.graph.exists & True], measures=["squared_error"])
    curve = measured_curve(values, [Circuit.random(judge.graph, 2)], "squared_error", ("train", "zero"))
    assert math.isnan(curve.areas["accuracy_area"])
    assert curve.intervals["accuracy_area"].num_examples == 0
    assert math.isfinite(curve.areas["cpr"])
    assert json.loads(json.dumps(curve.to_dict(), allow_nan=False))["points"][0]["accuracy"] is None
