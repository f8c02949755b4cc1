"""Effects of edges by position role: gates of single tokens, first order against whole edges, exact against runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.batch import IGNORE
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.minimality import marginal_effects
from edgeprune.graph import RoleSpec
from edgeprune.methods.attribution import closing_effects, mean_over_examples
from edgeprune.methods.problem import Problem
from edgeprune.metrics.registry import measure_named
from edgeprune.models.masked import MaskedModel
from edgeprune.models.read_ops import ReadOps
from edgeprune.reading import role_effects
from edgeprune.reading.role_effects import ALL_POSITIONS, first_order_effects
from edgeprune.roles import REST, positions_by_part
from tests.methods.small_problems import linear_model, tiny
from tests.models.test_conformance import KV, WIRED, build, prompts
from tests.reading.small import SPANS, circuit_of, evaluator, pairs, some_edges

ROLES = tuple(SPANS)
CLOSE: dict[str, float] = {"atol": 1e-9, "rtol": 1e-9}


# -------------------------------------------------------------------- gates of single tokens
@pytest.mark.parametrize("chunk_bytes", [2**23, 600])
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_equal_gates_of_all_tokens_are_the_gates_of_the_batch(
    family: Any, index: int, some: bool, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadOps, "chunk_bytes", chunk_bytes)
    model = build(family, index)
    clean, corrupted = prompts()
    ablated, positions = model.record(corrupted), torch.tensor([[6, 2], [1, 1], [0, 5]]) if some else None
    shared = torch.rand(model.graph.shape, dtype=torch.float64).requires_grad_()
    each = shared.detach().expand(*clean.shape, -1, -1).clone().requires_grad_()
    expected, found = (model(clean, gates, ablated, positions=positions) for gates in (shared, each))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    grads = [
        torch.autograd.grad(logits.log_softmax(-1)[..., 0].sum(), gates)[0]
        for logits, gates in ((expected, shared), (found, each))
    ]
    torch.testing.assert_close(grads[1].sum((0, 1)), grads[0], atol=1e-8, rtol=1e-8)
    assert grads[1].std((0, 1)).max() > 1e-6  # positions differ


def test_a_token_s_gates_change_nothing_before_it() -> None:
    model = tiny("gpt2")
    clean, corrupted = prompts()
    gates = model.graph.all_open(torch.float64).expand(*clean.shape, -1, -1).clone()
    gates[:, 4, :-1] = 0
    found, expected = model(clean, gates, model.record(corrupted)), model.full(clean)
    torch.testing.assert_close(found[:, :4], expected[:, :4], atol=1e-12, rtol=0)
    assert (found - expected)[:, 4:].abs().amin(-1).max() > 1e-4


def test_gates_of_single_tokens_are_for_these_tokens() -> None:
    model = tiny("gpt2")
    clean, corrupted = prompts()
    with pytest.raises(EdgepruneError, match=r"\[batch, seq\] = \(3, 6\), the prompts have \(3, 7\)"):
        model(clean, torch.ones(3, 6, *model.graph.shape), model.record(corrupted))


# -------------------------------------------------------------------- positions
def test_every_real_token_is_in_one_part() -> None:
    judge = evaluator(tiny("gpt2"))
    for batch in judge.batches:
        parts = positions_by_part(batch, ROLES)
        assert torch.equal(parts.long().sum(0), batch.attention_mask)
        assert parts[0].nonzero()[:, 1].unique().tolist() == [1]
        assert parts[1].nonzero()[:, 1].unique().tolist() == [2, 3]
        assert parts[2].nonzero()[:, 1].unique().tolist() == [4]  # token 3 is of the role before
    given = pairs(2, {"A": (0, 1)})
    lacking = replace(given[1], roles={"B": (1, 2)})
    (batch,) = evaluator(tiny("gpt2"), examples=[given[0], lacking]).batches
    parts = positions_by_part(batch, ("A", "B", "C"))
    assert parts[:3].sum(-1).tolist() == [[1, 0], [0, 1], [0, 0]]


# -------------------------------------------------------------------- first order
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("measure", ["logit_difference", "kl"])
@pytest.mark.parametrize("kv_readers", KV)
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_roles_add_up_to_the_whole_edge(family: Any, index: int, kv_readers: str, measure: Any) -> None:
    model = build(family, index, kv_readers=kv_readers)
    judge, keep = evaluator(model), some_edges(model)
    problem = Problem(model, judge.batches, judge.runs, measure, "test")
    gates = keep.double()
    whole = mean_over_examples(problem, lambda *of: closing_effects(problem, *of, gates))
    found = first_order_effects(judge, keep, measure, ROLES)
    torch.testing.assert_close(found.sum(0), whole, **CLOSE)
    assert (found[:, keep].abs().amax(1) > 1e-6).all()  # every part has a share


@pytest.mark.usefixtures("double")
def test_slopes_of_gates_by_part_are_summed_slopes_of_gates_of_single_tokens() -> None:
    model = tiny("llama", 1)
    judge, keep = evaluator(model), some_edges(model)
    found = first_order_effects(judge, keep, "logit_difference", ROLES)
    problem = Problem(model, judge.batches, judge.runs, "logit_difference", "test")
    expected = torch.zeros_like(found)
    for batch, full, ablated in problem.batches_with_runs():
        each = keep.double().expand(*batch.clean.shape, -1, -1)
        slopes = closing_effects(problem, batch, full, ablated, each)
        expected += torch.einsum("pbs,bsrw->prw", positions_by_part(batch, ROLES).double(), slopes)
    torch.testing.assert_close(found, expected / problem.num_examples, **CLOSE)
    one_by_one = first_order_effects(judge, keep, "logit_difference", ROLES, memory_gb=0.0)
    torch.testing.assert_close(one_by_one, found, **CLOSE)


def test_gates_are_those_of_parts_and_the_model_s_roles_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gpt2")
    shapes, own = set[tuple[int, ...]](), MaskedModel.forward

    def forward(self: MaskedModel, ids: Tensor, gates: Tensor, *args: Any, **options: Any) -> Tensor:
        shapes.add(tuple(gates.shape))
        return own(self, ids, gates, *args, **options)

    monkeypatch.setattr(MaskedModel, "forward", forward)
    first_order_effects(evaluator(model), some_edges(model), "kl", ROLES)
    assert shapes == {(len(ROLES) + 1, *model.graph.shape)}
    assert model.graph.roles is None
    model.use_roles(RoleSpec(("IO", "rest")))
    without = evaluator(model, examples=[replace(one, distractors=(IGNORE,) * len(one.distractors)) for one in pairs()])
    with pytest.raises(EdgepruneError, match="is not defined"):
        first_order_effects(without, some_edges(tiny("gpt2")), "logit_difference", ROLES)
    assert model.graph.roles == RoleSpec(("IO", "rest"))


@pytest.mark.usefixtures("double")
def test_first_order_is_the_slope_of_gates_of_one_part() -> None:
    """Central differences: an edge's gates at the tokens of one role lowered together."""
    model = tiny("llama", 1)
    judge, keep = evaluator(model), some_edges(model)
    found = first_order_effects(judge, keep, "logit_difference", ROLES)
    step = 1e-4
    for reader, writer in keep.nonzero().tolist()[:: len(keep.nonzero()) // 7]:
        for part in range(len(ROLES) + 1):
            low, high = (_badness(judge, keep.double(), (reader, writer), part, amount) for amount in (-step, step))
            assert float(found[part, reader, writer]) == pytest.approx(float(high - low) / (2 * step), abs=1e-6)


def _badness(judge: Any, gates: Tensor, edge: tuple[int, int], part: int | None, amount: float) -> Tensor:
    """Mean loss of the masked model with an edge closed by `amount` at one part's positions, or at all."""
    total = torch.zeros((), dtype=torch.float64)
    measure = measure_named("logit_difference")
    for batch in judge.batches:
        full, ablated = judge.runs(batch, "test")
        each = gates.expand(*batch.clean.shape, -1, -1).clone()
        where = positions_by_part(batch, ROLES)[part] if part is not None else torch.ones_like(batch.clean)
        each[:, :, edge[0], edge[1]] -= amount * where
        logits = judge.model(batch.clean, each, ablated, batch.attention_mask, batch.positions)
        total -= measure.values(full, logits, batch).sum()
    return total / judge.num_examples


@pytest.mark.usefixtures("double")
def test_in_a_linear_model_first_order_is_exact() -> None:
    model = linear_model()
    found = role_effects(evaluator(model), circuit_of(model), max_exact=15)
    torch.testing.assert_close(found.exact[:, :-1], found.first_order[list(found.exact_edges)], **CLOSE)
    torch.testing.assert_close(found.exact[:, -1], found.exact[:, :-1].sum(1), **CLOSE)


# -------------------------------------------------------------------- exact
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("ablation", ["interchange", "zero"])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_exact_effects_are_those_of_the_masked_model(family: Any, index: int, ablation: str) -> None:
    model = build(family, index)
    judge, circuit = evaluator(model, ablation), circuit_of(model)
    found = role_effects(judge, circuit, max_exact=6)
    assert found.parts == (*ROLES, REST)
    assert found.exact.shape == (6, 5)
    gates = circuit.gates(torch.float64)
    before = _badness(judge, gates, (0, 0), 0, 0.0)
    assert found.figure == pytest.approx(-float(before))
    for row, place in enumerate(found.exact_edges):
        for part in range(5):
            after = _badness(judge, gates, found.edges[place], part if part < 4 else None, 1.0)
            assert float(found.exact[row, part]) == pytest.approx(float(after - before), abs=1e-9)
    assert found.exact.abs().max() > 1e-4


@pytest.mark.usefixtures("double")
def test_all_positions_together_are_the_marginal_effect() -> None:
    model = tiny("gpt2")
    judge, circuit = evaluator(model), circuit_of(model)
    found = role_effects(judge, circuit, "kl", max_exact=5, memory_gb=0.0)
    names = [model.graph.edge_name(*found.edges[place]) for place in found.exact_edges]
    other = marginal_effects(judge, circuit.keep, "kl", names)
    for row, name in enumerate(names):
        place = other.names.index(name)
        assert float(found.exact[row, -1]) == pytest.approx(float(other.effects[place]), abs=1e-9)
        assert float(found.standard_errors[row, -1]) == pytest.approx(float(other.standard_errors[place]), abs=1e-9)


# -------------------------------------------------------------------- the result
def test_the_largest_edges_are_run_and_come_first() -> None:
    model = tiny("gpt2")
    found = role_effects(evaluator(model), circuit_of(model), max_exact=3)
    sizes = found.first_order.abs().sum(1)
    assert list(found.exact_edges) == sizes.argsort(descending=True)[:3].tolist()
    table = found.table()
    assert len(table) == len(found.edges)
    assert [row["exact"] is not None for row in table[:5]] == [True] * 3 + [False] * 2
    first = table[0]
    assert list(first["first_order"]) == list(first["exact"]) == [*ROLES, REST, ALL_POSITIONS]
    assert first["first_order"][ALL_POSITIONS] == pytest.approx(sum(first["first_order"][part] for part in found.parts))
    frame = found.to_dataframe()
    assert len(frame) == 5 * len(found.edges)
    assert frame["exact"].notna().sum() == 15
    plain = found.to_dict(max_rows=4)
    assert (plain["num_edges"], plain["num_exact"], len(plain["edges"])) == (len(found.edges), 3, 4)
    assert plain["total"]["IO"] == pytest.approx(float(found.first_order[:, 0].sum()))
    writers = found.weights()
    leaving = [place for place, (_, writer) in enumerate(found.edges) if model.graph.writers[writer] == "a1.h1"]
    assert writers["a1.h1"] == pytest.approx(float(found.first_order[leaving].sum(1).abs().sum()))
    assert role_effects(evaluator(model), circuit_of(model), max_exact=0).exact.shape == (0, 5)


def test_what_cannot_be_told_apart() -> None:
    model: MaskedModel = tiny("gpt2")
    with pytest.raises(EdgepruneError, match="marks no position roles"):
        role_effects(evaluator(model, examples=pairs(2, {})), circuit_of(model))
    with pytest.raises(EdgepruneError, match="max_exact must be at least 0, got -1"):
        role_effects(evaluator(model), circuit_of(model), max_exact=-1)
    with pytest.raises(EdgepruneError, match="num_heads=3"):
        role_effects(evaluator(model), Circuit.from_edges(linear_model().graph, []))
    with pytest.raises(EdgepruneError, match="a role of the task is called 'rest'"):
        role_effects(evaluator(model, examples=pairs(2, {"rest": (1, 2)})), circuit_of(model))
    empty = role_effects(evaluator(model), Circuit.from_edges(model.graph, []))
    assert empty.table() == []
    assert empty.exact.shape == (0, 5)
