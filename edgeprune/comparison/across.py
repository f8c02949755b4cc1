"""Circuits of two models: what they share, and how well each does in its own model and in the other's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.comparison.overlap import compare_circuits
from edgeprune.comparison.performance import Labels, PerformanceAlignment, align_performance
from edgeprune.comparison.roles import RoleComparison, compare_roles
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.json_numbers import json_fields, json_numbers
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.normalise import normalise
from edgeprune.reading.attention_roles import role_profile


# -------------------------------------------------------------------- two models
@final
@dataclass(frozen=True, eq=False)
class Candidate:
    """A circuit with the model and the pairs to evaluate it on.

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
        overlap: As `compare_circuits` gives it; None where the graphs differ.
        roles: By what heads attend to; None where the graphs are the same and the task has no roles.
        performance: Example by example.
        random_figures: Of random circuits with as many edges, for each of the two one value per seed.
        random_faithfulness: The same, normalised.
    """

    first: str
    second: str
    overlap: dict[str, Any] | None
    roles: RoleComparison | None
    performance: PerformanceAlignment
    random_figures: tuple[tuple[float, ...], tuple[float, ...]]
    random_faithfulness: tuple[tuple[float, ...], tuple[float, ...]]

    def to_dict(self) -> dict[str, Any]:
        """The attributes as plain values."""
        return json_fields(self)


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
        seeds: Of the random heads and random circuits beside the comparison by roles, and of random circuits that run.
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
    roles = None
    if not same_graph or all(any(batch.roles for batch in item.evaluator.batches) for item in pair):
        profiles = [
            role_profile(item.evaluator.model, item.evaluator.batches, item.circuit, item.evaluator.progress)
            for item in pair
        ]
        roles = compare_roles(*profiles, seeds=seeds)
    left, right = values = [_with_controls(item, measure, seeds) for item in pair]
    figures = [item.figures()[:, :1] for item in values]
    random = [(row[3:], normalise(row[3:], row[1:3])) for row in figures]
    return CrossModel(
        first.name,
        second.name,
        overlap=compare_circuits(first.circuit, second.circuit) if same_graph else None,
        roles=roles,
        performance=align_performance(
            left, right, measure, ends=(left.circuits([1, 2]), right.circuits([1, 2])), labels=labels
        ),
        random_figures=(tuple(random[0][0][:, 0].tolist()), tuple(random[1][0][:, 0].tolist())),
        random_faithfulness=(tuple(random[0][1][:, 0].tolist()), tuple(random[1][1][:, 0].tolist())),
    )


def _with_controls(item: Candidate, measure: str, seeds: Sequence[int]) -> ExampleValues:
    """Values of the circuit, the full model, the empty circuit, and a random circuit for each seed."""
    graph, circuit = item.evaluator.graph, item.circuit
    drawn = [Circuit.random(graph, circuit.num_edges, seed).keep for seed in seeds]
    return item.evaluator([circuit.keep, None, graph.all_closed(), *drawn], f"circuit {item.name}", [measure])


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


# -------------------------------------------------------------------- transfer
@final
@dataclass(frozen=True, eq=False)
class Transfer:
    """The circuit of one model or task, run in the model or on the pairs of another.

    Attributes:
        circuit: Name of what the circuit was found in.
        place: Name of what it is run in; may be the same.
        num_edges: Of the circuit.
        measures: Names of the measures.
        figures: Of the circuit, float64 `[measure]`.
        original: Of the circuit that was found there.
        random: Of random circuits with `num_edges` edges, `[seed, measure]`.
        ends: Of the full model and the empty circuit there, `[2, measure]`.
    """

    circuit: str
    place: str
    num_edges: int
    measures: tuple[str, ...]
    figures: Tensor
    original: Tensor
    random: Tensor
    ends: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain values.

        `circuit`, `place`, `num_edges`; by measure `figures`, `original`, `random_mean`, `full`, `empty`; and
        normalised faithfulness by measure, of the circuit `faithfulness`, of the one found there
        `original_faithfulness`, and of the mean figure of random circuits `random_faithfulness`. `random`: figures by
        measure for each seed.
        """
        rows = {"figures": self.figures, "original": self.original, "random_mean": self.random.mean(0)}
        shares = normalise(torch.stack(list(rows.values())), self.ends)
        rows |= {"full": self.ends[0], "empty": self.ends[1]}
        rows |= dict(zip(("faithfulness", "original_faithfulness", "random_faithfulness"), shares, strict=True))
        figures = {name: json_numbers(self.measures, row) for name, row in rows.items()}
        random = [json_numbers(self.measures, row) for row in self.random]
        return json_fields(self, "measures", "ends", **figures, random=random)


def transfer_circuits(
    circuits: Mapping[str, Circuit], evaluators: Mapping[str, Evaluator], seeds: Sequence[int] = range(3)
) -> list[Transfer]:
    """Run every circuit where every other one was found: does one do the work of another?

    Args:
        circuits: By what they were found in: models of one graph, tasks, or ways of prompting for one task.
        evaluators: Of the same: a model on a task's pairs.
        seeds: Of the random circuits that transferred ones are held against; at least one.

    Returns:
        Every circuit in every place, its own too; places first.

    Raises:
        EdgepruneError: A circuit has no evaluator or the reverse, graphs differ, or there are no seeds.
    """
    if circuits.keys() != evaluators.keys():
        raise EdgepruneError(
            f"circuits are for {', '.join(circuits)}, pairs for {', '.join(evaluators)}; give both for each of them"
        )
    if not seeds:
        raise EdgepruneError("a transferred circuit needs a random one beside it; give at least one seed")
    for place, evaluator in evaluators.items():
        for circuit in circuits.values():
            circuit.check_fits(evaluator.graph, f"the model of {place!r}")
    return [item for place in circuits for item in _transfers(circuits, place, evaluators[place], seeds)]


def _transfers(
    circuits: Mapping[str, Circuit], place: str, evaluator: Evaluator, seeds: Sequence[int]
) -> list[Transfer]:
    """All circuits in one place, in one call, and random ones of each size."""
    sizes = dict.fromkeys(circuit.num_edges for circuit in circuits.values())
    drawn = [Circuit.random(evaluator.graph, size, seed).keep for size in sizes for seed in seeds]
    given = [circuit.keep for circuit in circuits.values()]
    figures = evaluator([*given, *drawn], f"all circuits in {place}").figures()
    random = dict(zip(sizes, figures[len(given) :].unflatten(0, (len(sizes), len(seeds))), strict=True))
    original, ends = figures[list(circuits).index(place)], evaluator.ends.figures()
    return [
        Transfer(name, place, circuit.num_edges, evaluator.measures, row, original, random[circuit.num_edges], ends)
        for (name, circuit), row in zip(circuits.items(), figures[: len(given)], strict=True)
    ]
