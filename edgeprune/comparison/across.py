"""Circuits against circuits, across models and tasks.

- Same graph (seeds, fine-tunes, tasks, instruction against few-shot prompts): `overlap_matrix`, `cross_task`.
- Other architecture, same task: `compare_roles`, `align_performance`.
- Two models, whatever they are: `cross_model`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.comparison.overlaps import OverlapMatrix, PairOverlap, overlap_matrix, pair_overlap
from edgeprune.comparison.roles import RoleComparison, compare_roles
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.json_numbers import json_number, json_numbers
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.normalise import normalise
from edgeprune.reading.attention_roles import role_profile
from edgeprune.statistics.correlation import pearson, spearman


# -------------------------------------------------------------------- performance
@final
@dataclass(frozen=True)
class PerformanceAlignment:
    """Whether two circuits, of any two models, do well on the same examples.

    `to_dict` has the same keys, None where undefined. Correlations are NaN where fewer than two values are defined in
    both, or where one circuit gives the same value everywhere.

    Attributes:
        measure: Name in `edgeprune.metrics.registry`.
        unit: What is correlated: `example`, values of single examples, or `label`, figures of groups of examples.
        num_units: Examples or labels for which both have a value.
        figures: Of the circuits over all their examples.
        pearson: Correlation of the circuits' values.
        spearman: Correlation of their ranks.
        pearson_full: Correlation of the full models' values: what there is to find. NaN without ends.
        spearman_full: Likewise of the ranks.
        faithfulness: Normalised faithfulness of each circuit; NaN without ends.
        faithfulness_difference: That of the first - that of the second.
    """

    measure: str
    unit: str
    num_units: int
    figures: tuple[float, float]
    pearson: float
    spearman: float
    pearson_full: float
    spearman_full: float
    faithfulness: tuple[float, float]
    faithfulness_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        both = {name: [json_number(value) for value in getattr(self, name)] for name in ("figures", "faithfulness")}
        single = {name: json_number(value) for name, value in vars(self).items() if isinstance(value, float)}
        return {"measure": self.measure, "unit": self.unit, "num_units": self.num_units, **both, **single}


Labels = tuple[Sequence[str], Sequence[str]]  # of the examples of the one model, and of the other


def align_performance(
    first: ExampleValues,
    second: ExampleValues,
    measure: str = "logit_difference",
    *,
    ends: tuple[ExampleValues, ExampleValues] | None = None,
    labels: Labels | None = None,
) -> PerformanceAlignment:
    """Compare two circuits by how well they do, example by example.

    Args:
        first: Values of one circuit (circuit 0).
        second: Of the other, on the same examples in the same order; only their numbers are checked.
        measure: Which value is compared; both must have it.
        ends: Of the full model and the empty circuit, for each model: `Evaluator.ends`.
        labels: Where the models' examples differ: for each model the label of every example, such as its template.
            Figures of labels that both know are compared instead of examples.

    Raises:
        EdgepruneError: The examples differ and there are no labels, or the labels have none in common.
    """
    if labels is None:
        _check_same_examples(first, second)

    def values_of(one: ExampleValues, other: ExampleValues) -> tuple[Tensor, Tensor]:
        if labels is None:
            return one.of(measure)[0], other.of(measure)[0]
        return _by_label(one, other, measure, labels)

    left, right = values_of(first, second)
    full = values_of(*ends) if ends is not None else (left[:0], right[:0])
    figures = first.figure(measure), second.figure(measure)
    faithful = math.nan, math.nan
    if ends is not None:
        faithful = _normalised(figures[0], ends[0], measure), _normalised(figures[1], ends[1], measure)
    return PerformanceAlignment(
        measure=measure,
        unit="example" if labels is None else "label",
        num_units=int((~(left.isnan() | right.isnan())).sum()),
        figures=figures,
        pearson=pearson(left, right),
        spearman=spearman(left, right),
        pearson_full=pearson(*full),
        spearman_full=spearman(*full),
        faithfulness=faithful,
        faithfulness_difference=faithful[0] - faithful[1],
    )


def _check_same_examples(first: ExampleValues, second: ExampleValues) -> None:
    remedy = "evaluate both on the same pairs, or give the labels of the examples"
    if first.num_examples != second.num_examples:
        raise EdgepruneError(f"{first.num_examples} examples against {second.num_examples}; {remedy}")
    differ = (first.index != second.index).nonzero().flatten().tolist()
    if differ:
        place = differ[0]
        numbers = int(first.index[place]), int(second.index[place])
        raise EdgepruneError(f"example {place} is number {numbers[0]} in one and {numbers[1]} in the other; {remedy}")


def _by_label(first: ExampleValues, second: ExampleValues, measure: str, labels: Labels) -> tuple[Tensor, Tensor]:
    """Figures of the labels that both have, float64 `[label]` each."""
    groups = first.groups(labels[0]), second.groups(labels[1])
    common = [name for name in groups[0] if name in groups[1]]
    if not common:
        raise EdgepruneError(
            f"no example of the one has a label of the other: {', '.join(groups[0])} against {', '.join(groups[1])}"
        )
    left, right = (
        torch.tensor([group[name].figure(measure) for name in common], dtype=torch.float64) for group in groups
    )
    return left, right


def _normalised(figure: float, ends: ExampleValues, measure: str) -> float:
    both = torch.tensor([[ends.figure(measure, 0)], [ends.figure(measure, 1)]], dtype=torch.float64)
    return float(normalise(torch.tensor([[figure]], dtype=torch.float64), both))


# -------------------------------------------------------------------- two models
@final
@dataclass(frozen=True, eq=False)
class Candidate:
    """A circuit with the model and the pairs to judge it on.

    Attributes:
        name: For tables.
        circuit: The circuit.
        evaluator: Its model on the task's pairs.
    """

    name: str
    circuit: Circuit
    evaluator: Evaluator

    def __post_init__(self) -> None:
        self.circuit.check_fits(self.evaluator.graph, f"the model of {self.name!r}")


@final
@dataclass(frozen=True, eq=False)
class CrossModel:
    """Two circuits for one task in two models.

    Attributes:
        first: Name of the one.
        second: Name of the other.
        overlap: Edge by edge; None where the graphs differ.
        roles: By what heads attend to; None where the graphs are the same and the task has no roles.
        performance: Example by example.
    """

    first: str
    second: str
    overlap: PairOverlap | None
    roles: RoleComparison | None
    performance: PerformanceAlignment

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the attributes, each as its own `to_dict` says; None where there is none."""
        return {
            "first": self.first,
            "second": self.second,
            "overlap": None if self.overlap is None else self.overlap.to_dict(),
            "roles": None if self.roles is None else self.roles.to_dict(),
            "performance": self.performance.to_dict(),
        }


def cross_model(
    first: Candidate,
    second: Candidate,
    measure: str = "logit_difference",
    *,
    seeds: Sequence[int] = range(10),
    labels: Labels | None = None,
    same_texts: bool = False,
) -> CrossModel:
    """Compare circuits for one task in two models, by all that the two have in common.

    Args:
        first: One circuit, its model and pairs.
        second: The other.
        measure: By which performance is compared.
        seeds: Of the random heads and random circuits beside the comparison by roles.
        labels: Where the models' examples differ; see `align_performance`.
        same_texts: Examples of one number are one text, though the models cut it into other tokens. Generated tasks
            choose their words by tokenizer: examples of one number are then different texts.

    Raises:
        EdgepruneError: The examples differ, or may differ, and there are no labels; the graphs differ and the task has
            no roles.
    """
    pair = first, second
    if labels is None and not same_texts:
        _check_same_tokens(first, second)
    same_graph = first.circuit.graph == second.circuit.graph
    names = first.name, second.name
    roles = None
    if not same_graph or all(any(batch.roles for batch in item.evaluator.batches) for item in pair):
        profiles = [
            role_profile(item.evaluator.model, item.evaluator.batches, item.circuit, item.evaluator.progress)
            for item in pair
        ]
        roles = compare_roles(*profiles, seeds=seeds)
    values = [
        item.evaluator([item.circuit.keep, None, item.evaluator.graph.all_closed()], f"circuit {item.name}", [measure])
        for item in pair
    ]
    left, right = values
    return CrossModel(
        *names,
        overlap=pair_overlap(first.circuit, second.circuit, names) if same_graph else None,
        roles=roles,
        performance=align_performance(
            left, right, measure, ends=(left.circuits([1, 2]), right.circuits([1, 2])), labels=labels
        ),
    )


def _check_same_tokens(first: Candidate, second: Candidate) -> None:
    """Refuse to pair up examples of which nothing says that they are the same."""
    left, right = (
        [
            (number, ids[mask.bool()].tolist())
            for batch in item.evaluator.batches
            for number, ids, mask in zip(batch.index.tolist(), batch.clean, batch.attention_mask, strict=True)
        ]
        for item in (first, second)
    )
    if left != right:
        raise EdgepruneError(
            f"the prompts of {first.name!r} and {second.name!r} are not the same tokens, so their examples may be "
            "different texts; give the labels of both, or same_texts=True if the texts are the same"
        )


# -------------------------------------------------------------------- several tasks
@final
@dataclass(frozen=True, eq=False)
class Transfer:
    """The circuit of one task on the pairs of another.

    Attributes:
        circuit: Task that the circuit is of.
        task: Task whose pairs it is run on; may be its own.
        num_edges: Of the circuit.
        measures: Names of the measures.
        figures: Of the circuit, float64 `[measure]`.
        own: Of the task's own circuit.
        random: Of random circuits with `num_edges` edges, `[seed, measure]`.
        ends: Of the full model and the empty circuit, `[2, measure]`.
    """

    circuit: str
    task: str
    num_edges: int
    measures: tuple[str, ...]
    figures: Tensor
    own: Tensor
    random: Tensor
    ends: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain values.

        `circuit`, `task`, `num_edges`; by measure `figures`, `own`, `random_mean`, `full`, `empty`; and normalised
        faithfulness by measure, of the circuit `faithfulness`, of the task's own circuit `own_faithfulness`, and of
        the mean figure of random circuits `random_faithfulness`. `random`: figures by measure for each seed.
        """
        rows = {"figures": self.figures, "own": self.own, "random_mean": self.random.mean(0)}
        shares = normalise(torch.stack(list(rows.values())), self.ends)
        rows |= {"full": self.ends[0], "empty": self.ends[1]}
        rows |= dict(zip(("faithfulness", "own_faithfulness", "random_faithfulness"), shares, strict=True))
        return {
            "circuit": self.circuit,
            "task": self.task,
            "num_edges": self.num_edges,
            **{name: json_numbers(self.measures, row) for name, row in rows.items()},
            "random": [json_numbers(self.measures, row) for row in self.random],
        }


@final
@dataclass(frozen=True, eq=False)
class CrossTask:
    """Circuits of one model for several tasks, or for one task prompted in several ways.

    Attributes:
        overlap: Of every two circuits.
        transfers: Every circuit on every task, its own too; tasks first.
        seeds: Of the random circuits.
    """

    overlap: OverlapMatrix
    transfers: tuple[Transfer, ...]
    seeds: tuple[int, ...]

    def transfer(self, circuit: str, task: str) -> Transfer:
        """The circuit of one task on the pairs of another."""
        found = next((item for item in self.transfers if (item.circuit, item.task) == (circuit, task)), None)
        if found is None:
            raise EdgepruneError(f"no circuit {circuit!r} on task {task!r}; known: {', '.join(self.overlap.names)}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `overlap` (see `OverlapMatrix`), `transfers` (see `Transfer`), `seeds`."""
        return {
            "overlap": self.overlap.to_dict(),
            "transfers": [item.to_dict() for item in self.transfers],
            "seeds": list(self.seeds),
        }


def cross_task(
    circuits: Mapping[str, Circuit], evaluators: Mapping[str, Evaluator], seeds: Sequence[int] = range(3)
) -> CrossTask:
    """Compare circuits of one model for several tasks: what they share, and whether one does the work of another.

    Ways of prompting for one task, such as instruction and few-shot, are tasks here.

    Args:
        circuits: By task.
        evaluators: Of the same model on each task's pairs.
        seeds: Of the random circuits that transferred ones are held against; at least one.

    Raises:
        EdgepruneError: A task lacks its circuit or its pairs, graphs differ, or there are no seeds.
    """
    _check_tasks(circuits, evaluators, seeds)
    overlap = overlap_matrix(circuits)
    transfers = [item for task in circuits for item in _transfers(circuits, task, evaluators[task], seeds)]
    return CrossTask(overlap, tuple(transfers), tuple(seeds))


def _check_tasks(circuits: Mapping[str, Circuit], evaluators: Mapping[str, Evaluator], seeds: Sequence[int]) -> None:
    if circuits.keys() != evaluators.keys():
        raise EdgepruneError(
            f"circuits are for {', '.join(circuits)}, pairs for {', '.join(evaluators)}; give both for every task"
        )
    if not seeds:
        raise EdgepruneError("a transferred circuit needs a random one beside it; give at least one seed")
    for name, circuit in circuits.items():
        circuit.check_fits(evaluators[name].graph, f"the model of {name!r}")


def _transfers(
    circuits: Mapping[str, Circuit], task: str, evaluator: Evaluator, seeds: Sequence[int]
) -> list[Transfer]:
    """All circuits on the pairs of one task, in one call: those of the tasks, then random ones of each size."""
    sizes = dict.fromkeys(circuit.num_edges for circuit in circuits.values())
    drawn = [Circuit.random(evaluator.graph, size, seed).keep for size in sizes for seed in seeds]
    given = [circuit.keep for circuit in circuits.values()]
    figures = evaluator([*given, *drawn], f"circuits of all tasks on {task}").figures()
    random = dict(zip(sizes, figures[len(given) :].unflatten(0, (len(sizes), len(seeds))), strict=True))
    own, ends = figures[list(circuits).index(task)], evaluator.ends.figures()
    return [
        Transfer(name, task, circuit.num_edges, evaluator.measures, row, own, random[circuit.num_edges], ends)
        for (name, circuit), row in zip(circuits.items(), figures[: len(given)], strict=True)
    ]
