"""The circuit track of MIB: faithfulness of the ten circuits that one ranking of the edges gives, and areas below it.

For each share p in `SHARES` the n = int(p |E|) best edges are taken, those on no path from an embedding to the logits
are dropped, and f(p) = (m(p) - c) / (b - c), with m the figure of a measure, b the full model's and c that of the model
with every edge closed. Areas are sums of trapezoids over linear p, from 0.001 to 1; the point 0 is not among them:

- `cpr`, below f: a circuit as good as the model at every size has 0.999. f may exceed 1, so it has no upper bound.
- `cmd`, below |1 - f|: 0 is best; an empty circuit at every size has 0.999.
- `average`, the mean of f over the ten points.

MIB's tables have CPR from edges by score and CMD from edges by absolute score: `mib_curves` gives both. Large shares
carry most of the weight: half of the axis lies between the circuits of 50 % and of 100 % of the edges. For
`cpr_pruned_size` and `cmd_pruned_size` the axis is the share that was really kept, from the smallest of the ten to 1.

Source: MIB (arXiv 2504.13151) and its repository hannamw/MIB-circuit-track, `MIB_circuit_track/evaluation.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from edgeprune.graph import EdgeGraph
from edgeprune.json_numbers import json_fields
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.normalise import normalise

CurveRule = Literal["top_n", "greedy", "circuits"]
Ranking = Literal["signed", "absolute"]


# -------------------------------------------------------------------- areas
def mib_areas(figures: Tensor, shares: Sequence[float] | Tensor = SHARES) -> Tensor:
    """CPR, CMD and average from figures alone, for any number of samples of examples at once.

    >>> full, empty = 3.0, 1.0
    >>> mib_areas(torch.tensor([full, empty, *[3.0] * 10], dtype=torch.float64))
    tensor([0.9990, 0.0000, 1.0000], dtype=torch.float64)

    Args:
        figures: One measure of the full model, of the empty circuit, and of the circuits in the order of `shares`,
            `[..., 2 + points]`.
        shares: Place of each circuit on the axis, `[points]`, rising.

    Returns:
        `[..., 3]`; NaN where the full model and the empty circuit do not differ, or a figure is not defined.
    """
    faithfulness = mib_faithfulness(figures)
    axis = torch.as_tensor(shares, dtype=faithfulness.dtype, device=faithfulness.device)
    areas = (torch.trapezoid(values, axis) for values in (faithfulness, (1 - faithfulness).abs()))
    return torch.stack([*areas, faithfulness.mean(-1)], -1)


def mib_faithfulness(figures: Tensor) -> Tensor:
    """The f of every point, `[..., points]`, from figures as in `mib_areas`."""
    return normalise(figures[..., 2:, None], figures[..., :2, None])[..., 0]


# -------------------------------------------------------------------- results
class MibPoint(NamedTuple):
    """One circuit of a curve.

    Attributes:
        requested: The share of edges that was asked for.
        num_asked: int(requested x edges of the graph).
        num_kept: Edges of the circuit that was run.
        kept: Their share of the graph.
        circuit: Its number among the circuits given; None where it was cut from scores, is the whole model or is empty.
        value: Figure of the measure.
        faithfulness: f.
    """

    requested: float
    num_asked: int
    num_kept: int
    kept: float
    circuit: int | None
    value: float
    faithfulness: float


@final
@dataclass(frozen=True, eq=False)
class MibCurve:
    """A curve of MIB and its areas.

    `to_dict` has `cpr`, `cmd`, `average`, `cpr_pruned_size`, `cmd_pruned_size` (None where undefined) and
    `smallest_share` (where the axis of the last two starts); `measure`, `full` and `empty` (its figures at the ends),
    `split`, `ablation`, `num_examples`; `rule` (`"top_n"`, `"greedy"`, or `"circuits"` where these were given),
    `ranking` (`"signed"`, `"absolute"`, or None); `num_edges` (|E|), `num_edges_mib` (MIB's count of the model, with
    one embedding and k and v inputs of every query head) and `edges` (which were counted, in words); `missing` (shares
    with no circuit small enough) and `unused` (numbers of circuits that no share takes); and `points`, the fields of
    `MibPoint` by name.

    Attributes:
        graph: Its edges are those that were counted.
        values: Of the full model, of the empty circuit, and of the ten circuits, `[12, 1, example]`. Draw examples from
            it and give `mib_areas` the figures for an interval.
        chosen: What was run, one per share: what was asked for, the circuit, and its number.
        rule: As in `to_dict`.
        ranking: Likewise.
        num_circuits: How many circuits were given; 0 for scores.
        split: Which pairs.
        ablation: What closed edges carried.
    """

    graph: EdgeGraph
    values: ExampleValues
    chosen: tuple[ShareCircuit, ...]
    rule: CurveRule
    ranking: Ranking | None
    num_circuits: int
    split: str
    ablation: str

    @property
    def figures(self) -> Tensor:
        """Figures of the full model, of the empty circuit, and of the ten circuits, float64 `[12]`."""
        return self.values.figures()[:, 0]

    @property
    def points(self) -> tuple[MibPoint, ...]:
        """The ten circuits."""
        figures = self.figures
        columns = (self.chosen, self.kept_shares, figures[2:].tolist(), mib_faithfulness(figures).tolist())
        return tuple(
            MibPoint(one.requested, one.num_asked, one.num_kept, kept, one.circuit, value, faithfulness)
            for one, kept, value, faithfulness in zip(*columns, strict=True)
        )

    @property
    def kept_shares(self) -> tuple[float, ...]:
        """Share of the edges that each circuit really has, rising."""
        return tuple(one.num_kept / self.graph.num_edges for one in self.chosen)

    @property
    def areas(self) -> dict[str, float]:
        """`cpr`, `cmd`, `average`, `cpr_pruned_size`, `cmd_pruned_size`; NaN where undefined."""
        requested: list[float] = mib_areas(self.figures).tolist()
        kept: list[float] = mib_areas(self.figures, self.kept_shares).tolist()
        names = ("cpr", "cmd", "average", "cpr_pruned_size", "cmd_pruned_size")
        return dict(zip(names, (*requested, *kept[:2]), strict=True))

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


@final
@dataclass(frozen=True, eq=False)
class MibCurves:
    """Curves of one set of scores: of edges by score (`signed`) and by absolute score (`absolute`).

    `to_dict` has `cpr` of the one and `cmd` of the other, the two that MIB publishes, and all of each curve.
    """

    signed: MibCurve
    absolute: MibCurve

    def to_dict(self) -> dict[str, Any]:
        """Plain values; see the class."""
        signed, absolute = self.signed.to_dict(), self.absolute.to_dict()
        return {"cpr": signed["cpr"], "cmd": absolute["cmd"], "signed": signed, "absolute": absolute}


# -------------------------------------------------------------------- curves
def mib_curve(
    evaluator: Evaluator,
    circuits: Circuit | Sequence[Circuit],
    measure: str = "logit_difference",
    *,
    absolute: bool = False,
    rule: Rule | None = None,
) -> MibCurve:
    """The curve of the scores of one circuit, or of several circuits as they are.

    Of several circuits, each share takes the largest one with at most int(share x edges) edges, the first of equals. It
    is run as it is, dangling edges and all. Where none is small enough, the empty circuit stands in, and `missing` says
    so; share 1 is the whole model.

    Deviation: of circuits instead of scores MIB's code takes nine, sorted by size, and puts them on the first nine
    shares by rank, whatever their sizes are. If each fits its share but not the one before, both are the same.

    Args:
        evaluator: Runs the circuits, all in one call.
        circuits: A circuit with scores, whatever edges it keeps itself; or several circuits, with scores or without.
        measure: A name in `edgeprune.metrics.registry`.
        absolute: Rank edges by absolute score. Not for scores that are negative where an edge wants to be closed.
        rule: `"top_n"`, the best edges over the whole graph, or `"greedy"`, grown from the logits. None: what MIB does,
            which is to grow circuits of information flow routes and to take the best edges otherwise.

    Raises:
        EdgepruneError: A circuit of another graph, one without scores, none at all, no such measure or rule.
    """
    if isinstance(circuits, Circuit):
        return _curves_of_scores(evaluator, circuits, measure, rule, ["absolute" if absolute else "signed"])[0]
    given = list(circuits)
    if not given:
        raise EdgepruneError("a curve needs at least one circuit, got none")
    for circuit in given:
        circuit.check_fits(evaluator.graph)
    return _run(evaluator, measure, "circuits", {None: tuple(largest_fitting(evaluator.graph, given))}, len(given))[0]


def mib_curves(
    evaluator: Evaluator, circuit: Circuit, measure: str = "logit_difference", *, rule: Rule | None = None
) -> MibCurves:
    """The curves of the scores of a circuit by score and by absolute score, all circuits in one call of the evaluator.

    Arguments and errors as for `mib_curve`.
    """
    return MibCurves(*_curves_of_scores(evaluator, circuit, measure, rule, ["signed", "absolute"]))


def _curves_of_scores(
    evaluator: Evaluator, circuit: Circuit, measure: str, rule: Rule | None, rankings: Sequence[Ranking]
) -> list[MibCurve]:
    circuit.check_fits(evaluator.graph)
    rule = rule_for(circuit, rule)
    sizes = [int(share * evaluator.graph.num_edges) for share in SHARES]
    chosen: dict[Ranking | None, tuple[ShareCircuit, ...]] = {
        ranking: tuple(map(ShareCircuit, SHARES, sizes, chosen_edges(circuit, sizes, rule, ranking == "absolute")))
        for ranking in rankings
    }
    return _run(evaluator, measure, rule, chosen)


def _run(
    evaluator: Evaluator,
    measure: str,
    rule: CurveRule,
    circuits: Mapping[Ranking | None, tuple[ShareCircuit, ...]],
    num_circuits: int = 0,
) -> list[MibCurve]:
    """A curve for each ranking from the circuits chosen by it, all run in one call; equal circuits run once."""
    graph = evaluator.graph
    gates: dict[bytes, Tensor | None] = {_key(graph.exists): None, _key(graph.exists & False): graph.all_closed()}
    for chosen in circuits.values():
        for one in chosen:
            gates.setdefault(_key(one.keep), one.keep)
    values = evaluator(list(gates.values()), "curve of MIB", [measure])
    places = {key: place for place, key in enumerate(gates)}
    about = (num_circuits, evaluator.split, evaluator.runs.ablation)
    return [
        MibCurve(
            graph, values.circuits([0, 1, *(places[_key(one.keep)] for one in chosen)]), chosen, rule, ranking, *about
        )
        for ranking, chosen in circuits.items()
    ]


def _key(keep: Tensor) -> bytes:
    return keep.numpy().tobytes()
