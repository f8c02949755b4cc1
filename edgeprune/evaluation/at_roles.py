"""The circuit of a compiled program at roles, from the one without: what can be closed is closed, edge by edge."""

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from edgeprune.roles import roles_in

TOLERANCE = 1e-6  # of outputs of size 1 to 10, as in `brute_force`


@torch.no_grad()
def largest_change(model: MaskedModel, batch: PairBatch, ablated: WriterStates, keep: Tensor) -> float:
    """The most by which an output of a circuit differs from the full model's at a scored position.

    Args:
        model: Best in float64.
        batch: Prompts and scored positions.
        ablated: What closed edges carry.
        keep: Of the graph's shape.
    """
    arguments = batch.clean, batch.attention_mask, batch.positions
    full = model.full(*arguments)
    found = model(batch.clean, keep.to(model.dtype), ablated, *arguments[1:], role_of=roles_in(model.graph, batch))
    return (found - full).abs().amax(-1)[batch.position_mask].max().item()


def closed_where_possible(
    model: MaskedModel, batch: PairBatch, ablated: WriterStates, circuit: Circuit, tolerance: float = TOLERANCE
) -> Circuit:
    """The circuit without the edges that change nothing, each tried once, in order, with those before it closed.

    From the result no single edge can go. Where each of its edges also matters alone, all others being open, nothing
    can stand in for it.

    Args:
        model: Best in float64.
        batch: Prompts and scored positions.
        ablated: What closed edges carry.
        circuit: That is sufficient; of the model's graph, or without roles where that has some.
        tolerance: Outputs that differ by no more than this are the same.

    Raises:
        EdgepruneError: The circuit itself changes outputs.
    """
    roles = model.graph.roles
    if roles is not None and not circuit.roles:
        circuit = circuit.with_roles(roles)
    circuit.check_fits(model.graph)
    keep = circuit.keep.clone()
    if (change := largest_change(model, batch, ablated, keep)) > tolerance:
        raise EdgepruneError(f"the circuit to begin with changes outputs by {change:.3g}: it is not sufficient here")
    for place in keep.nonzero().tolist():
        keep[tuple(place)] = False
        if largest_change(model, batch, ablated, keep) > tolerance:
            keep[tuple(place)] = True
    return circuit.with_edges(keep, {"closed_where_possible": tolerance})
