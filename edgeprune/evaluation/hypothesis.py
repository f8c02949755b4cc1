"""Run the hypothesis tests of `edgeprune.statistics.hypothesis_tests` on a circuit, with one call of the evaluator.

Minimality is apart, as it needs the effects of edges: `edgeprune.evaluation.random_paths.inflated_circuits` gives the
circuits to run, `edgeprune.statistics.significance.minimality_test` the test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.effects import as_loss
from edgeprune.evaluation.evaluator import Evaluator, open_edges
from edgeprune.evaluation.random_paths import path_circuit
from edgeprune.graph import EdgeGraph
from edgeprune.json_numbers import json_fields
from edgeprune.metrics.examples import ExampleValues
from edgeprune.metrics.registry import measure_named
from edgeprune.statistics.hypothesis_tests import (
    EPSILON,
    LEVEL,
    PERMUTATIONS,
    QUANTILE,
    HypothesisTest,
    equivalence,
    independence,
    partial_necessity,
    sufficiency,
)

SQUARED_SCORE = "squared_score_difference"  # the paper's faithfulness

RandomKind = Literal["paths", "edges"]


def _edges(graph: EdgeGraph, num_edges: int, seed: int) -> Tensor:
    return Circuit.random(graph, num_edges, seed).keep


_RANDOM: dict[RandomKind, Callable[[EdgeGraph, int, int], Tensor]] = {"paths": path_circuit, "edges": _edges}


@final
@dataclass(frozen=True, kw_only=True)
class HypothesisOptions:
    """What the tests are run with.

    Attributes:
        num_random: Random circuits; each is run twice, alone and removed. The smallest p-value of the two tests that
            need them is 1 / (num_random + 1).
        random: How they are drawn: whole paths, the paper's choice, in which no edge dangles, at least as many edges as
            the circuit has; or exactly as many edges, uniformly.
        epsilon: Tolerance of equivalence.
        quantile: q* of the paper.
        permutations: Of independence.
        level: At which null hypotheses are rejected.
        seed: Of the random circuits (seed, seed + 1, ...) and of the permutations.
    """

    num_random: int = 100
    random: RandomKind = "paths"
    epsilon: float = EPSILON
    quantile: float = QUANTILE
    permutations: int = PERMUTATIONS
    level: float = LEVEL
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_random < 0 or self.random not in _RANDOM:
            raise EdgepruneError(
                f"num_random must be at least 0 and random one of {', '.join(_RANDOM)}, got {self.num_random} and "
                f"{self.random!r}"
            )


@final
@dataclass(frozen=True)
class HypothesisResults:
    """The outcome for one circuit.

    `to_dict` has the keys `score`, `faithfulness`, `ablation`, `num_examples`, `num_edges`, `options` (as
    `HypothesisOptions`), `random_edges` (mean number of edges of the random circuits, None without any) and `tests`, by
    name, each as `HypothesisTest.to_dict`.

    Attributes:
        tests: Equivalence, independence, sufficiency and partial necessity.
        score: Measure of how well an example is done.
        faithfulness: Measure by which circuits are held against each other.
        ablation: What removed edges carry.
        num_examples: Examples that were run.
        num_edges: Of the circuit.
        sizes: Edges of each random circuit.
        options: What the tests were run with.
    """

    tests: tuple[HypothesisTest, ...]
    score: str
    faithfulness: str
    ablation: str
    num_examples: int
    num_edges: int
    sizes: tuple[int, ...]
    options: HypothesisOptions

    def __getitem__(self, name: str) -> HypothesisTest:
        """A test by its name."""
        return next(test for test in self.tests if test.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        random_edges = sum(self.sizes) / len(self.sizes) if self.sizes else None
        return json_fields(self, "sizes", tests={test.name: test for test in self.tests}, random_edges=random_edges)


def run_hypothesis_tests(
    evaluator: Evaluator,
    keep: Tensor,
    score: str = "logit_difference",
    faithfulness: str = "kl",
    options: HypothesisOptions | None = None,
) -> HypothesisResults:
    """Test a circuit: the full model, the circuit and its complement, random circuits and theirs.

    Args:
        evaluator: Model, pairs, ablation.
        keep: The circuit, bool `[reader, writer]`.
        score: Measure, one value per example, for equivalence and independence.
        faithfulness: Measure for sufficiency and partial necessity, of how far a circuit is from the model.
            `SQUARED_SCORE` is the paper's, the mean squared difference of the scores of circuit and full model.
        options: The rest.

    Raises:
        EdgepruneError: The circuit is of another graph, or a measure is not known.
    """
    options, graph, keep = options or HypothesisOptions(), evaluator.graph, open_edges(evaluator, keep)
    measures = tuple(dict.fromkeys([score] if faithfulness == SQUARED_SCORE else [score, faithfulness]))
    draw = _RANDOM[options.random]
    random = [draw(graph, int(keep.sum()), options.seed + number) for number in range(options.num_random)]
    circuits = [keep, *random]
    gates = [None, *circuits, *(graph.exists & ~circuit for circuit in circuits)]
    values = evaluator(gates, "hypothesis tests", measures)
    scores, losses = values.of(score), _losses(values, score, faithfulness)
    alone, removed = losses[1:].chunk(2)
    tests = (
        equivalence(scores[1], scores[0], options.epsilon, options.level),
        independence(scores[1 + len(circuits)], scores[0], options.permutations, options.level, options.seed),
        sufficiency(float(alone[0]), alone[1:], options.quantile, options.level),
        partial_necessity(float(removed[0]), removed[1:], options.quantile, options.level),
    )
    sizes = tuple(int(circuit.sum()) for circuit in random)
    about = (score, faithfulness, evaluator.runs.ablation, values.num_examples, int(keep.sum()))
    return HypothesisResults(tests, *about, sizes, options)


def _losses(values: ExampleValues, score: str, faithfulness: str) -> Tensor:
    """How unfaithful each circuit is, the lower the better, float64 `[circuit]`; NaN where not defined."""
    if faithfulness == SQUARED_SCORE:
        return (values.of(score) - values.of(score)[:1]).square().nanmean(-1)
    figures = values.figures()[:, values.measures.index(faithfulness)]
    return as_loss(figures, measure_named(faithfulness).better)[0]
