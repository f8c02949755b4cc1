"""Exact edge patching: every edge closed alone, in the full model. What EAP approximates."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.console import Progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.methods.attribution import open_gates
from edgeprune.methods.discovery import AbstractDiscovery, DiscoveryResult
from edgeprune.methods.problem import Problem
from edgeprune.metrics.measure import TOKENS_AT_ONCE, gated_logits, logits_of_each
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from edgeprune.sealed import SealedFile

SAVE_SECONDS = 20.0  # between two saves of the state; an interruption by Ctrl-C saves too
STATE_FILE = "exact.safetensors"
WHAT = "edges closed one by one"
Place = tuple[int, ...]  # (reader, writer), or (role, reader, writer)
_FILE = SealedFile(
    "edgeprune-exact-state/1", "state of exact edge patching", {"values": torch.float64}, "remove it to begin anew"
)


@final
@dataclass(frozen=True)
class ExactEdgePatching(AbstractDiscovery):
    """Score of an edge: mean loss with this edge alone closed, minus mean loss with every edge open.

    One forward pass per edge and batch, none of which changes the graph, so the order of edges does not matter; edges
    at roles are run several at once. With a folder, an interrupted run goes on where it was; the state of another one
    is refused.

    Attributes:
        edges: Names of the edges to score (`"m0->logits"`); None: all. The others get score 0.
    """

    name = "exact_edge_patching"

    edges: tuple[str, ...] | None = None

    @torch.no_grad()
    def discover(self, problem: Problem, report: Progress, folder: Path | None = None) -> DiscoveryResult:
        """Score the edges."""
        graph = problem.model.graph
        edges = self._edges(graph)
        state = _State.start(_key(problem, edges), len(problem.batches) * len(edges), folder)
        gates, passes = open_gates(problem.model), len(edges) * len(problem.batches)
        if state.done:
            report(WHAT, state.done, passes)
        try:
            for number, (batch, full, ablated) in enumerate(problem.batches_with_runs()):
                if (number + 1) * len(edges) <= state.done:
                    continue

                def loss(logits: Tensor, batch: PairBatch = batch, full: Tensor = full) -> Tensor:
                    return problem.losses(full, logits, batch).double()

                baseline = loss(gated_logits(problem.model, batch, gates, ablated))
                left = edges[state.done - number * len(edges) :]
                for logits in _each_closed(problem.model, batch, gates, left, ablated):
                    state.add((loss(logits) - baseline).sum())
                    report(WHAT, state.done, passes)
        finally:
            state.save()
        scores = torch.zeros(graph.shape, dtype=torch.float64)
        places = torch.tensor(edges, dtype=torch.long).view(-1, len(graph.shape)).T
        scores[tuple(places)] = state.values.view(-1, len(edges)).sum(0) / problem.num_examples
        about = {"forward_passes": passes, "edges_scored": len(edges)}
        return DiscoveryResult(scores, about=about, seconds=state.seconds)

    def _edges(self, graph: EdgeGraph) -> list[Place]:
        if self.edges is None:
            return [tuple(place) for place in graph.exists.nonzero().tolist()]
        if not self.edges:
            raise EdgepruneError("edges is empty; name the edges to score, or leave it out for all")
        return list(dict.fromkeys(map(graph.index, self.edges)))


def _each_closed(
    model: MaskedModel, batch: PairBatch, gates: Tensor, edges: Sequence[Place], ablated: WriterStates
) -> Iterator[Tensor]:
    """Logits with each of some edges closed alone, `[batch, positions, vocab]`."""
    if model.graph.roles is None:
        for edge in edges:
            gates[edge] = 0
            logits = gated_logits(model, batch, gates, ablated)
            gates[edge] = 1
            yield logits
        return
    at_once = max(1, TOKENS_AT_ONCE // batch.clean.numel())
    for start in range(0, len(edges), at_once):
        yield from logits_of_each(
            model, batch, [_without(gates, edge) for edge in edges[start : start + at_once]], ablated
        )


def _without(gates: Tensor, edge: Place) -> Tensor:
    gates = gates.clone()
    gates[edge] = 0
    return gates


class _State:
    """Loss differences so far, batch by batch and edge by edge, how many there are, and seconds; kept in a file."""

    def __init__(self, key: str, values: Tensor, done: int, path: Path | None, seconds: float = 0.0) -> None:
        self.key, self.values, self.done, self.path = key, values, done, path
        self.saved_at = time.monotonic()
        self.started = self.saved_at - seconds

    @property
    def seconds(self) -> float:
        """What it has taken, over all parts of an interrupted run."""
        return time.monotonic() - self.started

    @classmethod
    def start(cls, key: str, num_values: int, folder: Path | None) -> "_State":
        """A new state, or that of the interrupted run in `folder`."""
        path = None if folder is None else folder / STATE_FILE
        if path is None or not path.exists():
            return cls(key, torch.zeros(num_values, dtype=torch.float64), 0, path)
        about, tensors = _FILE.read(path)
        if about["key"] != key:
            raise EdgepruneError(
                f"{path} is the state of a run over another model, other pairs, edges, ablation or metric; "
                "delete it or choose another folder"
            )
        return cls(key, tensors["values"], about["done"], path, about["seconds"])

    def add(self, difference: Tensor) -> None:
        """Add the next value; save when it is time. An interruption in between leaves a value that is made again."""
        self.values[self.done] = difference
        self.done += 1
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the state, whole or not at all."""
        self.saved_at = time.monotonic()
        if self.path is None or not self.done:
            return
        _FILE.write(self.path, {"values": self.values}, {"key": self.key, "done": self.done, "seconds": self.seconds})


def _key(problem: Problem, edges: Sequence[Place]) -> str:
    """Hash of everything that the sums depend on, the cut into batches included."""
    about = {**problem.identity(), "edges": list(edges)}
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
