"""Neither the order of examples, nor how they are cut into batches, nor on which side they are padded matters."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.console import no_progress
from edgeprune.methods import (
    ACDC,
    EAP,
    EAPIG,
    HISP,
    AbstractDiscovery,
    ActivationMagnitude,
    ContextualDecomposition,
    ExactEdgePatching,
    InformationFlowRoutes,
)
from edgeprune.methods.problem import Problem
from edgeprune.patching import activation, path
from tests.methods.small_problems import problem, random_pairs, tiny

METHODS: dict[str, AbstractDiscovery] = {
    "EAP": EAP(),
    **{f"EAPIG, {variant}": EAPIG(variant, 2) for variant in ("inputs", "activations", "clean_corrupted", "gates")},
    "exact": ExactEdgePatching(("embed->a0.h1.q", "embed->a0.h0.v", "a0.h0->m0", "m0->a1.h1.v", "a1.h1->logits")),
    "ACDC": ACDC((0.05,)),
    "HISP, code": HISP(normalize=False),
    "HISP, paper": HISP("paper"),
    "flow": InformationFlowRoutes(),
    "decomposition": ContextualDecomposition(),
    "decomposition, l1": ContextualDecomposition("frozen", "irrelevant", larger=False, measure="l1", paths="all"),
    "magnitude": ActivationMagnitude(),
}


def moved(batch: PairBatch) -> PairBatch:
    """The same examples, with their padding on the other side."""
    seq, shift = batch.clean.shape[1], batch.clean.shape[1] - batch.attention_mask.sum(1)
    source = (torch.arange(seq) - shift[:, None]) % seq
    rows = {name: getattr(batch, name).gather(1, source) for name in ("clean", "corrupted", "attention_mask")}
    return dataclasses.replace(
        batch, **rows, corrupted_mask=rows["attention_mask"], positions=batch.positions + shift[:, None]
    )


def both(name: str, ablation: Any = "interchange", budget_gb: float = 1.0) -> tuple[Problem, Problem]:
    """One problem with padding on the right, one on the left."""
    right = problem(tiny(name), random_pairs(4), cuts=(3,), ablation=ablation)
    runs = ReferenceRuns(right.model, ablation, budget_gb)
    return right, Problem(right.model, [moved(batch) for batch in right.batches], runs, right.metric)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)  # logits are compared in float32
    assert (found != 0).any()


@pytest.mark.parametrize("cuts", [(), (1, 2, 3), (3,)])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_order_and_cut_do_not_matter(method: AbstractDiscovery, cuts: tuple[int, ...]) -> None:
    model, pairs = tiny("llama"), random_pairs(4)
    order = [pairs[number] for number in (2, 0, 3, 1)]
    found = method.discover(problem(model, order, cuts=cuts), no_progress)
    expected = method.discover(problem(model, pairs, cuts=(2,)), no_progress)
    assert found.scores is not None
    assert expected.scores is not None
    close(found.scores, expected.scores)
    for key, circuit in expected.circuits.items():
        assert circuit.edges() == found.circuits[key].edges()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_side_of_padding_does_not_matter(method: AbstractDiscovery, name: str) -> None:
    found, expected = (method.discover(question, no_progress) for question in reversed(both(name)))
    assert found.scores is not None
    assert expected.scores is not None
    close(found.scores, expected.scores)
    for key, circuit in expected.circuits.items():
        assert circuit.edges() == found.circuits[key].edges()


def test_kept_runs_are_the_same_when_examples_meet_others() -> None:
    """What is kept of an example must not remember how far it was pushed to the right."""
    right, left = both("gpt2")
    gates = right.model.graph.all_open(torch.float64)
    gates[:, 3:6] = 0
    assert left.mean_loss(gates) == pytest.approx(right.mean_loss(gates), abs=1e-6)
    apart = Problem(left.model, problem(left.model, random_pairs(4), cuts=(1, 2, 3)).batches, left.runs, left.metric)
    assert apart.mean_loss(gates) == pytest.approx(right.mean_loss(gates), abs=1e-6)


@pytest.mark.parametrize("what", ["residual", "z"])
def test_positions_are_counted_from_the_first_token(what: Any) -> None:
    found, expected = (activation(question, what, ("layer", "position")) for question in reversed(both("llama")))
    assert torch.equal(found.count, expected.count)
    torch.testing.assert_close(found.values, expected.values, atol=1e-6, rtol=1e-5)


def test_paths_are_the_same() -> None:
    found, expected = (path(question, "heads", "logits") for question in reversed(both("llama")))
    close(found.values, expected.values)
