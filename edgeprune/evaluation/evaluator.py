"""A model on fixed pairs under one ablation, ready to evaluate any number of circuits."""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph, RoleSpec
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.measure import BothGates, CircuitGates, measure_examples
from edgeprune.metrics.registry import STANDARD
from edgeprune.models.masked import MaskedModel


@final
@dataclass(frozen=True, eq=False)
class Evaluator:
    """Runs circuits on pairs. Every circuit sees the same full and ablated runs, kept as far as `runs` has room.

    Attributes:
        model: The masked model.
        runs: Its full and ablated runs; holds the ablation, prepared for the split.
        batches: The pairs.
        split: Which split they are of.
        measures: What is measured, names in `edgeprune.metrics.registry`.
        progress: Gets what is being run, how many batches are done, and of how many.
    """

    model: MaskedModel
    runs: ReferenceRuns
    batches: Sequence[PairBatch]
    split: str = "test"
    measures: tuple[str, ...] = STANDARD
    progress: Progress = no_progress

    def __post_init__(self) -> None:
        if not self.batches:
            raise EdgepruneError(f"there are no {self.split} pairs to evaluate circuits on; give at least one")

    @property
    def graph(self) -> EdgeGraph:
        """The model's edge graph."""
        return self.model.graph

    @property
    def num_examples(self) -> int:
        """Pairs."""
        return sum(len(batch) for batch in self.batches)

    def __call__(
        self, gates: Sequence[CircuitGates | None], what: str = "circuits", measures: Sequence[str] | None = None
    ) -> ExampleValues:
        """Measure circuits.

        Args:
            gates: One per circuit: a matrix of the graph's shape or `[reader, writer]`, bool or float, 1 = open, or
                what `edgeprune.metrics.measure.gates_of` gives; None for the full model.
            what: Named in the progress report.
            measures: Others than the evaluator's own.

        Raises:
            EdgepruneError: A matrix is of another graph.
        """
        for each in gates:
            matrix = each.edges if isinstance(each, BothGates) else each
            if matrix is not None and tuple(matrix.shape) != self.graph.without_roles.shape:
                _check_shape(self.graph, matrix, "a circuit's matrix of gates")
        chosen = self.measures if measures is None else measures
        return measure_examples(self.model, self.runs, self.counted(what), gates, self.split, chosen)

    def counted(self, what: str) -> Iterator[PairBatch]:
        """The batches, with a report of how many are done."""
        for number, batch in enumerate(self.batches):
            self.progress(what, number, len(self.batches))
            yield batch
        self.progress(what, len(self.batches), len(self.batches))

    @cached_property
    def ends(self) -> ExampleValues:
        """The full model (circuit 0), and the model with every edge closed (circuit 1)."""
        return self([None, self.graph.without_roles.all_closed()], "all edges closed")

    @contextmanager
    def at_roles(self, roles: RoleSpec | None) -> Generator[None]:
        """Let the model, and so `graph`, have these roles, or none, for a while."""
        before = self.graph.roles
        self.model.use_roles(roles)
        try:
            yield
        finally:
            self.model.use_roles(before)

    def on_graph_of(self, circuit: Circuit) -> AbstractContextManager[None]:
        """Let `graph` be without roles where the circuit has none; the circuit's roles are the model's."""
        return self.at_roles(self.graph.roles if circuit.roles else None)

    def limited(self, num_examples: int) -> "Evaluator":
        """The same on the first `num_examples` pairs, or on all where there are no more; the last batch may be cut."""
        chosen, left = list[PairBatch](), num_examples
        for batch in self.batches:
            if left > 0:
                chosen.append(batch.rows(slice(left)))
                left -= len(batch)
        return Evaluator(self.model, self.runs, chosen, self.split, self.measures, self.progress)


def open_edges(evaluator: Evaluator, keep: Tensor) -> Tensor:
    """Bool `[..., reader, writer]` on the CPU, without entries that do not exist.

    Raises:
        EdgepruneError: The matrix is of another graph.
    """
    _check_shape(evaluator.graph, keep, "keep")
    return keep.to("cpu", torch.bool) & evaluator.graph.exists


def _check_shape(graph: EdgeGraph, matrix: Tensor, what: str) -> None:
    if tuple(matrix.shape) != graph.shape:
        raise EdgepruneError(
            f"{what} has shape {tuple(matrix.shape)}, this model's graph is {graph.axes} = {graph.shape}; of a circuit "
            "with roles take the union, `Circuit.union`, or give the model its roles, `MaskedModel.use_roles`"
        )


def answer_measure(evaluator: Evaluator) -> str:
    """What is measured where a score of the circuit alone is asked for: the first that is defined on these pairs."""
    return _first(evaluator, ("logit_difference", "probability_difference", "accuracy", "squared_error"))


def divergence_measure(evaluator: Evaluator) -> str:
    """What is measured where the distance from the full model is asked for: KL, or squared error of raw outputs."""
    return _first(evaluator, ("kl", "squared_error"))


def _first(evaluator: Evaluator, names: Sequence[str]) -> str:
    found = evaluator([None], "the full model", names).figures()[0].tolist()
    return next(name for name, value in zip(names, found, strict=True) if not math.isnan(value))
