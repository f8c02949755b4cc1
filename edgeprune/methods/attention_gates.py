"""Gates on attention edges, trained beside those on edges or alone: hard concrete ones with a price of their own."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from edgeprune import circuit_attention
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.gates import HardConcrete, uniform_noise
from edgeprune.graph import EdgeGraph
from edgeprune.methods.pacing import paid_units, steer, steps_to_close
from edgeprune.objectives.pace import Motion, Pace
from edgeprune.objectives.sparsity import AbstractSparsityTerm

STREAM = 1_000_000  # of the noise of a step's first sample; those of gates on edges are below


@final
class AttentionGates(nn.Module):
    """One gate for each attention edge of a graph with roles.

    Args:
        graph: The graph.
        term: What pushes them shut; a copy is used.
        most: They are never cut sparser than this; None: as sparse as the edges.
        sampled: The term sees the sampled gates, not the expected ones.
        options: Of `HardConcrete`.

    Raises:
        EdgepruneError: The graph has no roles.
    """

    def __init__(
        self, graph: EdgeGraph, term: AbstractSparsityTerm, most: float | None, sampled: bool, options: dict[str, Any]
    ) -> None:
        super().__init__()
        if graph.roles is None:
            raise EdgepruneError(
                "attention edges lead from role to role: set model.roles, or leave attention_edges out"
            )
        self.edges, self.most, self.sampled = graph.attention, most, sampled
        self.gates = HardConcrete(self.edges.num_edges, **options)
        self.term = term_up_to(term, most)
        if self.pace is not None:
            self.pace.build(self.edges.num_edges, self.edges.num_edges)
        self._begin = float(options["init_mean"])
        self._open = torch.ones(())  # share of the samples of the step under way
        self._units: Tensor | None = None  # of that step, for `Pace`

    # ---------------------------------------------------------------- steps
    def samples(self, seed: int, step: int, number: int, antithetic: bool) -> Tensor:
        """The samples of a step, `[layer, head, query role, key role]`, or if there are several `[group, ...]`."""
        found: list[Tensor] = []
        for each in range(number):
            first = each - each % 2 if antithetic else each
            noise = uniform_noise(seed, step, self.gates.num_gates, stream=STREAM + first)
            found.append(self.gates.sample(noise if first == each else 1 - noise))
        self._open = torch.stack([values.mean() for values in found]).mean()
        matrices = [self.edges.to_matrix(values) for values in found]
        return matrices[0] if number == 1 else torch.stack(matrices)

    def penalty(self, progress: float) -> Tensor:
        """Loss term (scalar) that pushes gates shut, for the samples that were drawn last."""
        fraction = self._open if self.sampled else self.gates.prob_open().mean()
        self._units = paid_units(self.term, fraction, self.gates.log_alpha, self.edges.num_edges)
        return self.term(fraction, progress)

    @torch.no_grad()
    def after_backward(self, rate: float, progress: float) -> None:
        """Let `Pace` set the price of the next step, made at this learning rate."""
        slopes = self.gates.log_alpha.grad
        if self.pace is not None and slopes is not None and self._units is not None:
            steer(self.pace, Motion(slopes, self._units, self.gates.scores(), rate, _num_open), progress)

    # ---------------------------------------------------------------- price
    @property
    def pace(self) -> Pace | None:
        """The term, if its price is steered."""
        return self.term if isinstance(self.term, Pace) else None

    def aim(self, sparsities: Sequence[float]) -> None:
        """Be told which sparsities are asked for."""
        if self.pace is not None:
            self.pace.aim([each if self.most is None else min(each, self.most) for each in sparsities])

    def plan(self, steps: int, rate: float) -> None:
        """Be told how many steps the run has, and its learning rate; warns if gates are slow to close."""
        if self.pace is not None:
            self.pace.plan(steps, steps_to_close(steps, self._begin, rate, "a gate on an attention edge"))

    def state(self, progress: float) -> dict[str, float]:
        """What to log: sparsity, multipliers or weights, and the share of edges expected to be open."""
        with torch.no_grad():
            expected = self.gates.prob_open().mean().item()
        found = {"sparsity": self.sparsity, **self.term.state(progress), "expected_open": expected}
        return {f"attention_{name}": value for name, value in found.items()}

    # ---------------------------------------------------------------- circuits
    @property
    def num_open(self) -> int:
        """Edges whose gate without noise is above one half."""
        return int((self.gates.scores() > 0).sum())

    @property
    def sparsity(self) -> float:
        """Closed edges / existing ones."""
        return 1 - self.num_open / self.edges.num_edges

    @property
    def passed(self) -> float:
        """The highest sparsity of a circuit that they are sparse enough for."""
        return 1.0 if self.most is not None and self.sparsity >= self.most else self.sparsity

    def saved(self) -> dict[str, Any]:
        """What `circuit_attention.of_checkpoint` makes a circuit's attention edges of."""
        return {"scores": self.gates.scores().cpu(), "num_open": self.num_open, "most": self.most}

    def of(self, circuit: Circuit, sparsity: float | None) -> Circuit:
        """A circuit with these attention edges, cut at a sparsity; None: those that are more open than closed."""
        return replace(circuit, **circuit_attention.of_checkpoint(circuit.graph, self.saved(), sparsity))


def _num_open(locations: Tensor) -> Tensor:
    """Edges (scalar) that are open where their log-alphas are `locations` `[num_edges]`."""
    return (locations > 0).float().sum()


def term_up_to(term: AbstractSparsityTerm, most: float | None) -> AbstractSparsityTerm:
    """A copy of a term, which if it is `Pace` arrives at `most` at most."""
    if isinstance(term, Pace) and term.end is not None and most is not None:
        return Pace(min(term.end, most), hold=term.hold, worth=term.worth, power=term.power)
    return deepcopy(term)
