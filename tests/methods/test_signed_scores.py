"""Signed scores of a mask: against finite differences in double precision, and what they leave as it was."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.methods.problem import Problem
from edgeprune.methods.signed_scores import signed, slopes, soft_gates
from tests.methods.small_problems import problem, random_pairs, tiny

ASKED = problem(tiny("gpt2"), metric="kl", cuts=())
GRAPH = ASKED.model.graph
STEP = 1e-4


def mask(seed: int = 0) -> Circuit:
    """Log-alphas as of a trained mask, some gates nearly open, some nearly closed."""
    noise = torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(seed))
    return Circuit(GRAPH, (noise > 0) & GRAPH.exists, 3 * noise, {"method": "edge_pruning"})


def mean_kl(asked: Problem, gates: Tensor) -> float:
    """KL(full || circuit), all in double precision, from the log-probabilities of each scored position."""
    total = 0.0
    for batch, full, ablated in asked.batches_with_runs():
        logits = asked.model(batch.clean, gates, ablated, batch.attention_mask, batch.positions)
        assert logits.dtype == torch.float64
        first, second = full.double().log_softmax(-1), logits.log_softmax(-1)
        each = (first.exp() * (first - second)).sum(-1) * batch.position_mask
        total += float((each.sum(-1) / batch.position_mask.sum(-1)).sum())
    return total / asked.num_examples


@pytest.fixture(scope="module")
def differences() -> Tensor:
    """Central differences of the KL in the log-alpha of every edge, `[reader, writer]`."""
    scores = mask().scores
    assert scores is not None
    found = torch.zeros(GRAPH.shape, dtype=torch.float64)
    with torch.no_grad():
        for reader, writer in GRAPH.exists.nonzero().tolist():
            ends: list[float] = []
            for step in (STEP, -STEP):
                moved = scores.double().clone()
                moved[reader, writer] += step
                ends.append(mean_kl(ASKED, soft_gates(moved).where(GRAPH.exists, 0.0)))
            found[reader, writer] = (ends[0] - ends[1]) / (2 * STEP)
    return found


def test_the_soft_gate_by_hand() -> None:
    """sigmoid(0.8 x 1.5 / (2/3)) = sigmoid(1.8); of temperature 1/2, sigmoid(2.4)."""
    assert soft_gates(torch.tensor([1.5, 0.0])).tolist() == pytest.approx([0.8581489, 0.5], abs=1e-6)
    assert soft_gates(torch.tensor(1.5), 0.5).item() == pytest.approx(0.9168273, abs=1e-6)


def test_slopes_are_those_of_finite_differences(differences: Tensor) -> None:
    scores = mask().scores
    assert scores is not None
    soft = soft_gates(scores.double()).where(GRAPH.exists, 0.0)
    in_log_alpha = slopes(ASKED, soft) * 1.2 * soft * (1 - soft)
    torch.testing.assert_close(in_log_alpha, differences, rtol=1e-3, atol=1e-8)


def test_slopes_do_not_depend_on_the_cut_into_batches() -> None:
    gates = soft_gates(torch.linspace(-3, 3, GRAPH.exists.numel(), dtype=torch.float64).view(GRAPH.shape))
    whole, parts = slopes(ASKED, gates), slopes(problem(ASKED.model, metric="kl", cuts=(1, 4)), gates)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-9)
    assert (whole[~GRAPH.exists] == 0).all()


def test_signs_are_those_of_finite_differences(differences: Tensor) -> None:
    """All edges but those on which the difference is rounding; as published, positive where KL rises."""
    circuit = mask()
    found = signed(ASKED, circuit)
    assert found.scores is not None
    assert circuit.scores is not None
    sure = GRAPH.exists & (differences.abs() > 1e-7)
    assert sure.sum() > 0.9 * GRAPH.num_edges
    assert torch.equal(found.scores.sign()[sure], differences.sign()[sure].float())
    assert {*differences.sign()[sure].tolist()} == {-1.0, 1.0}
    torch.testing.assert_close(found.scores.abs(), soft_gates(circuit.scores).where(GRAPH.exists, 0.0))
    other = signed(ASKED, circuit, towards="fall")
    assert other.scores is not None
    assert torch.equal(other.scores[sure], -found.scores[sure])


def test_edges_and_their_order_stay() -> None:
    circuit = mask()
    found = signed(ASKED, circuit)
    assert torch.equal(found.keep, circuit.keep)
    assert found.ranking is not None
    assert circuit.scores is not None
    order = GRAPH.to_vector(circuit.scores).argsort()
    assert torch.equal(GRAPH.to_vector(found.ranking).argsort(), order)
    assert found.header["method"] == "edge_pruning_signed"
    assert found.header["signed"] == {
        "towards": "rise", "metric": "kl", "ablation": "interchange", "split": "train", "num_examples": 5,
    }  # fmt: skip


@pytest.mark.parametrize("towards", ["rise", "fall"])
def test_a_slope_of_zero_is_positive(towards: Any) -> None:
    """Where the corrupted prompts are the clean ones and all gates are open, no gate does anything."""
    same = problem(ASKED.model, [replace(pair, corrupted=pair.clean) for pair in random_pairs()], metric="kl")
    assert (slopes(same, GRAPH.all_open(torch.float64)) == 0).all()
    wide = Circuit(GRAPH, GRAPH.exists, torch.full(GRAPH.shape, 100.0))
    found = signed(same, wide, towards=towards)
    assert found.scores is not None
    assert (GRAPH.to_vector(found.scores) == 1).all()


def test_gates_that_were_not_trained_are_closed() -> None:
    """Slopes are those of the model without these edges; the scores of the edges keep their size."""
    circuit, closed = mask(), Circuit.random(GRAPH, 60, 1).keep
    assert circuit.scores is not None
    soft = soft_gates(circuit.scores.double()).where(GRAPH.exists & ~closed, 0.0)
    expected = torch.where(slopes(ASKED, soft) < 0, -1.0, 1.0)
    found, other = signed(ASKED, circuit, closed=closed), signed(ASKED, circuit)
    assert found.scores is not None
    assert other.scores is not None
    assert torch.equal(GRAPH.to_vector(found.scores).sign(), GRAPH.to_vector(expected).float())
    assert not torch.equal(found.scores, other.scores)
    assert torch.equal(found.scores.abs(), other.scores.abs())


def test_what_cannot_be_signed() -> None:
    with pytest.raises(EdgepruneError, match="has no scores to be given signs"):
        signed(ASKED, Circuit.random(GRAPH, 3).with_edges(GRAPH.exists, {}))
    with pytest.raises(EdgepruneError, match="towards must be 'rise' or 'fall', got 'up'"):
        signed(ASKED, mask(), towards="up")  # pyright: ignore[reportArgumentType]
