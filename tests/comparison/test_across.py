"""Circuits against circuits: figures by hand and by scipy, both ends, and what is refused."""

import json
import math
from typing import Any

import pytest
import torch
from scipy.stats import pearsonr
from torch import Tensor

from datamodules.collate import collate
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.comparison.across import Candidate, cross_model, transfer_circuits
from edgeprune.comparison.overlap import compare_circuits
from edgeprune.comparison.performance import align_performance
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.metrics.examples import ExampleValues
from edgeprune.models.masked import MaskedModel
from edgeprune.statistics.correlation import kendall, pearson, spearman
from tests.methods.small_problems import random_pairs, tiny
from tests.reading.test_attention_roles import batches_with_roles, small_llama


# -------------------------------------------------------------------- correlations
def test_correlations_by_hand() -> None:
    """x = 1 2 2 4, y = 10 30 20 20: ranks 1 2.5 2.5 4 and 1 4 2.5 2.5."""
    x, y = torch.tensor([1, 2, 2, 4]), torch.tensor([10, 30, 20, 20])
    # about the mean 2.5: (-1.5, 0, 0, 1.5) and (-1.5, 1.5, 0, 0): 2.25 / 4.5
    assert spearman(x, y) == pytest.approx(0.5)
    # of 6 pairs one is tied in x and one in y, of the other 4 (1,2), (1,3), (1,4) agree and (2,4) does not
    assert kendall(x, y) == pytest.approx(2 / 5)
    # about the means 2.25 and 20: (-1.25, -.25, -.25, 1.75), (-10, 10, 0, 0): 10 / sqrt(4.75 * 200)
    assert pearson(x, y) == pytest.approx(10 / math.sqrt(950))


@pytest.mark.parametrize("size", [2, 3, 17, 64, 1000])
@pytest.mark.parametrize("levels", [3, 40, 10**6])
def test_correlations_equal_their_definitions(size: int, levels: int) -> None:
    """Of ranks counted one by one, and of signs of all pairs."""
    generator = torch.Generator().manual_seed(size)
    x, y = (torch.randint(0, levels, (size,), generator=generator).double() for _ in range(2))
    y = y + x
    x[0], x[1], y[0], y[1] = 0, 1, 5, 6  # neither is constant
    assert pearson(x, y) == pytest.approx(float(torch.corrcoef(torch.stack([x, y]))[0, 1]), abs=1e-12)
    signs = [(values[:, None] - values).sign() for values in (x, y)]
    ranks = torch.stack([sign.sum(1) for sign in signs])  # twice the mean rank, up to a constant
    assert spearman(x, y) == pytest.approx(float(torch.corrcoef(ranks)[0, 1]), abs=1e-12)
    untied = math.sqrt(signs[0].abs().sum() * signs[1].abs().sum())
    assert kendall(x, y) == pytest.approx(float((signs[0] * signs[1]).sum()) / untied, abs=1e-12)
    assert kendall(x, -y) == pytest.approx(-kendall(x, y), abs=1e-12)


@pytest.mark.parametrize("function", [pearson, spearman, kendall])
def test_correlations_that_are_not_defined(function: Any) -> None:
    nan = math.nan
    assert math.isnan(function(torch.ones(4), torch.arange(4)))
    assert math.isnan(function(torch.arange(4), torch.ones(4)))
    assert math.isnan(function(torch.empty(0), torch.empty(0)))
    assert math.isnan(function(torch.tensor([1.0, nan]), torch.tensor([2.0, 3.0])))
    left, right = torch.tensor([1.0, nan, 2.0, 3.0, 0.0]), torch.tensor([2.0, 5.0, 3.0, 4.0, nan])
    assert function(left, right) == pytest.approx(1)
    with pytest.raises(EdgepruneError, match="two lists of one length"):
        function(torch.ones(3), torch.ones(4))


# -------------------------------------------------------------------- performance
def values(rows: list[list[float]], index: list[int] | None = None) -> ExampleValues:
    """Logit differences of circuits on examples."""
    matrix = torch.tensor(rows, dtype=torch.float64)[:, None]
    numbers = torch.tensor(list(range(matrix.shape[-1])) if index is None else index)
    return ExampleValues(("logit_difference",), matrix, torch.ones_like(matrix), numbers)


def test_alignment_by_hand() -> None:
    first, second = values([[1, 2, 3, math.nan]]), values([[2, 4, 3, 7]])
    ends = values([[4, 4, 4, 4], [0, 0, 0, 0]]), values([[8, 8, 8, 8], [4, 4, 4, 4]])
    found = align_performance(first, second, ends=ends)
    assert (found.num_units, found.unit, found.figures) == (3, "example", (2, 4))
    assert found.pearson == pytest.approx(0.5)
    assert found.spearman == pytest.approx(0.5)
    assert found.faithfulness == (0.5, 0)
    assert found.faithfulness_difference == 0.5
    assert math.isnan(found.pearson_full)  # the full models do equally well everywhere
    without = align_performance(first, second).to_dict()
    assert without["faithfulness"] == [None, None]
    assert without["faithfulness_difference"] is None
    json.dumps(without, allow_nan=False)


def test_alignment_by_label_where_examples_differ() -> None:
    """Means of groups a: 1.5 and 2, b: 4 and 6; c is in one alone."""
    first, second = values([[1, 2, 4, 9]]), values([[6, 2, 2]], [7, 8, 9])
    with pytest.raises(EdgepruneError, match="4 examples against 3"):
        align_performance(first, second)
    with pytest.raises(EdgepruneError, match="example 0 is number 0 in one and 7 in the other"):
        align_performance(values([[1, 2, 3]]), second)
    found = align_performance(first, second, labels=(["a", "a", "b", "c"], ["b", "a", "a"]))
    assert (found.unit, found.num_units) == ("label", 2)
    assert found.pearson == pytest.approx(1)
    with pytest.raises(EdgepruneError, match="a against b"):
        align_performance(first, second, labels=(["a"] * 4, ["b"] * 3))


# -------------------------------------------------------------------- models and tasks
def judge(model: MaskedModel, seed: int | None = None) -> Evaluator:
    """On pairs with roles, or on random ones without."""
    batches = batches_with_roles() if seed is None else [collate(list(enumerate(random_pairs(4, seed))))]
    return Evaluator(model, ReferenceRuns(model, "interchange", 1.0), batches)


def test_the_same_circuit_in_the_same_model() -> None:
    model = tiny("gpt2")
    circuit = Circuit.random(model.graph, 60, 3)
    found = cross_model(Candidate("a", circuit, judge(model)), Candidate("b", circuit, judge(model)), seeds=[0, 1])
    assert found.overlap is not None
    assert found.roles is not None
    assert found.overlap["jaccard"] == 1
    assert [match.similarity for match in found.roles.one_to_one] == pytest.approx([1] * len(found.roles.one_to_one))
    assert found.roles.importance.cosine == pytest.approx(1)
    assert found.performance.pearson == pytest.approx(1)
    assert found.performance.pearson_full == pytest.approx(1)
    assert found.performance.faithfulness_difference == 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_models_of_other_shapes() -> None:
    models = tiny("gpt2"), small_llama()
    pair = [Candidate(str(place), Circuit.random(item.graph, 40), judge(item)) for place, item in enumerate(models)]
    found = cross_model(*pair, seeds=[0])
    assert found.overlap is None
    assert found.roles is not None
    result = found.to_dict()
    assert result["overlap"] is None
    item = pair[0].evaluator
    figures = item([pair[0].circuit.keep], measures=["logit_difference"])
    assert found.performance.figures[0] == pytest.approx(figures.figure("logit_difference"))
    full = [one.evaluator.ends.of("logit_difference")[0] for one in pair]
    assert found.performance.pearson_full == pytest.approx(pearsonr(*full).statistic)
    json.dumps(result, allow_nan=False)


def test_tasks_without_roles() -> None:
    """Circuits of one graph are compared all the same, without roles; others are not."""
    gpt2, llama = tiny("gpt2"), small_llama()
    first = Candidate("a", Circuit.random(gpt2.graph, 40), judge(gpt2, 0))
    assert cross_model(first, first).roles is None
    with pytest.raises(EdgepruneError, match="marks no position roles"):
        cross_model(first, Candidate("b", Circuit.random(llama.graph, 40), judge(llama, 0)))
    with pytest.raises(EdgepruneError, match="num_layers=2"):
        Candidate("c", Circuit.random(llama.graph, 40), judge(gpt2, 0))


def test_examples_that_may_be_other_texts() -> None:
    """Numbers of examples agree, tokens do not: labels, or the user's word, are needed."""
    model = tiny("gpt2")
    circuit = Circuit.random(model.graph, 40)
    pair = [Candidate(name, circuit, judge(model, seed)) for seed, name in enumerate("ab")]
    with pytest.raises(EdgepruneError, match="prompts of 'a' and 'b' are not the same tokens"):
        cross_model(*pair)
    assert cross_model(*pair, same_texts=True).performance.num_units == 4
    labels = ["odd", "even", "odd", "even"]
    assert cross_model(*pair, labels=(labels, labels)).performance.num_units == 2


def test_transfer_between_tasks() -> None:
    """A circuit on its own task has its own figures; the full circuit has the full model's anywhere."""
    model = tiny("gpt2")
    circuits = {"one": Circuit.random(model.graph, 90, 5), "all": Circuit(model.graph, model.graph.exists)}
    judges = {"one": judge(model, 0), "all": judge(model, 1)}
    found = transfer_circuits(circuits, judges, seeds=[0, 1])
    assert [(item.circuit, item.place) for item in found] == [
        (circuit, place) for place in circuits for circuit in circuits
    ]
    transfers = {(item.circuit, item.place): item for item in found}
    stayed = transfers["one", "one"]
    assert torch.equal(stayed.figures, stayed.original)
    assert torch.equal(transfers["all", "one"].original, stayed.original)
    expected = judges["all"]([circuits["one"].keep, *(Circuit.random(model.graph, 90, seed).keep for seed in (0, 1))])
    moved = transfers["one", "all"]
    _close(moved.figures, expected.figures()[0])
    _close(moved.random, expected.figures()[1:])
    whole = transfers["all", "one"].to_dict()
    assert whole["faithfulness"]["logit_difference"] == pytest.approx(1)
    assert whole["original_faithfulness"]["logit_difference"] != pytest.approx(1, abs=1e-3)
    assert whole["figures"]["logit_difference"] == pytest.approx(whole["full"]["logit_difference"])
    assert compare_circuits(circuits["one"], circuits["all"])["precision"] == 1
    json.dumps([item.to_dict() for item in found], allow_nan=False)


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)  # logits are judged in float32


def test_tasks_that_do_not_fit() -> None:
    model, other = tiny("gpt2"), small_llama()
    circuits = {"one": Circuit.random(model.graph, 9), "two": Circuit.random(model.graph, 9, 1)}
    with pytest.raises(EdgepruneError, match="circuits are for one, two, pairs for one"):
        transfer_circuits(circuits, {"one": judge(model, 0)})
    with pytest.raises(EdgepruneError, match="at least one seed"):
        transfer_circuits(circuits, {"one": judge(model, 0), "two": judge(model, 1)}, seeds=[])
    with pytest.raises(EdgepruneError, match="the model of 'two' has 2"):
        transfer_circuits(circuits, {"one": judge(model, 0), "two": judge(other, 1)})
