"""First- and second-order effects of closing edges: what all gradient scores are made of."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.methods.problem import FLAT, Metric, Problem
from edgeprune.models.masked import COMPUTED, MaskedModel
from edgeprune.models.states import FixedOutputs, WriterStates
from edgeprune.roles import roles_in

BatchScores = Callable[[PairBatch, Tensor, WriterStates], Tensor]
Noise = Callable[[int, tuple[int, int]], Iterable[Tensor]]  # number of the example, shape -> tensors of that shape


def open_gates(model: MaskedModel) -> Tensor:
    """Gates `[..., reader, writer]`, all open, on the model's device; in double precision if the model is."""
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
    """Minus the gradient of the summed loss of a batch with respect to the gates, float64 `[..., reader, writer]`.

    Positive: closing the edge raises the loss, to first order. One forward and one backward pass.

    Args:
        problem: Model and metric.
        batch: Pairs on the model's device.
        full: Logits of the full model at the scored positions.
        ablated: What closed edges carry, or with `relative` its difference from what open ones carry.
        gates: Float `[..., reader, writer]`, where the gradient is taken.
        fixed: Outputs of writers that are taken as given.
        relative: See `MaskedModel.forward`.
    """
    gates = gates.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = problem.model(
            *(batch.clean, gates, ablated, batch.attention_mask, batch.positions),
            role_of=roles_in(problem.model.graph, batch),
            fixed=fixed,
            relative=relative,
        )
        loss = problem.losses(full, logits.float(), batch).sum()
        (gradient,) = torch.autograd.grad(loss, gates)
    return -gradient.double()


def closing_curvatures(
    problem: Problem, batch: PairBatch, full: Tensor, ablated: WriterStates, gates: Tensor, noise: Noise
) -> Tensor:
    """Squared slopes of random functions of the logits in each gate, summed over noise and examples.

    The functions are `curvature_probe`s, so that for a single noise tensor per example the mean over the noise is half
    the second derivative of the batch's summed loss in each gate at the full model. Slopes are those of one example,
    whose scored positions share one function. Memory is that of one example: one forward pass each, and one backward
    pass per noise tensor.

    Args:
        problem: Model and metric (`"kl"` or `"squared_error"`).
        batch: Pairs on the model's device.
        full: Logits of the full model at the scored positions.
        ablated: What closed edges carry.
        gates: Every edge open, float `[..., reader, writer]`.
        noise: From the number of an example in its split and (scored positions, outputs), noise of mean 0 and
            covariance 1.

    Returns:
        Float64 `[..., reader, writer]`, nowhere negative.
    """
    problem.losses(full, full, batch)  # refuses pairs for which the metric is not defined
    total = torch.zeros(gates.shape, dtype=torch.float64, device=gates.device)
    roles = roles_in(problem.model.graph, batch)
    for row, index in enumerate(batch.index.tolist()):
        real, length = int(batch.position_mask[row].sum()), int(batch.attention_mask[row].nonzero().max()) + 1
        clean, mask, positions = (
            field[row : row + 1, :size]
            for field, size in ((batch.clean, length), (batch.attention_mask, length), (batch.positions, real))
        )
        states = ablated.map(lambda field, row=row, length=length: _of_example(field, row, length))
        own = None if roles is None else roles[row : row + 1, :length]
        leaf = gates.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = problem.model(clean, leaf, states, mask, positions, role_of=own)[0].float()
        for draw in noise(index, (real, full.shape[-1])):
            probe = curvature_probe(problem.metric, full[row, :real], draw.to(full))
            (slope,) = torch.autograd.grad((logits * probe).sum(), leaf, retain_graph=True)
            total += slope.double().square()
    return total


def curvature_probe(metric: Metric, full: Tensor, noise: Tensor) -> Tensor:
    """Noise of covariance 1 made into noise whose covariance is half the Hessian of an example's loss in its logits.

    At the full model the loss and its slope are zero, so that for a function w of the logits with weights drawn so, the
    mean of (dw / dgate)^2 is half the second derivative of the loss in the gate, exactly: second derivatives of the
    logits do not enter. For KL the Hessian is the Fisher information of the answer (Amari 1998, Neural Computation
    10(2)): its factor used here is `(diag(p) - p p^T) diag(p)^(-1/2)`.

    Args:
        metric: `"kl"` or `"squared_error"`.
        full: The full model's logits at the example's scored positions, `[positions, outputs]`.
        noise: Of the same shape.
    """
    if metric == "squared_error":
        return noise / math.sqrt(len(full))
    root = full.softmax(-1).sqrt()
    return root * (noise - root * (root * noise).sum(-1, keepdim=True)) / math.sqrt(2 * len(full))


def _of_example(field: Tensor, row: int, length: int) -> Tensor:
    """One example's first tokens of a field of states `[item, batch or 1, seq or 1, ...]`."""
    return field[:, :, :length] if field.shape[1] == 1 else field[:, row : row + 1, :length]


def token_shares(graph: EdgeGraph, batch: PairBatch) -> Tensor:
    """What each token counts in a mean over its example's tokens, float64 `[batch, seq]`.

    With roles `[role, batch, seq]`, 0 where a token is of another role: what is found by role adds up to what is found
    without.
    """
    mask = batch.attention_mask.double()
    shares = mask / mask.sum(1, keepdim=True)
    roles = roles_in(graph, batch)
    if roles is None or graph.roles is None:
        return shares
    return torch.stack([shares * (roles == number) for number in range(len(graph.roles))])


def mean_over_examples(
    problem: Problem,
    score: BatchScores,
    report: Progress = no_progress,
    what: str = "batches",
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Sum of `score` over all batches, divided by the number of examples: how they are batched does not matter.

    Args:
        problem: Where batches come from.
        score: Scores `[..., reader, writer]` of a batch (pairs, full logits, ablated states), summed over its examples.
        report: Gets `what`, the number of batches done, and of all.
        what: Names the work in its reports.
        shape: Of the scores, where they are none of the graph's edges.

    Returns:
        Float64 `[..., reader, writer]`, or of `shape`, on the CPU.
    """
    total = torch.zeros(problem.model.graph.shape if shape is None else shape, dtype=torch.float64)
    for done, (batch, full, ablated) in enumerate(problem.batches_with_runs(), start=1):
        total += score(batch, full, ablated).double().cpu()
        report(what, done, len(problem.batches))
    return total / problem.num_examples


def require_slope(problem: Problem, method: str) -> None:
    """Refuse a metric that has its minimum at the full model: its gradient there is zero for every edge."""
    if problem.metric in FLAT:
        raise EdgepruneError(
            f"{method} takes the gradient at the full model, where that of metric {problem.metric!r} is zero: "
            "use metric logit_difference, or method EAP or EAPIG"
        )
