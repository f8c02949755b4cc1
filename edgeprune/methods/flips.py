"""The error of a circuit, and how each of many edges would change it: what its flip does not reach is not run again."""

from collections.abc import Callable, Iterable
from typing import Protocol, final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.models.circuit_run import CircuitRun, state_bytes
from edgeprune.models.masked import MaskedModel
from edgeprune.models.sharding import Whole
from edgeprune.models.states import WriterStates

MEMORY_GB = 1.0  # for the state of the circuit's run, and as much for what is run again
Edge = tuple[int, int]  # (reader, writer)


class Flips(Protocol):
    """What 0/1 gates give, and what flipping single ones of them does."""

    error: Tensor

    def idle(self, edges: list[Edge]) -> Tensor:
        """Bool `[edges]`: flipping this edge is known to change nothing, without a run; False says nothing."""
        ...

    def errors(self, edges: list[Edge]) -> Tensor:
        """Error with each edge flipped, `[edges]`."""
        ...


@final
class WholeFlips:
    """`Flips` by running all of the model for each.

    Args:
        error_of: Error (scalar) of the model with given gates.
        gates: 0 or 1, `[reader, writer]`.
    """

    def __init__(self, error_of: Callable[[Tensor], Tensor], gates: Tensor) -> None:
        self.error_of, self.gates = error_of, gates
        self.error = error_of(gates)

    def idle(self, edges: list[Edge]) -> Tensor:
        """Nothing is known without a run."""
        return torch.zeros(len(edges), dtype=torch.bool)

    def errors(self, edges: list[Edge]) -> Tensor:
        """Error with each edge flipped, `[edges]`."""
        found: list[Tensor] = []
        for edge in edges:
            flipped = self.gates.clone()
            flipped[edge] = 1 - flipped[edge]
            found.append(self.error_of(flipped))
        return torch.stack(found) if found else self.error.new_empty(0)


@final
class PartialFlips:
    """`Flips` by running what a flip changes.

    Args:
        run: The circuit's run.
        error_of_logits: Error (scalar) of logits `[batch, positions, vocab]`.
    """

    def __init__(self, run: CircuitRun, error_of_logits: Callable[[Tensor], Tensor]) -> None:
        self.run, self.error_of_logits = run, error_of_logits
        self.error = error_of_logits(run.logits)

    def idle(self, edges: list[Edge]) -> Tensor:
        """Bool `[edges]`: flipping this edge moves nothing of what its reader computes, or nobody reads that."""
        found = torch.zeros(len(edges), dtype=torch.bool)
        for reader, places in _by_reader(edges):
            found[places] = ~self.run.moving(reader, [edges[place][1] for place in places]).cpu()
        return found

    def errors(self, edges: list[Edge]) -> Tensor:
        """Error with each edge flipped, `[edges]`."""
        found = self.error.new_empty(len(edges))
        order = sorted(range(len(edges)), key=edges.__getitem__)
        logits_of_each = self.run.changed([edges[place] for place in order], MEMORY_GB)
        for place, logits in zip(order, logits_of_each, strict=True):
            found[place] = self.error_of_logits(logits)
        return found


@final
class GatedError:
    """Error (scalar) of the model with given gates, on one batch; a function with `flips`.

    Args:
        error_of: The function.
        error_of_logits: The error of logits `[batch, positions, vocab]`.
        model: The masked model.
        batch: On the model's device.
        ablated: What closed edges carry in this batch.
    """

    def __init__(
        self,
        error_of: Callable[[Tensor], Tensor],
        error_of_logits: Callable[[Tensor], Tensor],
        model: MaskedModel,
        batch: PairBatch,
        ablated: WriterStates,
    ) -> None:
        self.error_of, self.error_of_logits = error_of, error_of_logits
        self.model, self.batch, self.ablated = model, batch, ablated

    def __call__(self, gates: Tensor) -> Tensor:
        """Error of gates."""
        return self.error_of(gates)

    def flips(self, gates: Tensor) -> Flips:
        """Of 0/1 gates `[reader, writer]`; parts of the model are run where their state fits in memory."""
        model = self.model
        fits = state_bytes(model) * self.batch.clean.numel() <= MEMORY_GB * 1e9
        if not fits or not model.sums_to_stream or not isinstance(model.sharding, Whole):
            return WholeFlips(self.error_of, gates)
        run = CircuitRun(model, self.batch, self.ablated, gates.bool(), opening=True)
        return PartialFlips(run, self.error_of_logits)


def _by_reader(edges: list[Edge]) -> Iterable[tuple[int, list[int]]]:
    """Readers, and the places of their edges."""
    places: dict[int, list[int]] = {}
    for place, (reader, _) in enumerate(edges):
        places.setdefault(reader, []).append(place)
    return places.items()
