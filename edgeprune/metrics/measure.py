"""Run circuits on pairs: every circuit sees the same full and ablated runs, which are made once per batch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import NamedTuple, final

import torch
from torch import Tensor

from edgeprune import circuit_attention
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.registry import STANDARD, Measure, measure_named
from edgeprune.models.masked import MaskedModel
from edgeprune.models.read_ops import exact_dtype
from edgeprune.models.sparse_run import EmptyRun
from edgeprune.models.states import WriterStates
from edgeprune.roles import roles_in

TOKENS_AT_ONCE = 512  # of several circuits in one run; more tokens than this make a run no faster per token
FEW_EDGES = 0.1  # share of open edges up to which it is faster to run only what they change
ENOUGH = 4  # circuits that make it worth it to run the model with every edge closed first, where that is not given


@final
class BothGates(NamedTuple):
    """Gates of edges, of the graph's shape, and of attention edges, `[layer, head, query role, key role]`."""

    edges: Tensor
    attention: Tensor


CircuitGates = Tensor | BothGates  # a matrix alone: attention edges are open


def gates_of(circuit: Circuit, device: torch.device | str = "cpu") -> CircuitGates:
    """0/1 gates `[..., reader, writer]` of a circuit; with those of its attention edges if it closes any."""
    inside = circuit.attention_gates(device=device)
    if inside is None or circuit_attention.all_open(circuit.graph, circuit.attend):
        return circuit.gates(device=device)
    return BothGates(circuit.gates(device=device), inside)


def random_like(circuit: Circuit, seed: int = 0) -> Circuit:
    """A random circuit with as many edges, and as many attention edges: the control for every figure."""
    drawn = Circuit.random(circuit.graph, circuit.num_edges, seed)
    return replace(drawn, attend=circuit_attention.random(circuit.graph, circuit.attend, seed))


def gated_logits(
    model: MaskedModel,
    batch: PairBatch,
    gates: CircuitGates,
    ablated: WriterStates,
    *,
    attention_gates: Tensor | None = None,
    sampled: bool = False,
) -> Tensor:
    """Logits of the gated model at the scored positions, `[batch, positions, vocab]`, in float32.

    Args:
        model: The masked model.
        batch: On its device.
        gates: Of the graph's shape, or one more axis before: of groups. `[reader, writer]` fits a graph with roles too.
        ablated: What closed edges carry in this batch.
        attention_gates: Of attention edges, `[layer, head, query role, key role]`, or one more axis before: of groups;
            where they are not in `gates`.
        sampled: They are a sample, of which some are closed: a GPU is then not asked, and waited for.
    """
    if isinstance(gates, BothGates):
        gates, attention_gates = gates
    all_open = False if sampled and model.device.type != "cpu" else None
    role_of = None if gates.ndim == 2 and attention_gates is None else roles_in(model.graph, batch)
    logits = model(
        *(batch.clean, gates, ablated, batch.attention_mask, batch.positions),
        role_of=role_of,
        attention_gates=attention_gates,
        all_open=all_open,
    )
    return logits.float()


def logits_of_each(
    model: MaskedModel,
    batch: PairBatch,
    gates: Sequence[CircuitGates],
    ablated: WriterStates,
    *,
    head: bool = True,
    like_batch: bool = False,
) -> Iterator[Tensor]:
    """Logits of each circuit on a batch, float32 `[batch, positions, vocab]`.

    One run serves several circuits where the batch is small. If all circuits have few edges, only what these change is
    run; not if some do, since the two ways round differently, and equal circuits shall have equal figures.

    Args:
        model: The masked model.
        batch: On the model's device.
        gates: Matrices of the graph's shape, of any dtype; `[reader, writer]` fits a graph with roles too. Circuits
            that close attention edges, and others, are run apart.
        ablated: What closed edges carry in this batch.
        head: False: what the logits read, `[batch, positions, d_model]`, instead of logits.
        like_batch: See `EmptyRun`.
    """
    keeps = [_few_edges(model, matrix) for matrix in gates] if head and model.sums_to_stream else []
    few = [keep for keep in keeps if keep is not None]
    if gates and len(few) == len(gates) and (like_batch or len(few) >= ENOUGH):
        empty = EmptyRun(model, batch, ablated, like_batch=like_batch)
        yield from (empty.logits(keep) for keep in few)
    else:
        yield from _dense_logits(model, batch, gates, ablated, head)


def _few_edges(model: MaskedModel, gates: CircuitGates) -> Tensor | None:
    """The open edges, bool `[reader, writer]`, if they are few and no gate lies between open and closed."""
    if model.graph.roles is not None or isinstance(gates, BothGates):
        return None
    exists = model.graph.exists
    found = gates.cpu().where(exists, 0)
    keep = found == 1
    return keep if keep.sum() <= FEW_EDGES * exists.sum() and bool((keep | (found == 0)).all()) else None


def _dense_logits(
    model: MaskedModel, batch: PairBatch, gates: Sequence[CircuitGates], ablated: WriterStates, head: bool
) -> Iterator[Tensor]:
    """As `logits_of_each`, every reader run."""
    roles, dtype = roles_in(model.graph, batch), exact_dtype(model.dtype)
    for some in _run_together(gates, max(1, TOKENS_AT_ONCE // batch.clean.numel())):
        edges = [each.edges if isinstance(each, BothGates) else each for each in some]
        group = torch.stack([matrix.expand(model.graph.shape).to(model.device, dtype) for matrix in edges])
        inside = [each.attention.to(model.device, dtype) for each in some if isinstance(each, BothGates)]
        clean, mask, positions = (
            part.repeat(len(group), 1) for part in (batch.clean, batch.attention_mask, batch.positions)
        )
        states = ablated.map(partial(_repeat, times=len(group)))
        role_of = None if roles is None else roles.repeat(len(group), 1)
        attend = torch.stack(inside) if inside else None
        logits = model(clean, group, states, mask, positions, role_of=role_of, attention_gates=attend, head=head)
        yield from logits.float().split(len(batch))


def _run_together(gates: Sequence[CircuitGates], most: int) -> Iterator[list[CircuitGates]]:
    """The circuits in order, up to `most` at once: all of them with gates of attention edges, or none."""
    for _, alike in groupby(gates, lambda each: isinstance(each, BothGates)):
        own = list(alike)
        yield from (own[start : start + most] for start in range(0, len(own), most))


def _repeat(field: Tensor, times: int) -> Tensor:
    """A field of states `[item, batch or 1, ...]` for several copies of the batch."""
    return field if field.shape[1] == 1 else field.repeat(1, times, *[1] * (field.dim() - 2))


@torch.no_grad()
def measure_examples(
    model: MaskedModel,
    runs: ReferenceRuns,
    batches: Iterable[PairBatch],
    gates: Sequence[CircuitGates | None],
    split: str,
    measures: Sequence[str] = STANDARD,
) -> ExampleValues:
    """Measures of each gate matrix on every example of all batches; `as_dicts` gives the figures.

    Args:
        model: The masked model.
        runs: Its full and ablated runs; made once per batch for all circuits.
        batches: Pairs of `split`.
        gates: One per circuit, such as `gates_of` gives, or a matrix `[..., reader, writer]`; see `logits_of_each`.
            None stands for the full model, which needs no further run.
        split: Which split the pairs are of.
        measures: Names in `edgeprune.metrics.registry`.
    """
    functions = [measure_named(name) for name in measures]
    parts: list[Tensor] = []
    index: list[Tensor] = []
    for batch in batches:
        batch = batch.to(model.device)
        full, ablated = runs(batch, split)
        index.append(batch.index.cpu())
        circuits = [matrix for matrix in gates if matrix is not None]
        others = logits_of_each(model, batch, circuits, ablated, like_batch=runs.like_batch(batch))
        found = [
            values_and_weights(full, full if matrix is None else next(others), batch, functions) for matrix in gates
        ]
        parts.append(torch.stack(found).cpu())
    values, weights = torch.cat(parts, -1).unbind(1)
    return ExampleValues(tuple(measures), values, weights, torch.cat(index))


def values_and_weights(full: Tensor, circuit: Tensor, batch: PairBatch, measures: Sequence[Measure]) -> Tensor:
    """Of every measure, float64 `[2, measure, batch]`, from logits `[batch, positions, vocab]`."""
    both = ([of(full, circuit, batch).double() for of in (item.values, item.weights)] for item in measures)
    return torch.stack([torch.stack(pair) for pair in both], 1)
