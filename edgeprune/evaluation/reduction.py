"""Make a circuit smaller, greedily, as long as a measure stays within a budget of what the circuit had at first.

    limit = b(f of the circuit) + budget, with the badness b of `edgeprune.evaluation.effects`                       (1)

A round closes every edge alone (`marginal_effects`) and queues those that the limit allows to go, the least effect
first. Then blocks from the front of the queue are closed together, and the circuit that is left is run: within the
limit, the block stays closed and the next one is twice as long; beyond it, the block is halved, and a block of one edge
is passed over. Effects of several edges do not add up, so only what was run counts: every circuit on the path was.

With `exhaustive` there are rounds until one closes nothing: then no single edge can go. Several together still might;
finding the smallest circuit takes all subsets (`edgeprune.evaluation.brute_force`).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.effects import Better, MarginalEffects, badness, rounding
from edgeprune.evaluation.evaluator import Evaluator, open_edges
from edgeprune.evaluation.minimality import marginal_effects
from edgeprune.evaluation.one_less import Edge, idle_edges
from edgeprune.json_numbers import json_number
from edgeprune.metrics.registry import measure_named


class Step(NamedTuple):
    """A circuit on the way: how many edges it has left, and its figure."""

    num_edges: int
    figure: float


@dataclass(frozen=True, eq=False)
class Reduction:
    """A smaller circuit that does as well, within a budget.

    Attributes:
        keep: Its edges, bool `[reader, writer]`.
        measure: Name of the measure.
        path: From the circuit at first to the smaller one, every circuit that was within the limit and run.
        budget: By how much the measure may be worse, in its own unit.
        rounding: Added to the budget, as sums in another order differ in their last digits.
        num_examples: Examples.
        num_rounds: How often all edges were closed one by one.
        num_evaluations: Circuits that were run on all examples, those of the rounds included.
        irreducible: Whether it is known that no single edge can go within the budget.
    """

    keep: Tensor
    measure: str
    path: tuple[Step, ...]
    budget: float
    rounding: float
    num_examples: int
    num_rounds: int
    num_evaluations: int
    irreducible: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values.

        Returns:
            `measure`, `budget`, `rounding`, `num_examples`, `num_rounds`, `num_evaluations`, `irreducible`; of the
            circuit at first `num_edges_before`, `figure_before`, and of the smaller one `num_edges`, `figure`;
            `share_removed` (None if there was no edge); `path`: `num_edges` and `figure` of each circuit on the way.
        """
        first, last = self.path[0], self.path[-1]
        return {
            "measure": self.measure,
            "budget": self.budget,
            "rounding": self.rounding,
            "num_examples": self.num_examples,
            "num_rounds": self.num_rounds,
            "num_evaluations": self.num_evaluations,
            "irreducible": self.irreducible,
            "num_edges_before": first.num_edges,
            "figure_before": json_number(first.figure),
            "num_edges": last.num_edges,
            "figure": json_number(last.figure),
            "share_removed": 1 - last.num_edges / first.num_edges if first.num_edges else None,
            "path": [{"num_edges": step.num_edges, "figure": json_number(step.figure)} for step in self.path],
        }


def reduce_circuit(
    evaluator: Evaluator,
    keep: Tensor,
    measure: str = "kl",
    budget: float = 0.0,
    *,
    relative: bool = False,
    exhaustive: bool = False,
    max_examples: int | None = None,
    reuse: bool = True,
    memory_gb: float = 2.0,
) -> Reduction:
    """Close edges with little effect until the budget is spent.

    Args:
        evaluator: Runs circuits on pairs.
        keep: The circuit, `[reader, writer]`.
        measure: A name in `edgeprune.metrics.registry`.
        budget: By how much the measure may become worse than the circuit's own, at least 0.
        relative: The budget is a share of the size of the circuit's own figure.
        exhaustive: Go on until no single edge can go; otherwise there is one round.
        max_examples: Use only the first of the evaluator's pairs.
        reuse: As for `marginal_effects`.
        memory_gb: Likewise.

    Raises:
        EdgepruneError: The budget is negative or not a number; or as `marginal_effects`.
    """
    if not 0 <= budget < math.inf:
        raise EdgepruneError(
            f"budget must be a number of at least 0, got {budget}: by how much the measure may be worse"
        )
    if max_examples is not None:
        evaluator = evaluator.limited(max_examples)
    search = _Search(evaluator, open_edges(evaluator, keep), measure)
    search.set_limit(budget * abs(search.path[0].figure) if relative else budget)
    while True:
        before = search.path[-1].num_edges
        effects = marginal_effects(evaluator, search.keep, measure, reuse=reuse, memory_gb=memory_gb)
        search.round(effects)
        if search.path[-1].num_edges == before or not exhaustive:
            break
    return search.result(irreducible=search.path[-1].num_edges == before)


@final
class _Search:
    """The circuit so far, and how it came about."""

    def __init__(self, evaluator: Evaluator, keep: Tensor, measure: str) -> None:
        self.evaluator, self.keep, self.measure = evaluator, keep, measure
        self.better: Better = measure_named(measure).better
        self.num_rounds = self.num_evaluations = 0
        self.path = [self._run(keep)]

    def set_limit(self, budget: float) -> None:
        """Allow this much above the badness of the circuit at first."""
        self.budget, self.rounding = budget, rounding(self.path[0].figure)
        self.limit = self._badness(self.path[0]) + budget + self.rounding

    def round(self, effects: MarginalEffects) -> None:
        """Close blocks of the edges that can go alone; a block that is beyond the limit is halved."""
        self.num_rounds += 1
        self.num_evaluations += 1 + int((~effects.idle).sum())
        slack = self.limit - self._badness(self.path[-1])
        order = [place for place in effects.by_effect().tolist() if effects.effects[place] <= slack]
        queue = [effects.edges[place] for place in order]
        spent = effects.effects[order].clamp(min=0).cumsum(0)
        size = max(1, int((spent <= slack).sum()))
        while queue:
            block = queue[:size]
            if self._close(block):
                queue = [edge for edge in queue[size:] if self.keep[edge]]
                size *= 2
            elif size == 1:
                queue = queue[1:]
            else:
                size = -(-len(block) // 2)

    def _close(self, block: list[Edge]) -> bool:
        """Close some edges, and those that are idle without them, if the limit allows it."""
        keep = self.keep.clone()
        keep[tuple(torch.tensor(block).T)] = False
        keep &= ~idle_edges(self.evaluator, keep)
        step = self._run(keep)
        if not self._badness(step) <= self.limit:  # NaN is beyond it
            return False
        self.keep = keep
        self.path.append(step)
        return True

    def _run(self, keep: Tensor) -> Step:
        self.num_evaluations += 1
        found = self.evaluator([keep], "blocks of edges closed", [self.measure])
        return Step(int(keep.sum()), found.figure(self.measure))

    def _badness(self, step: Step) -> float:
        return float(badness(torch.tensor(step.figure, dtype=torch.float64), self.better)[0])

    def result(self, irreducible: bool) -> Reduction:
        """The circuit that is left."""
        return Reduction(
            keep=self.keep,
            measure=self.measure,
            path=tuple(self.path),
            budget=self.budget,
            rounding=self.rounding,
            num_examples=self.evaluator.num_examples,
            num_rounds=self.num_rounds,
            num_evaluations=self.num_evaluations,
            irreducible=irreducible,
        )
