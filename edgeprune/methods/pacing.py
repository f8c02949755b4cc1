"""What recipes share that are told how long a run is: a learning rate for it, and a price that is steered."""

import math

import torch
from torch import Tensor

from edgeprune.console import warn
from edgeprune.errors import EdgepruneError
from edgeprune.objectives.pace import Motion, Pace
from edgeprune.objectives.sparsity import AbstractSparsityTerm

CLOSES_WITHIN = 1 / 9  # share of a run in which a gate should be able to close


def rate_for(steps: int, distance: float, *, least: float) -> float:
    """Learning rate at which a gate that starts `distance` above 0 can close within a ninth of the run, or `least`.

    >>> rate_for(600, 2.0, least=0.03), rate_for(30, 2.0, least=0.03)
    (0.03, 0.6)
    """
    return min(1.0, max(least, round(distance / (CLOSES_WITHIN * steps), 4)))


def steps_to_close(steps: int, distance: float, rate: float, gate: str = "a gate") -> float:
    """Steps in which a gate that starts `distance` above 0 gets there; warns if that is much of the run.

    Args:
        steps: Of the run.
        distance: Log-alpha at the start.
        rate: Learning rate.
        gate: What the warning calls it.
    """
    closing = max(0.0, distance) / rate
    if closing > steps / 3:
        warn(
            f"{gate} takes {math.ceil(closing)} steps to close at learning rate {rate:g}, and the run has {steps}, so "
            "that few will: leave learning_rate out, or take more steps"
        )
    return closing


def check_pace(
    edges: AbstractSparsityTerm, nodes: AbstractSparsityTerm | None, penalty_on: str, node_gates: bool
) -> None:
    """Refuse a `Pace` that could not foretell the number of open edges, and a term of node gates without any.

    Raises:
        EdgepruneError: It is the nodes' term, there are node gates, or the penalty sees sampled gates.
    """
    if penalty_on not in ("expected", "sample"):
        raise EdgepruneError(f"penalty_on must be 'expected' or 'sample', got {penalty_on!r}")
    if nodes is not None and not node_gates:
        raise EdgepruneError("node_sparsity_term has nothing to act on: set node_gates to true")
    if isinstance(nodes, Pace):
        raise EdgepruneError("Pace counts edges, so it cannot be node_sparsity_term; use a GeometricPenalty there")
    if isinstance(edges, Pace) and (node_gates or penalty_on == "sample"):
        raise EdgepruneError(
            "Pace, the default sparsity_term, needs penalty_on 'expected' and no node_gates, got "
            f"penalty_on={penalty_on!r}, node_gates={node_gates}; name a Lagrangian or a GeometricPenalty for these"
        )


def paid_units(term: AbstractSparsityTerm, open_fraction: Tensor, locations: Tensor, num_edges: int) -> Tensor | None:
    """Of what `Pace` pays for, the number of edges per location `[num_gates]`; None for other terms."""
    if not isinstance(term, Pace):
        return None
    (slopes,) = torch.autograd.grad(open_fraction, locations, retain_graph=True)
    return slopes * num_edges


def steer(term: Pace, motion: Motion, progress: float) -> None:
    """Let the price of the next step follow from the step's gradients, which hold the penalty's as yet."""
    own = motion.slopes - term.price / term.num_edges * motion.units
    term.steer(motion._replace(slopes=own), progress)
