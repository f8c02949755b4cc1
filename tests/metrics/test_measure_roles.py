"""Circuits with roles beside those without, through the functions that every method and every judge runs them by."""

import pytest
import torch

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.errors import EdgepruneError
from edgeprune.methods.attribution import closing_effects
from edgeprune.methods.problem import Problem
from edgeprune.metrics.measure import gated_logits, measure_examples
from edgeprune.models.circuit_run import CircuitRun
from edgeprune.models.masked import MaskedModel
from edgeprune.roles import observed_roles, role_of, roles_in
from tests.methods.small_problems import problem, tiny
from tests.reading.small import pairs


def with_roles() -> Problem:
    found = problem(tiny("gpt2"), pairs(), cuts=(3,), metric="kl")
    found.model.use_roles(observed_roles(found.batches))
    return found


def random_gates(model: MaskedModel) -> torch.Tensor:
    return torch.rand(model.graph.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_gates_with_and_without_roles_run_side_by_side() -> None:
    given = with_roles()
    model, plain = given.model, random_gates(given.model)[0]
    by_role = random_gates(model)
    found = measure_examples(model, given.runs, given.batches, [plain, by_role, None], given.split, ["kl"])
    for circuit, gates in enumerate((plain, by_role)):
        expected = []
        for batch, full, ablated in given.batches_with_runs():
            own = None if gates.ndim == 2 else role_of(batch, model.graph.roles.names)  # pyright: ignore
            logits = model(batch.clean, gates, ablated, batch.attention_mask, batch.positions, role_of=own)
            torch.testing.assert_close(gated_logits(model, batch, gates, ablated), logits.float())
            expected.append(given.losses(full, logits.float(), batch))
        torch.testing.assert_close(found.values[circuit, 0], torch.cat(expected).double(), atol=1e-6, rtol=1e-6)


def test_a_slope_is_that_of_the_edge_at_its_role() -> None:
    given = with_roles()
    gates = random_gates(given.model)
    batch, full, ablated = next(given.batches_with_runs())
    slopes = closing_effects(given, batch, full, ablated, gates)
    assert slopes.shape == given.model.graph.shape

    def loss(moved: torch.Tensor) -> float:
        logits = given.model(
            *(batch.clean, moved, ablated, batch.attention_mask, batch.positions),
            role_of=roles_in(given.model.graph, batch),
        )
        return given.losses(full, logits.float(), batch).sum().item()

    for place in ((0, 0, 0), (2, -1, 1)):
        step = torch.zeros_like(gates)
        step[place] = 1e-3
        slope = (loss(gates - step) - loss(gates + step)) / 2e-3
        assert slope == pytest.approx(slopes[place].item(), rel=1e-2, abs=1e-4)


def test_gates_by_role_are_not_taken_for_groups() -> None:
    given = with_roles()
    batch, _, ablated = next(given.batches_with_runs())
    gates = random_gates(given.model)[:1]
    with pytest.raises(EdgepruneError, match="give role_of"):
        given.model(batch.clean, gates, ablated)


def test_what_reruns_parts_is_refused() -> None:
    given = with_roles()
    batch, _, ablated = next(given.batches_with_runs())
    with pytest.raises(EdgepruneError, match="circuits without roles"):
        CircuitRun(given.model, batch, ablated, given.model.graph.exists)


def test_one_graph_without_roles_and_none_after_them() -> None:
    model = with_roles().model
    plain = model.graph.without_roles
    assert plain is model.graph.without_roles is plain.without_roles
    model.use_roles(None)
    assert model.graph == plain
    assert ReferenceRuns(model, "zero").ablation == "zero"
