"""First-order effects of closing attention edges: how much hangs on what a head's queries of a role see of another.

The attribution that `attribution.py` has for edges, for the crossing edges of PEAP (arXiv 2502.04577): minus the slope
of the loss in the gate of an attention edge. There a value, or a key, is replaced and the softmax taken anew, and that
change of the head's output times its slope is the score; here k and v are replaced together, to first order.
"""

from dataclasses import replace

import torch
from torch import Tensor

from edgeprune import circuit_attention
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.console import Progress, no_progress
from edgeprune.methods.attribution import mean_over_examples, open_gates, require_slope
from edgeprune.methods.problem import Problem
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.states import WriterStates


def closing_attention_effects(
    problem: Problem, batch: PairBatch, full: Tensor, ablated: WriterStates, gates: Tensor, attention_gates: Tensor
) -> Tensor:
    """Minus the gradient of the summed loss of a batch with respect to the gates of attention edges.

    Positive: closing the attention edge raises the loss, to first order. One forward and one backward pass.

    Args:
        problem: Model, in whose graph there are roles, and metric.
        batch: Pairs on the model's device.
        full: Logits of the full model at the scored positions, `[batch, positions, vocab]`.
        ablated: What closed edges carry.
        gates: Of edges, float `[reader, writer]` or `[role, reader, writer]`.
        attention_gates: Float `[layer, head, query role, key role]`, where the gradient is taken.

    Returns:
        Float64 `[layer, head, query role, key role]`, 0 where no token of the batch attends so.
    """
    leaf = attention_gates.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = gated_logits(problem.model, batch, gates.detach(), ablated, attention_gates=leaf)
        (gradient,) = torch.autograd.grad(problem.losses(full, logits, batch).sum(), leaf)
    return -gradient.double()


def with_best_attention(circuit: Circuit, scores: Tensor) -> Circuit:
    """A circuit with the best attention edges open, as sparse as its edges; both kinds by size, or by signed score.

    Where the circuit was cut so that nothing dangles (`prune_dangling`, rule `connected`), edges and attention edges
    that dangle now are dropped, so that fewer stay.

    Args:
        circuit: Whose graph has roles.
        scores: Of attention edges, `[layer, head, query role, key role]`.
    """
    edges, selection = circuit.graph.attention, circuit.header.get("selection")
    by_size = circuit.ranking is not circuit.scores
    values = edges.to_vector(scores.abs() if by_size else scores)
    count = circuit_attention.num_at(edges.num_edges, circuit.sparsity, None)
    keep, _ = circuit_attention.highest(circuit.graph, values, count)
    made = replace(circuit, attend=keep, attend_scores=scores.float().cpu().where(edges.exists, 0.0))
    if not (isinstance(selection, dict) and (selection["prune_dangling"] or selection["rule"] == "connected")):
        return made
    whole = made.without_dangling()
    return replace(whole, header={**circuit.header, "selection": {**selection, "edges": whole.num_edges}})


def attention_scores(problem: Problem, report: Progress = no_progress) -> Tensor:
    """The same at the full model, mean over all examples: scores for `Circuit.with_attention`.

    Args:
        problem: Model, in whose graph there are roles, pairs, ablation and metric.
        report: Called with what is being done, how many batches are done, and how many there are.

    Returns:
        Float64 `[layer, head, query role, key role]` on the CPU.

    Raises:
        EdgepruneError: The graph has no roles, or the metric has no slope at the full model.
    """
    require_slope(problem, "scoring attention edges")
    model, edges = problem.model, problem.model.graph.attention
    gates = open_gates(model)
    inside = torch.ones(edges.shape, dtype=gates.dtype, device=gates.device)

    def score(batch: PairBatch, full: Tensor, ablated: WriterStates) -> Tensor:
        return closing_attention_effects(problem, batch, full, ablated, gates, inside)

    return mean_over_examples(problem, score, report, "attention edges", edges.shape)
