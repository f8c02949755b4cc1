"""Runs in which some outputs are given, and ablated states that are differences."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.models.masked import MaskedModel
from edgeprune.models.outputs import reader_inputs, writer_outputs
from edgeprune.models.states import FixedOutputs
from tests.models import reference
from tests.models.reference import slow_logits
from tests.models.test_conformance import WIRED, build, prompts, random_gates


def given_groups(model: MaskedModel, ids: Tensor) -> list[FixedOutputs]:
    """The outputs of a run on `ids`: of the embeddings, of a middle layer's heads, of its MLP."""
    states, layer = model.record(ids), model.graph.arch.num_layers - 1
    groups = [FixedOutputs(embeddings=states.embeddings), FixedOutputs(heads={layer: states.heads[layer]})]
    return groups if states.mlps is None else [*groups, FixedOutputs(mlps={layer: states.mlps[layer]})]


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_giving_what_the_run_computes_changes_no_bit(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts()
    expected = model.hf(clean).logits
    for fixed in given_groups(model, clean):
        logits = model(clean, model.graph.all_open(torch.float64), model.record(corrupted), fixed=fixed)
        if fixed.heads and model.blocks[0].post_norm is not None:  # their sum is what the norm gave, not its input
            torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
        else:
            assert torch.equal(logits, expected)


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_given_embeddings_of_other_prompts_give_the_run_on_them(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts()
    states = model.record(corrupted)
    gates = model.graph.all_open(torch.float64)
    logits = model(clean, gates, states, fixed=FixedOutputs(embeddings=states.embeddings))
    assert torch.equal(logits, model.hf(corrupted).logits)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_values_and_gradients_equal_the_sum_over_edges(family: Any, index: int, relative: bool) -> None:
    model = build(family, index)
    clean, corrupted = prompts(2, 5)
    third = corrupted.flip(0)
    ablated = model.record(corrupted)
    ablated = ablated.minus(model.record(clean)) if relative else ablated
    gates = random_gates(model, fractional=True).requires_grad_()
    for fixed in given_groups(model, third):
        expected = slow_logits(model, clean, gates, ablated, fixed=fixed, relative=relative)
        found = model(clean, gates, ablated, fixed=fixed, relative=relative)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
        weights = torch.randn_like(expected)
        (slow,) = torch.autograd.grad((expected * weights).sum(), gates)
        (fast,) = torch.autograd.grad((found * weights).sum(), gates)
        torch.testing.assert_close(fast, slow, atol=1e-8, rtol=1e-8)
        assert fast[model.graph.exists].abs().sum() > 0


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_outputs_and_inputs_of_a_run(family: Any, index: int) -> None:
    model = build(family, index)
    clean, _ = prompts()
    states = model.record(clean)
    outputs = list(writer_outputs(model, states))
    torch.testing.assert_close(outputs, reference.writer_outputs(model, states), atol=1e-12, rtol=0)
    covered = torch.zeros(len(model.graph.readers), dtype=torch.int)
    bias = torch.zeros_like(outputs[0])
    for item in reader_inputs(model, states):
        covered[item.rows] += 1
        assert set(model.graph.num_visible[item.rows]) == {item.num_visible}
        remainder = item.stream - torch.stack(outputs[: item.num_visible]).sum(0)
        torch.testing.assert_close(remainder, remainder[:1, :1].expand_as(bias), atol=1e-10, rtol=0)  # biases alone
    assert (covered == 1).all()
    torch.testing.assert_close(model.family.finish(item.stream), model.hf(clean).logits, atol=1e-12, rtol=0)
