"""Normalised faithfulness: by hand, at both ends, sample by sample, and what is not defined."""

import json
import math

import pytest
import torch

from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.metrics.normalise import normalise, normalised_faithfulness
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
        alone = normalised_faithfulness(values.examples(chosen), judge.ends.examples(chosen))
        torch.testing.assert_close(alone.values, expected, equal_nan=True)


def test_ends_and_the_form_for_divergences(judge: Evaluator) -> None:
    half = torch.full(judge.graph.shape, 0.5)
    found = normalised_faithfulness(judge([judge.graph.all_open(), judge.graph.all_closed(), half]), judge.ends)
    defined = ~found.values[0].isnan()
    assert defined[[judge.measures.index(name) for name in ("kl", "logit_difference", "probability_difference")]].all()
    torch.testing.assert_close(found.values[0, defined], torch.ones(int(defined.sum()), dtype=torch.float64))
    assert not found.values[1, defined].any()
    for name in ("kl", "js", "squared_error"):
        own, empty = (
            float(table[row, judge.measures.index(name)]) for table, row in ((found.figures, 2), (found.ends, 1))
        )
        assert found.value(name, 2) == pytest.approx(1 - own / empty, abs=1e-5)  # float32 puts KL(full || full) near 0


def test_a_ratio_of_means_does_not_depend_on_the_unit(judge: Evaluator) -> None:
    """The logit difference in percent of the full model's is the same ratio."""
    found = normalised_faithfulness(judge([torch.full(judge.graph.shape, 0.5)]), judge.ends)
    assert found.value("logit_difference_percent") == pytest.approx(found.value("logit_difference"), rel=1e-6)
    whole = judge([torch.full(judge.graph.shape, 0.5)]).of("logit_difference").mean()
    full, empty = judge.ends.of("logit_difference").mean(1)
    assert found.value("logit_difference") == pytest.approx(float((whole - empty) / (full - empty)), rel=1e-9)


def test_plain_values_and_measures_that_a_program_does_not_have() -> None:
    asked = compiled_problem("or_gate", "zero", 10)
    judge = Evaluator(asked.model, asked.runs, asked.batches, "train")
    found = normalised_faithfulness(judge([judge.graph.all_open()]), judge.ends)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["num_examples"] == 10
    assert plain["measures"]["kl"] == {"full": None, "empty": None, "circuits": [None], "faithfulness": [None]} | {
        "defined": [0]
    }
    assert plain["measures"]["squared_error"]["faithfulness"] == [1.0]
    assert plain["measures"]["squared_error"]["defined"] == [10]
    assert found.value("kl") is None


def test_what_is_refused(judge: Evaluator) -> None:
    circuits = judge([judge.graph.all_open()])
    with pytest.raises(EdgepruneError, match="different examples"):
        normalised_faithfulness(circuits, judge.limited(3).ends)
    with pytest.raises(EdgepruneError, match="the ends by"):
        normalised_faithfulness(judge([judge.graph.all_open()], measures=["kl"]), judge.ends)
    with pytest.raises(EdgepruneError, match="got 1 circuits"):
        normalised_faithfulness(circuits, circuits)
    with pytest.raises(EdgepruneError, match="was not taken"):
        normalised_faithfulness(circuits, judge.ends).value("greater_than")
