"""Circuits of one model evaluated on the same pairs, as the plain values that `edgeprune evaluate` writes.

The form of the result (schema `edgeprune-evaluation/1`) is described in docs/guides/evaluation.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, final

from torch import Tensor

from edgeprune.canonical import CanonicalCircuit
from edgeprune.circuit import Circuit
from edgeprune.comparison.known import against_known
from edgeprune.comparison.overlap import compare_every_two, edge_kinds, reader_layers
from edgeprune.console import Progress
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.completeness import KnockOutOptions, find_completeness
from edgeprune.evaluation.controls import run_controls
from edgeprune.evaluation.evaluator import Evaluator, answer_measure, divergence_measure
from edgeprune.evaluation.functional import functional_test
from edgeprune.evaluation.hypothesis import HypothesisOptions, run_hypothesis_tests
from edgeprune.evaluation.mib import mib_curves
from edgeprune.evaluation.minimality import marginal_effects
from edgeprune.evaluation.random_paths import inflated_circuits, useful_edges
from edgeprune.evaluation.suffix import ablate_suffix
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.measure import BothGates, CircuitGates, gates_of, random_like
from edgeprune.metrics.normalise import normalise
from edgeprune.metrics.registry import measure_named
from edgeprune.models.weight_mask import applied_mask
from edgeprune.report.ladders import sections_of_runs
from edgeprune.report.weights import describe_mask
from edgeprune.statistics.paired import paired_differences
from edgeprune.statistics.seeds import over_seeds, spread_of_seeds
from edgeprune.statistics.significance import minimality_test
from edgeprune.statistics.uncertainty import Intervals, Resampling, bootstrap, bootstrap_of, by_label

SCHEMA = "edgeprune-evaluation/1"
Json = dict[str, Any]


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What `evaluate_circuits` does with every circuit.

    Attributes:
        tests: Names in `TESTS`.
        seeds: Random circuits of the same size, for the controls.
        pairs: Whether every two circuits are compared.
        resampling: How intervals are made.
        labels: What is known about the pairs, such as their template: by name one value per pair.
        known: Known circuits to compare with, by name.
        num_test_examples: The tests run on the first so many pairs.
        num_minimality_edges: Edges whose own effect is found: of more, those with the lowest scores.
        num_random: Random circuits, and random edges, that the tests of hypotheses compare with.
        knock_outs: How many sets of nodes the test of completeness knocks out.
    """

    tests: tuple[str, ...] = ()
    seeds: int = 5
    pairs: bool = True
    resampling: Resampling = field(default_factory=Resampling)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    known: Mapping[str, CanonicalCircuit | Circuit] = field(default_factory=dict[str, CanonicalCircuit | Circuit])
    num_test_examples: int = 50
    num_minimality_edges: int = 200
    num_random: int = 40
    knock_outs: KnockOutOptions = field(default_factory=lambda: KnockOutOptions(max_singles=20, restarts=2, steps=4))

    def __post_init__(self) -> None:
        if unknown := [name for name in self.tests if name not in TESTS]:
            raise EdgepruneError(f"tests are {', '.join(TESTS)}, or all; got {unknown[0]!r}")
        for name in ("seeds", "num_test_examples", "num_minimality_edges", "num_random"):
            if getattr(self, name) < 1:
                raise EdgepruneError(f"{name} must be at least 1, got {getattr(self, name)}")


# -------------------------------------------------------------------- everything
def evaluate_circuits(
    evaluators: Mapping[str, Evaluator], circuits: Mapping[str, Circuit], options: EvaluationOptions
) -> Json:
    """Evaluate circuits under every ablation; tests, labels and comparisons are made under the first.

    Args:
        evaluators: By name of the ablation; all of one model, on the same pairs.
        circuits: By name.
        options: What to do with each circuit.

    Returns:
        `schema`, `measures`, `ends`, `circuits`, `pairs`, `seeds` and `runs`, and where a mask lies on the weights
        `weights`; the caller adds `about`.
    """
    check_tests(circuits, options.tests)
    rows: list[Json] = [{"name": name, **_about(circuit)} for name, circuit in circuits.items()]
    chosen = list(circuits.values())
    found = {name: _run(evaluator, name, chosen, options) for name, evaluator in evaluators.items()}
    for place, row in enumerate(rows):
        row["ablations"] = {name: one.section(place) for name, one in found.items()}
    ends = {name: {"full": one.named(0), "empty": one.named(1)} for name, one in found.items()}
    main = next(iter(evaluators))
    _add_labels(rows, found[main].values, options)
    progress = evaluators[main].progress
    pairs = list(_pairs(chosen, found[main].values, options.resampling, progress)) if options.pairs else []
    about = evaluators[main].split, evaluators[main].runs.ablation
    runs = sections_of_runs(chosen, found[main].values.circuits(slice(2 + len(chosen))), about, options.resampling)
    tested = evaluators[main].limited(options.num_test_examples)
    for row, circuit in zip(rows, chosen, strict=True):
        row["known"] = {name: against_known(circuit.union(), truth).to_dict() for name, truth in options.known.items()}
        for name in options.tests:
            with tested.on_graph_of(circuit):
                row[name] = TESTS[name](tested, circuit, options)
    return {
        "schema": SCHEMA,
        "measures": _definitions(tested),
        "ends": ends,
        "circuits": rows,
        "pairs": pairs,
        "seeds": list(spread_of_seeds(chosen, rows)),
        "runs": list(runs),
        **_weights(tested),
    }


def _weights(evaluator: Evaluator) -> Json:
    """The mask on the model's weights, if there is one."""
    applied = applied_mask(evaluator.model)
    return {} if applied is None else {"weights": describe_mask(applied.mask)}


def _about(circuit: Circuit) -> Json:
    """What is known of a circuit without running it."""
    graph, header, plain = circuit.graph, circuit.header, circuit.graph.without_roles
    return {
        "method": header.get("method"),
        "seed": header.get("seed"),
        "objective": header.get("objective", "kl"),
        "edges": circuit.num_edges,
        "all_edges": graph.num_edges,
        "sparsity": circuit.sparsity,
        "dangling": circuit.num_dangling,
        "nodes": len(circuit.nodes()),
        "layers": {name: _counts(circuit, edges) for name, edges in reader_layers(plain)},
        "kinds": {name: _counts(circuit, edges) for name, edges in edge_kinds(plain)},
        **({"roles": list(circuit.roles), "union": _union(circuit)} if circuit.roles else {}),
        **({} if circuit.attend is None else {"attention": _attention(circuit)}),
    }


def _attention(circuit: Circuit) -> Json:
    """How many of a circuit's attention edges are open."""
    edges, existing = len(circuit.attention_edges()), circuit.graph.attention.num_edges
    return {"edges": edges, "all_edges": existing, "sparsity": 1 - edges / existing}


def _union(circuit: Circuit) -> Json:
    """Size of the circuit without roles that keeps an edge if this one does at any."""
    union = circuit.union()
    sizes = {"edges": union.num_edges, "all_edges": union.graph.num_edges, "sparsity": union.sparsity}
    return {**sizes, "dangling": union.num_dangling}


def _counts(circuit: Circuit, edges: Tensor) -> dict[str, int]:
    return {"kept": int((circuit.keep & edges).sum()), "existing": int((circuit.graph.exists & edges).sum())}


def _definitions(evaluator: Evaluator) -> Json:
    measures = [measure_named(name) for name in evaluator.measures]
    names = ("heading", "unit", "better", "range", "definition", "source")
    return {measure.name: {name: getattr(measure, name) for name in names} for measure in measures}


# -------------------------------------------------------------------- under one ablation
@final
@dataclass(frozen=True, eq=False)
class _Found:
    """Values of the full model (0), the empty circuit (1), the circuits (from 2 on), then the random ones.

    `random` has for every circuit the places of the random circuits of its size.
    """

    values: ExampleValues
    random: list[list[int]]
    intervals: Intervals
    normalised: Intervals

    def named(self, place: int) -> Json:
        """Figures of one circuit by measure."""
        return {name: self.intervals.of(name, place).to_dict() for name in self.values.measures}

    def section(self, circuit: int) -> Json:
        """Of one circuit: its figures, normalised ones, and those of random circuits of its size."""
        measures = self.values.measures
        defined = self.values.defined()[[0, 1, circuit + 2]].amin(0).tolist()
        normalised = {
            name: self.normalised.at(circuit, place).to_dict() | {"num_examples": defined[place]}
            for place, name in enumerate(measures)
        }
        rows = self.values.circuits(self.random[circuit]).as_dicts()
        spread = over_seeds([{name: row[name] for name in measures} for row in rows])
        return {
            "measures": self.named(circuit + 2),
            "normalised": normalised,
            "random": {name: found.to_dict() for name, found in spread.items()},
        }


def _run(evaluator: Evaluator, ablation: str, circuits: Sequence[Circuit], options: EvaluationOptions) -> _Found:
    """Run the circuits and their random controls under one ablation."""
    closed = evaluator.graph.without_roles.all_closed()
    matrices: list[CircuitGates | None] = [None, closed, *map(gates_of, circuits)]
    places: dict[tuple[bool, int, int | None], list[int]] = {}
    for circuit in circuits:
        if (size := _size(circuit)) not in places:
            places[size] = list(range(len(matrices), len(matrices) + options.seeds))
            matrices += [gates_of(random_like(circuit, seed)) for seed in range(options.seeds)]
    values = evaluator(matrices, f"circuits, {ablation}")
    draws = vars(options.resampling)
    evaluated = values.circuits(slice(len(circuits) + 2))
    normalised = bootstrap_of(evaluated, lambda figures: normalise(figures[:, 2:], figures[:, :2]), **draws)
    random = [places[_size(circuit)] for circuit in circuits]
    return _Found(values, random, bootstrap(evaluated, **draws), normalised)


def _size(circuit: Circuit) -> tuple[bool, int, int | None]:
    """What a random circuit has in common with this one: whether edges are at roles, and how many of both kinds."""
    return bool(circuit.roles), circuit.num_edges, None if circuit.attend is None else int(circuit.attend.sum())


def _add_labels(rows: list[Json], values: ExampleValues, options: EvaluationOptions) -> None:
    """Figures by template, order, ...; the first circuits in `values` are the full model and the empty circuit."""
    evaluated = values.circuits(slice(2, 2 + len(rows)))
    found = by_label(evaluated, options.labels, **vars(options.resampling)).to_dict()
    for place, row in enumerate(rows):
        row["labels"] = {
            name: {
                value: {"num_examples": group["num_examples"], "measures": group["circuits"][place]}
                for value, group in groups.items()
            }
            for name, groups in found["groups"].items()
        }
        row["labels_skipped"] = found["skipped"]


def _pairs(
    circuits: Sequence[Circuit], values: ExampleValues, resampling: Resampling, progress: Progress
) -> Iterator[Json]:
    """Every two circuits: what they share, unions if only some have roles, and how their figures differ."""
    evaluated = values.circuits(slice(2, 2 + len(circuits)))
    differences = paired_differences(evaluated, **vars(resampling), report=progress)
    places = combinations(range(len(circuits)), 2)
    of_unions = any(circuit.graph != circuits[0].graph for circuit in circuits)
    shared = compare_every_two([circuit.union() for circuit in circuits] if of_unions else circuits)
    for (a, b), overlap, found in zip(places, shared, differences, strict=True):
        about = {"a": a, "b": b, **({"of_unions": True} if of_unions else {})}
        yield {**about, **overlap, "differences": {name: one.to_dict() for name, one in found.items()}}


# -------------------------------------------------------------------- tests
def check_tests(circuits: Mapping[str, Circuit], tests: Sequence[str]) -> None:
    """Refuse tests of circuits that close attention edges, which all tests would open.

    Raises:
        EdgepruneError: There are both.
    """
    closing = [name for name, circuit in circuits.items() if isinstance(gates_of(circuit), BothGates)]
    if tests and closing:
        raise EdgepruneError(
            f"test {tests[0]!r} is of edges alone, and {closing[0]} closes attention edges: leave --tests out, or "
            "evaluate the circuit with these open (`Circuit.with_attention`)"
        )


def _completeness(evaluator: Evaluator, circuit: Circuit, options: EvaluationOptions) -> Json:
    roles = {
        role: members
        for known in options.known.values()
        if isinstance(known, CanonicalCircuit)
        for role, members in known.roles.items()
    }
    measure = answer_measure(evaluator)
    return find_completeness(evaluator, circuit.keep, measure, roles, options.knock_outs).to_dict()


def _minimality(evaluator: Evaluator, circuit: Circuit, options: EvaluationOptions) -> Json:
    """Effects of edges, and whether they are larger than those of random edges (`significance`)."""
    measure = divergence_measure(evaluator)
    found = marginal_effects(
        evaluator, circuit.keep, measure, scores=circuit.ranking, max_edges=options.num_minimality_edges
    )
    section = found.to_dict()
    if circuit.num_edges and (useful_edges(evaluator.graph) & ~circuit.keep).any():
        others = inflated_circuits(evaluator.graph, circuit.keep, options.num_random)
        losses = evaluator(others.gates, "random edges", [measure]).figures()[:, 0]
        section["significance"] = minimality_test(found.effects, others.effects(losses), found.names).to_dict()
    return section


def _hypothesis(evaluator: Evaluator, circuit: Circuit, options: EvaluationOptions) -> Json:
    scores = answer_measure(evaluator), divergence_measure(evaluator)
    hypotheses = HypothesisOptions(num_random=options.num_random)
    return run_hypothesis_tests(evaluator, circuit.keep, *scores, hypotheses).to_dict()


def _mib(evaluator: Evaluator, circuit: Circuit, options: EvaluationOptions) -> Json | None:
    if circuit.scores is None:
        return None
    return mib_curves(evaluator, circuit, answer_measure(evaluator), resampling=options.resampling).to_dict()


TESTS: dict[str, Callable[[Evaluator, Circuit, EvaluationOptions], Json | None]] = {
    "controls": lambda evaluator, circuit, options: run_controls(
        evaluator, circuit.keep, range(options.seeds)
    ).to_dict(),
    "completeness": _completeness,
    "minimality": _minimality,
    "suffix": lambda evaluator, circuit, _: ablate_suffix(evaluator, circuit.keep).to_dict(),
    "hypothesis": _hypothesis,
    "functional": lambda evaluator, circuit, options: functional_test(
        evaluator, circuit.keep, options.resampling
    ).to_dict(),
    "mib": _mib,
}
