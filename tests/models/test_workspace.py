"""Buffers that stay from run to run: no run sees what another one left in them, and none is lost."""

import copy

import torch

from edgeprune.models.family import registry
from edgeprune.models.stack import Workspace
from tests.models.test_conformance import build, prompts, random_gates


def test_the_largest_buffer_is_kept() -> None:
    workspace, like = Workspace(), torch.zeros(1)
    large = workspace.take("delta", 12, like)
    workspace.give_back("delta", large)
    assert workspace.take("delta", 5, like) is large
    workspace.give_back("delta", large)
    assert workspace.take("delta", 12, like) is large
    workspace.give_back("delta", large)
    assert workspace.take("delta", 13, like).numel() == 13
    assert workspace.take("delta", 5, like.double()).dtype == torch.float64


def test_what_a_run_leaves_does_not_reach_the_next() -> None:
    model = build(registry()["llama"], 1)
    clean, corrupted = prompts()
    gates = random_gates(model, fractional=True).requires_grad_()

    def gradient() -> torch.Tensor:
        logits = model(clean, gates, model.record(corrupted))
        return torch.autograd.grad(logits.square().sum(), gates)[0]

    first = gradient()
    for buffer in model.workspace._spare.values():
        buffer.fill_(torch.nan)
    assert set(model.workspace._spare) == {"delta", "mixed", "grad"}
    assert torch.equal(gradient(), first)
    with torch.inference_mode():  # as in validation between two steps
        model(clean, gates, model.record(corrupted))
    assert torch.equal(gradient(), first)


def test_two_runs_at_once_do_not_share_buffers() -> None:
    model = build(registry()["gpt2"], 0)
    clean, corrupted = prompts()
    ablated = model.record(corrupted)
    gates = [random_gates(model, fractional=fractional).requires_grad_() for fractional in (True, False)]
    alone = [torch.autograd.grad(model(clean, own, ablated).square().sum(), own)[0] for own in gates]
    losses = [model(clean, own, ablated).square().sum() for own in gates]
    together = [torch.autograd.grad(loss, own)[0] for loss, own in zip(losses, gates, strict=True)]
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_copy_of_a_model_starts_without_buffers() -> None:
    model = build(registry()["gpt2"], 0)
    clean, corrupted = prompts()
    model(clean, model.graph.all_closed(torch.float64), model.record(corrupted))
    assert model.workspace._spare
    assert not copy.deepcopy(model.workspace)._spare
