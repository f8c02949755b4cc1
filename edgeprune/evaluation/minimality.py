"""What each edge of a circuit is worth: the exact change when it alone is closed, and which edges are worth nothing.

Of a measure with figure f, and loss b(f) = f, -f or |f - 100| for measures where low, high or 100 is good,

    effect(edge) = b(f of the circuit without the edge) - b(f of the circuit)                                      (1)

is how much worse closing the edge makes the circuit. Every circuit is run for real. An edge with an effect of at most
0 is redundant: the circuit does as well without it, though perhaps not without two such edges.

Source: minimality in IOI (arXiv 2211.00593, section 4). Deviations: edges instead of nodes; each is closed alone, where
IOI first takes out others that do the same and so may find an effect where there is none here.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.effects import CHANGES_BYTES, EdgeEffects, MarginalEffects, effects_against_circuit
from edgeprune.evaluation.evaluator import Evaluator, open_edges
from edgeprune.evaluation.leave_one_out import Edge, each_without, idle_edges
from edgeprune.graph import EdgeGraph
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.registry import measure_named


def marginal_effects(
    evaluator: Evaluator,
    keep: Tensor,
    measure: str = "kl",
    edges: Sequence[str] | None = None,
    *,
    scores: Tensor | None = None,
    max_edges: int | None = None,
    max_examples: int | None = None,
    seed: int = 0,
    reuse: bool = True,
    memory_gb: float = 2.0,
) -> MarginalEffects:
    """Close each edge of a circuit alone.

    Args:
        evaluator: Runs circuits on pairs.
        keep: The circuit, `[reader, writer]`.
        measure: A name in `edgeprune.metrics.registry`.
        edges: Names of the kept edges to close; None: all.
        scores: What the circuit's edges were ranked by (`Circuit.ranking`), `[reader, writer]`.
        max_edges: Run no more edges than this: those with the lowest scores, or random ones if there are no scores.
            Edges that need no run do not count.
        max_examples: Use only the first of the evaluator's pairs.
        seed: Of the random choice.
        reuse: Run only what a closed edge changes; see `each_without`. On a model of half precision, both ways differ
            by its rounding.
        memory_gb: For what is reused, in 1e9 bytes.

    Raises:
        EdgepruneError: A limit below 1, an edge that is not kept, scores of another graph or NaN, or a measure that is
            not defined for any example.
    """
    for name, limit in (("max_edges", max_edges), ("max_examples", max_examples)):
        if limit is not None and limit < 1:
            raise EdgepruneError(f"{name} must be at least 1, got {limit}; leave it out for no limit")
    if max_examples is not None:
        evaluator = evaluator.limited(max_examples)
    keep = open_edges(evaluator, keep)
    idle = idle_edges(evaluator, keep)
    wanted, chosen = _named(evaluator.graph, keep, edges)
    if max_edges is not None and int((wanted & ~idle).sum()) > max_edges:
        wanted, chosen = _limited(wanted, idle, chosen, max_edges, scores, seed)
    found = each_without(evaluator, keep, _indices(wanted & ~idle), measure, reuse=reuse, memory_gb=memory_gb)
    return _result(evaluator, measure, found, keep, wanted, idle, chosen)


# -------------------------------------------------------------------- which edges
def _indices(edges: Tensor) -> list[Edge]:
    return [tuple(place) for place in edges.nonzero().tolist()]


def _named(graph: EdgeGraph, keep: Tensor, edges: Sequence[str] | None) -> tuple[Tensor, str]:
    """The edges asked for, bool `[reader, writer]`, and which they are in words."""
    if edges is None:
        return keep, "all kept edges"
    wanted = graph.keep_matrix(edges)
    if not wanted.any():
        raise EdgepruneError("edges is empty; name the kept edges to close, or leave it out for all")
    if (wanted & ~keep).any():
        first = graph.edge_name(*_indices(wanted & ~keep)[0])
        raise EdgepruneError(f"edge {first!r} is not kept in this circuit, so it cannot be closed; name kept edges")
    return wanted, "named edges"


def _limited(
    wanted: Tensor, idle: Tensor, chosen: str, max_edges: int, scores: Tensor | None, seed: int
) -> tuple[Tensor, str]:
    """The same for at most `max_edges` edges, and all idle ones."""
    candidates = wanted & ~idle
    if scores is None:
        order = torch.rand(int(candidates.sum()), generator=torch.Generator().manual_seed(seed)).argsort()
        which = f"a random sample of {max_edges}, seed {seed}"
    elif scores.shape != wanted.shape or scores.cpu()[candidates].isnan().any():
        raise EdgepruneError(
            f"scores must be numbers, [reader, writer] = {tuple(wanted.shape)}, to choose {max_edges} edges by; got "
            f"shape {tuple(scores.shape)}{' with NaN' if scores.isnan().any() else ''}"
        )
    else:
        order = scores.detach().cpu().double()[candidates].argsort(stable=True)
        which = f"the {max_edges} with the lowest scores"
    limited = wanted & idle
    limited[tuple(candidates.nonzero()[order[:max_edges]].T)] = True
    return limited, f"{chosen}: {which}"


# -------------------------------------------------------------------- effects
def _result(
    evaluator: Evaluator,
    measure: str,
    found: Iterable[ExampleValues],
    keep: Tensor,
    wanted: Tensor,
    idle: Tensor,
    chosen: str,
) -> MarginalEffects:
    """Effects of the wanted edges in the graph's order: 0 for those that are idle, those found for the others."""
    better, edges = measure_named(measure).better, _indices(wanted)
    keeps_changes = len(edges) * evaluator.num_examples * 4 <= CHANGES_BYTES
    figure, index, parts = math.nan, torch.empty(0), list[EdgeEffects]()
    for some in found:
        figure, index, part = some.figure(measure), some.index, effects_against_circuit(some, better)
        parts.append(part._replace(changes=part.changes.float() if keeps_changes else part.changes[:, :0]))
    if math.isnan(figure):
        raise EdgepruneError(
            f"measure {measure!r} is not defined for any of the {evaluator.num_examples} pairs; "
            "choose another, such as 'squared_error'"
        )
    run = ~idle[wanted]
    figures, effects, errors, changes = (_spread(torch.cat(rows), run) for rows in zip(*parts, strict=True))
    return MarginalEffects(
        graph=evaluator.graph,
        measure=measure,
        better=better,
        edges=tuple(edges),
        figure=figure,
        figures=figures.where(run, figure),
        effects=effects,
        standard_errors=errors,
        changes=changes if keeps_changes else None,
        index=index,
        idle=~run,
        num_edges=int(keep.sum()),
        num_dangling=int(evaluator.graph.dangling(keep).sum()),
        chosen=chosen,
    )


def _spread(rows: Tensor, run: Tensor) -> Tensor:
    """One row for each edge, from those of the edges that were run; 0 for the others."""
    spread = rows.new_zeros((len(run), *rows.shape[1:]))
    spread[run] = rows
    return spread
