r"""Completeness: does the circuit hold everything that the model uses, or does a backup outside it take over?

The circuit C should break as the model M does whatever is knocked out of both:

    score(K) = |F(C \ K) - F(M \ K)|        incompleteness, IOI (arXiv 2211.00593), section 4.2

for sets K of the circuit's nodes, F being the figure of a measure over all pairs. A knock-out closes every edge that
leaves the nodes. K is empty (this score is the circuit's faithfulness), random, a single node, a role, or searched for:
the worst K says how incomplete a circuit is, and a search only bounds it from below.

Deviations: edges are closed under the evaluator's ablation, not mean-ablated by position; the nodes are heads and MLPs,
embeddings left out; F may be any measure; random sets have sizes spread evenly over all that there are, so that large
and small ones occur, rather than one coin per node. The greedy search may start from a random set, takes nodes out of
K as well as in, and goes on past a step that lowers the score, since two nodes may matter only together; it keeps the
best set that it met. K may also be a set of edges.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.controls import circuit_nodes, columns, without_nodes
from edgeprune.evaluation.evaluator import Evaluator, open_edges
from edgeprune.evaluation.random_sets import Nodes, at_most, draw, edge_sets, random_sets
from edgeprune.json_numbers import json_fields

Kind = Literal["nothing", "random", "single", "role", "greedy", "edges"]
KINDS: tuple[Kind, ...] = ("nothing", "random", "single", "role", "greedy", "edges")


# -------------------------------------------------------------------- knock-outs
@dataclass(frozen=True, kw_only=True)
class KnockOutOptions:
    """How many sets are knocked out; every set takes two circuits to run.

    A greedy search changes one node at a time: of some candidates, drawn at random, the one that leads to the highest
    score is put into K, or taken out if it is there; no set is visited twice. The first search starts from no node, the
    others from random sets: the second of three from a third of the nodes. All together take at most
    `restarts * (1 + steps * candidates)` sets; those that were met before are not run again.

    Attributes:
        num_random: Random sets of nodes.
        num_edge_sets: Random sets of the circuit's edges.
        max_singles: Nodes knocked out one at a time; if the circuit has more, so many at random. None: all.
        restarts: Greedy searches; 0 for none.
        steps: Nodes that a search puts in or takes out, one after the other; 0 for no search.
        candidates: Nodes tried at each step. None: all.
        seed: Fixes all draws.
    """

    num_random: int = 20
    num_edge_sets: int = 0
    max_singles: int | None = None
    restarts: int = 3
    steps: int = 5
    candidates: int | None = 5
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {name: value for name, value in asdict(self).items() if name != "seed" and value is not None}
        wrong = next((name for name, value in counts.items() if value < (name == "candidates")), None)
        if wrong is not None:
            raise EdgepruneError(f"{wrong} must be at least {int(wrong == 'candidates')}, got {counts[wrong]}")


@dataclass(frozen=True)
class KnockOut:
    r"""One set K, and what is left of the circuit and of the model without it.

    Attributes:
        kind: How the set was found.
        name: Of a role; empty for other kinds.
        nodes: The set, in the order of the writers; empty for a set of edges.
        size: Nodes, or edges.
        circuit: F(C \ K); NaN where the measure is not defined.
        model: F(M \ K), likewise.
    """

    kind: Kind
    name: str
    nodes: Nodes
    size: int
    circuit: float
    model: float

    @property
    def score(self) -> float:
        """Incompleteness, 0 or more."""
        return abs(self.circuit - self.model)

    def to_dict(self) -> dict[str, Any]:
        """`kind`, `name`, `nodes`, `size`, `circuit`, `model` and `score`; None where not defined."""
        return json_fields(self, score=self.score)


@dataclass(frozen=True)
class Completeness:
    """How alike circuit and model break.

    `to_dict`: `measure`; `ablation`; `num_examples`; `num_runs` (circuits run, for each example); `options`; `nodes`
    (of the circuit); `roles_without_nodes` (roles that the circuit has no node of, not knocked out); `summary`: by kind
    `num`, `mean` and `max` of the scores and `worst`, the set of the largest; `max` and `worst` over all kinds;
    `knock_outs`: each as in `KnockOut.to_dict`; their points in a scatter plot are x = `model`, y = `circuit`, and a
    complete circuit has all of them on the diagonal. None where no score is defined.

    Attributes:
        measure: F.
        ablation: What closed edges carry.
        num_examples: Pairs.
        num_runs: Circuits that were run, on all pairs each.
        options: How many sets of each kind.
        nodes: Heads and MLPs of the circuit.
        roles_without_nodes: Names of roles of which the circuit has no node.
        knock_outs: By kind; the first is the empty set.
    """

    measure: str
    ablation: str
    num_examples: int
    num_runs: int
    options: KnockOutOptions
    nodes: Nodes
    roles_without_nodes: tuple[str, ...]
    knock_outs: tuple[KnockOut, ...]

    def of(self, kind: Kind) -> tuple[KnockOut, ...]:
        """The knock-outs of one kind."""
        return tuple(item for item in self.knock_outs if item.kind == kind)

    @property
    def points(self) -> Tensor:
        r"""Float64 `[knock-out, 2]`: x = F(M \ K), y = F(C \ K)."""
        points = [(item.model, item.circuit) for item in self.knock_outs]
        return torch.tensor(points, dtype=torch.float64).view(-1, 2)

    @property
    def worst(self) -> KnockOut | None:
        """The set of the largest score, the first of several; None where no score is defined."""
        return _worst(self.knock_outs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; see the class."""
        summary = {kind: _summary(self.of(kind)) for kind in KINDS if self.of(kind)}
        return json_fields(self, summary=summary, **_worst_and_score(self.worst))


def _worst(items: Sequence[KnockOut]) -> KnockOut | None:
    return max((item for item in items if math.isfinite(item.score)), key=lambda item: item.score, default=None)


def _summary(items: Sequence[KnockOut]) -> dict[str, Any]:
    """Of one kind; the mean over the sets with a score."""
    scores = [item.score for item in items if math.isfinite(item.score)]
    mean = sum(scores) / len(scores) if scores else None
    return {"num": len(items), "mean": mean, **_worst_and_score(_worst(items))}


def _worst_and_score(worst: KnockOut | None) -> dict[str, Any]:
    return {"max": None if worst is None else worst.score, "worst": worst}


def find_completeness(
    evaluator: Evaluator,
    keep: Tensor,
    measure: str = "logit_difference",
    roles: Mapping[str, Iterable[str]] | None = None,
    options: KnockOutOptions | None = None,
) -> Completeness:
    """Knock sets of nodes out of circuit and model, and compare.

    Args:
        evaluator: Model, pairs and ablation.
        keep: The circuit, bool `[reader, writer]`.
        measure: F, a name in `edgeprune.metrics.registry`. A measure that compares with the full model, such as `kl`,
            compares with the model of which nothing is knocked out.
        roles: Nodes of each role, to be knocked out together; those that the circuit lacks, and embeddings, are left
            out.
        options: How many sets.

    Raises:
        EdgepruneError: The circuit is of another graph, or there is no such measure or node.
    """
    options = options or KnockOutOptions()
    keep = open_edges(evaluator, keep)
    nodes = circuit_nodes(evaluator.graph, keep)
    present = _present(evaluator, nodes, roles or {})
    pair, generator = _Pair(evaluator, keep, measure), torch.Generator().manual_seed(options.seed)
    sets = [_Set("nothing", ())]
    sets += [_Set("random", chosen) for chosen in random_sets(nodes, options.num_random, generator)]
    sets += [_Set("single", (node,)) for node in at_most(nodes, options.max_singles, generator)]
    sets += [_Set("role", members, name) for name, members in present.items() if members]
    pair([item.nodes for item in sets], "knock-outs")
    sets += [_Set("greedy", chosen) for chosen in _search(pair, nodes, options, generator)]
    found = pair([item.nodes for item in sets], "knock-outs")
    knock_outs = [
        KnockOut(item.kind, item.name, item.nodes, len(item.nodes), *figures)
        for item, figures in zip(sets, found, strict=True)
    ]
    knock_outs += pair.without_edges(edge_sets(keep, options.num_edge_sets, generator))
    return Completeness(
        measure,
        evaluator.runs.ablation,
        evaluator.num_examples,
        pair.num_runs,
        options,
        nodes,
        tuple(name for name, members in present.items() if not members),
        tuple(knock_outs),
    )


def _present(evaluator: Evaluator, nodes: Nodes, roles: Mapping[str, Iterable[str]]) -> dict[str, Nodes]:
    """For each role, its nodes that the circuit has, in the order of the writers."""
    writers = evaluator.graph.writers
    named = {name: [writers[column] for column in columns(evaluator.graph, members)] for name, members in roles.items()}
    return {name: tuple(node for node in members if node in nodes) for name, members in named.items()}


class _Set(NamedTuple):
    kind: Kind
    nodes: Nodes
    name: str = ""


class _Pair:
    """F of circuit and model without sets of nodes; each set is run once."""

    def __init__(self, evaluator: Evaluator, keep: Tensor, measure: str) -> None:
        self.evaluator, self.keep, self.measure = evaluator, keep, measure
        self.num_runs = 0
        self._known: dict[Nodes, tuple[float, float]] = {}

    def __call__(self, sets: Sequence[Nodes], what: str) -> list[tuple[float, float]]:
        r"""F(C \ K) and F(M \ K) of each set."""
        new = [chosen for chosen in dict.fromkeys(sets) if chosen not in self._known]
        places = [columns(self.evaluator.graph, chosen) for chosen in new]
        whole = self.evaluator.graph.exists
        gates = [(without_nodes(self.keep, gone), without_nodes(whole, gone)) for gone in places]
        self._known |= dict(zip(new, self._run(gates, what), strict=True))
        return [self._known[chosen] for chosen in sets]

    def without_edges(self, sets: Sequence[Tensor]) -> list[KnockOut]:
        """The same for sets of edges, bool `[reader, writer]`."""
        whole = self.evaluator.graph.exists
        found = self._run([(self.keep & ~gone, whole & ~gone) for gone in sets], "knock-outs of edges")
        sizes = [int(gone.sum()) for gone in sets]
        return [KnockOut("edges", "", (), size, *figures) for size, figures in zip(sizes, found, strict=True)]

    def _run(self, gates: Sequence[tuple[Tensor, Tensor]], what: str) -> list[tuple[float, float]]:
        if not gates:
            return []
        every = [matrix for pair in gates for matrix in pair]
        self.num_runs += len(every)
        figures: list[float] = self.evaluator(every, what, [self.measure]).figures()[:, 0].tolist()
        return list(zip(figures[::2], figures[1::2], strict=True))


# -------------------------------------------------------------------- search
def _search(pair: _Pair, nodes: Nodes, options: KnockOutOptions, generator: torch.Generator) -> list[Nodes]:
    """The best set that each greedy search met; the searches go side by side, so that a step is one call."""
    if not nodes or not options.steps:
        return []
    sizes = [number * len(nodes) // options.restarts for number in range(options.restarts)]
    paths = [[draw(nodes, size, generator)] for size in sizes]
    for step in range(options.steps):
        tried = [_neighbours(path, nodes, options.candidates, generator) for path in paths]
        wanted = [chosen for path, sets in zip(paths, tried, strict=True) for chosen in (path[0], *sets)]
        pair(wanted, f"greedy knock-outs, step {step + 1} of {options.steps}")
        for path, sets in zip(paths, tried, strict=True):
            path += [_highest(pair, sets)] if sets else []
    return [_highest(pair, path) for path in paths]


def _neighbours(path: list[Nodes], nodes: Nodes, limit: int | None, generator: torch.Generator) -> list[Nodes]:
    """The last set with one node more or one less, for each of some nodes; without sets where the search has been."""
    last, been = path[-1], {*path}
    candidates = at_most(nodes, limit, generator)
    sets = (tuple(node for node in nodes if (node in last) != (node == candidate)) for candidate in candidates)
    return [chosen for chosen in sets if chosen not in been]


def _highest(pair: _Pair, sets: Sequence[Nodes]) -> Nodes:
    """The set of the highest score, the first of several; a score that is not defined is below all others."""
    scores = [abs(circuit - model) for circuit, model in pair(sets, "greedy knock-outs")]
    return sets[max(range(len(sets)), key=lambda place: scores[place] if math.isfinite(scores[place]) else -1.0)]
