"""Edge Pruning as a recipe: what it trains, samples, penalises and keeps; no model is run."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from edgeprune.circuit import edges_at
from edgeprune.errors import EdgepruneError
from edgeprune.gates import uniform_noise
from edgeprune.gates.hard_concrete import prob_open, sample
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import EdgePruning
from edgeprune.objectives import GeometricPenalty, Lagrangian

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))


def build(term: Any = None, **options: Any) -> EdgePruning:
    recipe = EdgePruning(term or GeometricPenalty(1.0, 100.0), **options)
    recipe.build(GRAPH)
    return recipe


def spread(recipe: EdgePruning, seed: int = 0) -> EdgePruning:
    """Move every location away from the others."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gates in (recipe.edges, recipe.nodes):
            if gates is not None:
                gates.log_alpha.copy_(2 * torch.randn(gates.num_gates, generator=generator))
    return recipe


# ------------------------------------------------------------------ parameters
def test_only_existing_edges_have_parameters() -> None:
    assert sum(parameter.numel() for parameter in build().parameters()) == GRAPH.num_edges
    nodes = build(Lagrangian(0.9), node_gates=True, node_sparsity_term=Lagrangian(0.7))
    expected = GRAPH.num_edges + len(GRAPH.writers) + 2 + 2
    assert sum(parameter.numel() for parameter in nodes.parameters()) == expected


def test_groups_descend_on_gates_and_ascend_on_multipliers() -> None:
    edge_term, node_term = Lagrangian(0.9, learning_rate=0.5), Lagrangian(0.7, learning_rate=0.25)
    recipe = build(edge_term, node_gates=True, node_sparsity_term=node_term, learning_rate=0.1, node_learning_rate=0.2)
    assert recipe.nodes is not None
    expected = [
        (recipe.edges.log_alpha, 0.1, False),
        (recipe.nodes.log_alpha, 0.2, False),
        (edge_term.multipliers, 0.5, True),
        (node_term.multipliers, 0.25, True),
    ]
    groups = recipe.parameter_groups()
    assert len(groups) == len(expected)
    for group, (parameter, rate, maximize) in zip(groups, expected, strict=True):
        assert len(group["params"]) == 1
        assert group["params"][0] is parameter
        assert (group["lr"], group["weight_decay"], group["maximize"]) == (rate, 0.0, maximize)
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in recipe.parameters()}
    assert torch.optim.AdamW(groups).param_groups[2]["maximize"]


def test_a_term_without_multipliers_has_no_group() -> None:
    groups = build(weight_decay=0.01).parameter_groups()
    assert [(group["weight_decay"], group["maximize"]) for group in groups] == [(0.01, False)]


def test_betas_reach_the_gates_alone() -> None:
    recipe = build(Lagrangian(0.9), betas=(0.8, 0.95))
    edges, multipliers = recipe.parameter_groups()
    assert edges["betas"] == (0.8, 0.95)
    assert "betas" not in multipliers
    with pytest.raises(EdgepruneError, match=r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"):
        build(betas=(0.9, 1.0))


def test_weight_decay_never_reaches_multipliers() -> None:
    groups = build(Lagrangian(0.9), weight_decay=0.01).parameter_groups()
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]


def test_one_step_of_the_optimizer_moves_both_ways() -> None:
    term = Lagrangian(0.9, warmup=1.0)
    recipe = build(term)
    with torch.no_grad():
        term.multipliers.copy_(torch.tensor([-1.0, 1.0]))
    before = recipe.edges.log_alpha.detach().clone()
    optimizer = torch.optim.Adam(recipe.parameter_groups())
    recipe.penalty(recipe.sample(0, 0), 1.0).backward()
    optimizer.step()
    assert (recipe.edges.log_alpha < before).all()  # too open: gates close
    linear, square = term.multipliers.tolist()
    assert linear < -1  # the gap is negative: l1 falls
    assert square > 1  # and l2 rises


# ------------------------------------------------------------------ samples
@pytest.mark.parametrize("node_gates", [False, True])
def test_samples_are_functions_of_seed_and_step(node_gates: bool) -> None:
    recipe = build(node_gates=node_gates)
    first = recipe.sample(3, 7)
    torch.manual_seed(1234)
    assert torch.equal(first, recipe.sample(3, 7))
    assert not torch.equal(first, recipe.sample(3, 8))
    assert not torch.equal(first, recipe.sample(4, 7))
    assert first.shape == GRAPH.shape
    assert first[~GRAPH.exists].abs().max() == 0
    assert first.min() >= 0
    assert first.max() <= 1


def test_a_sample_is_the_product_of_edge_and_writer_gates() -> None:
    recipe = spread(build(node_gates=True))
    assert recipe.nodes is not None
    edges = sample(recipe.edges.log_alpha, uniform_noise(3, 7, GRAPH.num_edges))
    nodes = sample(recipe.nodes.log_alpha, uniform_noise(3, 7, len(GRAPH.writers), stream=1))
    expected = torch.zeros(GRAPH.shape)
    for (reader, writer), gate in zip(GRAPH.exists.nonzero().tolist(), edges.tolist(), strict=True):
        expected[reader, writer] = gate * nodes[writer].item()
    torch.testing.assert_close(recipe.sample(3, 7), expected)


def test_gradients_reach_every_gate_that_is_not_clamped() -> None:
    recipe = build(init_mean=0.0, node_gates=True)
    recipe.sample(0, 0).sum().backward()
    assert recipe.nodes is not None
    assert (recipe.nodes.log_alpha.grad != 0).any()
    assert (recipe.edges.log_alpha.grad != 0).float().mean() > 0.2


# ------------------------------------------------------------------ penalty
def test_expected_penalty_is_the_expected_number_of_open_edges() -> None:
    recipe = spread(build())
    fraction = recipe.penalty(torch.zeros(GRAPH.shape), 0.0)  # the weight is 1 at the start
    torch.testing.assert_close(fraction, prob_open(recipe.edges.log_alpha).mean())
    drawn = [(recipe.sample(0, step) > 0).sum().item() / GRAPH.num_edges for step in range(100)]
    assert sum(drawn) / 100 == pytest.approx(fraction.item(), abs=0.01)


def test_sampled_penalty_is_the_mean_of_the_gates() -> None:
    recipe = spread(build(penalty_on="sample"))
    gates = recipe.sample(0, 0)
    torch.testing.assert_close(recipe.penalty(gates, 0.0), GRAPH.to_vector(gates).mean())
    torch.testing.assert_close(recipe.penalty(gates, 1.0), 100 * GRAPH.to_vector(gates).mean())


def test_an_edge_of_a_closed_writer_costs_nothing() -> None:
    recipe = spread(build(node_gates=True))
    assert recipe.nodes is not None
    with torch.no_grad():
        recipe.nodes.log_alpha.fill_(-100.0)
    assert recipe.penalty(recipe.sample(0, 0), 0.0).item() == pytest.approx(0, abs=1e-6)


def test_node_term_adds_to_the_edge_term() -> None:
    nodes = Lagrangian(0.7, warmup=1.0)
    with torch.no_grad():
        nodes.multipliers.copy_(torch.tensor([3.0, 0.0]))
    alone, both = spread(build(node_gates=True)), spread(build(node_gates=True, node_sparsity_term=nodes))
    assert both.nodes is not None
    gates = both.sample(0, 0)
    gap = 1 - both.nodes.prob_open().mean() - 0.7
    torch.testing.assert_close(both.penalty(gates, 1.0), alone.penalty(gates, 1.0) + 3 * gap)


# ------------------------------------------------------------------ ranks and circuits
def locations(recipe: EdgePruning) -> Tensor:
    return recipe.edges.log_alpha.detach()


def test_scores_are_the_locations() -> None:
    recipe = spread(build())
    assert torch.equal(GRAPH.to_vector(recipe.scores()), locations(recipe))
    assert recipe.num_open() == int((locations(recipe) > 0).sum())
    assert recipe.sparsity == 1 - recipe.num_open() / GRAPH.num_edges


def test_scores_with_node_gates_are_the_smaller_location() -> None:
    recipe = spread(build(node_gates=True))
    assert recipe.nodes is not None
    writers = GRAPH.exists.nonzero()[:, 1]
    expected = torch.minimum(locations(recipe), recipe.nodes.log_alpha.detach()[writers])
    assert torch.equal(GRAPH.to_vector(recipe.scores()), expected)
    assert recipe.num_open() == int((expected > 0).sum())
    assert not recipe.scores().requires_grad


@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("node_gates", [False, True])
def test_circuits_have_exactly_the_size_asked_for(sparsity: float, node_gates: bool) -> None:
    recipe = spread(build(node_gates=node_gates))
    assert recipe.circuit(sparsity=sparsity).num_edges == edges_at(GRAPH, sparsity)
    untrained = build(node_gates=node_gates)  # every score is the same
    assert untrained.circuit(sparsity=sparsity).num_edges == edges_at(GRAPH, sparsity)


def test_a_circuit_without_a_size_keeps_the_open_gates() -> None:
    recipe = spread(build())
    found = recipe.circuit(header={"model": "tiny"})
    assert torch.equal(GRAPH.to_vector(found.keep), locations(recipe) > 0)
    assert found.num_edges == recipe.num_open()
    assert found.header["model"] == "tiny"
    assert found.header["method"] == "edge_pruning"
    assert found.header["sparsity_term"] == "GeometricPenalty"


def test_what_is_logged() -> None:
    recipe = spread(build(Lagrangian(0.9, warmup=1.0)))
    state = recipe.state(0.5)
    assert state["expected_open"] == pytest.approx(prob_open(locations(recipe)).mean().item())
    assert (state["lambda_1"], state["lambda_2"]) == (0, 0)
    assert recipe.target(0.5) == pytest.approx(0.45)
    assert build().target(0.5) is None


# ------------------------------------------------------------------ learning rate and errors
def test_the_shipped_language_model_config_names_neither_rate_nor_price() -> None:
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "ioi_smollm2.yaml").read_text())
    assert not {"learning_rate", "sparsity_term"} & set(config["model"]["recipe"]["init_args"])
    recipe = EdgePruning()
    recipe.plan(config["trainer"]["max_steps"])
    assert recipe.learning_rate == 0.03


def test_learning_rate_is_constant_by_default() -> None:
    assert {build().learning_rate_factor(progress) for progress in (0, 0.5, 1)} == {1.0}


def test_learning_rate_warms_up_and_decays() -> None:
    recipe = build(learning_rate_warmup=0.2, learning_rate_decay=True)
    factors = [recipe.learning_rate_factor(progress) for progress in (0, 0.1, 0.2, 0.6, 1)]
    assert factors == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "need learning_rate > 0"),
        ({"learning_rate": -1.0}, "need learning_rate > 0"),
        ({"learning_rate_warmup": 1.0}, r"learning_rate_warmup in \[0, 1\)"),
        ({"learning_rate_warmup": -0.1}, r"learning_rate_warmup in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay >= 0"),
        ({"penalty_on": "both"}, "penalty_on must be 'expected' or 'sample', got 'both'"),
        ({"node_sparsity_term": Lagrangian(0.7)}, "node_sparsity_term has nothing to act on"),
        ({"temperature": 0.0}, "hard concrete needs temperature > 0"),
        ({"stretch": (0.0, 1.0)}, r"a stretch past \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message) as caught:
        build(**options)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ estimators
def test_the_pathwise_estimator_is_the_error_of_the_sample() -> None:
    recipe = spread(build())
    error, gates = recipe.expected_error(lambda gates: gates.square().sum(), seed=3, step=5)
    assert torch.equal(gates, recipe.sample(3, 5))
    (gradient,) = torch.autograd.grad(error, recipe.edges.log_alpha)
    (by_hand,) = torch.autograd.grad(recipe.sample(3, 5).square().sum(), recipe.edges.log_alpha)
    assert torch.equal(gradient, by_hand)


@pytest.mark.parametrize("node_gates", [False, True])
def test_groups_of_a_batch_have_samples_of_their_own(node_gates: bool) -> None:
    recipe = spread(build(node_gates=node_gates, masks_per_batch=4))
    seen: list[Tensor] = []

    def error_of(gates: Tensor) -> Tensor:
        seen.append(gates)
        return gates.square().sum((1, 2)).mean()

    error, mean = recipe.expected_error(error_of, seed=3, step=5)
    (gates,) = seen
    assert gates.shape == (4, *GRAPH.shape)
    assert len({tuple(mask.flatten().tolist()) for mask in gates}) == 4
    assert torch.equal(gates[0], recipe.sample(3, 5))
    torch.testing.assert_close(mean, gates.mean(0))
    (gradient,) = torch.autograd.grad(error, recipe.edges.log_alpha, retain_graph=True)
    assert (gradient != 0).any()
    (by_hand,) = torch.autograd.grad(gates.square().sum() / 4, recipe.edges.log_alpha)
    torch.testing.assert_close(gradient, by_hand)


def drawn(recipe: EdgePruning, steps: int) -> Tensor:
    """Gates of every step's samples, `[step, sample, edge]`."""
    seen: list[Tensor] = []

    def error_of(gates: Tensor) -> Tensor:
        seen.append(torch.stack([GRAPH.to_vector(mask) for mask in gates.detach()]))
        return gates.sum()

    for step in range(steps):
        recipe.expected_error(error_of, seed=3, step=step)
    return torch.stack(seen)


@pytest.mark.parametrize("node_gates", [False, True])
def test_antithetic_samples_are_pairs_of_mirrored_noise(node_gates: bool) -> None:
    recipe = spread(build(masks_per_batch=4, antithetic=True, node_gates=node_gates))
    plain = spread(build(masks_per_batch=4, node_gates=node_gates))
    samples, others = drawn(recipe, 1)[0], drawn(plain, 1)[0]
    assert torch.equal(samples[::2], others[::2])  # the first of a pair is the sample without the option
    for number in (0, 2):
        stream = 0 if number == 0 else 100 + number
        noise = 1 - uniform_noise(3, 0, GRAPH.num_edges, stream=stream)
        expected = sample(recipe.edges.log_alpha.detach(), noise)
        if recipe.nodes is not None:
            node_noise = 1 - uniform_noise(3, 0, len(GRAPH.writers), stream=1 if number == 0 else -100 - number)
            expected = expected * sample(recipe.nodes.log_alpha.detach(), node_noise)[GRAPH.exists.nonzero()[:, 1]]
        torch.testing.assert_close(samples[number + 1], expected)
    assert torch.equal(drawn(recipe, 2), drawn(recipe, 2))
    assert not torch.equal(*drawn(recipe, 2))


def test_antithetic_samples_have_the_same_marginals_and_negative_correlation() -> None:
    first, second = drawn(build(init_mean=0.5, masks_per_batch=2, antithetic=True), 300).unbind(1)
    independent = drawn(build(init_mean=0.5, masks_per_batch=2), 300)
    for values in (first, second):
        assert values.mean().item() == pytest.approx(independent.mean().item(), abs=0.005)
        assert (values > 0).float().mean().item() == pytest.approx(prob_open(torch.tensor(0.5)).item(), abs=0.005)
        assert (values == 1).float().mean().item() == pytest.approx((independent == 1).float().mean().item(), abs=0.005)
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1] < -0.7
    assert abs(torch.corrcoef(independent.transpose(0, 1).flatten(1))[0, 1]) < 0.02


def test_the_mean_of_antithetic_gates_of_an_even_chance_is_one_half() -> None:
    samples = drawn(build(init_mean=0.0, masks_per_batch=2, antithetic=True), 20)
    torch.testing.assert_close(samples.mean(1), torch.full((20, GRAPH.num_edges), 0.5), atol=1e-5, rtol=0)


def slopes(weights: Tensor, steps: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss `[step]` and gradient `[step, edge]` of a loss that is linear in the gates."""
    recipe = spread(build(masks_per_batch=2, **options))
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    for step in range(steps):
        error, _ = recipe.expected_error(lambda gates: (weights * gates).sum((1, 2)).mean(), seed=3, step=step)
        gradients += torch.autograd.grad(error, recipe.edges.log_alpha)
        losses.append(error.detach())
    return torch.stack(losses), torch.stack(gradients)


def test_antithetic_gradients_are_unbiased_and_a_linear_loss_varies_less() -> None:
    weights = torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(1))
    losses, gradients = slopes(weights, 600, antithetic=True)
    plain_losses, plain = slopes(weights, 600)
    error = ((gradients.var(0) + plain.var(0)) / 600).sqrt() + 1e-6
    distance = (gradients.mean(0) - plain.mean(0)).abs() / error
    assert distance.max() < 5  # standard errors, over all edges
    assert losses.var() < plain_losses.var() / 2
    assert (losses.mean() - plain_losses.mean()).abs() < 5 * (plain_losses.var() / 600 * 2).sqrt()


def test_the_local_estimator_rounds_gates_and_measures_flips() -> None:
    recipe = spread(build(estimator="local", num_flips=GRAPH.num_edges))
    weights = torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(1))
    runs = 0

    def error_of(gates: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        assert set(gates.unique().tolist()) <= {0.0, 1.0}
        return (weights * gates).sum()

    error, gates = recipe.expected_error(error_of, seed=3, step=5)
    assert runs == 1 + GRAPH.num_edges
    assert error.item() == pytest.approx(float((weights * gates).sum()), abs=1e-4)
    (gradient,) = torch.autograd.grad(error, recipe.edges.log_alpha)
    prob = torch.sigmoid(recipe.edges.log_alpha.detach())
    # the error is linear in the gates, so every flip measures its weight (float32 sums of hundreds of terms)
    torch.testing.assert_close(gradient, GRAPH.to_vector(weights) * prob * (1 - prob), atol=1e-4, rtol=1e-4)
    again = recipe.expected_error(error_of, seed=3, step=5)[1]
    other = recipe.expected_error(error_of, seed=3, step=6)[1]
    assert torch.equal(gates, again)
    assert not torch.equal(gates, other)


def test_the_local_estimator_remembers_errors_apart_and_in_its_state() -> None:
    recipe = spread(build(estimator="local", num_flips=GRAPH.num_edges))
    weights = torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(1))
    recipe.expected_error(lambda gates: (weights * gates).sum(), 0, 0)
    recipe.expected_error(lambda gates: -(weights * gates).sum(), 0, 0, "complement")
    error, complement = (recipe._effects(name) for name in ("error", "complement"))
    torch.testing.assert_close(error.effects, GRAPH.to_vector(weights), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(complement.effects, -GRAPH.to_vector(weights), atol=1e-4, rtol=1e-4)
    again = build(estimator="local", num_flips=GRAPH.num_edges)
    again.load_state_dict(recipe.state_dict())
    for name in ("error", "complement"):
        assert torch.equal(again._effects(name).effects, recipe._effects(name).effects)


def test_the_local_estimator_penalises_only_what_it_measured() -> None:
    recipe = spread(build(GeometricPenalty(1.0, 1.0), estimator="local", num_flips=8))
    _, gates = recipe.expected_error(lambda gates: gates.sum() * 0, 0, 0)
    (slopes,) = torch.autograd.grad(recipe.penalty(gates, 0.5), recipe.edges.log_alpha)
    assert int((slopes > 0).sum()) == 8
    assert torch.equal(slopes > 0, recipe._effects("error").known)


def test_the_local_estimator_penalises_what_it_samples() -> None:
    recipe = spread(build(GeometricPenalty(1.0, 1.0), estimator="local"))
    penalty = recipe.penalty(torch.ones(GRAPH.shape), 0.5)
    assert penalty.item() == pytest.approx(torch.sigmoid(recipe.edges.log_alpha).mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"estimator": "reinforce"}, "reinforce"),
        ({"estimator": "local", "penalty_on": "sample"}, "penalty_on='sample'"),
        ({"estimator": "local", "node_gates": True}, "node_gates=True"),
        ({"estimator": "local", "num_flips": 0}, "num_flips"),
        ({"estimator": "local", "masks_per_batch": 2}, "masks_per_batch"),
        ({"masks_per_batch": 0}, "masks_per_batch"),
        ({"antithetic": True}, "come in pairs, got masks_per_batch=1: make it even"),
        ({"antithetic": True, "masks_per_batch": 3}, "masks_per_batch=3"),
    ],
)
def test_estimators_that_cannot_be_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(EdgepruneError, match=named):
        build(**options)
