"""Every method that does not train takes any ablation, and gives scores that do not depend on batches."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.console import no_progress
from edgeprune.methods import (
    ACDC,
    EAP,
    EAPIG,
    ActivationMagnitude,
    ContextualDecomposition,
    ExactEdgePatching,
    InformationFlowRoutes,
)
from edgeprune.methods.problem import Problem
from tests.ablations.cases import PAIRS, batch_of
from tests.methods.small_problems import tiny

METHODS: dict[str, Any] = {
    "eap": EAP(),
    "inputs": EAPIG("inputs", 2),
    "activations": EAPIG("activations", 2),
    "clean_corrupted": EAPIG("clean_corrupted"),
    "gates": EAPIG("gates", 2),
    "acdc": ACDC((0.01,)),
    "magnitude": ActivationMagnitude(),
    "exact": ExactEdgePatching(),
    "flow": InformationFlowRoutes(),
    "decomposition": ContextualDecomposition(),
}


def problem(ablation: str, cuts: Sequence[Sequence[int]]) -> Problem:
    model, batches = tiny("gpt2"), [batch_of(PAIRS, numbers) for numbers in cuts]
    runs = ReferenceRuns(model, ablation, 1.0)
    runs.prepare(batches)
    return Problem(model, batches, runs, "logit_difference")


@pytest.mark.parametrize("ablation", ["mean", "mean:both:positional", "resample"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_take_every_ablation(method: Any, ablation: str) -> None:
    whole, cut = problem(ablation, [range(6)]), problem(ablation, [[4, 1], [0, 5, 3], [2]])
    scores, again = (method.discover(question, no_progress).scores for question in (whole, cut))
    assert scores.isfinite().all()
    assert scores.abs().max() > 0
    torch.testing.assert_close(again, scores, atol=1e-6, rtol=1e-5)
