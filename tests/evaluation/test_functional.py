"""Functional faithfulness and completeness: both ends of the edges, and a mask on weights beside them."""

import pytest
import torch
from torch import Tensor

from datamodules.tasks.base import TokenPair
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.evaluation.functional import functional_test
from edgeprune.models.gated_weights import gated_names
from edgeprune.models.masked import MaskedModel
from edgeprune.models.weight_mask import WeightMask
from edgeprune.statistics.uncertainty import Resampling
from tests.methods.small_problems import compiled_problem, problem, random_pairs, tiny

DRAWS = Resampling(draws=50)


def evaluator(model: MaskedModel) -> Evaluator:
    """20 pairs whose right answer is the model's own, whose wrong one is the last it would give."""
    pairs = list[TokenPair]()
    for pair in random_pairs(20):
        tokens = torch.tensor([pair.clean])
        logits = model.full(tokens, torch.ones_like(tokens), torch.tensor([pair.positions]))[0]
        best, worst = (tuple(ends.tolist()) for ends in (logits.argmax(-1), logits.argmin(-1)))
        pairs.append(TokenPair(pair.clean, pair.corrupted, pair.positions, best, worst))
    asked = problem(model, pairs, cuts=(8,))
    return Evaluator(asked.model, asked.runs, asked.batches, "train")


def values(model: MaskedModel) -> list[Tensor]:
    return [weight.detach().clone() for weight in model.hf.parameters()]


def test_with_all_edges_the_circuit_is_the_model_and_its_complement_the_corrupted_run() -> None:
    judge = evaluator(tiny("gpt2"))
    found = functional_test(judge, judge.graph.exists, DRAWS)
    empty = functional_test(judge, judge.graph.exists & False, DRAWS)
    assert found.weights is None
    assert found.full.value == found.edges.circuit.value == empty.edges.complement.value == 1
    assert found.edges.complement == empty.edges.circuit
    assert found.edges.below_full.value == 0
    assert empty.edges.below_full.value == pytest.approx(1 - empty.edges.circuit.value)
    assert (found.edges.share, empty.edges.share) == (1, 0)
    # half of the pairs have two scored positions, and guesses have to be right at both
    assert found.chance == pytest.approx((0.5 + 0.25) / 2)
    assert found.edges.above_chance.value == pytest.approx(found.edges.complement.value - found.chance)
    low, value, high = (getattr(empty.edges.circuit, name) for name in ("low", "value", "high"))
    assert low <= value <= high
    assert low < high


def test_weights_are_judged_apart_and_are_afterwards_what_they_were() -> None:
    model = tiny("gpt2")
    before, named = values(model), dict(model.hf.named_parameters())
    judges = [evaluator(model) for _ in range(2)]  # runs that are kept are of one mask
    whole = {name: torch.ones_like(named[name], dtype=torch.bool) for name in gated_names(model)}
    none = {name: ~part for name, part in whole.items()}
    for judge, keep, accuracy in zip(judges, (whole, none), (1.0, None), strict=True):
        mask = WeightMask.of(model, keep)
        with mask(model):
            inside = values(model)
            found = functional_test(judge, model.graph.exists, DRAWS)
            assert all(map(torch.equal, values(model), inside))
        assert found.weights is not None
        assert found.full.value == 1, "of the full model with all its weights"
        assert found.weights.share == mask.density
        if accuracy is not None:
            assert found.weights.circuit.value == accuracy
            assert found.weights.complement.value < 1
            kept = found.weights
        else:
            assert found.weights.circuit == kept.complement
            assert found.weights.complement == kept.circuit
    assert all(map(torch.equal, values(model), before))


def test_without_wrong_answers_chance_is_that_of_all_outputs() -> None:
    asked = compiled_problem("reverse", "zero", 12)
    judge = Evaluator(asked.model, asked.runs, asked.batches, "train")
    found = functional_test(judge, judge.graph.exists, DRAWS)
    assert found.measure == "accuracy_top1"
    assert found.full.value == 1
    lengths = [int(batch.position_mask[row].sum()) for batch in asked.batches for row in range(len(batch))]
    expected = sum(asked.model.num_outputs**-length for length in lengths) / len(lengths)
    assert found.chance == pytest.approx(expected)
