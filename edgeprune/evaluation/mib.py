"""The circuit track of MIB: faithfulness of the ten circuits that one ranking of the edges gives, and areas below it.

For each share p in `SHARES` the n = int(p |E|) best edges are taken, those on no path from an embedding to the logits
are dropped, and f(p) = (m(p) - c) / (b - c), with m the figure of a measure, b the full model's and c that of the model
with every edge closed. Areas are sums of trapezoids over linear p, from 0.001 to 1; the point 0 is not among them:

- `cpr`, below f: a circuit as good as the model at every size has 0.999. f may exceed 1, so it has no upper bound.
- `cmd`, below |1 - f|: 0 is best; an empty circuit at every size has 0.999.
- `average`, the mean of f over the ten points.
- `accuracy_area`, below the accuracy over the logarithm of p, divided by log(1 / 0.001): the mean accuracy where every
  halving of a circuit counts alike. Not MIB's; see `accuracy_area`.

MIB's tables have CPR from edges by score and CMD from edges by absolute score: `mib_curves` gives both. Large shares
carry most of the weight: half of the axis lies between the circuits of 50 % and of 100 % of the edges. For
`cpr_pruned_size` and `cmd_pruned_size` the axis is the share that was really kept, from the smallest of the ten to 1.
All areas have intervals over examples, from the same resamples for every curve on the same pairs.

Source: MIB (arXiv 2504.13151) and its repository hannamw/MIB-circuit-track, `MIB_circuit_track/evaluation.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.evaluation.mib_circuits import (
    SHARES,
    Rule,
    ShareCircuit,
    chosen_edges,
    counted_edges,
    largest_fitting,
    mib_graph,
    rule_for,
)
from edgeprune.evaluation.size_areas import accuracy_area, mib_areas, mib_faithfulness
from edgeprune.graph import EdgeGraph
from edgeprune.json_numbers import json_fields
from edgeprune.metrics.examples import ExampleValues
from edgeprune.statistics.uncertainty import Estimate, Resampling, bootstrap_of

AREAS = ("cpr", "cmd", "average", "cpr_pruned_size", "cmd_pruned_size", "accuracy_area")
ACCURACY = "accuracy"
CurveRule = Literal["top_n", "greedy", "circuits"]
Ranking = Literal["signed", "absolute"]


# -------------------------------------------------------------------- results
class MibPoint(NamedTuple):
    """One circuit of a curve.

    Attributes:
        requested: The share of edges that was asked for.
        num_asked: requested x edges of the graph, rounded down; to the nearest for circuits that were given.
        num_kept: Edges of the circuit that was run.
        kept: Their share of the graph.
        circuit: Its number among the circuits given; None where it was cut from scores, is the whole model or is empty.
        value: Figure of the measure.
        faithfulness: f.
        accuracy: The circuit's; NaN where it is not defined.
    """

    requested: float
    num_asked: int
    num_kept: int
    kept: float
    circuit: int | None
    value: float
    faithfulness: float
    accuracy: float


@final
@dataclass(frozen=True, eq=False)
class MibCurve:
    """A curve of MIB and its areas.

    `to_dict` has the `AREAS` by name (None where undefined), the same under `intervals` with `value`, `low`, `high` and
    `num_examples`, and `smallest_share` (where the axis of those of the pruned size starts); `measure`, `full` and
    `empty` (its figures at the ends), `split`, `ablation`, `num_examples`; `rule` (`"top_n"`, `"greedy"`, or
    `"circuits"` where these were given), `ranking` (`"signed"`, `"absolute"`, or None); `num_edges` (|E|),
    `num_edges_mib` (MIB's count of the model, with one embedding and k and v inputs of every query head) and `edges`
    (which were counted, in words); `missing` (shares with no circuit small enough) and `unused` (numbers of circuits
    that no share takes); `points`, the fields of `MibPoint` by name; and `resampling`.

    Attributes:
        graph: Its edges are those that were counted.
        values: Of the full model, of the empty circuit, and of the ten circuits, `[12, measure, example]`: the measure,
            and accuracy where that is another one and was taken.
        chosen: What was run, one per share: what was asked for, the circuit, and its number.
        rule: As in `to_dict`.
        ranking: Likewise.
        num_circuits: How many circuits were given; 0 for scores.
        split: Which pairs.
        ablation: What closed edges carried.
        resampling: How intervals are made.
    """

    graph: EdgeGraph
    values: ExampleValues
    chosen: tuple[ShareCircuit, ...]
    rule: CurveRule
    ranking: Ranking | None
    num_circuits: int
    split: str
    ablation: str
    resampling: Resampling = field(default_factory=Resampling)

    @property
    def figures(self) -> Tensor:
        """Figures of the measure: of the full model, of the empty circuit, and of the ten circuits, float64 `[12]`."""
        return self.values.figures()[:, 0]

    @property
    def accuracies(self) -> Tensor:
        """Accuracy of the ten circuits, float64 `[10]`; NaN where it was not taken or is not defined."""
        if ACCURACY not in self.values.measures:
            return torch.full((len(self.chosen),), math.nan, dtype=torch.float64)
        return self.values.only([ACCURACY]).figures()[2:, 0]

    @property
    def points(self) -> tuple[MibPoint, ...]:
        """The ten circuits."""
        figures = self.figures
        rows = zip(*(part.tolist() for part in (figures[2:], mib_faithfulness(figures), self.accuracies)), strict=True)
        return tuple(
            MibPoint(one.requested, one.num_asked, one.num_kept, kept, one.circuit, *row)
            for one, kept, row in zip(self.chosen, self.kept_shares, rows, strict=True)
        )

    @property
    def kept_shares(self) -> tuple[float, ...]:
        """Share of the edges that each circuit really has, rising."""
        return tuple(one.num_kept / self.graph.num_edges for one in self.chosen)

    @cached_property
    def intervals(self) -> dict[str, Estimate]:
        """The `AREAS` with their intervals over examples; NaN where undefined."""
        found = self._resampled(self._areas, self.values.measures[0])
        known = ACCURACY in self.values.measures
        unknown = Estimate(math.nan, math.nan, math.nan, 0)
        (accuracy,) = self._resampled(_accuracy_area, ACCURACY) if known else [unknown]
        return dict(zip(AREAS, (*found, accuracy), strict=True))

    def _areas(self, figures: Tensor) -> Tensor:
        """The areas of the measure, `[draw, area]`, from its figures `[draw, 12, 1]`."""
        kept = mib_areas(figures[..., 0], self.kept_shares)
        return torch.cat([mib_areas(figures[..., 0]), kept[..., :2]], -1)

    def _resampled(self, areas: Callable[[Tensor], Tensor], measure: str) -> list[Estimate]:
        found = bootstrap_of(self.values, areas, **vars(self.resampling), measures=[measure])
        return [found.at(place) for place in range(len(found.value))]

    @property
    def areas(self) -> dict[str, float]:
        """The `AREAS`; NaN where undefined."""
        return {name: found.value for name, found in self.intervals.items()}

    @property
    def missing(self) -> tuple[float, ...]:
        """Shares for which no circuit given was small enough: the empty one stands in."""
        return tuple(one.requested for one in self.chosen if one.stands_in)

    @property
    def unused(self) -> tuple[int, ...]:
        """Numbers of the circuits given that no share takes."""
        used = {one.circuit for one in self.chosen}
        return tuple(number for number in range(self.num_circuits) if number not in used)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; see the class."""
        full, empty = self.figures[:2].tolist()
        return json_fields(
            self,
            *("graph", "values", "chosen", "num_circuits"),
            **self.areas,
            intervals=self.intervals,
            smallest_share=self.kept_shares[0],
            measure=self.values.measures[0],
            full=full,
            empty=empty,
            num_examples=self.values.num_examples,
            num_edges=self.graph.num_edges,
            num_edges_mib=mib_graph(self.graph).num_edges,
            edges=counted_edges(self.graph),
            missing=self.missing,
            unused=self.unused,
            points=self.points,
        )


def _accuracy_area(figures: Tensor) -> Tensor:
    """`[draw, 1]` from accuracies of the full model, the empty circuit and the ten, `[draw, 12, 1]`."""
    return accuracy_area(figures[..., 2:, 0])[..., None]


@final
@dataclass(frozen=True, eq=False)
class MibCurves:
    """Curves of one set of scores: of edges by score (`signed`) and by absolute score (`absolute`).

    `to_dict` has `cpr` and `accuracy_area` of the one and `cmd` of the other, as they are published, and all of each.
    """

    signed: MibCurve
    absolute: MibCurve

    def to_dict(self) -> dict[str, Any]:
        """Plain values; see the class."""
        signed, absolute = self.signed.to_dict(), self.absolute.to_dict()
        published = {"cpr": signed["cpr"], "cmd": absolute["cmd"], "accuracy_area": signed["accuracy_area"]}
        return {**published, "signed": signed, "absolute": absolute}


# -------------------------------------------------------------------- curves
def mib_curve(
    evaluator: Evaluator,
    circuits: Circuit | Sequence[Circuit],
    measure: str = "logit_difference",
    *,
    absolute: bool = False,
    rule: Rule | None = None,
    resampling: Resampling | None = None,
) -> MibCurve:
    """The curve of the scores of one circuit, or of several circuits as they are.

    Of several circuits, each share takes the largest one that fits it, the first of equals; a circuit of a sparsity
    fits the share that this leaves, rounded to the nearest edge as it was. It is run as it is, dangling edges and all.
    Where none is small enough, the empty circuit stands in, and `missing` says so; share 1 is the whole model.

    Deviation: of circuits instead of scores MIB's code takes nine, sorted by size, and puts them on the first nine
    shares by rank, whatever their sizes are. If each fits its share but not the one before, both are the same.

    Args:
        evaluator: Runs the circuits, all in one call.
        circuits: A circuit with scores, whatever edges it keeps itself; or several circuits, with scores or without.
        measure: A name in `edgeprune.metrics.registry`.
        absolute: Rank edges by absolute score. Not for scores that are negative where an edge wants to be closed.
        rule: `"top_n"`, the best edges over the whole graph, or `"greedy"`, grown from the logits. None: what MIB does,
            which is to grow circuits of information flow routes and to take the best edges otherwise.
        resampling: How intervals are made; None: as usual.

    Raises:
        EdgepruneError: A circuit of another graph, one without scores, none at all, no such measure or rule.
    """
    if isinstance(circuits, Circuit):
        rankings: list[Ranking] = ["absolute" if absolute else "signed"]
        return _curves_of_scores(evaluator, circuits, measure, rule, rankings, resampling)[0]
    given = list(circuits)
    if not given:
        raise EdgepruneError("a curve needs at least one circuit, got none")
    for circuit in given:
        circuit.check_fits(evaluator.graph)
    chosen: dict[Ranking | None, tuple[ShareCircuit, ...]] = {None: tuple(largest_fitting(evaluator.graph, given))}
    return _run(evaluator, measure, "circuits", chosen, resampling, len(given))[0]


def measured_curve(
    values: ExampleValues,
    circuits: Sequence[Circuit],
    measure: str,
    about: tuple[str, str],
    resampling: Resampling | None = None,
) -> MibCurve:
    """The curve of several circuits as they are, as `mib_curve`, of which the values are there already.

    Args:
        values: Of the full model, of the empty circuit, and of each circuit, `[2 + circuits, measure, example]`.
        circuits: At least one.
        measure: A name among the measures of `values`.
        about: Split and ablation.
        resampling: How intervals are made; None: as usual.
    """
    graph = circuits[0].graph
    chosen = tuple(largest_fitting(graph, circuits))
    known = [name for name in dict.fromkeys((measure, ACCURACY)) if name in values.measures]
    places = [1 if one.stands_in else 0 if one.circuit is None else 2 + one.circuit for one in chosen]
    taken = values.only(known).circuits([0, 1, *places])
    return MibCurve(graph, taken, chosen, "circuits", None, len(circuits), *about, resampling or Resampling())


def mib_curves(
    evaluator: Evaluator,
    circuit: Circuit,
    measure: str = "logit_difference",
    *,
    rule: Rule | None = None,
    resampling: Resampling | None = None,
) -> MibCurves:
    """The curves of the scores of a circuit by score and by absolute score, all circuits in one call of the evaluator.

    Arguments and errors as for `mib_curve`.
    """
    return MibCurves(*_curves_of_scores(evaluator, circuit, measure, rule, ["signed", "absolute"], resampling))


def _curves_of_scores(
    evaluator: Evaluator,
    circuit: Circuit,
    measure: str,
    rule: Rule | None,
    rankings: Sequence[Ranking],
    resampling: Resampling | None,
) -> list[MibCurve]:
    circuit.check_fits(evaluator.graph)
    rule = rule_for(circuit, rule)
    sizes = [int(share * evaluator.graph.num_edges) for share in SHARES]
    chosen: dict[Ranking | None, tuple[ShareCircuit, ...]] = {
        ranking: tuple(map(ShareCircuit, SHARES, sizes, chosen_edges(circuit, sizes, rule, ranking == "absolute")))
        for ranking in rankings
    }
    return _run(evaluator, measure, rule, chosen, resampling)


def _run(
    evaluator: Evaluator,
    measure: str,
    rule: CurveRule,
    circuits: Mapping[Ranking | None, tuple[ShareCircuit, ...]],
    resampling: Resampling | None,
    num_circuits: int = 0,
) -> list[MibCurve]:
    """A curve for each ranking from the circuits chosen by it, all run in one call; equal circuits run once."""
    graph = evaluator.graph
    gates: dict[bytes, Tensor | None] = {_key(graph.exists): None, _key(graph.exists & False): graph.all_closed()}
    for chosen in circuits.values():
        for one in chosen:
            gates.setdefault(_key(one.keep), one.keep)
    values = evaluator(list(gates.values()), "curve of MIB", list(dict.fromkeys((measure, ACCURACY))))
    places = {key: place for place, key in enumerate(gates)}
    about = (num_circuits, evaluator.split, evaluator.runs.ablation, resampling or Resampling())
    return [
        MibCurve(
            graph, values.circuits([0, 1, *(places[_key(one.keep)] for one in chosen)]), chosen, rule, ranking, *about
        )
        for ranking, chosen in circuits.items()
    ]


def _key(keep: Tensor) -> bytes:
    return keep.numpy().tobytes()
