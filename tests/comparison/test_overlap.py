import json
import math
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import pytest
import torch
from scipy.stats import kendalltau, spearmanr
from torchmetrics.functional.classification import (
    binary_f1_score,
    binary_jaccard_index,
    binary_precision,
    binary_recall,
)

from edgeprune.circuit import Circuit
from edgeprune.comparison.overlap import (
    FEW,
    by_chance,
    common_core,
    compare_circuits,
    compare_every_two,
    cut_to,
    edge_kinds,
    edge_overlap,
    edge_weights,
    reader_layers,
    ruzicka,
    scientific,
)
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from tests.methods.small_problems import tiny

EXISTS = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()


def test_by_hand() -> None:
    found = torch.tensor([[1, 1, 1], [0, 1, 0]]).bool()  # 3 existing edges: (0, 2) does not exist
    reference = torch.tensor([[1, 0, 1], [1, 1, 1]]).bool()  # 4
    assert edge_overlap(found, reference, EXISTS) == {
        "precision": 2 / 3,
        "recall": 2 / 4,
        "jaccard": 2 / 5,
        "f1": 4 / 7,
        "both": 2,
        "only_found": 1,
        "only_reference": 2,
    }


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_torchmetrics(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found, reference, exists = (torch.rand(30, 20, generator=generator) < share for share in (0.2, 0.4, 0.8))
    ours = edge_overlap(found, reference, exists)
    entries = found[exists].int(), reference[exists].int()
    theirs = {
        "precision": binary_precision,
        "recall": binary_recall,
        "jaccard": binary_jaccard_index,
        "f1": binary_f1_score,
    }
    for name, metric in theirs.items():
        assert ours[name] == pytest.approx(metric(*entries).item(), abs=1e-6), name  # theirs are float32


def test_exchanging_the_circuits_exchanges_precision_and_recall() -> None:
    found, reference = torch.zeros(2, 3).bool(), EXISTS.clone()
    found[0, 0] = True
    there, back = edge_overlap(found, reference, EXISTS), edge_overlap(reference, found, EXISTS)
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"]) == (1.0, 0.2)
    assert (there["jaccard"], there["f1"]) == (back["jaccard"], back["f1"])


@pytest.mark.parametrize(("found", "reference", "share"), [(0, 0, 1.0), (0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.0)])
def test_empty_and_full(found: int, reference: int, share: float) -> None:
    overlap = edge_overlap(torch.full((2, 3), found), torch.full((2, 3), reference), EXISTS)
    assert {overlap[name] for name in ("precision", "recall", "jaccard", "f1")} == {share}


def test_edges_that_do_not_exist_leave_a_circuit_empty() -> None:
    overlap = edge_overlap(~EXISTS, torch.zeros(2, 3), EXISTS)
    assert overlap["precision"] == 1.0
    assert overlap["only_found"] == 0


def test_refuses_matrices_of_two_graphs() -> None:
    with pytest.raises(EdgepruneError, match=r"one graph, got shapes \(2, 3\), \(3, 2\), \(2, 3\)"):
        edge_overlap(EXISTS, EXISTS.reshape(3, 2), EXISTS)


# ---------------------------------------------------------------- chance
@pytest.mark.parametrize("existing", [0, 1, 5, 7])
def test_chance_by_drawing_every_circuit(existing: int) -> None:
    for in_found, in_reference in product(range(existing + 1), repeat=2):
        reference = set(range(in_reference))
        shared = [len(reference & set(drawn)) for drawn in combinations(range(existing), in_found)]
        for both in range(max(0, in_found + in_reference - existing), min(in_found, in_reference) + 1):
            chance = by_chance(both, in_found, in_reference, existing)
            share = sum(number >= both for number in shared) / len(shared)
            assert chance["p_value"] == pytest.approx(share, rel=1e-12)
            assert 10 ** chance["log10_p_value"] == pytest.approx(share, rel=1e-12)
            assert chance["expected"] == pytest.approx(sum(shared) / len(shared), abs=1e-12)


@pytest.mark.parametrize(("both", "in_found", "in_reference"), [(700, 1000, 1041), (30, 1000, 1041), (900, 1000, 900)])
def test_chance_by_exact_integers(both: int, in_found: int, in_reference: int) -> None:
    existing = 32491
    ways = sum(
        math.comb(in_reference, number) * math.comb(existing - in_reference, in_found - number)
        for number in range(both, min(in_found, in_reference) + 1)
    )
    exact = Fraction(ways, math.comb(existing, in_found))
    log10 = _log10(exact.numerator) - _log10(exact.denominator)
    chance = by_chance(both, in_found, in_reference, existing)
    assert chance["log10_p_value"] == pytest.approx(log10, abs=1e-7)
    assert (chance["p_value"] == 0) == (log10 < -324)  # it underflows, its logarithm does not


def _log10(number: int) -> float:
    digits = len(str(number)) - 1
    return digits + math.log10(number / 10**digits)


def test_a_large_graph_is_summed_to_its_end() -> None:
    existing, size = 3_877_661, 20_000
    mean = size * size / existing  # 103.2, with a standard deviation close to that of Poisson's
    deviation = math.sqrt(mean) * (1 - size / existing)
    normal = 0.5 * math.erfc((99.5 - mean) / deviation / math.sqrt(2))
    assert by_chance(100, size, size, existing)["p_value"] == pytest.approx(normal, abs=0.01)
    assert by_chance(size, size, size, existing)["log10_p_value"] == pytest.approx(
        -(math.lgamma(existing + 1) - math.lgamma(size + 1) - math.lgamma(existing - size + 1)) / math.log(10), abs=1e-5
    )


def test_counts_that_cannot_be() -> None:
    with pytest.raises(EdgepruneError, match="of 9 edges, 3 and 4 cannot share 5"):
        by_chance(5, 3, 4, 9)


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(1.0, "1.000"), (0.0304, "0.030"), (0.00012, "1.2e-4"), (9.99e-5, "1.0e-4")],
)
def test_probabilities(probability: float, shown: str) -> None:
    assert scientific(math.log10(probability)) == shown


def test_probabilities_below_the_smallest_float() -> None:
    assert scientific(-1234.5) == "3.2e-1235"


# ---------------------------------------------------------------- nodes, kinds, layers
GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))
ATTENTION_ONLY = EdgeGraph(ArchSpec(num_layers=3, num_heads=2, num_kv_heads=2, has_mlp=False))


def test_nodes_are_ends_of_kept_edges() -> None:
    circuit = Circuit.from_edges(GRAPH, ["embed->a0.h2.q", "m0->a1.h1.k", "a1.h3->logits"])
    assert circuit.nodes() == ["embed", "a0.h2", "m0", "a1.h2", "a1.h3", "logits"]  # k reader 1 is that of heads 2, 3
    assert Circuit.from_edges(GRAPH, []).nodes() == []
    assert Circuit(GRAPH, GRAPH.exists).nodes() == [*GRAPH.writers, "logits"]


@pytest.mark.parametrize(
    "graph", [GRAPH, EdgeGraph(ArchSpec(num_layers=3, num_heads=2, num_kv_heads=2, has_mlp=False))]
)
def test_kinds_and_layers_part_the_edges(graph: EdgeGraph) -> None:
    for parts in (dict(edge_kinds(graph)), dict(reader_layers(graph))):
        assert torch.equal(torch.stack(list(parts.values())).sum(0), graph.exists.long())
    kinds = dict(edge_kinds(graph))
    assert ("mlp->logits" in kinds) == graph.arch.has_mlp
    for name, edges in kinds.items():
        for row, column in edges.nonzero().tolist():
            writer, _, reader = graph.edge_name(row, column).partition("->")
            assert name == f"{_kind(writer)}->{_kind(reader)}"


def _kind(name: str) -> str:
    if "." in name:
        return name[-1] if name[-1] in "qkv" else "head"
    return {"e": "embed", "m": "mlp", "l": "logits"}[name[0]]


def test_everything_about_two_circuits() -> None:
    found = Circuit.from_edges(GRAPH, ["embed->m0", "m0->logits", "a0.h0->a1.h0.q"])
    reference = Circuit.from_edges(GRAPH, ["embed->m0", "m0->m1", "m1->logits", "a0.h1->m1"])
    result = compare_circuits(found, reference)
    assert (result["both"], result["only_found"], result["only_reference"]) == (1, 2, 3)
    assert result["expected"] == 3 * 4 / GRAPH.num_edges
    assert result["nodes"]["both"] == 3  # embed, m0, logits
    assert result["nodes"]["only_found"] == 2
    assert result["kinds"]["mlp->logits"]["jaccard"] == 0.0
    assert result["kinds"]["embed->mlp"]["jaccard"] == 1.0
    assert [int(part["only_reference"]) for part in result["layers"].values()] == [0, 2, 1]
    other = Circuit.random(EdgeGraph(ArchSpec(num_layers=3, num_heads=4, num_kv_heads=2)), 3)
    with pytest.raises(EdgepruneError, match="num_layers=3, the other one has 2"):
        compare_circuits(found, other)


def test_a_circuit_is_cut_to_its_best_kept_edges() -> None:
    scores = torch.rand(GRAPH.shape, generator=torch.Generator().manual_seed(0))
    keep = (torch.rand(GRAPH.shape, generator=torch.Generator().manual_seed(1)) < 0.5) & GRAPH.exists
    circuit = Circuit(GRAPH, keep, scores)
    small = cut_to(circuit, 7)
    assert small.num_edges == 7
    assert (small.keep <= keep).all()
    assert scores[small.keep].min() > scores[keep & ~small.keep].max()
    assert torch.equal(cut_to(circuit, circuit.num_edges).keep, keep)
    assert cut_to(Circuit(GRAPH, keep, torch.zeros(GRAPH.shape)), 2).edges() == circuit.edges()[:2]
    with pytest.raises(EdgepruneError, match="no scores"):
        cut_to(Circuit(GRAPH, keep), 2)
    with pytest.raises(EdgepruneError, match="cannot be cut to 9"):
        cut_to(small, 9)


@pytest.mark.parametrize("header", [{"selection": {"absolute": True}}, {"absolute": True}])
def test_a_circuit_is_cut_as_it_was_made(header: dict[str, Any]) -> None:
    scores = torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(0))
    circuit = Circuit(GRAPH, GRAPH.exists, scores, header)
    expected = Circuit.from_scores(GRAPH, scores.abs(), num_edges=9).keep
    assert torch.equal(cut_to(circuit, 9).keep, expected)
    signed = Circuit(GRAPH, GRAPH.exists, scores, {**header, "selection": {"absolute": False}})
    assert torch.equal(cut_to(signed, 9).keep, Circuit.from_scores(GRAPH, scores, num_edges=9).keep)


# ---------------------------------------------------------------- weights, ranks, several circuits
SMALL = EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1))  # embed, a0.h0, m0; 8 edges
EDGES = ["embed->a0.h0.q", "embed->a0.h0.k", "embed->a0.h0.v", "a0.h0->m0", "m0->logits"]


def scored(values: dict[str, float], keep: list[str] | None = None, header: dict[str, Any] | None = None) -> Circuit:
    """A circuit of the small graph with scores; other edges have 0."""
    scores = torch.zeros(SMALL.shape)
    for edge, value in values.items():
        scores[SMALL.index(edge)] = value
    return Circuit(SMALL, SMALL.keep_matrix(values if keep is None else keep), scores, header or {})


def test_ruzicka_by_hand() -> None:
    """Weights .5 .5 0 and .25 0 .75: .25 / (.5 + .5 + .75); the sign does not matter, edges outside do not count."""
    first = scored({EDGES[0]: 2.0, EDGES[1]: -2.0})
    second = scored({EDGES[0]: 1.0, EDGES[4]: 3.0, EDGES[2]: 9.0}, keep=[EDGES[0], EDGES[4]])
    assert edge_weights(second)[SMALL.index(EDGES[4])] == 0.75
    assert edge_weights(second).sum() == 1
    found = compare_circuits(first, second)
    assert found["weights"] == {"ruzicka": pytest.approx(0.25 / 1.75), "same_sign": 1}
    assert (found["both"], found["only_found"], found["only_reference"]) == (1, 1, 1)
    assert found["jaccard"] == pytest.approx(1 / 3)
    assert compare_circuits(first, scored({EDGES[1]: 1.0}))["weights"]["same_sign"] == 0


def test_weighted_overlap_without_scores_is_the_jaccard_index() -> None:
    first, second = (Circuit.from_edges(SMALL, edges) for edges in (EDGES[:3], EDGES[1:4]))
    found = compare_circuits(first, second)
    assert found["weights"] == {"ruzicka": pytest.approx(0.5), "same_sign": None}
    assert found["jaccard"] == 0.5
    assert set(found["ranks"].values()) == {None}


def test_containment_nodes_and_chance_by_hand() -> None:
    """Two edges inside three: of 8 edges, 3 * 2 / 8 are shared by chance, both with probability C(6, 1) / C(8, 3)."""
    small, large = (Circuit.from_edges(SMALL, edges) for edges in (EDGES[3:], EDGES[2:]))
    pair, back = compare_circuits(small, large), compare_circuits(large, small)
    assert (pair["precision"], pair["recall"]) == (1, pytest.approx(2 / 3))
    assert (back["precision"], back["recall"]) == (pytest.approx(2 / 3), 1)
    assert SMALL.num_edges == 8
    assert pair["expected"] == pytest.approx(6 / 8)
    assert pair["log10_p_value"] == pytest.approx(math.log10(6 / 56))
    assert pair["nodes"]["jaccard"] == pytest.approx(3 / 4)  # a0.h0, m0, logits of these and embed
    assert pair["jaccard"] == back["jaccard"] == pytest.approx(2 / 3)


def test_rank_correlations_over_all_edges_and_over_kept_ones() -> None:
    graph = tiny("gpt2").graph
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(graph.shape, generator=generator) for _ in range(2)]
    scores[1] += scores[0]
    header = {"selection": {"absolute": True}}
    circuits = [
        Circuit.from_scores(graph, scores[0].abs(), num_edges=50),
        Circuit.from_scores(graph, scores[1], num_edges=80),
    ]
    signed = Circuit(graph, circuits[0].keep, scores[0], header)  # ranked by absolute value, says the header
    found = compare_circuits(signed, circuits[1])
    either = circuits[0].keep | circuits[1].keep
    for name, function in (("spearman", spearmanr), ("kendall", kendalltau)):
        for place, edges in (("all", graph.exists), ("kept", either)):
            expected = function(scores[0].abs()[edges], scores[1][edges]).statistic
            assert found["ranks"][f"{name}_{place}"] == pytest.approx(expected, abs=1e-9)


def test_both_ends() -> None:
    """The same circuit, disjoint ones, empty ones, and weights that are all 0."""
    one = scored({edge: float(place + 1) for place, edge in enumerate(EDGES[:3])})
    same = compare_circuits(one, one)
    for value in (same["jaccard"], same["nodes"]["jaccard"], same["precision"], same["weights"]["ruzicka"]):
        assert value == pytest.approx(1)
    assert list(same["ranks"].values()) == [pytest.approx(1)] * 4
    apart = compare_circuits(one, scored(dict.fromkeys(EDGES[3:], 1.0)))
    assert (apart["both"], apart["jaccard"], apart["weights"]["ruzicka"], apart["log10_p_value"]) == (0, 0, 0, 0)
    empty = Circuit.from_edges(SMALL, [])
    nothing = compare_circuits(empty, empty)
    assert (nothing["jaccard"], nothing["nodes"]["jaccard"], nothing["weights"]["ruzicka"]) == (1, 1, 1)
    half = compare_circuits(one, empty)
    assert (half["jaccard"], half["precision"], half["recall"], half["weights"]["ruzicka"]) == (0, 0, 0, 0)
    flat = compare_circuits(one, scored(dict.fromkeys(EDGES[:2], 0.0)))
    assert flat["weights"]["ruzicka"] is None
    assert flat["ranks"]["spearman_all"] is None
    assert math.isnan(ruzicka(torch.zeros(2), torch.zeros(2)))
    json.dumps([*compare_every_two([one, empty, empty]), common_core([one, empty, empty])], allow_nan=False)


def test_of_many_circuits_one_rank_correlation_is_made() -> None:
    graph = tiny("gpt2").graph
    many = [Circuit.random(graph, 30, seed) for seed in range(FEW + 1)]
    found = list(compare_every_two(many))
    alone = compare_circuits(many[0], many[1])
    assert found[0]["ranks"]["spearman_all"] == pytest.approx(alone["ranks"].pop("spearman_all"), abs=1e-12)
    assert found[0]["ranks"] == {**found[0]["ranks"], **dict.fromkeys(alone["ranks"])}
    assert None not in alone["ranks"].values()
    assert {**found[0], "ranks": None} == {**alone, "ranks": None}


def test_common_core_by_enumeration() -> None:
    """Mean and deviation over all circuits of 2, 3 and 4 of 8 edges, drawn one after the other."""
    circuits = [Circuit.from_edges(SMALL, edges) for edges in (EDGES[:2], EDGES[:3], EDGES[1:])]
    found = common_core(circuits)
    assert (found["edges"], found["num_edges"]) == ([EDGES[1]], 1)
    assert (found["union"], found["jaccard"]) == (5, 1 / 5)
    sizes = (2, 3, 4)

    def inside(drawn: int, marked: int) -> list[float]:
        """Probability of each number of marked ones among so many drawn of 8."""
        return [
            math.comb(marked, hit) * math.comb(8 - marked, drawn - hit) / math.comb(8, drawn) if hit <= drawn else 0.0
            for hit in range(marked + 1)
        ]

    moments = [0.0, 0.0]
    for common, likely in enumerate(inside(sizes[1], sizes[0])):
        for core, then in enumerate(inside(sizes[2], common)):
            moments = [moments[0] + likely * then * core, moments[1] + likely * then * core**2]
    core = common_core([*circuits[:2], Circuit.from_edges(SMALL, EDGES[:4])])
    assert core["expected"] == pytest.approx(moments[0])
    assert core["deviation"] == pytest.approx(math.sqrt(moments[1] - moments[0] ** 2))
    whole = common_core([Circuit(SMALL, SMALL.exists)] * 3)
    assert (whole["expected"], whole["deviation"], whole["z"]) == (8, 0, None)
