import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_roc

from edgeprune import canonical
from edgeprune.circuit import Circuit
from edgeprune.comparison.conventions import CONVENTIONS, Level
from edgeprune.comparison.known import against_known
from edgeprune.comparison.roc import Curve, curve_of_scores, curve_of_sets, roc
from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import ACDC
from tests.methods.small_problems import compiled_problem

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _truth(graph: EdgeGraph = GRAPH) -> Circuit:
    return Circuit.random(graph, 20, seed=7)


# ---------------------------------------------------------------- areas
@pytest.mark.parametrize(
    ("fpr", "tpr", "pessimistic", "trapezoid"),
    [
        ([0, 1], [0, 1], 0, 1 / 2),
        ([0, 0.5, 1], [0, 0.5, 1], 1 / 4, 1 / 2),
        ([0, 0.25, 1], [0, 0.25, 1], 0.1875, 1 / 2),
        ([0, 0.25, 0.5, 1], [0, 0.25, 0.5, 1], 5 / 16, 1 / 2),
        ([0, 0.25, 0.75, 1], [0, 0.25, 0.5, 1], 4 / 16, 13 / 32),
        ([0, 0, 1], [0, 1, 1], 1, 1),
        ([0, 1, 1], [0, 0, 1], 0, 0),
    ],
)
def test_closed_forms(fpr: list[float], tpr: list[float], pessimistic: float, trapezoid: float) -> None:
    true, false = ((4 * torch.tensor(rates)).long() for rates in (tpr, fpr))
    curve = Curve(true, false)
    assert curve.pessimistic_auc == pytest.approx(pessimistic, abs=1e-7)
    assert curve.auc == pytest.approx(trapezoid, abs=1e-7)


@pytest.mark.parametrize("levels", [3, 10, 10_000])  # few levels: many ties
@pytest.mark.parametrize("share", [0.03, 0.5])
def test_agrees_with_torchmetrics(levels: int, share: float) -> None:
    scores = (_random(2000) * levels).floor() / levels
    truth = _random(2000, seed=1) < share
    curve = curve_of_scores(scores, truth)
    theirs = scores.float(), truth.int()
    fpr, tpr, _ = binary_roc(*theirs)
    assert curve.auc == pytest.approx(binary_auroc(*theirs).item(), abs=1e-5)
    assert curve.average_precision == pytest.approx(binary_average_precision(*theirs).item(), abs=1e-5)
    torch.testing.assert_close(curve.fpr.float(), fpr)
    torch.testing.assert_close(curve.tpr.float(), tpr)


def test_auc_is_the_probability_of_the_right_order() -> None:
    scores, truth = (_random(60) * 9).floor(), _random(60, seed=1) < 0.3
    true, false = scores[truth][:, None], scores[~truth][None]
    above, equal = (true > false).double().mean(), (true == false).double().mean()
    curve = curve_of_scores(scores, truth)
    assert curve.auc == pytest.approx(float(above + equal / 2), abs=1e-12)
    assert curve.pessimistic_auc == pytest.approx(float(above), abs=1e-12)  # ties count as wrong


def test_without_ties_both_areas_are_equal() -> None:
    curve = curve_of_scores(_random(500), _random(500, seed=1) < 0.2)
    assert curve.pessimistic_auc == pytest.approx(curve.auc, abs=1e-12)


def test_perfect_and_reversed_rankings() -> None:
    truth = _random(300) < 0.1
    best, worst = curve_of_scores(truth.double(), truth), curve_of_scores(-truth.double(), truth)
    assert (best.auc, best.pessimistic_auc, best.average_precision) == (1, 1, 1)
    assert (worst.auc, worst.pessimistic_auc) == (0, 0)
    assert best.measures()["num_true"] == int(truth.sum()) == 300 - best.measures()["num_false"]


def test_one_score_for_all() -> None:
    truth = _random(300) < 0.1
    curve = curve_of_scores(torch.zeros(300), truth)
    assert (curve.auc, curve.pessimistic_auc) == (0.5, 0)
    assert curve.average_precision == pytest.approx(float(truth.double().mean()), abs=1e-12)
    assert curve.precision[0] == 1


def test_random_rankings_on_average() -> None:
    truth = torch.arange(400) < 40
    areas = torch.tensor([curve_of_scores(_random(400, seed=seed), truth).auc for seed in range(300)])
    deviation = ((400 + 1) / 12 / 40 / 360) ** 0.5  # of the Mann-Whitney statistic
    assert float(areas.mean()) == pytest.approx(0.5, abs=4 * deviation / 300**0.5)
    assert float(areas.std()) == pytest.approx(deviation, rel=0.2)


def test_infinite_scores_come_first_and_last() -> None:
    scores = torch.tensor([torch.inf, torch.inf, 3.0, -torch.inf])
    curve = curve_of_scores(scores, torch.tensor([True, False, True, False]))
    assert curve.tpr.tolist() == [0, 0.5, 1, 1]
    assert curve.fpr.tolist() == [0, 0.5, 0.5, 1]


# ---------------------------------------------------------------- several sets
def _set(*things: int) -> Tensor:
    return torch.zeros(8, dtype=torch.bool).index_fill(0, torch.tensor(things, dtype=torch.int64), True)


def test_sets_by_hand() -> None:
    truth = _set(0, 1, 2, 3)
    curve = curve_of_sets([_set(0, 1, 4), _set(0, 4, 5), _set(0, 1, 2, 4), _set(0, 1, 4)], truth)
    # (1/4, 1/2) and (1/4, 3/4); (1/2, 1/4) is beaten in both rates.
    assert curve.fpr.tolist() == [0, 0.25, 0.25, 1]
    assert curve.tpr.tolist() == [0, 0.5, 0.75, 1]
    assert curve.pessimistic_auc == 0.75 * 0.75
    assert curve.auc == 0.25 * 0.5 / 2 + 0.75 * (0.75 + 1) / 2
    assert curve.average_precision == pytest.approx(0.5 * 2 / 3 + 0.25 * 3 / 4 + 0.25 * 4 / 8)


def test_no_set_at_all() -> None:
    curve = curve_of_sets([], _set(0))
    assert (curve.auc, curve.pessimistic_auc) == (0.5, 0)


def test_the_sets_of_all_thresholds_are_the_curve_of_the_scores() -> None:
    scores, truth = (_random(50) * 12).floor(), _random(50, seed=1) < 0.4
    ours = curve_of_sets([scores >= threshold for threshold in scores.unique()], truth)
    theirs = curve_of_scores(scores, truth)
    assert torch.equal(ours.tpr, theirs.tpr)
    assert torch.equal(ours.fpr, theirs.fpr)


@pytest.mark.parametrize("truth", [torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)])
def test_nothing_to_tell_apart(truth: Tensor) -> None:
    message = f"{int(truth.sum())} of 4 edges or nodes are in the known circuit"
    with pytest.raises(EdgepruneError, match=message):
        curve_of_scores(torch.arange(4.0), truth)
    with pytest.raises(EdgepruneError, match=message):
        curve_of_sets([], truth)


# ---------------------------------------------------------------- circuits
def test_scores_of_a_circuit_rank_its_edges() -> None:
    truth, scores = _truth(), torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(0))
    found = Circuit(GRAPH, GRAPH.exists, scores)
    curve = roc(found, truth)
    assert curve.auc == curve_of_scores(scores[GRAPH.exists].double(), truth.keep[GRAPH.exists]).auc
    assert (curve.num_true, curve.num_true + curve.num_false) == (20, GRAPH.num_edges)
    absolute = Circuit(GRAPH, GRAPH.exists, scores, {"absolute": True})
    assert roc(absolute, truth).auc == curve_of_scores(scores[GRAPH.exists].abs(), truth.keep[GRAPH.exists]).auc


@pytest.mark.parametrize("level", ["edges", "nodes"])
@pytest.mark.parametrize("convention", [None, *CONVENTIONS])
def test_a_circuit_is_perfect_against_itself(convention: str | None, level: Level) -> None:
    truth = Circuit.from_edges(GRAPH, ["embed->a0.h0.q", "a0.h0->m1", "m1->logits"])
    assert roc([truth], truth, convention, level).pessimistic_auc == 1
    scored = Circuit(GRAPH, truth.keep, truth.keep.double())
    assert roc(scored, truth, convention, level).measures() == roc([truth], truth, convention, level).measures()


def test_the_rate_of_a_circuit_in_acdcs_count() -> None:
    ioi = canonical.load("ioi")
    truth, full = ioi.circuit(), Circuit(ioi.graph, ioi.graph.exists)
    curve = roc([truth, full], truth, "acdc")
    assert (curve.num_true, curve.num_true + curve.num_false) == (1041, 32923)
    curve = roc([truth], truth, level="nodes")
    assert (curve.num_true, curve.num_true + curve.num_false) == (39, 157)  # embedding, 26 heads, 12 MLPs


@pytest.mark.parametrize(("ablation", "published"), [("zero", 1.0), ("interchange", 0.2)])
def test_acdcs_published_areas_on_reverse(ablation: str, published: float) -> None:
    """Under interchange it finds 2 of 11 edges, with 1 of 4 direct ones: 3 of 15 at no false one."""
    question = compiled_problem("reverse", ablation, 16)
    taus = tuple((10 ** torch.linspace(-5, -1, 5)).tolist())
    circuits = ACDC(taus=taus).discover(question, no_progress).circuits
    known = canonical.load("tracr_reverse").circuit(question.model.graph)
    curve = roc(list(circuits.values()), known, "acdc_two_embeddings")
    assert curve.pessimistic_auc == pytest.approx(published, abs=1e-12)


def test_random_scores_where_edges_are_merged() -> None:
    """The highest of many random scores is high: no 0.5 for direct edges, as the circuit has many of them."""
    truth = canonical.load("docstring").circuit()
    noise = [Circuit.random(truth.graph, 1, seed) for seed in range(60)]
    plain, acdc = (
        torch.tensor([roc(circuit, truth, name).auc for circuit in noise]) for name in ("one_embedding", "acdc")
    )
    assert float(plain.mean()) == pytest.approx(0.5, abs=4 * 0.06 / 60**0.5)  # 24 edges: a deviation of 0.06 each
    # 13 of 37 are direct edges, which nearly all stand above the others, and 83 of 1,340 false ones are.
    assert float(acdc.mean()) > 0.58


def test_conventions_with_nothing_to_tell_apart_have_no_curve() -> None:
    def curves(truth: Circuit) -> dict[str, set[str]]:
        scored = Circuit(GRAPH, truth.keep, truth.keep.double())
        matches = against_known(scored, truth).matches
        return {name: {level for level, one in row.items() if one.curve is not None} for name, row in matches.items()}

    table = curves(Circuit.from_edges(GRAPH, ["embed->logits"]))
    assert table["no_embedding"] == set()
    assert table["acdc"] == {"edges", "nodes"}
    assert set(map(len, curves(Circuit(GRAPH, GRAPH.exists)).values())) == {0}


def test_mistakes() -> None:
    truth = _truth()
    with pytest.raises(EdgepruneError, match="no scores to rank its edges by; give it in a list"):
        roc(Circuit(GRAPH, truth.keep), truth)
    with pytest.raises(EdgepruneError, match="named 'ACDC'; the known ones are: one_embedding"):
        roc([truth], truth, "ACDC")
    with pytest.raises(EdgepruneError, match="level must be one of edges, nodes, got 'heads'"):
        roc([truth], truth, level="heads")  # pyright: ignore[reportArgumentType]
    other = Circuit.random(EdgeGraph(ArchSpec(num_layers=3, num_heads=4, num_kv_heads=2)), 3)
    with pytest.raises(EdgepruneError, match="num_layers=3, the known one has 2"):
        roc([truth, other], truth)
