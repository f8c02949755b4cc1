"""The error of a circuit, and how each of many edges would change it: what its flip does not reach is not run again."""

from collections.abc import Callable
from typing import Protocol, final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.metrics.measure import logits_of_each
from edgeprune.models.circuit_run import CircuitRun, state_bytes
from edgeprune.models.masked import MaskedModel
from edgeprune.models.sharding import Whole
from edgeprune.models.states import WriterStates
from edgeprune.roles import spec_of

MEMORY_GB = 1.0  # for the state of the circuit's run, and as much for what is run again
Edge = tuple[int, int]  # (reader, writer)


class Flips(Protocol):
    """What 0/1 gates give, and what flipping single ones of them does. Gates are numbered as edges of the graph are."""

    error: Tensor

    def idle(self, gates: Tensor) -> Tensor:
        """Bool `[n]`: flipping gate `gates[i]` is known to change nothing, without a run; False says nothing."""
        ...

    def errors(self, gates: Tensor) -> Tensor:
        """Error with each of `gates`, long `[n]`, flipped alone, `[n]`."""
        ...


@final
class WholeFlips:
    """`Flips` by running everything for each.

    Args:
        error_of: Error (scalar) of gates `[num_gates]`.
        gates: 0 or 1, `[num_gates]`.
    """

    def __init__(self, error_of: Callable[[Tensor], Tensor], gates: Tensor) -> None:
        self.error_of, self.gates = error_of, gates
        self.error = error_of(gates)

    def idle(self, gates: Tensor) -> Tensor:
        """Nothing is known without a run, `[n]`."""
        return torch.zeros_like(gates, dtype=torch.bool)

    def errors(self, gates: Tensor) -> Tensor:
        """Error with each of `gates` flipped, `[n]`."""
        found = self.error.new_empty(len(gates))
        for place, index in enumerate(gates.tolist()):
            flipped = self.gates.clone()
            flipped[index] = 1 - flipped[index]
            found[place] = self.error_of(flipped)
        return found


@final
class PartialFlips:
    """`Flips` by running again what a flip changes.

    Args:
        run: The run of the circuit that the gates are, with `opening`.
        error_of_logits: Error (scalar) of logits `[batch, positions, vocab]`.
    """

    def __init__(self, run: CircuitRun, error_of_logits: Callable[[Tensor], Tensor]) -> None:
        self.run, self.error_of_logits = run, error_of_logits
        self.error = error_of_logits(run.logits)
        self.edges: list[Edge] = [(reader, writer) for reader, writer in run.model.graph.exists.nonzero().tolist()]

    def idle(self, gates: Tensor) -> Tensor:
        """Bool `[n]`: flipping this gate moves nothing of what its reader computes, or nobody reads that."""
        found = torch.zeros(len(gates), dtype=torch.bool)
        into: dict[int, list[int]] = {}
        edges = [self.edges[index] for index in gates.tolist()]
        for place, (reader, _) in enumerate(edges):
            into.setdefault(reader, []).append(place)
        for reader, places in into.items():
            found[places] = ~self.run.moving(reader, [edges[place][1] for place in places]).cpu()
        return found.to(gates.device)

    def errors(self, gates: Tensor) -> Tensor:
        """Error with each of `gates` flipped, `[n]`."""
        found = self.error.new_empty(len(gates))
        order = gates.sort()
        logits_of_each = self.run.changed([self.edges[index] for index in order.values.tolist()], MEMORY_GB)
        for place, logits in zip(order.indices.tolist(), logits_of_each, strict=True):
            found[place] = self.error_of_logits(logits)
        return found


@final
class RoleFlips:
    """`Flips` in a graph with roles, several of them in one run where the batch is small.

    Args:
        model: Whose graph has roles.
        batch: On the model's device.
        ablated: What closed edges carry in this batch.
        gates: 0 or 1, `[num_gates]`.
        error_of_logits: Error (scalar) of logits `[batch, positions, vocab]`.
    """

    def __init__(
        self,
        model: MaskedModel,
        batch: PairBatch,
        ablated: WriterStates,
        gates: Tensor,
        error_of_logits: Callable[[Tensor], Tensor],
    ) -> None:
        self.model, self.batch, self.ablated, self.error_of_logits = model, batch, ablated, error_of_logits
        self.gates, self.places = gates, model.graph.exists.nonzero()
        self.error = self._errors([gates])[0]

    def idle(self, gates: Tensor) -> Tensor:
        """Bool `[n]`: no path of open edges leads from this gate's reader to a position that the batch scores."""
        graph, roles = self.model.graph, self.model.graph.roles
        assert roles is not None
        here = spec_of([self.batch], roles.names)
        of_batch = graph.with_roles(here if self.model.family.causal else here.seeing_all())
        reaching = of_batch.reaching_logits(graph.to_matrix(self.gates).bool().cpu())
        role, reader, _ = self.places[gates.cpu()].unbind(1)
        return ~reaching[role, reader].to(gates.device)

    def errors(self, gates: Tensor) -> Tensor:
        """Error with each of `gates` flipped, `[n]`."""
        flipped = self.gates.repeat(len(gates), 1)
        flipped[torch.arange(len(gates)), gates] = 1 - flipped[torch.arange(len(gates)), gates]
        return self._errors(list(flipped))

    def _errors(self, samples: list[Tensor]) -> Tensor:
        matrices = [self.model.graph.to_matrix(sample) for sample in samples]
        found = [self.error_of_logits(own) for own in logits_of_each(self.model, self.batch, matrices, self.ablated)]
        return torch.stack(found) if found else self.gates.new_empty(0)


@final
class GatedError:
    """Error (scalar) of the model with given gates on one batch: a function, with `flips`.

    Args:
        error_of: The function, of gates `[reader, writer]`, and as `attention_gates` of gates of attention edges.
        error_of_logits: The error of logits `[batch, positions, vocab]`.
        model: The masked model.
        batch: On the model's device.
        ablated: What closed edges carry in this batch.
    """

    def __init__(
        self,
        error_of: Callable[..., Tensor],
        error_of_logits: Callable[[Tensor], Tensor],
        model: MaskedModel,
        batch: PairBatch,
        ablated: WriterStates,
    ) -> None:
        self.error_of, self.error_of_logits = error_of, error_of_logits
        self.model, self.batch, self.ablated = model, batch, ablated

    def __call__(self, gates: Tensor, **inside: Tensor) -> Tensor:
        """Error of gates, with any of attention edges."""
        return self.error_of(gates, **inside)

    def flips(self, gates: Tensor) -> Flips | None:
        """Of 0/1 gates, one per edge `[num_edges]`; None where the model cannot be run in parts, or not in memory."""
        model = self.model
        if model.graph.roles is not None:
            return RoleFlips(model, self.batch, self.ablated, gates, self.error_of_logits)
        if not model.sums_to_stream or not isinstance(model.sharding, Whole):
            return None
        if state_bytes(model) * self.batch.clean.numel() > MEMORY_GB * 1e9:
            return None
        keep = model.graph.to_matrix(gates).bool()
        return PartialFlips(CircuitRun(model, self.batch, self.ablated, keep, opening=True), self.error_of_logits)
