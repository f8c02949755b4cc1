"""HISP: node scores against gradients taken inside the Hugging Face model, and edges against masking node by node."""

import dataclasses
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune import ablations
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods import HISP
from edgeprune.methods.hisp import node_slopes, node_values, normalized
from edgeprune.methods.node_gates import NodeMap
from edgeprune.methods.problem import Problem
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from tests.methods.small_problems import compiled_problem, problem, tiny
from tests.methods.test_subnetwork_probing import kept_by_rule
from tests.models.test_conformance import WIRED, build


def scores_of(question: Problem, **options: Any) -> dict[str, float]:
    found = HISP(**options).discover(question, no_progress)
    return dict(found.about["node_scores"])


def hooked(model: MaskedModel, tokens: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """GPT-2's logits, and each node's values `[batch, seq, width]` with gradients kept, by hooks into the model."""
    found: dict[str, Tensor] = {}

    def keep_qkv(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
            parts = output.unflatten(-1, (3, model.graph.arch.num_heads, -1)).requires_grad_()
            for index, kind in enumerate("qkv"):
                for head in range(model.graph.arch.num_heads):
                    found[f"a{layer}.h{head}.{kind}"] = one = parts[:, :, index, head].clone()
                    one.retain_grad()
            rows = [[found[f"a{layer}.h{head}.{kind}"] for head in range(model.graph.arch.num_heads)] for kind in "qkv"]
            return torch.stack([torch.stack(row, 2) for row in rows], 2).flatten(2)

        return hook

    def keep_mlp(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
            found[f"m{layer}"] = output
            output.retain_grad()
            return output

        return hook

    handles = [block.attn.c_attn.register_forward_hook(keep_qkv(i)) for i, block in enumerate(model.hf.transformer.h)]
    handles += [block.mlp.register_forward_hook(keep_mlp(i)) for i, block in enumerate(model.hf.transformer.h)]
    logits = model.hf(tokens, attention_mask=mask).logits
    for handle in handles:
        handle.remove()
    return logits, found


def slow_scores(question: Problem, formula: str) -> dict[str, float]:
    """`sum_i |(C - C') . dL_i/dC|`, one example at a time, C' = 0 or the corrupted prompt's."""
    total: dict[str, float] = {}
    for batch, full, _ in question.batches_with_runs():
        for row in range(len(batch)):
            one = pick(batch, row)
            logits, own = hooked(question.model, one.clean, one.attention_mask)
            _, other = hooked(question.model, one.corrupted, one.attention_mask)
            circuit = logits[torch.zeros_like(one.positions), one.positions].float()
            question.losses(full[row : row + 1], circuit, one).sum().backward()
            for name, values in own.items():
                baseline = other[name].detach() if formula == "paper" else torch.zeros_like(values)
                assert values.grad is not None
                total[name] = total.get(name, 0.0) + ((values.detach() - baseline) * values.grad).sum().abs().item()
    return total


def pick(batch: PairBatch, row: int) -> PairBatch:
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    rows: dict[str, Any] = {name: value[row : row + 1] for name, value in values.items() if isinstance(value, Tensor)}
    return dataclasses.replace(batch, **rows)


# ------------------------------------------------------------------ node scores
@pytest.mark.parametrize("formula", ["published_code", "paper"])
def test_scores_are_those_of_hooks_inside_the_model(formula: Any) -> None:
    question = problem(tiny())
    expected = slow_scores(question, formula)
    found = scores_of(question, formula=formula, normalize=False)
    scale = question.num_examples if formula == "paper" else 1
    assert set(found) == set(expected) == set(question.model.graph.readers[:-1])
    for name, value in expected.items():
        assert found[name] * scale == pytest.approx(value, rel=1e-5, abs=1e-8), name  # losses are float32
    assert max(expected.values()) > 1e-3


def gate_slopes(question: Problem, batch: PairBatch, full: Tensor, ablated: WriterStates) -> Tensor:
    gates = question.model.graph.all_open(torch.float64).requires_grad_()
    circuit = gated_logits(question.model, batch, gates, ablated)
    (slopes,) = torch.autograd.grad(question.losses(full, circuit, batch).sum(), gates)
    return slopes


@pytest.mark.parametrize("kv_readers", ["group", "head"])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_slopes_of_mlps_and_values_are_those_of_their_writers_gates(family: Any, index: int, kv_readers: str) -> None:
    """An MLP's gate is all its outgoing edges' gates; attention is linear in v, so heads stand for their v."""
    question = problem(build(family, index, kv_readers=kv_readers))
    model, nodes = question.model, NodeMap(question.model.graph)
    for batch, full, ablated in question.batches_with_runs():
        zero = gate_slopes(question, batch, full, ablations.zero(model)).sum(0)
        slopes = node_slopes(question, batch, full, {}).sum(0)
        expected = torch.zeros(nodes.num_nodes + 1, dtype=torch.float64)
        expected = expected.index_add(0, nodes.behind[:, 2], zero)[:-1]
        of_values = not model.graph.arch.coupled_heads  # else a norm behind the attention sees the gate too
        compared = [(name.endswith(".v") and of_values) or name.startswith("m") for name in nodes.names]
        torch.testing.assert_close(slopes[compared], expected[compared], rtol=1e-5, atol=1e-7)
        corrupted = gate_slopes(question, batch, full, ablated).sum(0)
        slopes = node_slopes(question, batch, full, node_values(model, batch)).sum(0)
        mlps = nodes.is_mlp
        torch.testing.assert_close(slopes[nodes.behind[mlps, 0]], corrupted[mlps], rtol=1e-5, atol=1e-7)


def test_slopes_of_q_and_k_are_equal_from_zero() -> None:
    """Attention scores are bilinear in them, so scaling one is scaling the other."""
    found = scores_of(problem(tiny()), normalize=False)
    for layer in range(3):
        for head in range(4):
            assert found[f"a{layer}.h{head}.q"] == pytest.approx(found[f"a{layer}.h{head}.k"], rel=1e-4, abs=1e-8)


def scaling_slope(
    question: Problem, batch: PairBatch, full: Tensor, module: Any, num_heads: int, heads: slice
) -> float:
    """Slope of the loss in the scale of what some heads have in a module's output: a central difference, by hooks."""

    def loss(scale: float) -> float:
        def scaled(_: Any, inputs: Any, output: Tensor) -> Tensor:
            parts = output.reshape(*output.shape[:2], num_heads, -1).clone()
            parts[:, :, heads] *= scale
            return parts.view(output.shape)

        handle = module.register_forward_hook(scaled)
        logits = question.model.full(batch.clean, batch.attention_mask, batch.positions)
        handle.remove()
        return question.losses(full.double(), logits, batch).sum().item()

    return (loss(1 + 1e-4) - loss(1 - 1e-4)) / 2e-4


@pytest.mark.parametrize("kv_readers", ["group", "head"])
@pytest.mark.parametrize(
    ("name", "index"), [("qwen3", 0), ("qwen3", 1), ("olmo2", 0), ("olmo2", 1), ("olmo3", 1), ("gemma2", 0)]
)
def test_gates_of_queries_and_keys_stand_behind_their_norms(name: str, index: int, kv_readers: str) -> None:
    """Slopes are those of scaling what the norm gives. Scaling what it gets does nothing: the norm undoes it."""
    model = tiny(name, index, kv_readers=kv_readers)
    question, arch = problem(model), model.graph.arch
    (batch, full, _), *_ = question.batches_with_runs()
    found: list[float] = []
    counts = (arch.num_heads, arch.num_kv_heads, arch.num_kv_heads)
    for block, (kind, count) in product(model.blocks, enumerate(counts)):
        attention, letter = block.module.self_attn, "qkv"[kind]
        projection = getattr(attention, f"{letter}_proj")
        norm = None if letter == "v" or block.qk_norm is None else getattr(attention, f"{letter}_norm")
        if norm is not None:
            norm.eps = norm.variance_epsilon = 1e-9
        slopes = node_slopes(question, batch, full, {}).sum(0)[model.graph.rows(block.layer)[kind]]
        own = slopes.view(count, -1).sum(1).tolist()
        each = [slice(head, head + 1) for head in range(count)]
        assert own == pytest.approx(
            [scaling_slope(question, batch, full, norm or projection, count, head) for head in each], rel=1e-3, abs=1e-6
        )
        undone = [] if norm is None else each if block.qk_norm == "head" else [slice(None)]
        for heads in undone:
            assert abs(scaling_slope(question, batch, full, projection, count, heads)) < 1e-6
        found += own
    assert sorted(map(abs, found))[len(found) // 2] > 1e-2


@pytest.mark.parametrize("formula", ["published_code", "paper"])
@pytest.mark.parametrize("cuts", [(), (1, 2, 3, 4), (4,)])
def test_scores_do_not_depend_on_batches(cuts: tuple[int, ...], formula: Any) -> None:
    model = tiny()
    one, other = (scores_of(problem(model, cuts=each), formula=formula) for each in (cuts, (3,)))
    assert one == pytest.approx(other, rel=1e-5, abs=1e-8)


def test_scores_are_divided_by_the_norm_of_their_layer() -> None:
    model = tiny()
    raw, done = (scores_of(problem(model), normalize=choice) for choice in (False, True))
    for layer in range(3):
        names = [name for name in raw if name.startswith(f"a{layer}.") or name == f"m{layer}"]
        norm = sum(raw[name] ** 2 for name in names) ** 0.5
        assert len(names) == 13
        assert [done[name] for name in names] == pytest.approx([raw[name] / norm for name in names])
    assert (normalized(model, torch.zeros(39)) == 0).all()  # an idle layer is not divided by 0


def test_the_paper_s_formula_with_zero_ablation_starts_from_zero() -> None:
    question = problem(tiny(), ablation="zero")
    paper = scores_of(question, formula="paper", normalize=False)
    code = scores_of(question, formula="published_code", normalize=False)
    assert {name: value * question.num_examples for name, value in paper.items()} == pytest.approx(code)
    assert paper != pytest.approx(scores_of(problem(tiny()), formula="paper", normalize=False))


def test_corrupted_values_are_moved_to_the_positions_they_stand_for() -> None:
    question = problem(tiny(), cuts=())
    (batch,) = (batch for batch, _, _ in question.batches_with_runs())
    plain = node_values(question.model, batch)
    seq = batch.clean.shape[1]
    alignment = torch.arange(seq).flip(0).expand(len(batch), seq)
    moved = node_values(question.model, dataclasses.replace(batch, alignment=alignment))
    for first, values in plain.items():
        assert torch.equal(moved[first], values.flip(1))


# ------------------------------------------------------------------ edges
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_the_best_edges_are_those_left_by_masking_node_by_node(name: str) -> None:
    question = problem(tiny(name))
    graph, found = question.model.graph, HISP().discover(question, no_progress)
    assert found.scores is not None
    order = found.about["node_order"]
    assert sorted(order) == sorted(graph.readers[:-1])
    values = [found.about["node_scores"][node] for node in order]
    assert values == pytest.approx(sorted(values), rel=1e-5)
    for masked, left in enumerate(found.about["edges_left"], 1):
        kept = kept_by_rule(graph, set(order[:masked]))
        assert left == len(kept)
        best = Circuit.from_scores(graph, found.scores, num_edges=left)
        assert set(best.edges()) == kept
    assert found.about["edges_left"][-1] == 1  # embed->logits touches no node


def test_nodes_with_equal_scores_go_by_index() -> None:
    """Rounding, which differs from one cut into batches to the next, must not decide between q and k of a head."""
    model = tiny()
    orders = [HISP().discover(problem(model, cuts=cuts), no_progress).about for cuts in ((), (1,), (2, 4))]
    scores = orders[0]["node_scores"]
    tied = sorted(scores, key=lambda name: (float(f"{scores[name]:.4e}"), model.graph.readers.index(name)))
    assert [about["node_order"] for about in orders] == [tied] * 3
    assert all(tied.index(f"a1.h{head}.q") == tied.index(f"a1.h{head}.k") - 1 for head in range(4))


# ------------------------------------------------------------------ mistakes and records
def test_the_model_is_left_as_it_was() -> None:
    question = problem(tiny())
    (batch, full, _), *_ = question.batches_with_runs()
    HISP(formula="paper").discover(question, no_progress)
    assert torch.equal(question.model.full(batch.clean, batch.attention_mask, batch.positions).float(), full)
    assert "attend" not in vars(question.model.family)


@pytest.mark.parametrize("formula", ["published_code", "paper"])
def test_a_loss_without_slope_is_refused(formula: Any) -> None:
    with pytest.raises(EdgepruneError, match=r"HISP .* metric 'squared_error' is zero.*logit_difference"):
        HISP(formula=formula).discover(compiled_problem("reverse"), no_progress)


def test_the_paper_s_formula_refuses_an_ablation_without_a_prompt() -> None:
    with pytest.raises(EdgepruneError, match=r"'paper' compares with .*not 'mean'"):
        HISP(formula="paper").discover(problem(tiny(), ablation="mean"), no_progress)


def test_settings() -> None:
    assert HISP(formula="paper").describe() == {"method": "hisp", "formula": "paper", "normalize": True}
    with pytest.raises(EdgepruneError, match="'thesis'"):
        HISP(formula="thesis")  # pyright: ignore[reportArgumentType]
