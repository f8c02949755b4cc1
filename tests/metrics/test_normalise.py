"""Normalised faithfulness: by hand, at both ends, sample by sample, and what is not defined."""

import math

import pytest
import torch

from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.metrics.normalise import normalise
from edgeprune.metrics.registry import measures_for
from tests.methods.small_problems import compiled_problem, problem, tiny

NAN = math.nan


@pytest.fixture(scope="module")
def judge() -> Evaluator:
    asked = problem(tiny("gpt2"))
    return Evaluator(asked.model, asked.runs, asked.batches, "train", measures_for())


def test_by_hand() -> None:
    """Full, half way, empty, beyond the model, below the empty circuit; a divergence is good where it is low."""
    ends = torch.tensor([[4.0, 0.0], [2.0, 8.0]])
    figures = torch.tensor([[4.0, 0.0], [3.0, 4.0], [2.0, 8.0], [5.0, -2.0], [0.0, 10.0]])
    assert normalise(figures, ends).tolist() == [[1, 1], [0.5, 0.5], [0, 0], [1.5, 1.25], [-1, -0.25]]


def test_without_room_between_the_ends_there_is_none() -> None:
    """Equal ends, ends apart by rounding, and ends or circuits that are not defined."""
    full, empty = torch.tensor([0.0, 3, 3, NAN, 1, 1]), torch.tensor([0.0, 3, 3 + 1e-7, 1, NAN, 0])
    values = normalise(torch.tensor([[1.0, 1, 1, 1, 1, NAN]]), torch.stack([full, empty]))
    assert values.isnan().all()


def test_samples_of_examples_are_normalised_together(judge: Evaluator) -> None:
    """Figures of several samples at once give what each sample gives alone."""
    gates = [torch.rand(judge.graph.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    values = judge(gates)
    samples = torch.randint(judge.num_examples, (4, judge.num_examples), generator=torch.Generator().manual_seed(0))
    figures = torch.stack([values.examples(chosen).figures() for chosen in samples])
    ends = torch.stack([judge.ends.examples(chosen).figures() for chosen in samples])
    together = normalise(figures, ends)
    assert together.shape == (4, 3, len(judge.measures))
    for chosen, expected in zip(samples, together, strict=True):
        alone = normalise(values.examples(chosen).figures(), judge.ends.examples(chosen).figures())
        torch.testing.assert_close(alone, expected, equal_nan=True)


def test_ends_and_the_form_for_divergences(judge: Evaluator) -> None:
    half = torch.full(judge.graph.shape, 0.5)
    figures, ends = judge([judge.graph.all_open(), judge.graph.all_closed(), half]).figures(), judge.ends.figures()
    values = normalise(figures, ends)
    defined = ~values[0].isnan()
    assert defined[[judge.measures.index(name) for name in ("kl", "logit_difference", "probability_difference")]].all()
    torch.testing.assert_close(values[0, defined], torch.ones(int(defined.sum()), dtype=torch.float64))
    assert not values[1, defined].any()
    for place in map(judge.measures.index, ("kl", "js", "squared_error")):
        # float32 puts KL(full || full) near 0
        assert float(values[2, place]) == pytest.approx(float(1 - figures[2, place] / ends[1, place]), abs=1e-5)


def test_a_ratio_of_means_does_not_depend_on_the_unit(judge: Evaluator) -> None:
    """The logit difference in percent of the full model's is the same ratio."""
    circuit = judge([torch.full(judge.graph.shape, 0.5)])
    values = dict(zip(judge.measures, normalise(circuit.figures(), judge.ends.figures())[0].tolist(), strict=True))
    assert values["logit_difference_percent"] == pytest.approx(values["logit_difference"], rel=1e-6)
    whole = circuit.of("logit_difference").mean()
    full, empty = judge.ends.of("logit_difference").mean(1)
    assert values["logit_difference"] == pytest.approx(float((whole - empty) / (full - empty)), rel=1e-9)


def test_measures_that_a_program_does_not_have() -> None:
    asked = compiled_problem("or_gate", "zero", 10)
    judge = Evaluator(asked.model, asked.runs, asked.batches, "train")
    circuit = judge([judge.graph.all_open()])
    values = dict(zip(judge.measures, normalise(circuit.figures(), judge.ends.figures())[0].tolist(), strict=True))
    assert math.isnan(values["kl"])
    assert values["squared_error"] == 1.0
    defined = dict(zip(judge.measures, circuit.defined()[0].tolist(), strict=True))
    assert (defined["kl"], defined["squared_error"]) == (0, 10)
