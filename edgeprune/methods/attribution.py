"""First-order effects of closing edges: what all gradient scores are made of."""

from collections.abc import Callable

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.methods.problem import Problem
from edgeprune.models.masked import COMPUTED, MaskedModel
from edgeprune.models.states import FixedOutputs, WriterStates

BatchScores = Callable[[PairBatch, Tensor, WriterStates], Tensor]


def open_gates(model: MaskedModel) -> Tensor:
    """Every edge open, on the model's device; double precision for a model in double precision."""
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    return model.graph.all_open(dtype, model.device)


def closing_effects(
    problem: Problem,
    batch: PairBatch,
    full: Tensor,
    ablated: WriterStates,
    gates: Tensor,
    *,
    fixed: FixedOutputs = COMPUTED,
    relative: bool = False,
) -> Tensor:
    """Minus the gradient of the summed loss of a batch with respect to the gates, float64 `[reader, writer]`.

    Positive: closing the edge raises the loss, to first order. One forward and one backward pass.

    Args:
        problem: Model and metric.
        batch: Pairs on the model's device.
        full: Logits of the full model at the scored positions.
        ablated: What closed edges carry, or with `relative` its difference from what open ones carry.
        gates: Float `[reader, writer]`, where the gradient is taken.
        fixed: Outputs of writers that are taken as given.
        relative: See `MaskedModel.forward`.
    """
    gates = gates.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = problem.model(
            batch.clean, gates, ablated, batch.attention_mask, batch.positions, fixed=fixed, relative=relative
        )
        loss = problem.losses(full, logits.float(), batch).sum()
        (gradient,) = torch.autograd.grad(loss, gates)
    return -gradient.double()


def mean_over_examples(problem: Problem, score: BatchScores, report: Callable[[int, int], None]) -> Tensor:
    """Sum of `score` over all batches, divided by the number of examples: how they are batched does not matter.

    Args:
        problem: Where batches come from.
        score: Scores `[reader, writer]` of a batch (pairs, full logits, ablated states), summed over its examples.
        report: Called with the number of batches done, and of all.

    Returns:
        Float64 `[reader, writer]` on the CPU.
    """
    total = torch.zeros(problem.model.graph.shape, dtype=torch.float64)
    for done, (batch, full, ablated) in enumerate(problem.frozen(), start=1):
        total += score(batch, full, ablated).double().cpu()
        report(done, len(problem.batches))
    return total / problem.num_examples


def require_slope(problem: Problem, method: str) -> None:
    """Refuse a metric that has its minimum at the full model: its gradient there is zero for every edge."""
    if problem.metric in ("kl", "squared_error"):
        raise EdgepruneError(
            f"{method} takes the gradient at the full model, where that of metric {problem.metric!r} is zero: "
            "use metric logit_difference, or method EAPIG"
        )
