"""Effects of closing edges at the positions of one role: where in the prompt an edge matters.

An edge carries its writer's output at every position. Closed at the positions of a part p alone, it changes the loss
b of the circuit (see `edgeprune.evaluation.minimality`, (1)) by

    effect(e, p) = b(circuit with e closed at p) - b(circuit)                                                     (1)

exactly, by a run for each edge and part, and to first order by

    first_order(e, p) = -db / d gate(e, p)                                                                         (2)

where every edge has a gate at each part: one forward and one backward pass for all edges. The parts are the task's
roles and all other tokens, `rest`; each position belongs to one part, so that (2) adds up to the first-order effect of
the whole edge. The exact effects (1) need not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from rich.table import Table
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.circuit_views import library
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.effects import effects_against_circuit
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.evaluation.leave_one_out import each_without_at
from edgeprune.graph import EdgeGraph, RoleSpec
from edgeprune.json_numbers import json_fields, json_numbers
from edgeprune.methods.attribution import closing_effects
from edgeprune.methods.problem import Metric, Problem
from edgeprune.metrics.registry import measure_named
from edgeprune.models.circuit_run import state_bytes
from edgeprune.roles import REST, parts_of, positions_by_part, role_names
from edgeprune.tables import Numbers, table

if TYPE_CHECKING:
    import pandas

ALL_POSITIONS = "all positions"
MAX_EXACT = 40
_SHOWN_ROWS = 20
_WHAT = "effects by role, first order"
_BACKWARD = 2  # times the memory of a circuit's state that a run and its gradient take, about


@final
@dataclass(frozen=True, eq=False)
class RoleEffects:
    """Effects of a circuit's edges by position role; positive: closing the edge there makes the circuit worse.

    Means over examples; an example that lacks a role counts with 0.

    Attributes:
        graph: The graph.
        measure: Name of the measure.
        parts: Roles of the task, then `rest`, all other tokens, P of them.
        edges: Kept edges, `(reader, writer)`, E of them.
        first_order: (2), float64 `[E, P]`.
        exact_edges: Places in `edges` of those that were run, N of them, the largest first: by the sum of absolute
            first-order effects over parts.
        exact: (1), float64 `[N, P + 1]`; the last column is the edge closed at all positions.
        standard_errors: Of `exact` over examples, likewise; NaN with fewer than two.
        figure: The measure of the circuit.
        num_examples: Examples.
    """

    graph: EdgeGraph
    measure: str
    parts: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    first_order: Tensor
    exact_edges: tuple[int, ...]
    exact: Tensor
    standard_errors: Tensor
    figure: float
    num_examples: int

    def table(self) -> list[dict[str, Any]]:
        """A row for each edge, the largest first.

        Returns:
            Each with `edge`, `first_order` (by part and `all positions`), and `exact` and `standard_error` likewise;
            the latter two are None for edges that were not run.
        """
        names, run = (*self.parts, ALL_POSITIONS), {place: row for row, place in enumerate(self.exact_edges)}
        found: list[dict[str, Any]] = []
        for place in by_size(self.first_order).tolist():
            linear = self.first_order[place].tolist()
            row: dict[str, Any] = {
                "edge": self.graph.edge_name(*self.edges[place]),
                "first_order": dict(zip(names, [*linear, sum(linear)], strict=True)),
                "exact": None,
                "standard_error": None,
            }
            if place in run:
                for name, values in (("exact", self.exact), ("standard_error", self.standard_errors)):
                    row[name] = json_numbers(names, values[run[place]])
            found.append(row)
        return found

    def to_dataframe(self) -> "pandas.DataFrame":
        """One line for each edge and part, a table of pandas, a library of the extra `analysis`.

        Columns: `edge`, `part`, `first_order`, `exact`, `standard_error`; NaN where an edge was not run.
        """
        rows = [
            {
                "edge": row["edge"],
                "part": part,
                "first_order": value,
                **{name: (row[name] or {}).get(part) for name in ("exact", "standard_error")},
            }
            for row in self.table()
            for part, value in row["first_order"].items()
        ]
        columns = ["edge", "part", "first_order", "exact", "standard_error"]
        return library("pandas").DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[2:], "float64"))

    def weights(self) -> dict[str, float]:
        """How much hangs on each writer: the sum of its edges' absolute first-order effects, all positions together."""
        total = dict.fromkeys(self.graph.writers, 0.0)
        for (_, writer), value in zip(self.edges, self.first_order.sum(1).abs().tolist(), strict=True):
            total[self.graph.writers[writer]] += value
        return total

    def to_dict(self, max_rows: int | None = None) -> dict[str, Any]:
        """Plain values; `edges` as in `table`, `total` by part, the sum of all edges' first-order effects.

        Args:
            max_rows: Only the largest edges.
        """
        return json_fields(
            self,
            *("graph", "first_order", "exact_edges", "exact", "standard_errors"),
            better=measure_named(self.measure).better,
            num_edges=len(self.edges),
            num_exact=len(self.exact_edges),
            total=dict(zip(self.parts, self.first_order.sum(0).tolist(), strict=True)),
            edges=self.table()[:max_rows],
        )

    def __repr__(self) -> str:
        return (
            f"RoleEffects(on {self.measure} of {len(self.edges):,} edges to first order, {len(self.exact_edges)} "
            f"exactly, {self.num_examples} examples, by {', '.join(self.parts)})"
        )

    def __rich__(self) -> Table:
        which = "exact" if self.exact_edges else "first_order"
        title = f"{self!r}; {which.replace('_', '-')} effects"
        columns = ["edge", *(Numbers(name, 4, signed=True) for name in (*self.parts, ALL_POSITIONS))]
        shown = self.table()[: len(self.exact_edges) or _SHOWN_ROWS][:_SHOWN_ROWS]
        return table(title, columns, [[row["edge"], *row[which].values()] for row in shown])


def by_size(first_order: Tensor) -> Tensor:
    """Places of edges from the largest effect to the smallest: by the sum of absolute values over parts."""
    return first_order.abs().sum(1).argsort(descending=True, stable=True)


# -------------------------------------------------------------------- from runs
def role_effects(
    evaluator: Evaluator,
    circuit: Circuit,
    measure: Metric = "logit_difference",
    *,
    max_exact: int = MAX_EXACT,
    memory_gb: float = 2.0,
) -> RoleEffects:
    """What closing a circuit's edges at the positions of one role does.

    Args:
        evaluator: Model, ablation and pairs of a task with roles.
        circuit: The circuit.
        measure: What is measured: `"logit_difference"`, `"kl"`, or another that `edgeprune.methods.problem` has.
        max_exact: So many edges are also run exactly, those with the largest first-order effects; 0: none. One costs a
            partial run for each role and two more.
        memory_gb: For the runs, in 1e9 bytes.

    Raises:
        EdgepruneError: The circuit is of another graph, no prompt has a role, the measure is not defined for some pair,
            or a negative limit.
    """
    circuit.check_fits(evaluator.graph)
    if max_exact < 0:
        raise EdgepruneError(f"max_exact must be at least 0, got {max_exact}")
    roles = role_names(evaluator.batches)
    if not roles:
        raise EdgepruneError(
            "the task marks no position roles, so effects cannot be told apart by them; give its prompts `roles`, or "
            "look at whole edges with `edgeprune.evaluation.minimality`"
        )
    circuit.require_no_roles("the effects of closing an edge at parts of the prompt")
    keep = circuit.keep
    edges: tuple[tuple[int, int], ...] = tuple((reader, writer) for reader, writer in keep.nonzero().tolist())
    by_part = first_order_effects(evaluator, keep, measure, roles, memory_gb)[:, keep].T
    chosen = by_size(by_part)[:max_exact].tolist()

    def places(batch: PairBatch) -> Tensor:
        parts = positions_by_part(batch, roles)
        return torch.cat([parts, torch.ones_like(parts[:1])])

    found = each_without_at(evaluator, keep, [edges[place] for place in chosen], places, measure, memory_gb=memory_gb)
    compared, shape = effects_against_circuit(found, measure_named(measure).better), (len(chosen), len(roles) + 2)
    return RoleEffects(
        graph=evaluator.graph,
        measure=measure,
        parts=parts_of(roles),
        edges=edges,
        first_order=by_part,
        exact_edges=tuple(chosen),
        exact=compared.effects.view(shape),
        standard_errors=compared.errors.view(shape),
        figure=float(found.figures()[0, 0]),
        num_examples=evaluator.num_examples,
    )


def first_order_effects(
    evaluator: Evaluator, keep: Tensor, measure: Metric, roles: Sequence[str], memory_gb: float = 2.0
) -> Tensor:
    """(2) of every edge at a circuit's gates, mean over examples, float64 `[part, reader, writer]` on the CPU.

    Edges that are not kept have the effect of closing them further, which is no part of the circuit. The gates, and
    their gradient, take 4 * parts * readers * writers bytes each.

    Args:
        evaluator: Model, ablation and pairs.
        keep: The circuit, bool `[reader, writer]`.
        measure: What is measured.
        roles: Of the task; all other tokens are the last part.
        memory_gb: As many examples are run at once as this holds, in 1e9 bytes; one at least.

    Raises:
        EdgepruneError: A role is called `rest`, or the model's reads take no gates by role.
    """
    model = evaluator.model
    if REST in roles:
        raise EdgepruneError(f"a role of the task is called {REST!r}, the role of tokens without any; rename it")
    parts = RoleSpec(parts_of(roles))
    problem = Problem(model, evaluator.batches, evaluator.runs, measure, evaluator.split)
    gates = keep.to(model.device, torch.float64 if model.dtype == torch.float64 else torch.float32)
    gates = gates.expand(len(parts), -1, -1)
    total, done = torch.zeros(gates.shape, dtype=torch.float64), 0
    with evaluator.at_roles(parts):
        for batch in evaluator.batches:
            at_once = max(1, int(memory_gb * 1e9 / (_BACKWARD * state_bytes(model) * batch.clean.shape[1])))
            for start in range(0, len(batch), at_once):
                evaluator.progress(_WHAT, done, evaluator.num_examples)
                some = batch.rows(slice(start, start + at_once)).to(model.device)
                full, ablated = evaluator.runs(some, evaluator.split)
                total += closing_effects(problem, some, full, ablated, gates).cpu()
                done += len(some)
    evaluator.progress(_WHAT, done, evaluator.num_examples)
    return total / done
