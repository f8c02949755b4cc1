"""DiscoGP: gradients of both phases against finite differences, samples by group, the complement, known programs."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from datamodules.collate import collate
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.gates import uniform_noise
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import DiscoGP, DiscoGPWeights
from edgeprune.metrics.functional import uniform_cross_entropy
from edgeprune.metrics.losses import losses
from edgeprune.models.gated_weights import logits_with
from edgeprune.models.masked import MaskedModel
from edgeprune.models.weight_mask import WeightMask
from edgeprune.objectives import GeometricPenalty, Lagrangian, RampPenalty
from tests.methods.small_problems import random_pairs, tiny
from tests.models.test_conformance import WIRED, build

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))
Weights = dict[str, Tensor]


def batch_of(number: int = 5) -> PairBatch:
    return collate(list(enumerate(random_pairs(number))))


def built(model: MaskedModel, **options: Any) -> DiscoGPWeights:
    """In double precision, with logits on both sides of 0."""
    recipe = DiscoGPWeights(**{"init_std": 1.0, "temperature": 1.0, **options})
    recipe.build(model)
    return recipe.double()


def own(model: MaskedModel) -> Weights:
    return dict(model.hf.named_parameters())


def answers(model: MaskedModel) -> Any:
    """The published faithfulness."""

    def loss_of(weights: Weights, batch: PairBatch) -> Tensor:
        logits = logits_with(model, weights, batch)
        return losses("nll_answers", logits, logits, batch).mean()

    return loss_of


# ------------------------------------------------------------------ the plain model with other weights
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_with_its_own_weights_the_model_says_what_it_says(family: Any, index: int) -> None:
    model, batch = build(family, index), batch_of()
    expected = model.full(batch.clean, batch.attention_mask, batch.positions)
    torch.testing.assert_close(logits_with(model, {}, batch), expected, rtol=1e-10, atol=1e-10)


def test_with_every_gate_open_it_is_the_plain_model_bit_for_bit() -> None:
    model, batch = tiny("llama", 1), batch_of()
    recipe = built(model)
    for part in recipe.logits:
        part.data.fill_(40.0)
    gated = recipe.sample(own(model), seed=0, step=0)
    assert all(torch.equal(gated[name], own(model)[name]) for name in recipe.names)
    assert torch.equal(logits_with(model, gated, batch), logits_with(model, {}, batch))


def test_the_complement_of_a_model_that_is_all_open_has_the_ungated_parameters_alone() -> None:
    """Of GPT-2 with gates on attention and MLP, biases too: every layer adds exactly nothing."""
    model, batch = tiny("gpt2", 0), batch_of()
    recipe = built(model, tensors=["*.attn.*", "*.mlp.*"])
    for part in recipe.logits:
        part.data.fill_(40.0)
    gated = recipe.sample(own(model), seed=0, step=0, reverse=True)
    assert not any(part.any() for part in gated.values())
    empty, _, _ = model.start(batch.clean, batch.attention_mask)
    expected = model.logits(sum(empty), batch.positions)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(logits_with(model, gated, batch), expected)


def test_a_reversed_sample_keeps_what_the_sample_closes() -> None:
    model = tiny("gpt2", 0)
    recipe = built(model)
    kept, closed = (recipe.sample(own(model), 3, 4, 1, reverse=reverse) for reverse in (False, True))
    for name in recipe.names:
        assert torch.equal(kept[name] + closed[name], own(model)[name])
        assert kept[name].any()
        assert closed[name].any()


# ------------------------------------------------------------------ gradients
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("masks", [1, 2])
def test_the_weights_gradient_is_the_slope_at_the_sample_times_that_of_the_gate(reverse: bool, masks: int) -> None:
    """Finite differences in single gate values around the very samples of the step."""
    model, batch = tiny("llama", 1), batch_of(4)
    recipe, loss_of = built(model, masks_per_batch=masks), answers(model)
    loss = recipe.expected_loss(own(model), loss_of, batch, 5, 7, first=3, reverse=reverse)
    found = torch.autograd.grad(loss, list(recipe.logits))
    sign, groups = (-1 if reverse else 1), batch.parts(4 // masks)
    samples = [recipe.sample(own(model), 5, 7, 3 + number, reverse=reverse) for number in range(masks)]
    direct = [loss_of(sample, group) for sample, group in zip(samples, groups, strict=True)]
    assert loss.item() == pytest.approx(torch.stack(direct).mean().item())
    for place in (0, 3, len(recipe.names) - 1):
        name, logits = recipe.names[place], recipe.logits[place].detach()
        index = tuple(size // 2 for size in logits.shape)
        expected = 0.0
        for number, group in enumerate(groups):
            noise = uniform_noise(5, 7, logits.numel(), stream=(3 + number) * len(recipe.names) + place).double()
            soft = torch.sigmoid(logits + torch.logit(noise).view(logits.shape))[index]
            values: list[float] = []
            for step in (1e-5, -1e-5):
                changed = {key: value.detach().clone() for key, value in samples[number].items()}
                changed[name][index] += step * own(model)[name][index]
                values.append(loss_of(changed, group).item())
            slope = (values[0] - values[1]) / 2e-5
            expected += sign * slope * (soft * (1 - soft)).item() * len(group) / len(batch)
        assert found[place][index].item() == pytest.approx(expected, rel=1e-5, abs=1e-10)
        assert expected != 0


def test_the_edges_gradient_is_the_slope_at_the_sample_times_that_of_the_gate() -> None:
    model, batch = tiny("gpt2", 0), batch_of()
    recipe = DiscoGP(init_std=1.0, temperature=0.5)
    recipe.build(model.graph)
    recipe.double()
    ablated = model.record(batch.corrupted, batch.attention_mask)

    def error_of(gates: Tensor) -> Tensor:
        logits = model(batch.clean, gates, ablated, batch.attention_mask, batch.positions)
        return losses("nll_answers", logits, logits, batch).mean()

    error, gates = recipe.expected_error(error_of, 1, 2)
    assert set(gates[model.graph.exists].unique().tolist()) == {0.0, 1.0}
    (found,) = torch.autograd.grad(error, recipe.edges.logits)
    noise = uniform_noise(1, 2, recipe.edges.num_gates).double()
    soft = torch.sigmoid((recipe.edges.logits.detach() + torch.logit(noise)) / 0.5)
    places = model.graph.exists.nonzero()
    for edge in (0, 11, len(places) - 1):
        values: list[float] = []
        for step in (1e-5, -1e-5):
            changed = gates.detach().clone()
            changed[tuple(places[edge])] += step
            values.append(error_of(changed).item())
        slope = (values[0] - values[1]) / 2e-5
        expected = slope * (soft[edge] * (1 - soft[edge]) / 0.5).item()
        assert found[edge].item() == pytest.approx(expected, rel=1e-5, abs=1e-10)
    assert (found != 0).float().mean() > 0.5


@pytest.mark.parametrize("phase", ["weights", "edges"])
def test_the_penalty_is_the_weight_times_the_expected_density(phase: str) -> None:
    if phase == "weights":
        recipe: Any = built(tiny("gpt2", 0), sparsity_term=GeometricPenalty(3.0, 3.0))
        logits, penalty = list(recipe.logits), recipe.penalty(0.5)
    else:
        recipe = DiscoGP(GeometricPenalty(3.0, 3.0), init_std=1.0)
        recipe.build(GRAPH)
        logits, penalty = [recipe.edges.logits], recipe.penalty(torch.zeros(GRAPH.shape), 0.5)
    flat = torch.cat([part.detach().flatten() for part in logits])
    share = torch.sigmoid(flat)
    assert penalty.item() == pytest.approx(3 * share.mean().item(), rel=1e-6)
    found = torch.cat([slope.flatten() for slope in torch.autograd.grad(penalty, logits)])
    torch.testing.assert_close(found, 3 * share * (1 - share) / len(flat))


def test_the_complement_s_loss_is_smallest_where_answers_are_equal() -> None:
    batch = batch_of(2)
    logits = torch.zeros(*batch.positions.shape, 29, dtype=torch.float64)
    assert uniform_cross_entropy(logits, batch).tolist() == pytest.approx([math.log(2)] * 2)
    logits.scatter_(-1, batch.targets.clamp(min=0)[..., None], 0.1)
    assert (uniform_cross_entropy(logits, batch) > math.log(2) + 1e-4).all()


def test_the_loss_of_the_published_code_is_cross_entropy_over_the_two_logits() -> None:
    batch = collate(list(enumerate(random_pairs(6)))[1::2])
    logits = torch.randn(*batch.positions.shape, 29, dtype=torch.float64)
    pair = logits.gather(-1, torch.stack([batch.targets, batch.distractors], -1))
    expected = cross_entropy(pair[:, 0], torch.zeros(len(batch), dtype=torch.long))
    assert losses("nll_answers", logits, logits, batch).mean().item() == pytest.approx(expected.item())


# ------------------------------------------------------------------ samples
def test_groups_of_examples_have_samples_of_their_own() -> None:
    model, batch = tiny("gpt2", 0), batch_of(4)
    seen: list[tuple[Weights, list[int]]] = []

    def loss_of(weights: Weights, group: PairBatch) -> Tensor:
        seen.append(({name: value.detach() for name, value in weights.items()}, group.index.tolist()))
        return answers(model)(weights, group)

    recipe = built(model, masks_per_batch=4)
    recipe.expected_loss(own(model), loss_of, batch, 0, 0)
    assert [index for _, index in seen] == [[0], [1], [2], [3]]
    name = recipe.names[0]
    assert len({tuple((weights[name] != 0).flatten().tolist()) for weights, _ in seen}) == 4
    recipe.expected_loss(own(model), loss_of, batch, 0, 0)
    assert torch.equal(seen[0][0][name], seen[4][0][name]), "noise is a function of seed and step"
    recipe.expected_loss(own(model), loss_of, batch, 0, 1)
    assert not torch.equal(seen[0][0][name], seen[8][0][name])


# ------------------------------------------------------------------ what is kept
def test_what_is_kept_is_decided_by_the_sign_of_the_logit_and_the_model_stays_as_it_is() -> None:
    model, batch = tiny("llama", 1), batch_of()
    before = {name: value.clone() for name, value in own(model).items()}
    recipe = built(model)
    mask = WeightMask.of(model, recipe.kept())
    assert recipe.sparsity == pytest.approx(1 - mask.density)
    assert all(torch.equal(mask.keep[name], part > 0) for name, part in zip(recipe.names, recipe.logits, strict=True))
    recipe.expected_loss(own(model), answers(model), batch, 0, 0).backward()
    assert all(torch.equal(own(model)[name], value) for name, value in before.items())
    assert all(value.grad is None for value in own(model).values())


def test_an_edge_is_in_the_circuit_if_its_logit_is_above_0() -> None:
    recipe = DiscoGP(init_std=2.0)
    recipe.build(GRAPH)
    kept = recipe.circuit().keep
    assert torch.equal(GRAPH.to_vector(kept), recipe.edges.logits > 0)
    assert recipe.num_open() == int(kept.sum())


# ------------------------------------------------------------------ settings
def test_multipliers_of_a_lagrangian_ascend() -> None:
    recipe = DiscoGP(Lagrangian(0.9))
    recipe.build(GRAPH)
    gates, multipliers = recipe.parameter_groups()
    assert (gates["maximize"], multipliers["maximize"]) == (False, True)
    assert gates["weight_decay"] == 0
    assert recipe.target(1.0) == pytest.approx(0.9)


def test_the_published_schedules_are_the_defaults() -> None:
    edges, weights = DiscoGP().sparsity_term, DiscoGPWeights().sparsity_term
    assert isinstance(edges, RampPenalty)
    assert isinstance(weights, RampPenalty)
    assert [edges.weight(epoch / 100) for epoch in (0, 10, 20, 30, 40, 99)] == pytest.approx(
        [1, 50.5, 100, 50.005, 0.01, 0.01]
    )
    assert [weights.weight(epoch / 500) for epoch in (0, 250, 500)] == pytest.approx([1, 500.5, 1000])


@pytest.mark.parametrize("kind", [DiscoGP, DiscoGPWeights])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks_per_batch": 0}, "need masks_per_batch >= 1"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"temperature": -1.0}, "temperature > 0"),
    ],
)
def test_settings_that_make_no_run_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"peak": -1.0}, "must not be negative"), ({"warmup": 0.8, "cooldown": 0.4}, "together at most 1")],
)
def test_a_ramp_that_makes_no_sense_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        RampPenalty(**options)
