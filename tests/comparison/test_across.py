"""Circuits against circuits: figures by hand and by scipy, both ends, and what is refused."""

import json
import math
from typing import Any

import pytest
import torch
from scipy.stats import kendalltau, pearsonr, spearmanr
from torch import Tensor

from datamodules.pairs import collate
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.comparison.across import Candidate, align_performance, cross_model, cross_task
from edgeprune.comparison.overlaps import common_core, edge_weights, overlap_matrix, pair_overlap, ruzicka
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.metrics.examples import ExampleValues
from edgeprune.models.masked import MaskedModel
from edgeprune.statistics.correlation import average_ranks, kendall, pearson, spearman
from tests.methods.small_problems import random_pairs, tiny
from tests.reading.test_attention_roles import batches_with_roles, small_llama

SMALL = EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1))  # embed, a0.h0, m0; 8 edges
EDGES = ["embed->a0.h0.q", "embed->a0.h0.k", "embed->a0.h0.v", "a0.h0->m0", "m0->logits"]


def scored(values: dict[str, float], keep: list[str] | None = None, header: dict[str, Any] | None = None) -> Circuit:
    """A circuit of the small graph with scores; other edges have 0."""
    scores = torch.zeros(SMALL.shape)
    for edge, value in values.items():
        scores[SMALL.index(edge)] = value
    return Circuit(SMALL, SMALL.keep_matrix(values if keep is None else keep), scores, header or {})


# -------------------------------------------------------------------- correlations
def test_correlations_by_hand() -> None:
    """x = 1 2 2 4, y = 10 30 20 20: ranks 1 2.5 2.5 4 and 1 4 2.5 2.5."""
    x, y = torch.tensor([1, 2, 2, 4]), torch.tensor([10, 30, 20, 20])
    assert average_ranks(y).tolist() == [1, 4, 2.5, 2.5]
    # about the mean 2.5: (-1.5, 0, 0, 1.5) and (-1.5, 1.5, 0, 0): 2.25 / 4.5
    assert spearman(x, y) == pytest.approx(0.5)
    # of 6 pairs one is tied in x and one in y, of the other 4 (1,2), (1,3), (1,4) agree and (2,4) does not
    assert kendall(x, y) == pytest.approx(2 / 5)
    # about the means 2.25 and 20: (-1.25, -.25, -.25, 1.75), (-10, 10, 0, 0): 10 / sqrt(4.75 * 200)
    assert pearson(x, y) == pytest.approx(10 / math.sqrt(950))


@pytest.mark.parametrize("size", [2, 3, 17, 64, 1000])
@pytest.mark.parametrize("levels", [3, 40, 10**6])
def test_correlations_equal_those_of_scipy(size: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(size)
    x, y = (torch.randint(0, levels, (size,), generator=generator).double() for _ in range(2))
    y = y + x
    x[0], x[1], y[0], y[1] = 0, 1, 5, 6  # neither is constant
    assert pearson(x, y) == pytest.approx(pearsonr(x, y).statistic, abs=1e-12)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert kendall(x, y) == pytest.approx(kendalltau(x, y).statistic, abs=1e-12)
    assert kendall(x, -y) == pytest.approx(-kendall(x, y), abs=1e-12)


@pytest.mark.parametrize("function", [pearson, spearman, kendall])
def test_correlations_that_are_not_defined(function: Any) -> None:
    nan = math.nan
    assert math.isnan(function(torch.ones(4), torch.arange(4)))
    assert math.isnan(function(torch.arange(4), torch.ones(4)))
    assert math.isnan(function(torch.empty(0), torch.empty(0)))
    assert math.isnan(function(torch.tensor([1.0, nan]), torch.tensor([2.0, 3.0])))
    left, right = torch.tensor([1.0, nan, 2.0, 3.0, 0.0]), torch.tensor([2.0, 5.0, 3.0, 4.0, nan])
    assert function(left, right) == pytest.approx(1)
    with pytest.raises(EdgepruneError, match="two lists of one length"):
        function(torch.ones(3), torch.ones(4))


# -------------------------------------------------------------------- overlap
def test_ruzicka_by_hand() -> None:
    """Weights .5 .5 0 and .25 0 .75: .25 / (.5 + .5 + .75); the sign does not matter, edges outside do not count."""
    first = scored({EDGES[0]: 2.0, EDGES[1]: -2.0})
    second = scored({EDGES[0]: 1.0, EDGES[4]: 3.0, EDGES[2]: 9.0}, keep=[EDGES[0], EDGES[4]])
    assert edge_weights(second)[SMALL.index(EDGES[4])] == 0.75
    assert edge_weights(second).sum() == 1
    found = pair_overlap(first, second)
    assert found.weighted_overlap == pytest.approx(0.25 / 1.75)
    assert (found.edges_first, found.edges_second, found.edges_both) == (2, 2, 1)
    assert found.edge_jaccard == pytest.approx(1 / 3)
    assert found.same_sign == 1
    assert pair_overlap(first, scored({EDGES[1]: 1.0})).same_sign == 0


def test_weighted_overlap_without_scores_is_the_jaccard_index() -> None:
    first, second = (Circuit.from_edges(SMALL, edges) for edges in (EDGES[:3], EDGES[1:4]))
    found = pair_overlap(first, second)
    assert found.weighted_overlap == pytest.approx(found.edge_jaccard) == pytest.approx(0.5)
    assert math.isnan(found.spearman_all)
    assert math.isnan(found.same_sign)


def test_containment_nodes_and_chance_by_hand() -> None:
    """Two edges inside three: of 8 edges, 3 * 2 / 8 are shared by chance, both with probability C(6, 1) / C(8, 3)."""
    small, large = (Circuit.from_edges(SMALL, edges) for edges in (EDGES[3:], EDGES[2:]))
    found = overlap_matrix({"small": small, "large": large})
    pair = found.pair("large", "small")
    assert (pair.share_of_first, pair.share_of_second) == (1, pytest.approx(2 / 3))
    assert SMALL.num_edges == 8
    assert pair.expected_both == pytest.approx(6 / 8)
    assert pair.log10_p_value == pytest.approx(math.log10(6 / 56))
    assert pair.node_jaccard == pytest.approx(3 / 4)  # a0.h0, m0, logits of these and embed
    matrix = found.matrix("containment")
    assert matrix[0, 1] == 1
    assert matrix[1, 0] == pytest.approx(2 / 3)
    assert torch.equal(found.matrix("edge_jaccard").nan_to_num(0), torch.tensor([[0, 2], [2, 0]]).double() / 3)
    with pytest.raises(EdgepruneError, match="no pair of small, large"):
        found.pair("small", "other")


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
    found = pair_overlap(signed, circuits[1])
    either = circuits[0].keep | circuits[1].keep
    for name, function in (("spearman", spearmanr), ("kendall", kendalltau)):
        for place, edges in (("all", graph.exists), ("kept", either)):
            expected = function(scores[0].abs()[edges], scores[1][edges]).statistic
            assert getattr(found, f"{name}_{place}") == pytest.approx(expected, abs=1e-9)


def test_both_ends() -> None:
    """The same circuit, disjoint ones, empty ones, and weights that are all 0."""
    one = scored({edge: float(place + 1) for place, edge in enumerate(EDGES[:3])})
    same = pair_overlap(one, one)
    for name in ("edge_jaccard", "node_jaccard", "share_of_first", "weighted_overlap", "spearman_all", "kendall_kept"):
        assert getattr(same, name) == pytest.approx(1), name
    apart = pair_overlap(one, scored(dict.fromkeys(EDGES[3:], 1.0)))
    assert (apart.edges_both, apart.edge_jaccard, apart.weighted_overlap, apart.log10_p_value) == (0, 0, 0, 0)
    empty = Circuit.from_edges(SMALL, [])
    nothing = pair_overlap(empty, empty)
    assert (nothing.edge_jaccard, nothing.node_jaccard, nothing.weighted_overlap) == (1, 1, 1)
    half = pair_overlap(one, empty)
    assert (half.edge_jaccard, half.share_of_first, half.share_of_second, half.weighted_overlap) == (0, 0, 0, 0)
    flat = pair_overlap(one, scored(dict.fromkeys(EDGES[:2], 0.0)))
    assert flat.to_dict()["weighted_overlap"] is None
    assert math.isnan(ruzicka(torch.zeros(2), torch.zeros(2)))
    json.dumps(overlap_matrix({"a": one, "b": empty, "c": empty}).to_dict(), allow_nan=False)


def test_common_core_by_enumeration() -> None:
    """Mean and deviation over all circuits of 2, 3 and 4 of 8 edges, drawn one after the other."""
    circuits = [Circuit.from_edges(SMALL, edges) for edges in (EDGES[:2], EDGES[:3], EDGES[1:])]
    found = common_core(circuits)
    assert found.edges == (EDGES[1],)
    assert found.union == 5
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
    assert core.expected == pytest.approx(moments[0])
    assert core.deviation == pytest.approx(math.sqrt(moments[1] - moments[0] ** 2))
    whole = common_core([Circuit(SMALL, SMALL.exists)] * 3)
    assert (whole.expected, whole.deviation, whole.to_dict()["z"]) == (8, 0, None)


def test_other_graphs_are_sent_to_roles() -> None:
    other = small_llama().graph
    with pytest.raises(EdgepruneError, match=r"'one' and 'other' are of different graphs.*roles of their heads"):
        overlap_matrix({"one": Circuit(SMALL, SMALL.exists), "other": Circuit(other, other.exists)})
    with pytest.raises(EdgepruneError, match="two circuits or more, got 1"):
        overlap_matrix({"one": Circuit(SMALL, SMALL.exists)})


# -------------------------------------------------------------------- performance
def values(rows: list[list[float]], index: list[int] | None = None) -> ExampleValues:
    """Logit differences of circuits on examples."""
    matrix = torch.tensor(rows, dtype=torch.float64)[:, None]
    numbers = torch.tensor(list(range(matrix.shape[-1])) if index is None else index)
    return ExampleValues(("logit_difference",), matrix, torch.ones_like(matrix), numbers)


def test_alignment_by_hand() -> None:
    first, second = values([[1, 2, 3, math.nan]]), values([[2, 4, 3, 7]])
    ends = values([[4, 4, 4, 4], [0, 0, 0, 0]]), values([[8, 8, 8, 8], [4, 4, 4, 4]])
    found = align_performance(first, second, ends=ends)
    assert (found.num_units, found.unit, found.figures) == (3, "example", (2, 4))
    assert found.pearson == pytest.approx(0.5)
    assert found.spearman == pytest.approx(0.5)
    assert found.faithfulness == (0.5, 0)
    assert found.faithfulness_difference == 0.5
    assert math.isnan(found.pearson_full)  # the full models do equally well everywhere
    without = align_performance(first, second).to_dict()
    assert without["faithfulness"] == [None, None]
    assert without["faithfulness_difference"] is None
    json.dumps(without, allow_nan=False)


def test_alignment_by_label_where_examples_differ() -> None:
    """Means of groups a: 1.5 and 2, b: 4 and 6; c is in one alone."""
    first, second = values([[1, 2, 4, 9]]), values([[6, 2, 2]], [7, 8, 9])
    with pytest.raises(EdgepruneError, match="4 examples against 3"):
        align_performance(first, second)
    with pytest.raises(EdgepruneError, match="example 0 is number 0 in one and 7 in the other"):
        align_performance(values([[1, 2, 3]]), second)
    found = align_performance(first, second, labels=(["a", "a", "b", "c"], ["b", "a", "a"]))
    assert (found.unit, found.num_units) == ("label", 2)
    assert found.pearson == pytest.approx(1)
    with pytest.raises(EdgepruneError, match="a against b"):
        align_performance(first, second, labels=(["a"] * 4, ["b"] * 3))


# -------------------------------------------------------------------- models and tasks
def judge(model: MaskedModel, seed: int | None = None) -> Evaluator:
    """On pairs with roles, or on random ones without."""
    batches = batches_with_roles() if seed is None else [collate(list(enumerate(random_pairs(4, seed))))]
    return Evaluator(model, ReferenceRuns(model, "interchange", 1.0), batches)


def test_the_same_circuit_in_the_same_model() -> None:
    model = tiny("gpt2")
    circuit = Circuit.random(model.graph, 60, 3)
    found = cross_model(Candidate("a", circuit, judge(model)), Candidate("b", circuit, judge(model)), seeds=[0, 1])
    assert found.overlap is not None
    assert found.roles is not None
    assert found.overlap.edge_jaccard == 1
    assert [match.similarity for match in found.roles.one_to_one] == pytest.approx([1] * len(found.roles.one_to_one))
    assert found.roles.importance.cosine == pytest.approx(1)
    assert found.performance.pearson == pytest.approx(1)
    assert found.performance.pearson_full == pytest.approx(1)
    assert found.performance.faithfulness_difference == 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_models_of_other_shapes() -> None:
    models = tiny("gpt2"), small_llama()
    pair = [Candidate(str(place), Circuit.random(item.graph, 40), judge(item)) for place, item in enumerate(models)]
    found = cross_model(*pair, seeds=[0])
    assert found.overlap is None
    assert found.roles is not None
    result = found.to_dict()
    assert result["overlap"] is None
    item = pair[0].evaluator
    figures = item([pair[0].circuit.keep], measures=["logit_difference"])
    assert found.performance.figures[0] == pytest.approx(figures.figure("logit_difference"))
    full = [one.evaluator.ends.of("logit_difference")[0] for one in pair]
    assert found.performance.pearson_full == pytest.approx(pearsonr(*full).statistic)
    json.dumps(result, allow_nan=False)


def test_tasks_without_roles() -> None:
    """Circuits of one graph are compared all the same, without roles; others are not."""
    gpt2, llama = tiny("gpt2"), small_llama()
    first = Candidate("a", Circuit.random(gpt2.graph, 40), judge(gpt2, 0))
    assert cross_model(first, first).roles is None
    with pytest.raises(EdgepruneError, match="marks no position roles"):
        cross_model(first, Candidate("b", Circuit.random(llama.graph, 40), judge(llama, 0)))
    with pytest.raises(EdgepruneError, match="num_layers=2"):
        Candidate("c", Circuit.random(llama.graph, 40), judge(gpt2, 0))


def test_examples_that_may_be_other_texts() -> None:
    """Numbers of examples agree, tokens do not: labels, or the user's word, are needed."""
    model = tiny("gpt2")
    circuit = Circuit.random(model.graph, 40)
    pair = [Candidate(name, circuit, judge(model, seed)) for seed, name in enumerate("ab")]
    with pytest.raises(EdgepruneError, match="prompts of 'a' and 'b' are not the same tokens"):
        cross_model(*pair)
    assert cross_model(*pair, same_texts=True).performance.num_units == 4
    labels = ["odd", "even", "odd", "even"]
    assert cross_model(*pair, labels=(labels, labels)).performance.num_units == 2


def test_transfer_between_tasks() -> None:
    """A circuit on its own task has its own figures; the full circuit has the full model's anywhere."""
    model = tiny("gpt2")
    circuits = {"one": Circuit.random(model.graph, 90, 5), "all": Circuit(model.graph, model.graph.exists)}
    judges = {"one": judge(model, 0), "all": judge(model, 1)}
    found = cross_task(circuits, judges, seeds=[0, 1])
    assert [(item.circuit, item.task) for item in found.transfers] == [
        (circuit, task) for task in circuits for circuit in circuits
    ]
    own = found.transfer("one", "one")
    assert torch.equal(own.figures, own.own)
    assert torch.equal(found.transfer("all", "one").own, own.own)
    expected = judges["all"]([circuits["one"].keep, *(Circuit.random(model.graph, 90, seed).keep for seed in (0, 1))])
    moved = found.transfer("one", "all")
    _close(moved.figures, expected.figures()[0])
    _close(moved.random, expected.figures()[1:])
    whole = found.transfer("all", "one").to_dict()
    assert whole["faithfulness"]["logit_difference"] == pytest.approx(1)
    assert whole["own_faithfulness"]["logit_difference"] != pytest.approx(1, abs=1e-3)
    assert whole["figures"]["logit_difference"] == pytest.approx(whole["full"]["logit_difference"])
    assert found.overlap.pair("one", "all").share_of_first == 1
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(EdgepruneError, match="no circuit 'two' on task 'one'"):
        found.transfer("two", "one")


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)  # logits are judged in float32


def test_tasks_that_do_not_fit() -> None:
    model, other = tiny("gpt2"), small_llama()
    circuits = {"one": Circuit.random(model.graph, 9), "two": Circuit.random(model.graph, 9, 1)}
    with pytest.raises(EdgepruneError, match="circuits are for one, two, pairs for one"):
        cross_task(circuits, {"one": judge(model, 0)})
    with pytest.raises(EdgepruneError, match="at least one seed"):
        cross_task(circuits, {"one": judge(model, 0), "two": judge(model, 1)}, seeds=[])
    with pytest.raises(EdgepruneError, match="the model of 'two' has 2"):
        cross_task(circuits, {"one": judge(model, 0), "two": judge(other, 1)})
