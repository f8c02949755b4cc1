"""Learned constants: the model in which one writer is replaced, what is learned, and by how much it helps."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.ablations import LearningOptions, learn_constants, mean_of_pairs
from edgeprune.ablations.constants import replaced_run
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.measure import measure_examples
from edgeprune.models.families.compiled import Compiled
from edgeprune.models.families.gpt2 import GPT2
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from tests.ablations.cases import PAIRS, against_the_right_edge, batch_of, fields, padded
from tests.methods.small_problems import compiled_problem, linear_model, random_pairs, tiny
from tests.models.test_conformance import WIRED, build

QUICK = LearningOptions(learning_rate=0.05, max_steps=40, checked=len(PAIRS))


@pytest.fixture(scope="module")
def model() -> MaskedModel:
    return tiny("gpt2")


def closing(model: MaskedModel, writer: int) -> Tensor:
    """Gates with every edge out of one writer closed."""
    gates = model.graph.all_open()
    gates[:, writer] = 0
    return gates


def losses_of(model: MaskedModel, states: WriterStates, batch: PairBatch, measure: str = "kl") -> Tensor:
    """Loss with each writer alone ablated, `[writer]`: by the evaluator that judges circuits."""
    runs = ReferenceRuns(model, "zero")
    runs._shared = states
    gates = [closing(model, writer) for writer in range(len(model.graph.writers))]
    return torch.tensor([found[measure] for found in measure_examples(model, runs, [batch], gates, "train").as_dicts()])


# ---------------------------------------------------------------- the model with one writer replaced
@pytest.mark.parametrize(
    ("family", "index", "split"),
    [(*case.values, False) for case in WIRED] + [(family, 0, True) for family in (GPT2, Compiled)],
)
def test_replacing_a_writer_is_closing_its_edges(family: Any, index: int, split: bool) -> None:
    model = build(family, index, split_embedding=split)
    batch = batch_of(random_pairs(len(model.graph.writers)))
    values = mean_of_pairs(model, [batch], source="both")
    writers = torch.arange(len(batch))
    gates = torch.stack([closing(model, writer) for writer in writers.tolist()])
    expected = model(batch.clean, gates, values, batch.attention_mask, batch.positions)
    found = model.logits(replaced_run(model, values, writers, batch.clean, batch.attention_mask), batch.positions)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    untouched = model.full(batch.clean, batch.attention_mask, batch.positions)
    assert (found - untouched).abs().amax((1, 2)).min() > 1e-6  # every writer makes a difference


def test_gradients_reach_the_value_of_the_replaced_writer_alone(model: MaskedModel) -> None:
    batch = batch_of(PAIRS)
    values = mean_of_pairs(model, [batch]).map(lambda field: field.requires_grad_())
    writer = model.graph.writers.index("a1.h2")
    writers = torch.full((len(batch),), writer)
    model.logits(replaced_run(model, values, writers, batch.clean, batch.attention_mask)).square().sum().backward()
    assert values.embeddings.grad is None
    assert values.mlps is not None
    assert values.mlps.grad is None
    assert values.heads.grad is not None
    moved = values.heads.grad[:, 0, 0].abs().sum(-1)
    assert (moved > 0).nonzero().tolist() == [[1, 2]]


# ---------------------------------------------------------------- learning
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_losses_fall_below_those_of_the_means(name: str) -> None:
    """As reported, and as the evaluator of circuits finds them, on the pairs that they were learned on."""
    model, batch = tiny(name), batch_of(PAIRS)
    learned = learn_constants(model, [batch], QUICK)
    means, constants = (losses_of(model, states, batch) for states in (mean_of_pairs(model, [batch]), learned.states))
    torch.testing.assert_close(learned.mean_losses, means.double(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(learned.losses, constants.double(), atol=1e-6, rtol=1e-5)
    assert (learned.losses <= learned.mean_losses).all()
    assert (learned.losses < learned.mean_losses).float().mean() > 0.8
    assert learned.losses.sum() < 0.95 * learned.mean_losses.sum()
    assert [field.shape[1:3] for field in fields(learned.states)] == [(1, 1)] * 3


def test_the_optimum_of_a_linear_model_is_found() -> None:
    """A head of the last layer feeds the logits alone: its best constant is its mean over the examples.

    Attention is uniform, so within an example the head says the same at every token; the mean over tokens, where
    learning starts, counts long examples more.
    """
    model, batch = linear_model(), batch_of(random_pairs(3))
    options = LearningOptions("squared_error", learning_rate=0.01, max_steps=500, checked=3, patience=50)
    learned = learn_constants(model, [batch], options)
    layer = model.graph.arch.num_layers - 1
    own = model.record(batch.clean, batch.attention_mask).heads[layer, :, 0]  # [example, head, head_dim]
    gained, possible = 0.0, 0.0
    for head, weight in enumerate(model.blocks[layer].output_weight()):
        outputs = model.family.finish(own[:, head] @ weight)  # what this head adds to the logits
        best = (outputs - outputs.mean(0)).square().sum(-1).mean().item()
        writer = model.graph.writers.index(f"a{layer}.h{head}")
        assert learned.losses[writer] > best - 1e-4
        gained += learned.mean_losses[writer].item() - learned.losses[writer].item()
        possible += learned.mean_losses[writer].item() - best
    assert possible > 0.01
    assert gained == pytest.approx(possible, rel=0.1)


def test_neither_batches_nor_order_nor_padding_matter(model: MaskedModel) -> None:
    options = dataclasses.replace(QUICK, max_steps=6, check_every=3)
    expected = learn_constants(model, [batch_of(PAIRS)], options)
    cut = [
        padded(batch_of(PAIRS, [4, 0]), 2, 1),
        against_the_right_edge(batch_of(PAIRS, [5, 2])),
        batch_of(PAIRS, [1, 3]),
    ]
    for batches, size in ((cut, 32), ([batch_of(PAIRS)], 5)):
        found = learn_constants(model, batches, dataclasses.replace(options, batch_size=size))
        for one, other in zip(fields(found.states), fields(expected.states), strict=True):
            torch.testing.assert_close(one, other, atol=1e-7, rtol=0)
        torch.testing.assert_close(found.losses, expected.losses, atol=1e-6, rtol=0)  # losses are made in float32
        assert torch.equal(found.steps, expected.steps)


def test_a_writer_stops_after_its_patience(model: MaskedModel) -> None:
    """A learning rate of nearly nothing never lowers a loss by the tolerance."""
    progress: list[tuple[int, int]] = []
    options = LearningOptions(learning_rate=1e-12, max_steps=1000, check_every=2, patience=3, checked=2)
    learned = learn_constants(
        model, [batch_of(PAIRS)], options, lambda what, done, total: progress.append((done, total))
    )
    assert learned.steps.tolist() == [6] * len(model.graph.writers)
    assert [done for done, _ in progress] == [1, 2, 3, 4, 5, 6, 1000]
    assert torch.equal(learned.losses, learned.mean_losses)
    for found, mean in zip(fields(learned.states), fields(mean_of_pairs(model, [batch_of(PAIRS)])), strict=True):
        assert torch.equal(found, mean)


def test_steps_are_bounded_and_writers_stop_each_for_itself(model: MaskedModel) -> None:
    options = LearningOptions(learning_rate=0.2, max_steps=25, check_every=2, patience=1, checked=3)
    learned = learn_constants(model, [batch_of(PAIRS)], options)
    assert learned.steps.max() <= 25
    assert len(set(learned.steps.tolist())) > 2


def test_models_with_a_single_output_are_judged_by_squared_error() -> None:
    question = compiled_problem("or_gate", "zero", 8)
    learned = learn_constants(question.model, question.batches, LearningOptions(max_steps=1))
    expected = losses_of(
        question.model, mean_of_pairs(question.model, question.batches), question.batches[0], "squared_error"
    )
    torch.testing.assert_close(learned.mean_losses, expected.double(), atol=1e-5, rtol=1e-4)
    assert expected.max() > 0.01


def test_constants_come_in_the_dtype_of_the_model() -> None:
    model = load_model(build(GPT2, 0, torch.bfloat16).hf)
    learned = learn_constants(model, [batch_of(PAIRS)], LearningOptions(max_steps=1))
    assert {field.dtype for field in fields(learned.states)} == {torch.bfloat16}


def test_runs_learn_what_the_function_learns(model: MaskedModel) -> None:
    pairs = [batch_of(PAIRS[:2])]
    runs = ReferenceRuns(model, "optimal")
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:  # Lightning validates in this mode
        patch.setattr(
            "edgeprune.ablations.runs.LearningOptions", lambda objective: LearningOptions(objective, max_steps=4)
        )
        runs.prepare(pairs, objective="squared_error")
    expected = learn_constants(model, pairs, LearningOptions("squared_error", max_steps=4))
    for found, wanted in zip(fields(runs.states()), fields(expected.states), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "wrong",
    [{name: 0} for name in ("max_steps", "check_every", "checked", "patience", "batch_size")] + [{"objective": "nll"}],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(EdgepruneError, match=next(iter(wrong))):
        LearningOptions(**wrong)
