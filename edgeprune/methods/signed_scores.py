"""Signed scores of a trained mask: how open a gate is, times the sign of its slope.

A mask says how much an edge matters, not which way; MIB's CPR ranks by signed scores. S-Ens (arXiv 2510.06811,
cisnlp/MIB-circuit-track, `ep_z_attribution.py`) makes them so: with all gates soft,

    z = sigmoid(0.8 log_alpha / temperature),    score = z * sign(d loss / d log_alpha)                             (1)

where a sign of 0 counts as 1 and the loss is the mean KL of the masked model over the training examples. z rises with
log-alpha, so the sign is that of the slope in z, which does not vanish where a gate is saturated.

The published sign is that of the loss: positive where opening the gate further *raises* it. Scores of attribution
methods are positive where it falls; `towards="fall"` turns the sign round.
"""

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.gates.hard_concrete import TEMPERATURE
from edgeprune.methods.problem import Problem
from edgeprune.metrics.measure import gated_logits

Towards = Literal["rise", "fall"]
SOFT = 0.8  # of (1)
SIGNED = "_signed"  # of the method's name in the header


def soft_gates(log_alpha: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The z of (1), in (0, 1), `[...]` of log-alphas `[...]`.

    >>> round(soft_gates(torch.tensor(1.0)).item(), 4)
    0.7685
    """
    return torch.sigmoid(log_alpha * (SOFT / temperature))


def slopes(problem: Problem, gates: Tensor) -> Tensor:
    """Slope of the mean loss in each gate, float64 `[reader, writer]` on the CPU; 0 where there is no edge.

    Args:
        problem: Model, pairs, ablation, metric.
        gates: `[reader, writer]`, in [0, 1].
    """
    model, total = problem.model, torch.zeros(gates.shape, dtype=torch.float64)
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    for batch, full, ablated in problem.batches_with_runs():
        leaf = gates.detach().to(model.device, dtype).clone().requires_grad_()
        with torch.enable_grad():
            losses = problem.losses(full, gated_logits(model, batch, leaf, ablated), batch)
            (found,) = torch.autograd.grad(losses.sum(), leaf)
        total += found.double().cpu()
    return (total / problem.num_examples).where(model.graph.exists, 0.0)


def signed(
    problem: Problem,
    circuit: Circuit,
    *,
    temperature: float = TEMPERATURE,
    towards: Towards = "rise",
    closed: Tensor | None = None,
) -> Circuit:
    """The same edges with the scores of (1); their size ranks the edges as before, which the header says.

    Scores are float32: log-alphas above 14 or so all have a size of 1.

    Args:
        problem: Model, training pairs, ablation, metric (S-Ens: KL).
        circuit: Its scores are log-alphas of hard concrete gates, as Edge Pruning writes them.
        temperature: Of the gates.
        towards: `"rise"`: positive where opening an edge further raises the loss (published). `"fall"`: where the loss
            falls.
        closed: Edges that were not trained, bool `[reader, writer]`: their gates are 0 and not soft, their scores as
            those of the others.

    Raises:
        EdgepruneError: The circuit has no scores or is of another graph, or no such direction.
    """
    circuit.check_fits(problem.model.graph)
    if circuit.scores is None:
        raise EdgepruneError("the circuit has no scores to be given signs; name one that Edge Pruning wrote")
    if towards not in get_args(Towards):
        raise EdgepruneError(f"towards must be 'rise' or 'fall', got {towards!r}")
    soft = soft_gates(circuit.scores.double(), temperature).where(circuit.graph.exists, 0.0)
    found = slopes(problem, soft if closed is None else soft.where(~closed, 0.0))
    sign = torch.where(found < 0, -1.0, 1.0) if towards == "rise" else torch.where(found > 0, -1.0, 1.0)
    about: dict[str, Any] = {
        "towards": towards,
        "metric": problem.metric,
        "ablation": problem.runs.ablation,
        "split": problem.split,
        "num_examples": problem.num_examples,
    }
    header = {**circuit.header, "signed": about, "absolute": True}
    if (method := circuit.header.get("method")) is not None:
        header["method"] = f"{method}{SIGNED}"
    return replace(circuit, scores=(soft * sign).float(), header=header)
