"""Effects of closing edges one by one, by edge and by example: the numbers and their form, without any run.

See `edgeprune.evaluation.minimality` for (1), what an effect is.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from edgeprune.evaluation.leave_one_out import Edge
from edgeprune.graph import EdgeGraph
from edgeprune.json_numbers import json_fields
from edgeprune.metrics.examples import ExampleValues

ROUNDING = 1e-6  # of a figure, or absolute below 1: logits are compared in float32, so equal circuits differ by less
CHANGES_BYTES = 64 * 10**6  # kept of changes by example: 16 million, such as 32,000 edges on 500 examples
DECADES = 6  # of a histogram, below the largest effect
Better = Literal["low", "high", "100"]


class Histogram(NamedTuple):
    """Effects on a signed logarithmic scale: `bounds` `[bins + 1]` ascending, the middle bin around 0; `counts`."""

    bounds: list[float]
    counts: list[int]


@dataclass(frozen=True, eq=False)
class MarginalEffects:
    """What each of a circuit's edges is worth alone.

    Attributes:
        graph: The graph.
        measure: Name of the measure.
        better: Which of its values are good: `"low"`, `"high"`, `"100"`.
        edges: Kept edges that were closed, `(reader, writer)`, E of them.
        figure: Of the circuit itself.
        figures: Of the circuit without each edge, over the examples for which the measure is defined with and without
            it; float64 `[E]`, NaN if there are none.
        effects: (1), over the same examples, float64 `[E]`; positive: the edge is of use.
        standard_errors: Of the effects, over examples, float64 `[E]`; NaN with fewer than two.
        changes: Each example's part in an effect, float32 `[E, example]`: their mean is the effect, up to rounding.
            For a mean over examples it is how much worse the example is without the edge; for a ratio of means, and
            for distances to 100, the linear part of it. NaN where not defined; None if they took more than
            `CHANGES_BYTES`.
        index: Number of each example in its split, long `[example]`.
        idle: Edges whose effect is 0 by construction and was not run, bool `[E]`; see `idle_edges`.
        num_edges: Edges of the circuit.
        num_dangling: Those on no path from an embedding to the logits.
        chosen: Which edges were closed, in words.
    """

    graph: EdgeGraph
    measure: str
    better: Better
    edges: tuple[Edge, ...]
    figure: float
    figures: Tensor
    effects: Tensor
    standard_errors: Tensor
    changes: Tensor | None
    index: Tensor
    idle: Tensor
    num_edges: int
    num_dangling: int
    chosen: str

    @property
    def names(self) -> list[str]:
        """Names of the edges that were closed."""
        return [self.graph.edge_name(*edge) for edge in self.edges]

    @property
    def num_examples(self) -> int:
        """Examples."""
        return len(self.index)

    @property
    def rounding(self) -> float:
        """An effect as small as this is none."""
        return rounding(self.figure)

    def redundant(self, tolerance: float = 0.0) -> Tensor:
        """Edges with an effect of at most `tolerance`, give or take rounding: bool `[E]`. Never those without one."""
        return self.effects <= tolerance + self.rounding

    def by_effect(self) -> Tensor:
        """Places of the edges from the least effect to the greatest, those without one last; long `[E]`."""
        return self.effects.nan_to_num(nan=math.inf).argsort(stable=True)

    def histogram(self) -> Histogram:
        """How many effects there are of each size, two bins per decade and sign; none for edges without an effect.

        The largest bound is the least power of ten that no effect exceeds; the middle bin goes to a millionth of it.
        """
        effects = self.effects[self.effects.isfinite()]
        if not len(effects):
            return Histogram([], [])
        top = math.ceil(math.log10(max(float(effects.abs().max()), ROUNDING)))
        sizes = [10.0 ** (top - half / 2) for half in range(2 * DECADES + 1)]
        bounds = torch.tensor([*(-size for size in sizes), *reversed(sizes)], dtype=torch.float64)
        bins = (torch.bucketize(effects, bounds) - 1).clamp(0, len(bounds) - 2)
        return Histogram(bounds.tolist(), torch.bincount(bins, minlength=len(bounds) - 1).tolist())

    def to_dict(self, tolerance: float = 0.0) -> dict[str, Any]:
        """Plain values.

        Args:
            tolerance: Effect up to which an edge is called redundant, in units of the measure.

        Returns:
            `measure`, `better`, `figure` (of the circuit), `num_edges`, `num_dangling`, `num_examples`, `chosen`;
            `num_closed` and `num_idle`: edges that have an effect here, and those of them that were not run;
            `tolerance`, `rounding` (added to it), `num_redundant`, `share_redundant` (of those closed; None if there
            are none); `edges`: from the least effect to the greatest, each with `edge`, `effect`, `standard_error`,
            `figure` (without it), `redundant`, `idle`; `histogram`: `bounds`, `counts`. Numbers that are not defined
            are None.
        """
        redundant = self.redundant(tolerance)
        count, names, order = int(redundant.sum()), self.names, self.by_effect()
        columns = {
            "effect": self.effects,
            "standard_error": self.standard_errors,
            "figure": self.figures,
            "redundant": redundant,
            "idle": self.idle,
        }
        rows = zip(order.tolist(), *(column[order].tolist() for column in columns.values()), strict=True)
        return json_fields(
            self,
            *("graph", "figures", "effects", "standard_errors", "changes", "index", "idle"),
            num_examples=self.num_examples,
            num_closed=len(self.edges),
            num_idle=int(self.idle.sum()),
            tolerance=tolerance,
            rounding=self.rounding,
            num_redundant=count,
            share_redundant=count / len(self.edges) if self.edges else None,
            edges=[{"edge": names[place], **dict(zip(columns, row, strict=True))} for place, *row in rows],
            histogram=self.histogram(),
        )


def rounding(figure: float) -> float:
    """How far two circuits that are equal on paper may differ in a measure."""
    return ROUNDING * max(1.0, abs(figure))


def as_loss(figure: Tensor, better: Better) -> tuple[Tensor, Tensor]:
    """Figures as losses (lower is better), and the slope of the loss in the figure."""
    if better == "100":
        return (figure - 100).abs(), (figure - 100).sign()
    sign = 1.0 if better == "low" else -1.0
    return sign * figure, torch.full_like(figure, sign)


# -------------------------------------------------------------------- effects
class EdgeEffects(NamedTuple):
    """Figures, effects, standard errors `[edge]`, and changes `[edge, example]`, of some edges."""

    figures: Tensor
    effects: Tensor
    errors: Tensor
    changes: Tensor


def effects_against_circuit(found: ExampleValues, better: Better) -> EdgeEffects:
    """Circuits 1, 2, ... of one measure against circuit 0, each over the examples for which it is defined in both."""
    both = found.known[:1, 0] & found.known[1:, 0]
    count = both.sum(-1)
    before, parts_before = _shared_out(found.values[:1, 0], found.weights[:1, 0], both, better)
    figures, parts = _shared_out(found.values[1:, 0], found.weights[1:, 0], both, better)
    changes = (parts - parts_before).where(both, torch.nan)
    effects = as_loss(figures, better)[0] - as_loss(before, better)[0]
    squares = (changes - effects[:, None]).square().nansum(-1)
    return EdgeEffects(figures, effects, (squares / (count - 1) / count).sqrt(), changes)


def _shared_out(values: Tensor, weights: Tensor, known: Tensor, better: Better) -> tuple[Tensor, Tensor]:
    """Figures, and each example's part in their loss to first order, whose mean over known examples it is."""
    values, weights = values.where(known, 0.0), weights.where(known, 0.0)
    total = weights.sum(-1)
    figures = values.sum(-1) / total
    losses, slope = as_loss(figures, better)
    scale = slope * known.sum(-1) / total
    return figures, losses[:, None] + scale[:, None] * (values - figures[:, None] * weights)
