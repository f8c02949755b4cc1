"""Backward rules: one layer by hand, relevance that is conserved, and runs that stay what they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods import EAP, BackwardRules
from edgeprune.methods.backward_rules import layer_norm, secant
from edgeprune.methods.problem import Problem
from edgeprune.models.masked import MaskedModel
from tests.methods.small_problems import (
    compiled_problem,
    cuts,
    linear_model,
    problem,
    random_pairs,
    tiny,
    without_biases,
)
from tests.models.reference import in_float64, writer_outputs
from tests.models.test_conformance import CASES, VOCAB, WIRED, build, prompts

RELP = BackwardRules(norm="detach", activation="secant", product="half")
KINDS: dict[str, BackwardRules] = {
    "norm": BackwardRules(norm="detach"),
    "activation": BackwardRules(activation="secant"),
    "product": BackwardRules(product="half"),
    "detach": BackwardRules(attention="detach"),
    "lrp": BackwardRules(attention="lrp"),
    "temperature": BackwardRules(attention="temperature"),
    "relp": RELP,
    "attn_lrp": BackwardRules("detach", "secant", "half", "lrp"),
    "gim": BackwardRules("detach", "plain", "half", "temperature", temperature=3.0),
}


def scores_of(question: Problem, rules: BackwardRules | None = None, **options: Any) -> Tensor:
    method = EAP(**options) if rules is None else EAP(rules=rules, **options)
    scores = method.discover(question, no_progress).scores
    assert scores is not None
    return scores


# ---------------------------------------------------------------- one layer, in plain numbers
def one_layer() -> MaskedModel:
    """RMSNorm, two heads that share keys and values, rotary positions, a gated MLP."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        rms_norm_eps=1e-3,
        pad_token_id=None,
    )
    hf = LlamaForCausalLM(config)
    for parameter in hf.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    return MaskedModel(in_float64(hf).eval())


def half(value: Tensor) -> Tensor:
    """The same number, with half its gradient."""
    return (value + value.detach()) / 2


def by_hand(question: Problem, rules: BackwardRules) -> Tensor:
    """Scores of the only batch: every reader sees the stream plus a zero of its own, whose gradient is the reader's."""
    ((batch, full, ablated),) = question.batches_with_runs()
    hf: Any = question.model.hf
    layer = hf.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    embed = hf.model.embed_tokens.weight[batch.clean]
    zeros = [torch.zeros_like(embed, requires_grad=True) for _ in question.model.graph.readers]

    def norm(x: Tensor, module: Any) -> Tensor:
        scale = ((x * x).mean(-1, keepdim=True) + 1e-3) ** -0.5
        return x * (scale.detach() if rules.norm == "detach" else scale) * module.weight

    positions = batch.attention_mask.cumsum(1).sub(1).clamp(min=0)
    cosine, sine = (table.double() for table in hf.model.rotary_emb(embed, position_ids=positions))

    def turned(x: Tensor) -> Tensor:
        return x * cosine + torch.cat([-x[..., 2:], x[..., :2]], -1) * sine

    def read(reader: int, weight: Tensor) -> Tensor:
        return norm(embed + zeros[reader], layer.input_layernorm) @ weight.T

    queries = [turned(read(head, attention.q_proj.weight[4 * head : 4 * head + 4])) for head in (0, 1)]
    key, value = turned(read(2, attention.k_proj.weight)), read(3, attention.v_proj.weight)
    seen = torch.ones(embed.shape[1], embed.shape[1]).tril().bool() & batch.attention_mask[:, None].bool()
    split: Callable[[Tensor], Tensor] = half if rules.attention in ("lrp", "temperature") else (lambda product: product)
    heads: list[Tensor] = []
    for number, query in enumerate(queries):
        weights = (split(query @ key.mT) / 2).masked_fill(~seen, -1e9)
        pattern = weights.softmax(-1)
        if rules.attention == "temperature":
            softer = rules.temperature * (weights / rules.temperature).softmax(-1)
            pattern = pattern.detach() + softer - softer.detach()
        elif rules.attention == "detach":
            pattern = pattern.detach()
        heads.append(split(pattern @ value) @ attention.o_proj.weight[:, 4 * number : 4 * number + 4].T)

    normed = norm(embed + sum(heads) + zeros[4], layer.post_attention_layernorm)
    gate, up = normed @ mlp.gate_proj.weight.T, normed @ mlp.up_proj.weight.T
    swish = gate * (gate.sigmoid().detach() if rules.activation == "secant" else gate.sigmoid())
    inner = half(swish * up) if rules.product == "half" else swish * up
    out = inner @ mlp.down_proj.weight.T
    logits = norm(embed + sum(heads) + out + zeros[5], hf.model.norm) @ hf.lm_head.weight.T
    scored = logits[torch.arange(len(batch))[:, None], batch.positions]
    torch.testing.assert_close(scored.detach(), full.double(), rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(question.losses(full.double(), scored, batch).sum(), zeros, materialize_grads=True)
    own = [embed, *heads, out]
    differences = [other - mine for other, mine in zip(writer_outputs(question.model, ablated), own, strict=True)]
    scores = [[(gradient * difference).sum().item() for difference in differences] for gradient in gradients]
    return torch.tensor(scores, dtype=torch.float64) * question.model.graph.exists / question.num_examples


@pytest.mark.parametrize("kind", ["plain", *KINDS])
def test_one_layer_by_hand(kind: str) -> None:
    question = problem(one_layer(), cuts=())
    rules = KINDS.get(kind, BackwardRules())
    scores = scores_of(question, rules)
    torch.testing.assert_close(scores, by_hand(question, rules), rtol=1e-6, atol=1e-8)
    if kind != "plain":
        assert (scores - scores_of(question)).abs().max() > 1e-2 * scores.abs().max()


def test_secant_and_norm_by_hand() -> None:
    inputs = torch.tensor([-2.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    values = inputs.exp() - 1
    found = secant(inputs, values)
    assert torch.equal(found, values)
    (slope,) = torch.autograd.grad(found.sum(), inputs)
    torch.testing.assert_close(slope, torch.tensor([(1 - torch.e**-2) / 2, 0, 2 * (torch.e**0.5 - 1)]).double())
    inputs = torch.tensor([[3.0, -1.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(layer_norm(inputs, (4,), eps=2.0)[0, 0], inputs)  # mean 1, variance 2
    torch.testing.assert_close(slope, torch.tensor([[0.375, -0.125, -0.125, -0.125]]).double())


# ---------------------------------------------------------------- every family
EXPERTS = ("Mixtral", "Moe", "Olmoe", "GptOss")  # what a router gives is no product of what it reads


@pytest.mark.parametrize(
    ("family", "index"), [case for case in CASES if not any(name in str(case.id) for name in EXPERTS)]
)
def test_relevance_is_conserved_from_layer_to_layer(family: Any, index: int) -> None:
    """With constant scales, patterns and slopes a model without biases is linear: every cut carries the whole loss."""
    model = without_biases(build(family, index))
    model.hf.config.final_logit_softcapping = model.hf.config.clip_qkv = None
    question = problem(model, random_pairs(3), cuts=(), ablation="zero")
    loss = question.mean_loss(model.graph.all_open(torch.float64))
    scores = scores_of(question, BackwardRules("detach", "secant", "half", "detach"))
    assert cuts(model.graph, scores) == pytest.approx([-loss] * (model.graph.arch.num_layers + 1), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_runs_stay_what_they_are_and_nothing_is_left_behind(family: Any, index: int) -> None:
    model = build(family, index)
    before = vars(model.blocks[0]).copy()
    clean, corrupted = prompts()
    ablated, gates = model.record(corrupted), model.graph.all_open(torch.float64).requires_grad_()
    expected = model(clean, gates, ablated)
    for kind, rules in KINDS.items():
        with rules.on(model):
            found = model(clean, gates, ablated)
        close = dict.fromkeys(("rtol", "atol"), 1e-6 if rules.attention == "temperature" else 0)
        torch.testing.assert_close(found, expected, **close, msg=kind)
    assert vars(model.blocks[0]) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())
    (slope,), (again,) = (torch.autograd.grad(model(clean, gates, ablated).square().mean(), gates) for _ in range(2))
    assert torch.equal(slope, again)


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_a_temperature_of_one_is_that_of_the_model(family: Any, index: int) -> None:
    question = problem(build(family, index), random_pairs(2), cuts=())
    one = scores_of(question, BackwardRules(attention="temperature", temperature=1.0))
    lrp, two = scores_of(question, KINDS["lrp"]), scores_of(question, KINDS["temperature"])
    torch.testing.assert_close(one, lrp, rtol=1e-4, atol=1e-6)
    assert (two - lrp).abs().max() > 1e-3 * lrp.abs().max()


def test_experts_pass_half_to_the_router() -> None:
    """One layer's experts: with the router's share constant, half of the whole gradient goes through the experts."""
    question = problem(tiny("mixtral"), cuts=())
    plain, halved = scores_of(question), scores_of(question, KINDS["product"])
    assert (plain - halved).abs().max() > 1e-2 * plain.abs().max()
    assert torch.equal(plain[-1], halved[-1])  # nothing stands between what edges into the logits carry and the loss


# ---------------------------------------------------------------- what they are for
@pytest.mark.parametrize("kind", ["norm", "activation", "product", "detach", "relp"])
@pytest.mark.parametrize("metric", ["logit_difference", "kl"])
def test_nothing_changes_in_a_linear_model(kind: str, metric: Any) -> None:
    question = problem(linear_model(), random_pairs(2), cuts=(), metric=metric)
    torch.testing.assert_close(scores_of(question, KINDS[kind]), scores_of(question), rtol=1e-9, atol=1e-12)


def test_half_a_path_through_each_layer_of_values_in_a_linear_model() -> None:
    """Patterns are constant, so every path loses half at each head that it passes."""
    question = problem(linear_model(), random_pairs(2), cuts=())
    plain, lrp = scores_of(question), scores_of(question, KINDS["lrp"])
    graph = question.model.graph
    torch.testing.assert_close(lrp[-1], plain[-1])
    last = graph.rows(graph.arch.num_layers - 1).v
    torch.testing.assert_close(lrp[last], plain[last] / 2)


@pytest.mark.parametrize("metric", ["logit_difference", "kl", "squared_error"])
def test_scores_do_not_depend_on_batches(metric: Any) -> None:
    model = tiny()
    whole, cut = (scores_of(problem(model, cuts=cuts, metric=metric), KINDS["gim"]) for cuts in ((), (2, 4)))
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-7)


def test_losses_without_a_slope_are_scored_by_slopes_that_follow_the_rules() -> None:
    question = problem(tiny(), random_pairs(2), metric="squared_error")
    plain, ruled = scores_of(question), scores_of(question, RELP)
    assert (ruled >= 0).all()
    assert (ruled - plain).abs().max() > 1e-2 * plain.max()
    units = compiled_problem("or_gate", "zero", 4)  # ReLUs without norms: RelP has the model's own slopes
    torch.testing.assert_close(scores_of(units, RELP), scores_of(units))


def test_mistakes_are_named_and_settings_described() -> None:
    with pytest.raises(EdgepruneError, match="rule for product must be one of plain, half, got 'third'"):
        BackwardRules(product="third")  # pyright: ignore[reportArgumentType]
    with pytest.raises(EdgepruneError, match="got 0"):
        BackwardRules(temperature=0)
    rules = {"norm": "detach", "activation": "secant", "product": "half", "attention": "plain", "temperature": 2.0}
    assert EAP(rules=RELP).describe() == {"method": "eap", "samples": 4, "seed": 0, "rules": rules}
