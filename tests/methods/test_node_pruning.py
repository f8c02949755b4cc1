"""Node pruning: gradients against finite differences, all open and all closed by hand, units that programs need."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.collate import collate
from datamodules.tasks.compiled import CompiledTask
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.gates import uniform_noise
from edgeprune.gates.hard_concrete import prob_open
from edgeprune.methods import NodePruning
from edgeprune.metrics.losses import losses
from edgeprune.models.block import walk
from edgeprune.models.gated_weights import logits_with
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.models.units import KINDS, output_matrices
from edgeprune.models.weight_mask import WeightMask
from tests.methods.small_problems import random_pairs, tiny

ALL: dict[str, float] = dict.fromkeys(KINDS, 1.0)
WIRED = [("gpt2", 0), ("llama", 1), ("gemma3_text", 0), ("opt", 0)]
Weights = dict[str, Tensor]


def batch_of(number: int = 4) -> PairBatch:
    return collate(list(enumerate(random_pairs(number))))


def built(model: MaskedModel, location: float | None = None, **options: Any) -> NodePruning:
    """In double precision, with locations on both sides of 0, or all at one."""
    settings: dict[str, Any] = {**ALL, **options}
    recipe = NodePruning(**settings)
    recipe.build(model)
    generator = torch.Generator().manual_seed(0)
    for part in recipe.trained():
        part.data = torch.randn(part.shape, generator=generator) if location is None else part.data.fill_(location)
    return recipe.double()


def own(model: MaskedModel) -> Weights:
    return {name: weight.detach() for name, weight in model.hf.named_parameters()}


def answers(model: MaskedModel) -> Any:
    def loss_of(weights: Weights, batch: PairBatch) -> Tensor:
        logits = logits_with(model, weights, batch)
        return losses("nll_answers", logits, logits, batch).mean()

    return loss_of


def nothing(layer: int, value: Tensor) -> Tensor:
    del layer
    return torch.zeros_like(value)


# ------------------------------------------------------------------ all open, all closed
@pytest.mark.parametrize(("family", "index"), WIRED)
@pytest.mark.parametrize("gates", ["hard_concrete", "logistic"])
def test_with_every_gate_open_it_is_the_plain_model_bit_for_bit(family: str, index: int, gates: str) -> None:
    model, batch = tiny(family, index), batch_of()
    recipe = built(model, 60.0, gates=gates)
    gated = recipe.sample(own(model), seed=0, step=0)
    assert set(gated) == set(recipe.names)
    assert torch.equal(logits_with(model, gated, batch), logits_with(model, {}, batch))
    assert WeightMask.of(model, recipe.kept()).density == 1


@pytest.mark.parametrize(("family", "index"), WIRED)
@pytest.mark.parametrize("kinds", [("attention_blocks",), ("mlp_blocks",), ("heads", "neurons"), tuple(KINDS)])
def test_with_every_gate_closed_attention_or_mlp_writes_nothing_but_what_has_no_gate(
    family: str, index: int, kinds: tuple[str, ...]
) -> None:
    """By hand: heads' values and what reaches the MLP's last matrix are 0; whole blocks add 0 before their norms."""
    model, batch = tiny(family, index), batch_of()
    options: Any = {kind: ALL[kind] if kind in kinds else None for kind in KINDS}
    recipe = built(model, -60.0, **options)
    by_hand: Weights = {}
    for matrix in output_matrices(model, recipe.prices):  # pyright: ignore[reportArgumentType]
        by_hand[matrix.name] = torch.zeros_like(own(model)[matrix.name])
        blocks = "attention_blocks" if "heads" in matrix.sizes else "mlp_blocks"
        if blocks in kinds and matrix.bias:
            by_hand[matrix.bias] = torch.zeros_like(own(model)[matrix.bias])
    gated = recipe.sample(own(model), seed=0, step=0)
    assert gated.keys() == by_hand.keys()
    assert all(torch.equal(gated[name], value) for name, value in by_hand.items())
    if set(kinds) == set(KINDS):
        _, stream, context = model.start(batch.clean, batch.attention_mask)
        edits: Any = {"attention_out": nothing, "mlp_out": nothing}
        expected = model.logits(walk(model.blocks, stream, context, edits), batch.positions)
        torch.testing.assert_close(logits_with(model, gated, batch), expected)
    assert recipe.sparsity == 1


def test_what_is_closed_is_the_model_without_the_unit_under_zero_ablation() -> None:
    """Heads and MLPs that are closed as units, against their edges that carry 0."""
    model, batch = tiny("llama", 0), batch_of()
    recipe = built(model, 5.0)
    graph, (first, *_) = model.graph, model.graph.readers
    assert first == "a0.h0.q"
    closed = ["a0.h1", "a2.h3", "m1"]
    heads, mlps = recipe.of_kind["heads"], recipe.of_kind["mlp_blocks"]
    for place, part in ((1, heads), (2 * 4 + 3, heads), (1, mlps)):
        part.log_alpha.data[place] = -5.0  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    open_edges = graph.exists.clone()
    for writer in closed:
        open_edges[:, graph.writers.index(writer)] = False
    _, zeros = ReferenceRuns(model, "zero")(batch, "test")
    expected = model(batch.clean, open_edges.double(), zeros, batch.attention_mask, batch.positions)
    with WeightMask.of(model, recipe.kept())(model):
        found = logits_with(model, {}, batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    units = recipe.about_kept()["units"]
    assert (units["heads"]["kept"], units["heads"]["of"]) == ([3, 4, 3], [4, 4, 4])
    assert (units["mlp_blocks"]["kept"], units["neurons"]["kept"]) == ([1, 0, 1], [48, 0, 48])


@pytest.mark.parametrize("gates", ["hard_concrete", "logistic"])
def test_a_reversed_sample_keeps_what_the_sample_closes(gates: str) -> None:
    model = tiny("gpt2", 0)
    recipe = built(model, gates=gates)
    kept, closed = (recipe.sample(own(model), 3, 4, 1, reverse=reverse) for reverse in (False, True))
    for name in recipe.names:
        torch.testing.assert_close(kept[name] + closed[name], own(model)[name])
    assert any(kept[name].any() and closed[name].any() for name in recipe.names)


# ------------------------------------------------------------------ gradients
@pytest.mark.parametrize(("family", "index"), WIRED)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_gradient_of_fractional_gates_is_that_of_finite_differences(family: str, index: int, reverse: bool) -> None:
    model, batch = tiny(family, index), batch_of()
    recipe, loss_of = built(model, masks_per_batch=2), answers(model)

    def loss() -> Tensor:
        return recipe.expected_loss(own(model), loss_of, batch, 5, 7, first=3, reverse=reverse)

    found = torch.autograd.grad(loss(), recipe.trained())
    assert sum(int((slope != 0).sum()) for slope in found) > 100
    for part, slopes in zip(recipe.trained(), found, strict=True):
        steep = int(slopes.abs().argmax())
        values: list[float] = []
        for step in (1e-6, -1e-6):
            part.data[steep] += step
            values.append(loss().item())
            part.data[steep] -= step
        assert slopes[steep].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)
        assert slopes[steep] != 0


def test_the_gradient_of_a_logistic_gate_is_the_slope_of_its_columns_times_that_of_the_gate() -> None:
    model, batch = tiny("llama", 1), batch_of()
    others: Any = {kind: None for kind in KINDS if kind != "neurons"}
    recipe, loss_of = built(model, gates="logistic", temperature=0.5, **others), answers(model)
    (logits,) = recipe.trained()
    (found,) = torch.autograd.grad(recipe.expected_loss(own(model), loss_of, batch, 1, 2), [logits])
    noise = uniform_noise(1, 2, 3 * 48, stream=KINDS.index("neurons")).double()
    soft = torch.sigmoid((logits.detach() + torch.logit(noise)) / 0.5)
    gated = {name: value.detach() for name, value in recipe.sample(own(model), 1, 2).items()}
    name = "model.layers.1.mlp.down_proj.weight"
    whole = own(model)[name]
    assert {*(gated[name] / whole).flatten().tolist()} == {0.0, 1.0}
    for neuron in (0, 7, 31):
        values: list[float] = []
        for step in (1e-5, -1e-5):
            changed = gated[name].clone()
            changed[:, neuron] += step * whole[:, neuron]
            values.append(loss_of({**gated, name: changed}, batch).item())
        gate = soft[48 + neuron]
        expected = (values[0] - values[1]) / 2e-5 * (gate * (1 - gate) / 0.5).item()
        assert found[48 + neuron].item() == pytest.approx(expected, rel=1e-5, abs=1e-11)
        assert expected != 0


def test_the_penalty_is_a_price_for_each_kind_times_its_expected_share() -> None:
    prices: Any = {"heads": 2.0, "neurons": 30.0, "head_dimensions": 0.5}
    recipe = built(tiny("llama", 1), attention_blocks=None, mlp_blocks=None, **prices)
    locations = {"heads": 12, "neurons": 3 * 48, "head_dimensions": 3 * 32}
    shares: dict[str, float] = {}
    for kind, part in zip(recipe.of_kind, recipe.trained(), strict=True):
        assert len(part) == locations[kind]
        shares[kind] = prob_open(part.detach()).mean().item()
    assert recipe.penalty(0.3).item() == pytest.approx(
        2.0 * shares["heads"] + 30.0 * shares["neurons"] + 0.5 * shares["head_dimensions"]
    )
    assert recipe.state(0.0) == {f"expected_open_{kind}": pytest.approx(share) for kind, share in shares.items()}
    assert recipe.num_gates == sum(locations.values())


def test_samples_of_kinds_and_of_groups_are_independent() -> None:
    model = tiny("llama", 1)
    recipe = built(model, 0.0, gates="logistic", attention_blocks=None, mlp_blocks=None, heads=None)
    drawn = [recipe.sample(own(model), 0, step, number) for step, number in ((0, 0), (0, 1), (1, 0), (0, 0))]
    name = recipe.names[0]
    assert all(not torch.equal(first[name], second[name]) for first, second in pairwise(drawn))
    assert torch.equal(drawn[0][name], drawn[3][name])


# ------------------------------------------------------------------ programs whose units are known
@pytest.mark.parametrize(
    ("program", "loss", "gates", "price"),
    [
        ("xproportion", "squared_error", "hard_concrete", 0.003),
        ("xproportion", "squared_error", "logistic", 0.003),
        ("reverse", "kl", "hard_concrete", 0.1),
    ],
)
def test_of_a_program_the_units_remain_that_it_uses(program: str, loss: Any, gates: Any, price: float) -> None:
    """None that writes nothing; every head that writes; in `xproportion` exactly the head dimension and the neuron."""
    model, batch = load_model(f"compiled:{program}"), program_batch(program, 32)
    block = price / 10
    recipe = NodePruning(
        head_dimensions=price, neurons=price, heads=block, mlp_blocks=block, gates=gates, learning_rate=0.1, init=3.0
    )
    recipe.build(model)
    optimizer, full = recipe.make_optimizer(), logits_with(model, {}, batch)

    def loss_of(weights: Weights, part: PairBatch) -> Tensor:
        return losses(loss, full, logits_with(model, weights, part), part).mean()

    for step in range(150):
        optimizer.zero_grad()
        (recipe.expected_loss(own(model), loss_of, batch, 0, step) + recipe.penalty(step / 150)).backward()
        optimizer.step()
    kept = recipe.kept()
    written = {matrix.name: own(model)[matrix.name] != 0 for matrix in output_matrices(model, KINDS)}
    heads: list[int] = []
    for name, part in written.items():
        used, left = part.any(0), kept[name].any(0)
        assert not left[~used].any(), name
        assert program == "reverse" or torch.equal(left, used), name
        heads += [int(used.any())] if "o_proj" in name else []
    assert recipe.about_kept()["units"]["heads"]["kept"] == heads
    with WeightMask.of(model, kept)(model):
        found = logits_with(model, {}, batch)
    assert losses(loss, full, found, batch).max() < (0.05 if loss == "kl" else 1e-10)


def program_batch(program: str, number: int) -> PairBatch:
    return collate(list(enumerate(CompiledTask(program).splits(None)["train"][:number])))


# ------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "price >= 0 to at least one of attention_blocks, heads"),
        ({"heads": -1.0}, "got {'heads': -1.0}"),
        ({"heads": 1.0, "gates": "top_k"}, "gates must be one of hard_concrete, logistic, got 'top_k'"),
        ({"heads": 1.0, "learning_rate": 0.0}, "learning_rate > 0"),
        ({"heads": 1.0, "masks_per_batch": 0}, "masks_per_batch >= 1"),
        ({"heads": 1.0, "temperature": 0.0}, "temperature > 0"),
        ({"heads": float("nan")}, "got {'heads': nan}"),
    ],
)
def test_refused(options: Any, message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        NodePruning(**options)


def test_gated_parameters_have_one_order() -> None:
    """A checkpoint is held against it in another process."""
    names = built(tiny("gpt2", 0)).names
    matrices = [f"transformer.h.{layer}.{part}.c_proj" for layer in range(3) for part in ("attn", "mlp")]
    biases = [*matrices[::2], *matrices[1::2]]
    assert names == [*(f"{name}.weight" for name in matrices), *(f"{name}.bias" for name in biases)]


def test_description() -> None:
    about = NodePruning(heads=1.0, neurons=2.0).describe()
    assert about["prices"] == {"heads": 1.0, "neurons": 2.0}
    assert (about["method"], about["gates"], about["temperature"]) == ("node_pruning", "hard_concrete", 2 / 3)
    assert NodePruning(heads=1.0, gates="logistic").temperature == 1
