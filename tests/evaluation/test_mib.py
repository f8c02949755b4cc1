"""Curves of MIB: closed forms, a slow computation, a compiled circuit that is known, and sets of circuits."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.comparison.mib_roc import mib_roc
from edgeprune.compiled import true_circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.evaluation.mib import AREAS, measured_curve, mib_curve, mib_curves
from edgeprune.evaluation.mib_circuits import SHARES, Rule, counted_edges, largest_fitting, mib_graph
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods.selection import greedy, prune_dangling, top_n
from tests.methods.small_problems import compiled_problem, problem, random_pairs, tiny

SMALL = EdgeGraph(ArchSpec(num_layers=2, num_heads=3, num_kv_heads=3))
GRAPHS = [
    SMALL,
    EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2, split_embedding=True)),
    EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1, has_mlp=False)),
]
_MODEL = problem(tiny("gpt2"))


def evaluator(**changes: Any) -> Evaluator:
    return Evaluator(_MODEL.model, _MODEL.runs, _MODEL.batches, "train", **changes)


def noise(graph: EdgeGraph, seed: int = 0) -> Tensor:
    return torch.randn(graph.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scored(graph: EdgeGraph, scores: Tensor, **header: Any) -> Circuit:
    return Circuit(graph, graph.exists, scores, header)


# ---------------------------------------------------------------- scores
def by_hand(judge: Evaluator, ranking: Tensor, share: float) -> set[str]:
    """The best edges by name; then again and again without those of heads and MLPs that lack an input or an output."""
    graph, groups = judge.graph, judge.graph.arch.num_heads // judge.graph.arch.num_kv_readers
    names = [graph.edge_name(*place) for place in graph.exists.nonzero().tolist()]
    best = sorted(names, key=lambda edge: -float(ranking[graph.index(edge)]))
    kept = set(best[: int(share * len(names))])
    while True:
        entered = {end for edge in kept for end in owners(edge.split("->")[1], groups)}
        left = {edge.split("->")[0] for edge in kept}
        alive = {
            edge
            for edge in kept
            if (edge.startswith("embed") or edge.split("->")[0] in entered)
            and (edge.endswith("logits") or left.intersection(owners(edge.split("->")[1], groups)))
        }
        if alive == kept:
            return kept
        kept = alive


def owners(reader: str, groups: int) -> list[str]:
    """Heads or MLPs that read through a reader."""
    layer, *place = reader.split(".")
    if not place:
        return [layer]
    head, times = int(place[0][1:]), 1 if place[1] == "q" else groups
    return [f"{layer}.h{number}" for number in range(head * times, (head + 1) * times)]


@pytest.mark.parametrize("absolute", [False, True])
def test_against_a_slow_computation(absolute: bool) -> None:
    judge = evaluator()
    graph, scores = judge.graph, noise(judge.graph)
    curve = mib_curve(judge, scored(graph, scores), absolute=absolute)
    ends = judge.ends.figure("logit_difference", 0), judge.ends.figure("logit_difference", 1)
    expected: list[float] = []
    for point, share in zip(curve.points, SHARES, strict=True):
        edges = by_hand(judge, scores.abs() if absolute else scores, share)
        value = judge([graph.keep_matrix(edges)]).figure("logit_difference")
        expected.append((value - ends[1]) / (ends[0] - ends[1]))
        assert (point.requested, point.num_asked, point.num_kept) == (share, int(share * graph.num_edges), len(edges))
        assert point.value == pytest.approx(value, rel=1e-5)
    assert [point.faithfulness for point in curve.points] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    steps = [(x, SHARES[place + 1], place) for place, x in enumerate(SHARES[:-1])]
    cpr = sum((y - x) * (expected[place] + expected[place + 1]) / 2 for x, y, place in steps)
    cmd = sum((y - x) * (abs(1 - expected[place]) + abs(1 - expected[place + 1])) / 2 for x, y, place in steps)
    assert (curve.areas["cpr"], curve.areas["cmd"]) == pytest.approx((cpr, cmd), rel=1e-4)
    assert curve.areas["average"] == pytest.approx(sum(expected) / 10, rel=1e-4)
    kept = [len(by_hand(judge, scores.abs() if absolute else scores, share)) / graph.num_edges for share in SHARES]
    assert curve.kept_shares == pytest.approx(kept)
    own = sum((kept[n + 1] - kept[n]) * (expected[n] + expected[n + 1]) / 2 for n in range(9))
    assert curve.areas["cpr_pruned_size"] == pytest.approx(own, rel=1e-4)


def test_the_last_point_is_the_full_model() -> None:
    judge = evaluator()
    last = mib_curve(judge, scored(judge.graph, noise(judge.graph))).points[-1]
    assert (last.requested, last.num_kept, last.faithfulness) == (1, judge.graph.num_edges, 1)


def test_both_rankings_in_one_call() -> None:
    told: list[tuple[str, int, int]] = []
    judge = evaluator(progress=lambda *about: told.append(about))
    circuit = scored(judge.graph, noise(judge.graph))
    both = mib_curves(judge, circuit)
    assert [done for _, done, _ in told] == [0, 1, 2, 3]
    signed, absolute = (mib_curve(judge, circuit, absolute=ranking) for ranking in (False, True))
    assert both.signed.areas == pytest.approx(signed.areas, rel=1e-4)
    assert both.absolute.areas == pytest.approx(absolute.areas, rel=1e-4)
    assert both.signed.areas["cpr"] != pytest.approx(both.absolute.areas["cpr"], rel=1e-2)
    written = both.to_dict()
    assert (written["cpr"], written["cmd"]) == (both.signed.areas["cpr"], both.absolute.areas["cmd"])
    assert (written["signed"]["ranking"], written["absolute"]["ranking"]) == ("signed", "absolute")


def test_circuits_that_are_equal_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest are empty once dangling edges are dropped, the last is the whole model."""
    judge, runs = evaluator(), list[int]()
    original = type(judge).__call__

    def counted(self: Evaluator, gates: Sequence[Tensor], *about: Any) -> Any:
        runs.append(len(gates))
        return original(self, gates, *about)

    monkeypatch.setattr(type(judge), "__call__", counted)
    curve = mib_curve(judge, scored(judge.graph, noise(judge.graph)))
    assert runs == [2 + len({point.num_kept for point in curve.points} - {0, judge.graph.num_edges})]


def test_a_true_circuit_on_top_is_faithful_as_soon_as_it_fits() -> None:
    """Two of 94 edges make the compiled program right under interchange; 1 % of them is none."""
    asked = compiled_problem("reverse", number=8)
    judge = Evaluator(asked.model, asked.runs, asked.batches, "train")
    graph = judge.graph
    truth = graph.keep_matrix(true_circuit("reverse", "interchange"))
    curve = mib_curve(judge, scored(graph, truth.double() - 0.001 * noise(graph).abs()), "squared_error")
    expected = [float(int(share * graph.num_edges) >= 2) for share in SHARES]
    assert [point.faithfulness for point in curve.points] == pytest.approx(expected, abs=1e-6)
    first = expected.index(1)
    assert SHARES[first] == 0.05
    assert curve.areas["cpr"] == pytest.approx(1 - 0.05 + 0.03 / 2, abs=1e-6)
    assert curve.areas["cmd"] == pytest.approx(0.02 - 0.001 + 0.03 / 2, abs=1e-6)
    assert curve.areas["average"] == pytest.approx(0.5, abs=1e-6)


def test_a_graph_of_thirteen_edges_has_six_empty_circuits() -> None:
    asked = compiled_problem("hist", number=4)
    judge = Evaluator(asked.model, asked.runs, asked.batches, "train")
    curve = mib_curve(judge, scored(judge.graph, noise(judge.graph)), "squared_error")
    assert [point.num_asked for point in curve.points] == [0, 0, 0, 0, 0, 0, 1, 2, 6, 13]
    assert [point.faithfulness for point in curve.points[:6]] == [0] * 6
    assert curve.missing == ()


def test_information_flow_routes_grow_from_the_logits() -> None:
    judge = evaluator()
    scores = noise(judge.graph).abs()
    grown = mib_curve(judge, scored(judge.graph, scores, method="information_flow_routes"))
    cut = mib_curve(judge, scored(judge.graph, scores, method="eap"))
    assert (grown.rule, cut.rule) == ("greedy", "top_n")
    assert mib_curve(judge, scored(judge.graph, scores), rule="greedy").areas == pytest.approx(grown.areas)
    assert [point.num_kept for point in grown.points] != [point.num_kept for point in cut.points]


# ---------------------------------------------------------------- circuits of their own sizes
def sized(judge: Evaluator, *sizes: int) -> list[Circuit]:
    return [Circuit.random(judge.graph, size, seed) for seed, size in enumerate(sizes)]


def test_circuits_take_the_shares_that_they_fit() -> None:
    judge = evaluator()
    total = judge.graph.num_edges
    limits = {share: int(share * total) for share in SHARES}
    given = sized(judge, limits[0.5], limits[0.1] + 1, limits[0.1], limits[0.05] + 1, total)
    curve = mib_curve(judge, given)
    assert [point.circuit for point in curve.points] == [None] * 6 + [2, 1, 0, None]
    assert curve.missing == SHARES[:6]
    assert curve.unused == (3, 4)
    assert [point.num_kept for point in curve.points] == [0] * 6 + [given[n].num_edges for n in (2, 1, 0)] + [total]
    assert [point.faithfulness for point in curve.points[:6]] == [0] * 6
    assert curve.points[-1].faithfulness == 1
    for point in curve.points[6:9]:
        value = judge([given[point.circuit].keep]).figure("logit_difference")  # pyright: ignore[reportArgumentType]
        assert point.value == pytest.approx(value, rel=1e-5)  # dangling edges and all
    assert (curve.rule, curve.ranking) == ("circuits", None)


def test_measured_circuits_have_the_curve_of_a_run() -> None:
    """Of the same circuits with the same values, in any order."""
    judge = evaluator()
    given = sized(judge, 40, 10, 20)
    values = judge(
        [None, judge.graph.all_closed(), *(one.keep for one in given)], measures=["logit_difference", "accuracy"]
    )
    found = measured_curve(values, given, "logit_difference", (judge.split, "interchange")).to_dict()
    expected = mib_curve(judge, given).to_dict()
    assert found.keys() == expected.keys()
    assert [point["circuit"] for point in found["points"]] == [point["circuit"] for point in expected["points"]]
    for name in AREAS:
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995])
def test_a_circuit_of_a_sparsity_fits_the_share_that_is_left(sparsity: float) -> None:
    """Also where the number of edges was rounded up, as 3,533 of 70,651 for 95 %."""
    graph = EdgeGraph(ArchSpec(num_layers=30, num_heads=9, num_kv_heads=3))
    assert graph.num_edges == 70_651
    place = next(number for number, share in enumerate(SHARES) if share == pytest.approx(1 - sparsity))
    chosen = list(largest_fitting(graph, [Circuit.from_scores(graph, noise(graph), sparsity=sparsity)]))
    assert [one.stands_in for one in chosen] == [True] * place + [False] * (10 - place)


def test_of_equals_the_first_and_a_circuit_for_several_shares() -> None:
    judge = evaluator()
    size = int(0.1 * judge.graph.num_edges)
    curve = mib_curve(judge, sized(judge, size, size))
    assert [point.circuit for point in curve.points[6:9]] == [0, 0, 0]
    assert curve.unused == (1,)
    own = curve.areas["cpr_pruned_size"]
    mine = size / judge.graph.num_edges
    value = curve.points[6].faithfulness
    assert own == pytest.approx(mine * value / 2 + (1 - mine) * (value + 1) / 2)


def test_an_empty_circuit_is_a_circuit() -> None:
    judge = evaluator()
    curve = mib_curve(judge, [Circuit.from_edges(judge.graph, [])])
    assert (curve.missing, curve.unused) == ((), ())
    assert [point.circuit for point in curve.points] == [0] * 9 + [None]
    assert curve.areas["cpr"] == pytest.approx(0.25)
    assert curve.areas["cpr_pruned_size"] == pytest.approx(0.5)


# ---------------------------------------------------------------- what is written, what is refused
def test_what_is_written() -> None:
    judge = evaluator()
    circuit = scored(judge.graph, noise(judge.graph))
    written = json.loads(json.dumps(mib_curve(judge, circuit).to_dict(), allow_nan=False))
    about = {name: written[name] for name in ("measure", "split", "ablation", "num_examples", "rule", "ranking")}
    assert about == {
        "measure": "logit_difference",
        "split": "train",
        "ablation": "interchange",
        "num_examples": 5,
        "rule": "top_n",
        "ranking": "signed",
    }
    assert (written["num_edges"], written["missing"], written["unused"]) == (judge.graph.num_edges, [], [])
    assert [point["requested"] for point in written["points"]] == list(SHARES)
    assert set(written["points"][0]) == {
        "requested",
        "num_asked",
        "num_kept",
        "kept",
        "circuit",
        "value",
        "faithfulness",
        "accuracy",
    }


def test_nothing_to_explain() -> None:
    """Where the corrupted prompts are the clean ones, the empty circuit is the full model, and f has no meaning."""
    pairs = [replace(pair, corrupted=pair.clean) for pair in random_pairs()]
    asked = problem(_MODEL.model, pairs)
    curve = mib_curve(
        Evaluator(asked.model, asked.runs, asked.batches), scored(asked.model.graph, asked.model.graph.exists.double())
    )
    written = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert [written[name] for name in ("cpr", "cmd", "average", "cpr_pruned_size", "cmd_pruned_size")] == [None] * 5
    assert written["points"][0]["faithfulness"] is None
    assert written["points"][0]["value"] == pytest.approx(written["full"], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "words", "num_edges_mib"),
    [
        ({}, "one embedding, k and v inputs of every key/value head; MIB counts otherwise", 110),
        ({"kv_readers": "head"}, "one embedding, k and v inputs of every query head; as MIB counts", 110),
        ({"num_kv_heads": 4}, "one embedding, k and v inputs of every query head; as MIB counts", 110),
        ({"num_kv_heads": 4, "split_embedding": True}, "token and position embedding apart, k and v", 110),
    ],
)
def test_which_edges_are_counted(change: dict[str, Any], words: str, num_edges_mib: int) -> None:
    graph = EdgeGraph(replace(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2), **change))
    assert counted_edges(graph).startswith(words)
    assert mib_graph(graph).num_edges == num_edges_mib  # 13 (1 + 6) + 2 x 4 + 11
    assert (graph.num_edges == num_edges_mib) == counted_edges(graph).endswith("as MIB counts")


@pytest.mark.parametrize(
    ("layers", "heads", "num_kv_heads", "published"),
    [(12, 12, 12, 32_491), (24, 14, 2, 179_749), (26, 8, 4, 74_218), (32, 32, 8, 1_592_881), (6, 4, 4, 1_108)],
    ids=["gpt2", "qwen2.5", "gemma2", "llama3", "interpbench"],
)
def test_mibs_own_counts(layers: int, heads: int, num_kv_heads: int, published: int) -> None:
    arch = ArchSpec(num_layers=layers, num_heads=heads, num_kv_heads=num_kv_heads, split_embedding=True)
    assert mib_graph(EdgeGraph(arch)).num_edges == published


def test_what_is_refused() -> None:
    judge = evaluator()
    circuit = scored(judge.graph, noise(judge.graph))
    with pytest.raises(EdgepruneError, match="no scores to cut circuits of other sizes from; give circuits"):
        mib_curve(judge, Circuit(judge.graph, circuit.keep))
    with pytest.raises(EdgepruneError, match="at least one circuit, got none"):
        mib_curve(judge, [])
    with pytest.raises(EdgepruneError, match="rule must be one of top_n, greedy, got 'threshold'"):
        mib_curve(judge, circuit, rule="threshold")  # pyright: ignore[reportArgumentType]
    with pytest.raises(EdgepruneError, match="measure must be one of"):
        mib_curve(judge, circuit, "beauty")
    other = scored(SMALL, noise(SMALL))
    for wrong in (other, [circuit, other]):
        with pytest.raises(EdgepruneError, match="made for a graph with"):
            mib_curve(judge, wrong)


# ---------------------------------------------------------------- AUROC
def fan(graph: EdgeGraph, size: int) -> Circuit:
    """A circuit of so many edges none of which dangles: heads and MLPs that read the embedding and write the logits."""
    edges = ["embed->logits"] if size % 2 else []
    for writer in graph.writers[1:]:
        edges += [f"embed->{writer}" + (".q" if writer.startswith("a") else ""), f"{writer}->logits"]
    circuit = Circuit.from_edges(graph, edges[:size])
    assert (circuit.num_edges, circuit.num_dangling) == (size, 0)
    return circuit


def test_a_perfect_ranking_of_a_circuit_that_has_one_of_the_ten_sizes() -> None:
    size = math.ceil(0.1 * SMALL.num_edges)
    truth = fan(SMALL, size)
    found = mib_roc(scored(SMALL, truth.keep.double() - 0.001 * noise(SMALL).sigmoid()), truth)
    assert (found.sizes[6], found.curve.num_true) == (size, size)
    assert found.auroc == 1
    point = found.to_dict()["points"][6]
    assert [point[name] for name in ("tpr", "fpr", "precision", "num_kept")] == [1, 0, 1, size]


def test_the_grid_is_too_coarse_for_a_circuit_between_two_sizes() -> None:
    """Between the last size below and the first one above, the straight line gives away half of what is between."""
    below, above = (math.ceil(share * SMALL.num_edges) for share in (0.05, 0.1))
    size = below + 1
    truth = fan(SMALL, size)
    found = mib_roc(scored(SMALL, truth.keep.double()), truth, rule="top_n", prune=False)
    others = SMALL.num_edges - size
    assert found.auroc == pytest.approx(1 - (above - size) / others * (1 - below / size) / 2, abs=1e-12)


def test_the_worst_ranking() -> None:
    truth = fan(SMALL, 4)
    found = mib_roc(scored(SMALL, -truth.keep.double()), truth, rule="top_n", absolute=False, prune=False)
    false = math.ceil(SMALL.num_edges / 2) / (SMALL.num_edges - 4)
    assert found.auroc == pytest.approx((1 - false) / 2, abs=1e-12)
    assert mib_roc(scored(SMALL, -truth.keep.double()), truth, rule="top_n", prune=False).auroc > 0.9


def test_random_rankings_on_average() -> None:
    truth = Circuit.random(SMALL, 12, seed=1)
    found = [mib_roc(scored(SMALL, noise(SMALL, seed)), truth, rule="top_n", prune=False) for seed in range(100)]
    areas = torch.tensor([one.auroc for one in found])
    assert float(areas.mean()) == pytest.approx(0.5, abs=4 * float(areas.std()) / 10)
    assert float(areas.std()) < 0.15


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("rule", ["greedy", "top_n"])
def test_rates_by_name(graph: EdgeGraph, rule: Rule) -> None:
    """An edge that a circuit does not have is a miss or rightly left out, never a hit or a false alarm."""
    truth, scores = Circuit.random(graph, graph.num_edges // 3, seed=1), noise(graph)
    true, others = set(truth.edges()), graph.num_edges - truth.num_edges
    found = mib_roc(scored(graph, scores), truth, rule=rule)
    points: list[tuple[float, float]] = []
    for share in SHARES:
        size, choose = math.ceil(share * graph.num_edges), greedy if rule == "greedy" else top_n
        kept = set(Circuit(graph, prune_dangling(graph, choose(graph, scores, size, absolute=True))).edges())
        points.append((len(kept - true) / others, len(kept & true) / len(true)))
    assert found.curve.fpr.tolist() == pytest.approx([x for x, _ in points])
    assert found.curve.tpr.tolist() == pytest.approx([y for _, y in points])
    area = sum((points[n + 1][0] - points[n][0]) * (points[n + 1][1] + points[n][1]) / 2 for n in range(9))
    assert found.auroc == pytest.approx(area)


def test_a_circuit_with_none_of_the_edges_has_neither_hits_nor_false_alarms() -> None:
    """MIB's code would take every true edge for found and every other one for a false alarm."""
    nowhere = SMALL.keep_matrix(["a0.h0->m0", "a0.h1->m0"]).double()  # nothing enters the heads
    found = mib_roc(scored(SMALL, nowhere), fan(SMALL, 4), rule="top_n")
    assert found.sizes[4] == 2
    assert (found.curve.tpr[:5].tolist(), found.curve.fpr[:5].tolist()) == ([0] * 5, [0] * 5)


def test_what_the_roc_refuses() -> None:
    circuit = scored(SMALL, noise(SMALL))
    with pytest.raises(EdgepruneError, match="the circuit has no scores"):
        mib_roc(Circuit(SMALL, SMALL.exists), fan(SMALL, 4))
    with pytest.raises(EdgepruneError, match="the known one has"):
        mib_roc(circuit, Circuit.random(GRAPHS[1], 5))
    for wrong in (SMALL.exists, torch.zeros_like(SMALL.exists)):
        with pytest.raises(EdgepruneError, match="rates need some that are in it and some that are not"):
            mib_roc(circuit, Circuit(SMALL, wrong))
