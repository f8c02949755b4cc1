"""Gates on attention edges beside those of Edge Pruning: their price, their noise, and what does not go with them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.methods import EdgePruning
from edgeprune.methods.warm_start import WarmStart
from edgeprune.objectives import Pace
from edgeprune.objectives.sparsity import GeometricPenalty, Lagrangian
from tests.drawing.role_circuits import GRAPH, PLAIN


def edge_pruning(option: Any = True, **options: Any) -> EdgePruning:
    term = options.pop("sparsity_term", None) or GeometricPenalty(start=0.1, end=0.1)
    settings: dict[str, Any] = {"init_mean": 0.5, "attention_edges": option, **options}
    return EdgePruning(term, **settings)


def built(option: Any = True, **options: Any) -> EdgePruning:
    recipe = edge_pruning(option, **options)
    recipe.build(GRAPH)
    return recipe


def drawn(recipe: EdgePruning, step: int = 0) -> tuple[Tensor, Tensor | None]:
    """The samples of a step, of both kinds."""
    found: list[tuple[Tensor, Tensor | None]] = []

    def error_of(gates: Tensor, attention_gates: Tensor | None = None) -> Tensor:
        found.append((gates, attention_gates))
        return gates.sum()

    recipe.expected_error(error_of, 3, step)
    return found[0]


def test_noise_is_their_own_and_leaves_that_of_edges() -> None:
    plain, own = drawn(built(False, masks_per_batch=2)), drawn(built(masks_per_batch=2))
    assert plain[1] is None
    assert torch.equal(plain[0], own[0])
    edges, samples = GRAPH.attention, own[1]
    assert samples is not None
    assert samples.shape == (2, *edges.shape)
    first, second = (edges.to_vector(each) for each in samples)
    assert not torch.equal(first, second)
    assert not torch.equal(first, GRAPH.to_vector(own[0][0])[: len(first)])
    assert (samples[:, ~edges.exists] == 1).all()
    again, later = drawn(built(masks_per_batch=2))[1], drawn(built(masks_per_batch=2), 1)[1]
    assert again is not None
    assert torch.equal(samples, again)
    assert later is not None
    assert not torch.equal(samples, later)


def test_antithetic_samples_mirror_the_noise() -> None:
    """With gates at log-alpha 0 the hard concrete sample of 1 - u is 1 minus that of u."""
    _, samples = drawn(built(masks_per_batch=2, antithetic=True, init_mean=0.0))
    assert samples is not None
    first, second = (GRAPH.attention.to_vector(each) for each in samples)
    torch.testing.assert_close(first + second, torch.ones_like(first), atol=1e-5, rtol=0)
    assert 0 < (first == 1).sum() < len(first)


def test_edges_that_stay_open_are_one_for_certain() -> None:
    gates, samples = drawn(built("alone"))
    assert torch.equal(gates, GRAPH.all_open())
    assert not gates.requires_grad
    assert samples is not None
    assert samples.requires_grad


def test_pace_ends_where_it_was_asked_to() -> None:
    recipe = edge_pruning(sparsity_term=Pace(), attention_sparsity=0.8)
    recipe.build(GRAPH)
    recipe.aim([0.5, 0.95])
    recipe.plan(100)
    assert [round(pace.target(1.0) or 0, 3) for pace in recipe.paces] == [0.95, 0.8]
    recipe = edge_pruning(sparsity_term=Pace(0.9), attention_sparsity=0.8)
    recipe.build(GRAPH)
    recipe.aim([])
    assert [round(pace.target(1.0) or 0, 3) for pace in recipe.paces] == [0.9, 0.8]


def test_a_run_in_which_gates_are_slow_to_close_warns(capsys: pytest.CaptureFixture[str]) -> None:
    for rate, said in ((0.02, True), (0.1, False)):
        recipe = built("alone", sparsity_term=Pace(0.9), learning_rate=rate)
        recipe.plan(60)
        line = "a gate on an attention edge takes 25 steps to close at learning rate 0.02, and the run has 60"
        assert (line in capsys.readouterr().err) == said


def test_a_sparsity_is_passed_when_both_kinds_are_that_sparse() -> None:
    recipe: Any = built(attention_sparsity=0.5)
    assert recipe.passed == 0
    recipe.edges.log_alpha.data.fill_(-1.0)
    assert recipe.passed == 0
    values = recipe.attention.gates.log_alpha.data
    values[: len(values) // 4] = -1.0
    assert recipe.passed == pytest.approx(0.25, abs=0.05)
    values.fill_(-1.0)
    assert recipe.passed == 1


def test_multipliers_of_both_terms_ascend() -> None:
    groups = built(sparsity_term=Lagrangian(0.9)).parameter_groups()
    assert [group["maximize"] for group in groups] == [False, False, True, True]
    assert len({id(parameter) for group in groups for parameter in group["params"]}) == 4
    groups = built("alone", sparsity_term=Lagrangian(0.9)).parameter_groups()
    assert [group["maximize"] for group in groups] == [False, True]


def test_a_graph_without_roles_is_refused() -> None:
    with pytest.raises(EdgepruneError, match=r"lead from role to role: set model\.roles"):
        edge_pruning().build(PLAIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"option": "both"}, "attention_edges must be true, false or 'alone', got 'both'"),
        ({"attention_sparsity": 1.0}, r"attention_sparsity must lie in \(0, 1\)"),
        ({"option": False, "attention_sparsity": 0.5}, "attention_sparsity has nothing to act on"),
        ({"estimator": "local", "masks_per_batch": 1}, "estimator 'local' flips edges alone"),
        ({"option": "alone", "attention_sparsity": 0.5}, "'alone' is cut at the sparsities that are asked for"),
        ({"option": "alone", "node_gates": True}, "'alone' leaves edges open"),
        ({"option": "alone", "warm_start": WarmStart("a")}, "trains no edges, of which a warm start can only close"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        edge_pruning(**options)
