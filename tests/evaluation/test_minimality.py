"""Effects of single edges against brute force and against the masked model, and what is said about them."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.tasks.compiled import CompiledTask
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import IGNORE
from edgeprune.compiled import true_circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation import leave_one_out
from edgeprune.evaluation.brute_force import BruteForce, brute_force
from edgeprune.evaluation.effects import MarginalEffects, effects_against_circuit
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.evaluation.minimality import marginal_effects
from edgeprune.metrics.examples import ExampleValues
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.objectives.losses import squared_error
from tests.methods.small_problems import problem, random_pairs, tiny

ABLATIONS = ("interchange", "zero")
SMALL = ("or_gate", "and_gate")  # all edges can be enumerated
LARGE = ("reverse", "xproportion")  # some can


def evaluator(model: MaskedModel, ablation: str = "interchange", pairs: Any = None, **options: Any) -> Evaluator:
    asked = problem(model, pairs, ablation=ablation, **options)
    return Evaluator(model, asked.runs, asked.batches, "train")


def of_program(name: str, ablation: str, number: int = 64) -> Evaluator:
    pairs = CompiledTask(name).splits(None)["train"][:number]
    return evaluator(load_model(f"compiled:{name}", dtype="float64"), ablation, pairs, cuts=())


def edges_in_question(name: str, ablation: str) -> list[str]:
    """All edges of a small program; of a large one those of its true circuit and every twelfth of the others."""
    graph = load_model(f"compiled:{name}").graph
    edges = [graph.edge_name(*index) for index in graph.exists.nonzero().tolist()]
    if name in SMALL:
        return edges
    true = true_circuit(name, ablation)
    return [*true, *[edge for edge in edges if edge not in true][::12]]


def enumerated(judge: Evaluator, among: list[str]) -> BruteForce:
    """Mean squared error of every circuit of these edges."""
    (batch,) = judge.batches
    ablated = judge.runs(batch, judge.split)[1]
    return brute_force(judge.model, batch, ablated, squared_error, reduce="mean", among=among, progress=False)


def some_edges(judge: Evaluator, share: float, seed: int = 0) -> Tensor:
    noise = torch.rand(judge.graph.shape, generator=torch.Generator().manual_seed(seed))
    return judge.graph.exists & (noise < share)


# -------------------------------------------------------------------- the truth
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_effects_are_differences_of_enumerated_errors(name: str, ablation: str) -> None:
    """To 1e-5, as the evaluator rounds outputs to float32."""
    judge, among = of_program(name, ablation), edges_in_question(name, ablation)
    truth, sizes = enumerated(judge, among), list[float]()
    for circuit in (among, among[::2], list(true_circuit(name, ablation))):
        found = marginal_effects(judge, judge.graph.keep_matrix(circuit), "squared_error")
        assert sorted(found.names) == sorted(circuit)
        assert found.figure == pytest.approx(truth.error(circuit), abs=1e-5)
        for edge, effect in zip(found.names, found.effects.tolist(), strict=True):
            less = truth.error([other for other in circuit if other != edge])
            assert effect == pytest.approx(less - truth.error(circuit), abs=1e-5)
            sizes.append(abs(effect))
    assert max(sizes) > 0.01  # inputs that tell a gate's edges apart are rare


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_a_true_circuit_has_no_redundant_edge_and_one_that_is_added_is(name: str, ablation: str) -> None:
    judge, true = of_program(name, ablation), true_circuit(name, ablation)
    found = marginal_effects(judge, judge.graph.keep_matrix(true), "squared_error")
    assert found.to_dict()["num_redundant"] == 0
    others = [edge for edge in edges_in_question(name, ablation) if edge not in true]
    for edge in others[:: len(others) // 3]:
        more = marginal_effects(judge, judge.graph.keep_matrix([*true, edge]), "squared_error")
        assert edge in [name for name, gone in zip(more.names, more.redundant().tolist(), strict=True) if gone]


def test_either_edge_of_an_or_is_redundant_while_both_are_there() -> None:
    judge = of_program("or_gate", "zero")
    found = marginal_effects(judge, judge.graph.exists, "squared_error")
    redundant = {name for name, gone in zip(found.names, found.redundant().tolist(), strict=True) if gone}
    assert {"a0.h0->m0", "a0.h1->m0"} <= redundant
    assert "m0->logits" not in redundant


# -------------------------------------------------------------------- the two ways to run
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(
    ("name", "index", "options"),
    [("gpt2", 0, {}), ("llama", 1, {}), ("llama", 1, {"kv_readers": "head"}), ("gpt_neox", 0, {})],
)
def test_reuse_changes_nothing(
    name: str, index: int, options: Any, ablation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 throughout; grouped keys and values, read by group and by head."""
    monkeypatch.setattr(Tensor, "float", lambda self: self)
    judge = evaluator(tiny(name, index, **options), ablation, cuts=(3,))
    keep = some_edges(judge, 0.15)
    plain, fast = (marginal_effects(judge, keep, reuse=reuse) for reuse in (False, True))
    assert plain.effects.abs().max() > 1e-3
    for expected, found in ((plain.effects, fast.effects), (plain.standard_errors, fast.standard_errors)):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("reuse", [True, False])
def test_cuts_memory_and_order_change_nothing(reuse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", 1)
    judge = evaluator(model)
    keep = some_edges(judge, 0.06)
    expected = marginal_effects(judge, keep, reuse=reuse)
    whole = marginal_effects(evaluator(model, cuts=()), keep, reuse=reuse)
    one_by_one = marginal_effects(judge, keep, reuse=reuse, memory_gb=0)
    order = torch.tensor([3, 0, 4, 1, 2])
    ((batch,), runs) = evaluator(model, cuts=()).batches, ReferenceRuns(model, "interchange")
    shuffled = marginal_effects(Evaluator(model, runs, [batch.rows(order)], "train"), keep, reuse=reuse)
    assert shuffled.index.tolist() == order.tolist()
    monkeypatch.setattr(leave_one_out, "VALUES_AT_ONCE", 25)
    in_parts = marginal_effects(judge, keep, reuse=reuse)
    assert expected.changes is not None
    assert shuffled.changes is not None
    torch.testing.assert_close(shuffled.changes, expected.changes[:, order], atol=1e-5, rtol=0)
    for found in (whole, one_by_one, shuffled, in_parts):
        assert found.edges == expected.edges
        torch.testing.assert_close(found.effects, expected.effects, atol=1e-6, rtol=0)  # logits are in float32


def test_edges_are_the_named_ones() -> None:
    judge = evaluator(tiny(), cuts=())
    keep = some_edges(judge, 0.2)
    every = marginal_effects(judge, keep)
    named = marginal_effects(judge, keep, edges=every.names[10:5:-2])
    assert named.names == every.names[6:11:2]
    torch.testing.assert_close(named.effects, every.effects[6:11:2], atol=1e-6, rtol=0)
    assert (named.chosen, named.num_edges) == ("named edges", len(every.edges))


def test_progress_counts_edges_and_batches() -> None:
    told: list[tuple[str, int, int]] = []
    asked = problem(tiny())
    judge = Evaluator(asked.model, asked.runs, asked.batches, "train", progress=lambda *about: told.append(about))
    marginal_effects(judge, judge.graph.keep_matrix(["embed->m0", "m0->m1", "m1->logits"]))
    assert told[0] == ("edges closed one by one", 0, 9)
    assert told[-1] == ("edges closed one by one", 9, 9)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


# -------------------------------------------------------------------- edges that need no run
def test_idle_edges_are_not_run_and_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """m0->a1.h0.q leads nowhere; m1->logits is fed by no embedding and repeats the corrupted run."""
    judge = evaluator(tiny())
    keep = judge.graph.keep_matrix(["embed->m0", "embed->logits", "m0->a1.h0.q", "m1->logits"])
    found = marginal_effects(judge, keep)
    assert dict(zip(found.names, found.idle.tolist(), strict=True)) == {
        "embed->m0": True,
        "m0->a1.h0.q": True,
        "m1->logits": True,
        "embed->logits": False,
    }
    assert found.num_dangling == int(found.idle.sum()) == 3
    monkeypatch.setattr("edgeprune.evaluation.minimality.idle_edges", lambda judge, keep: torch.zeros_like(keep))
    run = marginal_effects(judge, keep, reuse=False)
    assert not run.idle.any()
    torch.testing.assert_close(run.effects, found.effects, atol=1e-6, rtol=0)
    assert found.effects[~found.idle].abs().min() > 1e-3
    assert found.effects[found.idle].tolist() == found.standard_errors[found.idle].tolist() == [0, 0, 0]
    assert found.figures[found.idle].tolist() == [found.figure] * 3


def test_under_zero_ablation_what_no_embedding_feeds_still_counts() -> None:
    judge = evaluator(tiny(), "zero")
    found = marginal_effects(judge, judge.graph.keep_matrix(["embed->logits", "m1->logits", "m0->a1.h0.q"]))
    assert found.num_dangling == 2
    assert [name for name, idle in zip(found.names, found.idle.tolist(), strict=True) if idle] == ["m0->a1.h0.q"]
    assert abs(found.effects[found.names.index("m1->logits")]) > 1e-3


# -------------------------------------------------------------------- limits
def test_no_more_edges_than_asked_for() -> None:
    judge = evaluator(tiny(), cuts=())
    keep = some_edges(judge, 0.15)
    every = marginal_effects(judge, keep)
    scores = torch.zeros(judge.graph.shape)
    for place, edge in enumerate(every.edges):
        scores[edge] = (7 * place) % len(every.edges)
    lowest = marginal_effects(judge, keep, scores=scores, max_edges=3)
    idle = {name for name, idle in zip(every.names, every.idle.tolist(), strict=True) if idle}
    ranked = sorted(
        (edge for edge in every.names if edge not in idle), key=lambda edge: scores[judge.graph.index(edge)]
    )
    assert set(lowest.names) == {*ranked[:3], *idle}
    assert lowest.chosen == "all kept edges: the 3 with the lowest scores"
    drawn = [marginal_effects(judge, keep, max_edges=3, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0].names == drawn[1].names != drawn[2].names
    assert [len(found.names) for found in drawn] == [3 + len(idle)] * 3
    assert drawn[2].chosen == "all kept edges: a random sample of 3, seed 1"
    assert marginal_effects(judge, keep, max_edges=10**6).chosen == "all kept edges"


def test_no_more_examples_than_asked_for() -> None:
    judge = evaluator(tiny())
    keep = judge.graph.keep_matrix(["embed->logits", "embed->m1", "m1->logits"])
    found, every = (marginal_effects(judge, keep, max_examples=number) for number in (3, 99))
    assert (found.num_examples, every.num_examples) == (3, 5)
    assert found.changes is not None
    assert every.changes is not None
    torch.testing.assert_close(found.changes, every.changes[:, :3])
    torch.testing.assert_close(found.effects, every.changes[:, :3].double().mean(1), atol=1e-6, rtol=0)


def test_changes_of_examples_are_left_out_where_they_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = evaluator(tiny())
    keep = judge.graph.keep_matrix(["embed->logits", "embed->m1", "m1->logits"])
    kept = marginal_effects(judge, keep)
    monkeypatch.setattr("edgeprune.evaluation.minimality.CHANGES_BYTES", 3 * 5 * 4 - 1)
    left_out = marginal_effects(judge, keep)
    assert kept.changes is not None
    assert left_out.changes is None
    assert torch.equal(left_out.effects, kept.effects)
    assert torch.equal(left_out.standard_errors, kept.standard_errors)


# -------------------------------------------------------------------- numbers
def values(rows: list[list[float]], weights: list[list[float]]) -> ExampleValues:
    both = (torch.tensor(part, dtype=torch.float64)[:, None] for part in (rows, weights))
    return ExampleValues(("made up",), *both, torch.arange(len(rows[0])))


def test_effects_by_hand() -> None:
    ones = [[1.0] * 3] * 2
    found = effects_against_circuit(values([[1, 2, 3], [2, 2, torch.nan]], ones), "low")
    assert (found.figures.item(), found.effects.item(), found.errors.item()) == (2, 0.5, 0.5)
    assert found.changes[0, :2].tolist() == [1, 0]
    assert found.changes[0, 2].isnan()
    higher = effects_against_circuit(values([[1, 2, 3], [2, 2, torch.nan]], ones), "high")
    assert (higher.effects.item(), higher.errors.item()) == (-0.5, 0.5)
    ratio = effects_against_circuit(values([[100, 300], [50, 250]], [[1, 3], [1, 3]]), "100")
    assert (ratio.figures.item(), ratio.effects.item()) == (75, 25)
    assert ratio.changes[0].tolist() == [37.5, 12.5]
    beyond = effects_against_circuit(
        values([[90, 90], [100, 140]], [[1, 1], [1, 1]]), "100"
    )  # from 10 below to 20 above
    assert beyond.effects.item() == 10  # from 10 below to 20 above


@pytest.mark.parametrize("measure", ["kl", "accuracy", "logit_difference", "logit_difference_percent"])
def test_the_sign_is_that_of_harm_and_changes_average_to_the_effect(measure: str) -> None:
    judge = evaluator(tiny())
    keep, names = judge.graph.exists, ["embed->logits", "m1->logits", "embed->m0"]
    found = marginal_effects(judge, keep, measure, names)
    for name in names:
        place, less = found.names.index(name), keep.clone()
        less[judge.graph.index(name)] = False
        before, after = judge([keep, less], measures=[measure]).figures()[:, 0].tolist()
        worse = {"kl": after - before, "logit_difference_percent": abs(after - 100) - abs(before - 100)}
        expected = worse.get(measure, before - after)
        assert found.effects[place].item() == pytest.approx(expected, abs=1e-4)
    assert found.changes is not None
    torch.testing.assert_close(found.changes.double().mean(1), found.effects, atol=1e-4, rtol=1e-5)
    expected = found.changes.double().std(1) / 5**0.5
    torch.testing.assert_close(found.standard_errors, expected, atol=1e-4, rtol=1e-4)


def made_up(effects: list[float]) -> MarginalEffects:
    judge, found = evaluator(tiny()), torch.tensor(effects, dtype=torch.float64)
    edges = tuple(map(tuple, judge.graph.exists.nonzero()[: len(effects)].tolist()))
    return MarginalEffects(
        judge.graph, "kl", "low", edges, 0.5, 0.5 + found, found, found.abs(), None, torch.arange(9),
        found == 0, len(effects), 0, "all kept edges",
    )  # fmt: skip


def test_histogram_by_hand() -> None:
    found = made_up([0.5, 0.05, 0.04, 0.0, -0.2, 1e-9, torch.nan]).histogram()
    assert found.bounds[-1] == -found.bounds[0] == 1
    assert len(found.counts) == len(found.bounds) - 1 == 25
    assert sum(found.counts) == 6  # not the one without an effect
    assert found.counts[12] == 2  # between -1e-6 and 1e-6
    assert found.bounds[12:14] == pytest.approx([-1e-6, 1e-6])
    assert (found.counts[24], found.counts[22], found.counts[1]) == (1, 2, 1)
    assert made_up([]).histogram() == ([], [])
    assert sum(made_up([0.0, 0.0]).histogram().counts) == 2
    assert sum(made_up([0.001, -1000.0, 1000.0]).histogram().counts) == 3


def test_redundant_edges_are_those_within_the_tolerance() -> None:
    found = made_up([0.5, 0.05, 0.0, -0.2, 1e-7, torch.nan])
    assert found.redundant().tolist() == [False, False, True, True, True, False]
    assert found.redundant(0.1).tolist() == [False, True, True, True, True, False]
    assert found.redundant(-0.1).tolist() == [False, False, False, True, False, False]
    assert found.by_effect().tolist() == [3, 2, 4, 1, 0, 5]
    plain = found.to_dict(tolerance=0.1)
    assert [row["effect"] for row in plain["edges"]] == [-0.2, 0, 1e-7, 0.05, 0.5, None]
    assert [row["redundant"] for row in plain["edges"]] == [True, True, True, True, False, False]
    assert (plain["num_redundant"], plain["share_redundant"], plain["num_idle"]) == (4, 4 / 6, 1)


# -------------------------------------------------------------------- ends and mistakes
@pytest.mark.parametrize("reuse", [True, False])
def test_the_empty_circuit(reuse: bool) -> None:
    judge = evaluator(tiny())
    found = marginal_effects(judge, judge.graph.all_closed(), reuse=reuse)
    assert found.figure == pytest.approx(judge.ends.figure("kl", 1), abs=1e-6)
    plain = found.to_dict()
    assert (plain["edges"], plain["num_edges"], plain["share_redundant"]) == ([], 0, None)
    assert plain["histogram"] == {"bounds": [], "counts": []}
    json.dumps(plain, allow_nan=False)


def test_results_are_plain() -> None:
    judge = evaluator(tiny())
    plain = json.loads(json.dumps(marginal_effects(judge, some_edges(judge, 0.2)).to_dict(), allow_nan=False))
    assert plain["num_closed"] == plain["num_edges"] == len(plain["edges"])
    assert sum(plain["histogram"]["counts"]) == plain["num_closed"]
    assert [row["effect"] for row in plain["edges"]] == sorted(row["effect"] for row in plain["edges"])
    assert (plain["measure"], plain["better"], plain["num_examples"]) == ("kl", "low", 5)


def test_examples_without_a_value_do_not_count() -> None:
    pairs = [
        pair if row < 3 else replace(pair, distractors=(IGNORE,) * len(pair.positions))
        for row, pair in enumerate(random_pairs())
    ]
    model = tiny()
    keep = model.graph.exists
    names = ["embed->logits", "m1->logits"]
    some = marginal_effects(evaluator(model, pairs=pairs), keep, "logit_difference", names)
    first = marginal_effects(evaluator(model, pairs=pairs[:3]), keep, "logit_difference", names)
    torch.testing.assert_close(some.effects, first.effects, atol=1e-5, rtol=0)
    torch.testing.assert_close(some.standard_errors, first.standard_errors, atol=1e-5, rtol=0)
    assert some.changes is not None
    assert some.changes.isnan().tolist() == [[False] * 3 + [True] * 2] * 2
    alone = marginal_effects(evaluator(model, pairs=pairs[:1]), keep, "logit_difference", names)
    assert alone.standard_errors.isnan().all()
    assert alone.to_dict()["edges"][0]["standard_error"] is None


def test_a_measure_without_any_value_is_refused() -> None:
    judge = of_program("or_gate", "zero")
    with pytest.raises(EdgepruneError, match=r"measure 'kl' is not defined for any of the \d+ pairs; choose another"):
        marginal_effects(judge, judge.graph.exists)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": []}, "edges is empty; name the kept edges"),
        ({"edges": ["m1->logits", "embed->m0"]}, "edge 'embed->m0' is not kept in this circuit"),
        ({"edges": ["m1->logit"]}, "no reader named 'logit'"),
        ({"max_edges": 0}, "max_edges must be at least 1, got 0"),
        ({"max_examples": -1}, "max_examples must be at least 1, got -1"),
        ({"max_edges": 1, "scores": torch.zeros(2, 2)}, "scores must be numbers, .* to choose 1 edges by; got shape"),
        ({"max_edges": 1, "scores": torch.tensor(torch.nan).expand(19, 9)}, r"shape \(19, 9\) with NaN"),
        ({"measure": "beauty"}, "measure must be one of"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    judge = evaluator(tiny())
    keep = judge.graph.keep_matrix(["m1->logits", "embed->m1", "embed->logits"])
    with pytest.raises(EdgepruneError, match=message):
        marginal_effects(judge, keep, **options)
