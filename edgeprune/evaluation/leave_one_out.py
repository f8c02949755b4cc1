"""A circuit without one of its edges, for each of many edges: run for real, with the work shared between them."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.measure import values_and_weights
from edgeprune.metrics.registry import Measure, measure_named
from edgeprune.models.circuit_run import CircuitRun, state_bytes

WHAT = "edges closed one by one"  # in progress reports
VALUES_AT_ONCE = 2**22  # of edges and examples: 67 MB in float64, with weights
MATRICES_AT_ONCE = 256  # gate matrices made in advance

Edge = tuple[int, ...]  # (reader, writer), or (role, reader, writer)
Places = Callable[[PairBatch], Tensor]  # sets of positions of a batch, bool `[part, batch, seq]`


def each_without(
    evaluator: Evaluator,
    keep: Tensor,
    edges: Sequence[Edge],
    measure: str,
    *,
    reuse: bool = True,
    memory_gb: float = 2.0,
) -> Iterator[ExampleValues]:
    """Measure the circuit, and it without each of some edges.

    Args:
        evaluator: Runs circuits on pairs.
        keep: The circuit, bool `[reader, writer]`.
        edges: Kept edges.
        measure: A name in `edgeprune.metrics.registry`.
        reuse: Run the circuit once per batch, and then only what a closed edge changes (`CircuitRun`). False, and
            always with roles: the whole masked model for each edge. Both give the same but for rounding.
        memory_gb: For what is reused, in 1e9 bytes; batches are cut to fit.

    Yields:
        Circuit 0 is the circuit; the others are it without each of the next edges. One part if there are no edges.
    """
    reuse = reuse and evaluator.graph.roles is None
    at_once = max(1, VALUES_AT_ONCE // evaluator.num_examples)
    if not reuse:
        at_once = min(at_once, MATRICES_AT_ONCE)
    for start in range(0, max(1, len(edges)), at_once):
        some = edges[start : start + at_once]
        if reuse:
            yield _reused(evaluator, keep, some, measure_named(measure), memory_gb / 2)
        else:
            yield evaluator([keep, *(_without(keep, edge) for edge in some)], WHAT, [measure])


def each_without_at(
    evaluator: Evaluator, keep: Tensor, edges: Sequence[Edge], places: Places, measure: str, *, memory_gb: float = 2.0
) -> ExampleValues:
    """Measure the circuit, and it with each of some edges closed at some positions alone.

    Args:
        evaluator: Runs circuits on pairs.
        keep: The circuit, bool `[reader, writer]`.
        edges: Kept edges.
        places: Sets of positions, of the same number P in every batch.
        measure: A name in `edgeprune.metrics.registry`.
        memory_gb: As in `each_without`.

    Returns:
        Circuit 0 is the circuit; circuit 1 + P * e + p is it with edge e closed at the positions of set p.
    """
    times = len(places(evaluator.batches[0]))
    repeated = [edge for edge in edges for _ in range(times)]
    return _reused(evaluator, keep, repeated, measure_named(measure), memory_gb / 2, places)


def _without(keep: Tensor, edge: Edge) -> Tensor:
    keep = keep.clone()
    keep[edge] = False
    return keep


@torch.no_grad()
def _reused(
    evaluator: Evaluator,
    keep: Tensor,
    edges: Sequence[Edge],
    measure: Measure,
    half_gb: float,
    sets_of_positions: Places | None = None,
) -> ExampleValues:
    """As `each_without`; half of the memory is for the circuit's state, half for what is run again.

    With sets of positions the edges repeat as often as there are sets, and each is closed at the next set.
    """
    into: dict[int, list[int]] = {}  # places of the edges into each reader
    for place, (reader, *_) in enumerate(edges):
        into.setdefault(reader, []).append(place)
    batches = [part for batch in evaluator.batches for part in _cut(batch, evaluator, half_gb)]
    parts: list[Tensor] = []
    for number, batch in enumerate(batches):
        batch = batch.to(evaluator.model.device)
        full, ablated = evaluator.runs(batch, evaluator.split)
        run = CircuitRun(evaluator.model, batch, ablated, keep)
        at = None if sets_of_positions is None else sets_of_positions(batch).flatten(1)
        found = torch.empty((1 + len(edges), 2, 1, len(batch)), dtype=torch.float64)
        found[0] = values_and_weights(full, run.logits, batch, [measure])
        done = number * len(edges)
        evaluator.progress(WHAT, done, len(batches) * len(edges))
        for reader, places in into.items():
            where = None if at is None else at[[place % len(at) for place in places]]
            logits_of_each = run.without(reader, [edges[place][1] for place in places], half_gb, where)
            for place, logits in zip(places, logits_of_each, strict=True):
                found[1 + place] = values_and_weights(full, logits, batch, [measure])
            done += len(places)
            evaluator.progress(WHAT, done, len(batches) * len(edges))
        parts.append(found)
    values, weights = torch.cat(parts, -1).unbind(1)
    return ExampleValues((measure.name,), values, weights, torch.cat([batch.index for batch in batches]).cpu())


def _cut(batch: PairBatch, evaluator: Evaluator, half_gb: float) -> list[PairBatch]:
    """The batch in parts whose state fits in memory; one example is the least."""
    size = max(1, int(half_gb * 1e9 / state_bytes(evaluator.model) / batch.clean.shape[1]))
    return [batch.rows(slice(start, start + size)) for start in range(0, len(batch), size)]


def idle_edges(evaluator: Evaluator, keep: Tensor) -> Tensor:
    """Kept edges that change no output when they are closed, and need no run to know it. Bool `[reader, writer]`.

    Edges that no path of kept edges joins to the logits never change anything. Those that none joins to an embedding
    do not under interchange with pairs aligned token for token, where their writer repeats the corrupted run; under
    other ablations their writer adds what biases make of its input, so they count.
    """
    graph = evaluator.graph
    idle = keep & ~graph.reaching_logits(keep)[..., None]
    repeated = evaluator.runs.spec.kind == "interchange" and all(
        batch.alignment is None and torch.equal(batch.attention_mask, batch.corrupted_mask)
        for batch in evaluator.batches
    )
    return graph.dangling(keep) if repeated else idle
