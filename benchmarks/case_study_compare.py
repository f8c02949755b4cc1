"""Circuits of one question asked in two ways: overlap, transfer, what both and either keep, and their heads.

See `case_study.py`. Of every way there is a folder of fits, `version_*` for each seed, with its config and circuits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.cli.circuits import CircuitFiles
from edgeprune.cli.data import read_data_config
from edgeprune.cli.pairs import pair_batches, prepare_runs
from edgeprune.comparison.overlap import by_chance, compare_every_two, cut_to
from edgeprune.console import ProgressReporter
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.metrics.measure import gates_of
from edgeprune.reading.attention_roles import HeadRoles, head_roles
from edgeprune.reading.role_effects import role_effects
from edgeprune.statistics.correlation import spearman
from edgeprune.statistics.uncertainty import bootstrap_of

WAYS = "instruction", "few_shot"
MEASURES = "kl", "logit_difference", "accuracy", "accuracy_top1", "exact_match"
MATTERS = 0.01  # share of the effects of all heads
Figures = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One way of asking: the pairs, and the folders of its fits, one for each seed."""

    name: str
    folders: tuple[Path, ...]
    evaluator: Evaluator

    def circuits(self, sparsity: float) -> list[Circuit]:
        """Of every seed."""
        return [Circuit.load(folder / "circuits" / f"sparsity-{sparsity:.4f}.safetensors") for folder in self.folders]


def open_ways(folders: Sequence[Path], limit: int | None, device: str = "cpu") -> list[Way]:
    """Both ways with one model; the pairs of both are checked to ask the same, one by one."""
    asked, ways, model = [], list[Way](), None
    for name, folder in zip(WAYS, folders, strict=True):
        fits = tuple(sorted(path for path in folder.glob("version_*") if (path / "circuits").is_dir()))
        if not fits:
            raise EdgepruneError(f"{folder} has no version_*/circuits; give the folder that a fit's logger wrote to")
        data = read_data_config(str(fits[0] / "config.yaml"))
        data.setup()
        asked.append(data.labels("test"))
        files = CircuitFiles.open([str(next((fits[0] / "circuits").glob("sparsity-*.safetensors")))])
        model = model or files.load_model(files.model_name(None), device)
        runs = ReferenceRuns(model, files.header.get("ablation", "interchange"), 1.0)
        prepare_runs(runs, data, "test")
        batches = pair_batches(data, "test", limit, data.eval_batch_size)
        with ProgressReporter(stderr=True) as bars:
            ways.append(Way(name, fits, Evaluator(model, runs, batches, "test", MEASURES, bars.report)))
    if asked[0] != asked[1]:
        raise EdgepruneError("the two ways do not ask the same: give both fits the same seed and sizes")
    if len(ways[0].folders) != len(ways[1].folders):
        raise EdgepruneError(f"{len(ways[0].folders)} and {len(ways[1].folders)} seeds; give as many of both ways")
    return ways


def compare(ways: Sequence[Way], sparsities: Sequence[float], random_seeds: int) -> Figures:
    """All figures, by sparsity; see `case_study_tables` for what they are."""
    graph = ways[0].evaluator.graph
    attention = {way.name: head_roles(way.evaluator.model, way.evaluator.batches) for way in ways}
    return {
        "num_pairs": ways[0].evaluator.num_examples,
        "num_seeds": len(ways[0].folders),
        "graph_edges": graph.num_edges,
        "sparsities": {
            f"{sparsity:g}": {
                "edges": {way.name: [circuit.num_edges for circuit in way.circuits(sparsity)] for way in ways},
                "overlaps": list(overlaps([way.circuits(sparsity) for way in ways])),
                "places": places(ways, sparsity, random_seeds),
                "heads": heads(ways, sparsity, attention),
            }
            for sparsity in sparsities
        },
    }


# -------------------------------------------------------------------- overlap
def overlaps(circuits: Sequence[Sequence[Circuit]]) -> Iterator[Figures]:
    """Every two circuits: of one way, which differ by their seed alone, and of the two ways."""
    names = [(way, seed) for way, found in zip(WAYS, circuits, strict=True) for seed in range(len(found))]
    every = compare_every_two([circuit for found in circuits for circuit in found])
    for (first, second), found in zip(combinations(names, 2), every, strict=True):
        yield {
            "kind": first[0] if first[0] == second[0] else "between",
            "seeds": [first[1], second[1]],
            **{key: found[key] for key in ("both", "only_found", "only_reference", "jaccard", "expected")},
            "log10_p_value": found["log10_p_value"],
            "nodes": found["nodes"]["jaccard"],
            "spearman_kept": found["ranks"]["spearman_kept"],
        }


# -------------------------------------------------------------------- what circuits do in both places
def grown_to(circuit: Circuit, num_edges: int) -> Circuit:
    """The circuit and the best-ranked of its other edges, `num_edges` in all."""
    ranking = circuit.ranking
    if ranking is None:
        raise EdgepruneError("the circuit has no scores to be grown by")
    first = ranking.masked_fill(circuit.keep, float(ranking[circuit.graph.exists].max()) + 1)
    return Circuit.from_scores(circuit.graph, first, num_edges=num_edges)


def groups(own: Sequence[Circuit], other: Sequence[Circuit], random_seeds: int) -> dict[str, list[Circuit]]:
    """Circuits by what they are, one for each seed: of the instruction (`own`), of the examples, and made of both."""
    seeds = range(len(own))
    both, either = ([make(own[s], other[s]) for s in seeds] for make in (Circuit.__and__, Circuit.__or__))
    found = {"instruction": list(own), "few_shot": list(other), "intersection": both, "union": either}
    pairs = list(combinations(seeds, 2))
    for way, circuits in zip(WAYS, (own, other), strict=True):
        if pairs:
            found[f"{way}, intersection of two seeds"] = [circuits[a] & circuits[b] for a, b in pairs]
            found[f"{way}, union of two seeds"] = [circuits[a] | circuits[b] for a, b in pairs]
        found[f"{way}, cut to the intersection"] = [cut_to(circuits[s], both[s].num_edges) for s in seeds]
        found[f"{way}, grown to the union"] = [grown_to(circuits[s], either[s].num_edges) for s in seeds]
    sizes = {"as a circuit": own, "as the intersection": both, "as the union": either}
    for what, circuits in sizes.items():
        size = round(sum(circuit.num_edges for circuit in circuits) / len(circuits))
        found[f"random, as large {what}"] = [Circuit.random(own[0].graph, size, seed) for seed in range(random_seeds)]
    return found


def mean_of(group: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Figures `[draw, circuit, measure]` to the mean of some circuits, `[draw, measure]`."""
    return lambda figures: figures[:, group].mean(1)


def difference_of(group: Sequence[int], other: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Mean of the one group of circuits minus that of the other, on the same examples."""
    return lambda figures: figures[:, group].mean(1) - figures[:, other].mean(1)


def places(ways: Sequence[Way], sparsity: float, random_seeds: int) -> dict[str, Figures]:
    """Every group of circuits on the test pairs of both ways: means over seeds, with intervals over pairs.

    `minus_own`: the group's figure minus that of the circuits found for this way.
    """
    own, other = (way.circuits(sparsity) for way in ways)
    made = groups(own, other, random_seeds)
    found: dict[str, Figures] = {}
    for way in ways:
        ends = [None, torch.zeros_like(way.evaluator.graph.exists)]
        gates = [gates_of(circuit) for circuits in made.values() for circuit in circuits]
        values = way.evaluator([*ends, *gates], f"circuits asked by {way.name}")
        members, start = {"full model": [0], "empty circuit": [1]}, len(ends)
        for name, circuits in made.items():
            members[name] = list(range(start, start + len(circuits)))
            start += len(circuits)
        rows = found[way.name] = {}
        for name, group in members.items():
            mean, against = (
                bootstrap_of(values, function) for function in (mean_of(group), difference_of(group, members[way.name]))
            )
            rows[name] = {
                "edges": [circuit.num_edges for circuit in made.get(name, ())],
                "figures": estimates(mean),
                "minus_own": estimates(against),
                "seeds": {name: values.figures()[group, i].tolist() for i, name in enumerate(MEASURES)},
            }
    return found


def estimates(intervals: Any) -> Figures:
    """By measure."""
    return {name: intervals.at(place).to_dict() for place, name in enumerate(MEASURES)}


# -------------------------------------------------------------------- heads
def heads(ways: Sequence[Way], sparsity: float, attention: Mapping[str, HeadRoles]) -> Figures:
    """Heads of both ways: in how many circuits they matter, how much hangs on them, and what they attend to.

    `weight`: of a head the sum of its edges' absolute first-order effects on the logit difference in a circuit, as a
    share of that of all heads, mean over seeds. It matters in a circuit where that is at least `MATTERS`; `circuits`
    says in how many. A head is one way's if it matters in most of its circuits.
    """
    names = [name for name in ways[0].evaluator.graph.writers if name.startswith("a")]
    weights: dict[str, Tensor] = {}
    for way in ways:
        found = [role_effects(way.evaluator, circuit, max_exact=0).weights() for circuit in way.circuits(sparsity)]
        rows = torch.tensor([[row[name] for name in names] for row in found], dtype=torch.float64)
        weights[way.name] = rows / rows.sum(1, keepdim=True)
    matter = {way: (rows >= MATTERS).sum(0).tolist() for way, rows in weights.items()}
    seeds = len(ways[0].folders)
    most = {name: [2 * number > seeds for number in numbers] for name, numbers in matter.items()}
    sizes = sum(most[WAYS[0]]), sum(most[WAYS[1]])
    shared = sum(all(both) for both in zip(*most.values(), strict=True))
    first, second = (weights[way] for way in WAYS)
    correlations = {
        **{way: [spearman(weights[way][a], weights[way][b]) for a, b in combinations(range(seeds), 2)] for way in WAYS},
        "between": [spearman(row, other) for row in first for other in second],
    }
    lines: list[Figures] = [
        {
            "head": name,
            "circuits": {way: matter[way][place] for way in WAYS},
            "weight": {way: float(weights[way][:, place].mean()) for way in WAYS},
            "attends": {way: attended(attention[way], name) for way in WAYS},
        }
        for place, name in enumerate(names)
        if any(numbers[place] for numbers in matter.values())
    ]
    return {
        "num": dict(zip(WAYS, sizes, strict=True)),
        "shared": shared,
        **by_chance(shared, *sizes, len(names)),
        "spearman": correlations,
        "weight_of_shared": {
            way: sum(row["weight"][way] for row in lines if kind(row["circuits"], seeds) == "shared") for way in WAYS
        },
        "rows": lines,
    }


def attended(attention: HeadRoles, head: str) -> dict[str, float]:
    """Attention of a head from the scored position, in the full model, by part of the prompt."""
    row = attention.patterns[attention.heads.index(head), 0]
    return dict(zip(attention.keys, row.tolist(), strict=True))


def kind(circuits: Mapping[str, int], seeds: int) -> str:
    """Whether a head is shared, of one way alone (it matters in no circuit of the other), or neither."""
    most = {way: 2 * circuits[way] > seeds for way in WAYS}
    if all(most.values()):
        return "shared"
    for way, other in (WAYS, WAYS[::-1]):
        if most[way] and not circuits[other]:
            return way
    return "undecided"
