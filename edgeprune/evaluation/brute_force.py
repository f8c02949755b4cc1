"""Every circuit of a small graph: its exact minimal circuits, and the exact front of size against error.

The reference for every method and measure: no circuit with as few edges is better than the front says, and a circuit
that a method calls minimal is in the list or is not. Works on compiled transformers (`edgeprune.compiled`), whose
arithmetic it shares between circuits (`edgeprune.evaluation.enumeration`); load the model in float64.

    model = ep.load_model("compiled:or_gate", dtype="float64")
    found = brute_force(model, batch, ep.ablations.zero(model))
    found.minimal()      # two circuits of three edges
    found.front()        # for each number of edges, the best that can be had
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.compiled.transformer import CompiledTransformer
from edgeprune.console import Progress, ProgressReporter
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.enumeration import Enumeration, MemoryBudgetError
from edgeprune.graph import EdgeGraph
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates

MAX_EDGES = 24  # 2^24 errors in float64 are 134 MB
TOLERANCE = 1e-6  # of outputs of size 1 to 10; rounding in float64 is far below

ErrorFunction = Callable[[Tensor, Tensor], Tensor]
Edges = tuple[str, ...]


def largest_difference(full: Tensor, circuit: Tensor) -> Tensor:
    """Largest difference between two tensors of raw outputs `[..., outputs]`; returns `[...]`."""
    return (full - circuit).abs().amax(-1)


class FrontPoint(NamedTuple):
    """The best circuits of one size: their error, how many there are, and the first of them."""

    num_edges: int
    error: float
    num_circuits: int
    circuits: tuple[Edges, ...]


@dataclass(frozen=True, eq=False)
class BruteForce:
    """The error of every circuit.

    Attributes:
        graph: The graph.
        edges: The edges that were chosen from.
        always: Edges that were open in every circuit.
        errors: `[2 ** len(edges)]`; bit i of an index says whether `edges[i]` is open.
    """

    graph: EdgeGraph
    edges: Edges
    always: Edges
    errors: Tensor

    def error(self, edges: Iterable[str]) -> float:
        """Error of one circuit, given without the edges that are always open."""
        wanted = set(edges)
        unknown = sorted(wanted - {*self.edges, *self.always})
        if unknown:
            raise EdgepruneError(f"edge {unknown[0]!r} was not among the edges to choose from: {', '.join(self.edges)}")
        return self.errors[sum(1 << bit for bit, edge in enumerate(self.edges) if edge in wanted)].item()

    def front(self, limit: int = 16, ties: float = 1e-9) -> list[FrontPoint]:
        """For each number of chosen edges, the best circuits.

        Args:
            limit: List at most so many circuits of a size.
            ties: Errors this much above the best count as equal.
        """
        sizes = _num_bits(len(self.edges))
        points: list[FrontPoint] = []
        for size in range(len(self.edges) + 1):
            of_size = (sizes == size).nonzero().flatten()
            errors = self.errors[of_size]
            best = of_size[errors <= errors.min() + ties]
            points.append(FrontPoint(size, errors.min().item(), len(best), self._names(best[:limit])))
        return points

    def minimal(self, tolerance: float = TOLERANCE) -> tuple[Edges, ...]:
        """Circuits with an error of at most `tolerance` of which no proper subset has that, smallest first."""
        below = self.errors <= tolerance
        for bit in range(len(self.edges)):  # from "is good enough" to "has a subset that is"
            with_bit, without = _halves(below, bit)
            with_bit |= without
        return self._smallest_first((self.errors <= tolerance) & ~self._has_neighbour(below))

    def irreducible(self, tolerance: float = TOLERANCE) -> tuple[Edges, ...]:
        """Circuits with an error of at most `tolerance` from which no single edge can be removed, smallest first.

        Where a method that removes one edge at a time can come to rest. All minimal ones, and perhaps others: those
        from which only several edges together can be removed.
        """
        good = self.errors <= tolerance
        return self._smallest_first(good & ~self._has_neighbour(good))

    def _has_neighbour(self, marked: Tensor) -> Tensor:
        """Bool `[2^edges]`: the circuit without one of its edges is marked."""
        found = torch.zeros_like(marked)
        for bit in range(len(self.edges)):
            _halves(found, bit)[0].logical_or_(_halves(marked, bit)[1])
        return found

    def _smallest_first(self, marked: Tensor) -> tuple[Edges, ...]:
        numbers = marked.nonzero().flatten()
        return self._names(numbers[_num_bits(len(self.edges))[numbers].argsort(stable=True)])

    def _names(self, numbers: Tensor) -> tuple[Edges, ...]:
        return tuple(
            (*self.always, *(edge for bit, edge in enumerate(self.edges) if number >> bit & 1))
            for number in numbers.tolist()
        )


@torch.no_grad()
def brute_force(
    model: MaskedModel,
    batch: PairBatch,
    ablated: WriterStates,
    error: ErrorFunction = largest_difference,
    *,
    reduce: Literal["max", "mean"] = "max",
    among: Sequence[str] | None = None,
    rest: Literal["closed", "open"] = "closed",
    memory_gb: float = 1.0,
    progress: bool = True,
) -> BruteForce:
    """Evaluate every circuit.

    Args:
        model: A masked `CompiledTransformer`, best in float64.
        batch: Prompts and the positions at which outputs are compared with the full model's.
        ablated: What closed edges carry: `model.record(batch.corrupted, batch.attention_mask)`, or one of
            `edgeprune.ablations`.
        error: From raw outputs of the full model `[batch, positions, outputs]` and of circuits
            `[circuits, batch, positions, outputs]` to one number per position `[circuits, batch, positions]`:
            `largest_difference`, or a member of `edgeprune.objectives`.
        reduce: `"max"`: a circuit's error is that at its worst position. `"mean"`: mean over examples of the mean over
            each example's positions.
        among: Edges to choose from; None for all. With more edges than can be enumerated, name those in question.
        rest: What the other edges are.
        memory_gb: Memory for what circuits do not share, in 1e9 bytes; where it is not enough, the examples are taken
            in parts, which takes longer.
        progress: Show a bar.

    Raises:
        EdgepruneError: Another architecture, dtype or device; too many edges, or one that does not exist; an unknown
            option.
    """
    free = _check(model, among, reduce, rest)
    open_ = model.graph.exists & ~free if rest == "open" else torch.zeros_like(free)
    with ProgressReporter(stderr=True, quiet=not progress) as bars:
        errors = _Search(model, error, reduce == "max", free, open_, bars.report, int(memory_gb * 1e9)).run(
            batch, ablated
        )
    if reduce == "mean":
        errors = errors / len(batch)
    return BruteForce(model.graph, _edge_names(model.graph, free), _edge_names(model.graph, open_), errors)


class _Search(NamedTuple):
    """What stays the same for every part of a batch."""

    model: MaskedModel
    error: ErrorFunction
    worst: bool
    free: Tensor
    open: Tensor
    report: Progress
    num_bytes: int

    def run(self, batch: PairBatch, ablated: WriterStates) -> Tensor:
        """Largest error of each circuit, or its sum over examples; in two parts where one needs too much memory."""
        full = self.model.full(batch.clean, batch.attention_mask, batch.positions)
        mask = batch.position_mask

        def error_of(outputs: Tensor) -> Tensor:
            values = self.error(full, outputs).masked_fill(~mask, 0)
            return values.amax((1, 2)) if self.worst else (values.sum(2) / mask.sum(1)).sum(1)

        try:
            plan = Enumeration(self.model, batch, ablated, self.free, self.open, self.report, self.num_bytes)
            return plan.run(error_of)
        except MemoryBudgetError:
            if len(batch) == 1:
                raise EdgepruneError(
                    f"{int(self.free.sum())} edges of this model take more than {self.num_bytes / 1e9:g} GB; "
                    "raise memory_gb or name fewer edges in `among`"
                ) from None
        half = len(batch) // 2
        first, second = (
            self.run(batch.rows(rows), ablated.map(lambda field, rows=rows: _rows(field, rows)))
            for rows in (slice(half), slice(half, None))
        )
        return torch.maximum(first, second) if self.worst else first + second


def _rows(field: Tensor, rows: slice) -> Tensor:
    """Some examples of `[item, batch or 1, ...]`."""
    return field if field.shape[1] == 1 else field[:, rows]


def _edge_names(graph: EdgeGraph, marked: Tensor) -> Edges:
    return tuple(graph.edge_name(*index) for index in marked.nonzero().tolist())


def _check(model: MaskedModel, among: Sequence[str] | None, reduce: str, rest: str) -> Tensor:
    """Bool `[reader, writer]`: the edges to choose from."""
    if not isinstance(model.hf, CompiledTransformer):
        raise EdgepruneError(
            f"brute force knows compiled transformers only, not {model.hf.config.model_type!r}; "
            "use compiled:NAME or a ground-truth folder"
        )
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.float64):
        raise EdgepruneError(
            f"brute force runs on the CPU in float64 or float32, the model is in {model.dtype} on {model.device}; "
            "load it with dtype='float64' and device='cpu'"
        )
    if reduce not in ("max", "mean") or rest not in ("closed", "open"):
        raise EdgepruneError(f"reduce must be 'max' or 'mean', rest 'closed' or 'open', got {reduce!r} and {rest!r}")
    if model.graph.roles is not None:
        raise EdgepruneError("brute force is of circuits without roles; load the model anew, or `use_roles(None)`")
    free = model.graph.exists if among is None else model.graph.keep_matrix(among)
    count = int(free.sum())
    if not 1 <= count <= MAX_EDGES:
        raise EdgepruneError(
            f"{count} edges have 2^{count} circuits; brute force takes 1 to {MAX_EDGES} edges: name those to choose "
            "from in `among`"
        )
    return free


def _num_bits(size: int) -> Tensor:
    """How many bits are set in 0, 1, ..., 2^size - 1."""
    counts = torch.zeros(1, dtype=torch.int8)
    for _ in range(size):
        counts = torch.cat([counts, counts + 1])
    return counts


def _halves(values: Tensor, bit: int) -> tuple[Tensor, Tensor]:
    """Views of `[2^edges]` where a bit is set and where it is not, aligned: the same circuit with and without it."""
    pairs = values.view(-1, 2, 2**bit)
    return pairs[:, 1], pairs[:, 0]
