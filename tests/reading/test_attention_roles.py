"""Attention of heads to roles against the model's own weights; permuted heads are found again."""

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from datamodules.collate import collate
from datamodules.tasks.base import TokenPair
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.comparison.roles import (
    compare_roles,
    cosine,
    importance_similarity,
    match_heads,
)
from edgeprune.errors import EdgepruneError
from edgeprune.models.family import registry
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.reading.attention_roles import (
    EMBED,
    FIRST,
    LOGITS,
    MLP,
    REST,
    SCORED,
    HeadRoles,
    RoleProfile,
    attention_to,
    head_roles,
    role_profile,
)
from tests.methods.small_problems import tiny
from tests.models.reference import in_float64
from tests.models.test_conformance import VOCAB, build

SPANS = {"IO": (1, 2), "S1": (2, 4), "S2": (5, 6)}


def pairs_with_roles(number: int = 6, roles: dict[str, tuple[int, int]] | None = None) -> list[TokenPair]:
    """Prompts of 8 or 9 tokens with roles; the last token is scored."""
    generator = torch.Generator().manual_seed(1)

    def draw(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCAB, (size,), generator=generator).tolist())

    lengths = [8 + index % 2 for index in range(number)]
    return [
        TokenPair(draw(size), draw(size), (size - 1,), draw(1), (0,), roles=SPANS if roles is None else roles)
        for size in lengths
    ]


def batches_with_roles(pairs: list[TokenPair] | None = None) -> list[PairBatch]:
    examples = list(enumerate(pairs_with_roles() if pairs is None else pairs))
    return [collate(examples[:4]), collate(examples[4:])]


def small_llama() -> MaskedModel:
    """Another architecture than tiny GPT-2: two layers, six heads, shared keys and values."""
    torch.manual_seed(3)
    config = LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        hidden_size=48,
        intermediate_size=40,
        vocab_size=61,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
    )
    hf = LlamaForCausalLM(config)
    for parameter in hf.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return MaskedModel(in_float64(hf).eval())


def everything(model: MaskedModel) -> Circuit:
    return Circuit(model.graph, model.graph.exists)


def slow_patterns(attentions: list[Tensor], batches: list[PairBatch], query: str, key: str) -> Tensor:
    """Mean attention from one role to another, `[head]`, by loops over examples and tokens."""
    rows: list[Tensor] = []
    for batch, attention in zip(batches, attentions, strict=True):
        for example in range(len(batch)):
            spans = {name: range(*span[example].tolist()) for name, span in batch.roles.items()}
            spans[SCORED] = range(int(batch.positions[example, 0]), int(batch.positions[example, 0]) + 1)
            weights = [sum(attention[:, example, :, asking, asked] for asked in spans[key]) for asking in spans[query]]
            rows.append(torch.stack(weights).mean(0).flatten())
    return torch.stack(rows).mean(0)


# -------------------------------------------------------------------- attention
@pytest.mark.parametrize(
    ("family", "index", "options"),
    [
        ("gpt2", 0, {}),
        ("gpt2", 1, {}),
        ("llama", 1, {}),
        ("llama", 1, {"kv_readers": "head"}),
        ("llama", 2, {}),
        ("llama", 4, {}),
        ("gpt_neox", 0, {}),
    ],
)
def test_equals_the_attention_weights_that_transformers_gives(family: str, index: int, options: dict[str, Any]) -> None:
    """Through sdpa, with windows, rotary positions, shared keys, scaled layers; eager Llama rounds to float32."""
    model, eager = build(registry()[family], index, **options), build(registry()[family], index, implementation="eager")
    batches = batches_with_roles()
    attentions = [
        torch.stack(eager.hf(batch.clean, attention_mask=batch.attention_mask, output_attentions=True).attentions)
        for batch in batches
    ]
    found = head_roles(model, batches)
    assert found.queries == (SCORED, "IO", "S1", "S2")
    assert found.keys == ("IO", "S1", "S2", FIRST, SCORED, REST)
    for row, query in enumerate(found.queries):
        for column, key in enumerate(("IO", "S1", "S2")):
            expected = slow_patterns(attentions, batches, query, key)
            torch.testing.assert_close(found.patterns[:, row, column], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        found.patterns.sum(-1), torch.ones(found.patterns.shape[:2], dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_of_compiled_models_and_more_parts_than_a_head_is_wide() -> None:
    """Attention to every single token, from the softmax written out."""
    model = load_model("compiled:reverse", dtype="float64")
    hf = model.hf
    ids = torch.tensor([[0, 2, 3, 1], [0, 1, 1, 2]])
    mask = torch.ones_like(ids)
    found = attention_to(model, ids, mask, torch.eye(4, dtype=torch.bool).expand(2, 4, 4))
    stream = hf.tok_embed(ids) + hf.pos_embed(torch.arange(4))
    for layer, block in enumerate(hf.layers):
        q, k = (
            project(stream).unflatten(-1, (-1, block.attn.head_dim)).transpose(1, 2)
            for project in (block.attn.q_proj, block.attn.k_proj)
        )
        scores = q @ k.mT * block.attn.scaling
        if hf.config.causal:
            scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
        torch.testing.assert_close(found[layer], scores.softmax(-1).transpose(1, 2), rtol=0, atol=1e-9)
        stream = block(stream, hf.make_mask(stream, mask, torch.arange(4)[None]))


def test_parts_do_not_fit_in_one_run_of_the_kernel() -> None:
    model = tiny("gpt2")  # heads are 8 wide
    batch = batches_with_roles()[0]
    length = batch.clean.shape[1]
    assert model.blocks[0].output_weight().shape[1] == 8 < length
    parts = torch.eye(length, dtype=torch.bool).expand(len(batch), length, length)
    found = attention_to(model, batch.clean, batch.attention_mask, parts)
    eager = build(registry()["gpt2"], 0, implementation="eager")
    expected = eager.hf(batch.clean, attention_mask=batch.attention_mask, output_attentions=True).attentions
    real = batch.attention_mask.bool()  # rows of padding mean nothing, and have another position
    torch.testing.assert_close(found[:, real], torch.stack(expected).transpose(2, 3)[:, real], rtol=0, atol=1e-9)


def test_a_part_is_averaged_over_the_examples_that_have_it() -> None:
    """Also where a whole batch lacks it, and where two roles never meet."""
    with_both = pairs_with_roles(4)
    without = pairs_with_roles(2, {"S2": (5, 6), "last": (7, 8)})
    model = tiny("gpt2")
    joined = head_roles(model, [collate(list(enumerate(with_both))), collate(list(enumerate(without)))])
    alone = head_roles(model, [collate(list(enumerate(with_both)))])
    assert joined.roles == ("IO", "S1", "S2", "last")
    assert joined.num_examples == 6
    place = joined.keys.index("IO")
    torch.testing.assert_close(joined.patterns[:, :2, place], alone.patterns[:, :2, 0])
    assert joined.patterns[:, joined.queries.index("last"), place].isnan().all()
    assert not joined.patterns[:, 0].isnan().any()


def test_a_role_on_the_scored_token_takes_its_place() -> None:
    pairs = [TokenPair((3, 4, 5), (3, 6, 5), (2,), (1,), (0,), roles={"A": (0, 1), "END": (2, 3)}) for _ in range(2)]
    found = head_roles(tiny("gpt2"), [collate(list(enumerate(pairs)))])
    assert found.keys == ("A", "END", REST)
    torch.testing.assert_close(found.patterns[:, 0], found.patterns[:, 2])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_gets_no_attention(side: str) -> None:
    batch = collate([(0, pairs_with_roles(1)[0])])
    filler, shift = torch.full((1, 3), 7), 3 if side == "left" else 0

    def padded(ids: Tensor, fill: Tensor) -> Tensor:
        return torch.cat([fill, ids] if side == "left" else [ids, fill], 1)

    wide = PairBatch(
        clean=padded(batch.clean, filler),
        corrupted=padded(batch.corrupted, filler),
        attention_mask=padded(batch.attention_mask, 0 * filler),
        positions=batch.positions + shift,
        position_mask=batch.position_mask,
        targets=batch.targets,
        distractors=batch.distractors,
        index=batch.index,
        roles={name: span + shift for name, span in batch.roles.items()},
    )
    model = small_llama()
    torch.testing.assert_close(
        head_roles(model, [wide]).patterns, head_roles(model, [batch]).patterns, rtol=0, atol=1e-9
    )


def test_the_class_is_by_attention_to_each_token() -> None:
    """A part of four tokens with half of the attention gets less of it per token than one of a single token."""
    patterns = torch.tensor([[[0.3, 0.2, 0.5]], [[0.1, 0.0, 0.9]]], dtype=torch.float64)
    attention = HeadRoles(("a0.h0", "a0.h1"), (SCORED,), ("IO", "S1", REST), patterns, torch.tensor([1, 2, 4]), 1)
    assert attention.classes == {"a0.h0": "IO", "a0.h1": REST}
    found = head_roles(tiny("gpt2"), batches_with_roles())  # prompts of 8 and 9 tokens
    assert found.sizes.tolist() == [1, 2, 1, 1, 1, 2.5]


def test_what_cannot_be_described() -> None:
    model = tiny("gpt2")
    with pytest.raises(EdgepruneError, match="marks no position roles"):
        head_roles(model, [collate([(0, pairs_with_roles(1, {})[0])])])
    with pytest.raises(EdgepruneError, match="role name 'mlp' is taken"):
        head_roles(model, [collate([(0, pairs_with_roles(1, {"mlp": (0, 1)})[0])])])
    with pytest.raises(EdgepruneError, match="num_layers=2"):
        role_profile(model, batches_with_roles(), everything(small_llama()))


# -------------------------------------------------------------------- importance
def test_importance_by_hand() -> None:
    """Two edges by the head classes that are set here; the shared reader counts half for each of its heads."""
    model = tiny("llama", 1)  # 4 heads, 2 key/value heads, 3 layers
    heads = tuple(name for name in model.graph.writers if name.startswith("a"))
    patterns = torch.zeros(len(heads), 3, 3, dtype=torch.float64)
    patterns[:, 0, 2] = 1.0
    for head, key in (("a0.h1", 0), ("a2.h2", 0), ("a2.h3", 1)):
        patterns[heads.index(head), 0] = torch.eye(3)[key]
    attention = HeadRoles(heads, (SCORED, "IO", "S1"), ("IO", "S1", REST), patterns, torch.ones(3), 4)
    circuit = Circuit.from_edges(model.graph, ["a0.h1->a2.h1.k", "embed->m0", "m1->logits", "a0.h1->a2.h0.q"])
    profile = RoleProfile(circuit, attention)
    assert profile.class_names == ("IO", "S1", REST, MLP, EMBED, LOGITS)
    # IO: a0.h1 twice, half of the reader a2.h1.k; S1: its other half; REST: a2.h0; MLP: m0, m1; of 8 ends in all
    torch.testing.assert_close(profile.importance * 8, torch.tensor([2.5, 0.5, 1, 2, 1, 1], dtype=torch.float64))
    assert profile.score_importance is None
    scores = torch.zeros(model.graph.shape)
    scores[model.graph.index("embed->m0")], scores[model.graph.index("m1->logits")] = -3.0, 1.0
    scored = RoleProfile(Circuit(model.graph, circuit.keep, scores), attention)
    assert scored.score_importance is not None
    torch.testing.assert_close(scored.score_importance * 8, torch.tensor([0, 0, 0, 4, 3, 1], dtype=torch.float64))
    assert set(scored.heads) == {"a0.h1", "a2.h0", "a2.h2", "a2.h3"}


def test_empty_circuits_have_no_roles() -> None:
    model = tiny("gpt2")
    empty = role_profile(model, batches_with_roles(), Circuit.from_edges(model.graph, []))
    assert empty.heads == ()
    assert not empty.importance.any()
    result = compare_roles(empty, RoleProfile(everything(model), empty.attention), seeds=[0]).to_dict()
    assert result["one_to_one"] == {"mean_similarity": None, "matches": []}
    assert result["importance"]["cosine"] is None
    assert result["random_one_to_one_mean"] is None
    json.dumps(result, allow_nan=False)


# -------------------------------------------------------------------- two models
def permuted(model: MaskedModel, orders: list[list[int]]) -> MaskedModel:
    """A copy of a GPT-2 model: head h of a layer is head `orders[layer][h]` of the original."""
    other = MaskedModel(copy.deepcopy(model.hf))
    for layer, order in enumerate(orders):
        for weight in (*other.blocks[layer].qkv_weights(), other.blocks[layer].output_weight()):
            weight.copy_(weight[order].clone())
        bias = other.hf.transformer.h[layer].attn.c_attn.bias.view(3, len(order), -1)
        bias.copy_(bias[:, order].clone())
    return other


def test_permuted_heads_are_found_again() -> None:
    model, orders = tiny("gpt2"), [[2, 0, 3, 1], [3, 1, 0, 2], [0, 1, 3, 2]]
    other = permuted(model, orders)
    batches = batches_with_roles()
    torch.testing.assert_close(other.full(batches[0].clean), model.full(batches[0].clean), rtol=0, atol=1e-9)
    profiles = [role_profile(item, batches, everything(item)) for item in (model, other)]
    result = compare_roles(*profiles, seeds=[0, 1])
    truth = {
        f"a{layer}.h{original}": f"a{layer}.h{h}" for layer, row in enumerate(orders) for h, original in enumerate(row)
    }
    for matches in (result.one_to_one, result.best_of_first, result.best_of_second):
        assert {match.first: match.second for match in matches} == truth
        assert all(match.similarity == pytest.approx(1, abs=1e-9) for match in matches)
    assert result.importance.cosine == pytest.approx(1)
    assert max(result.random_one_to_one) <= 1 + 1e-9
    json.dumps(result.to_dict(), allow_nan=False)


def test_part_of_the_heads_keeps_its_names_and_its_roles() -> None:
    """A circuit and its image under the permutation: same roles, same importance, above and without the graph's."""
    model, orders = tiny("gpt2"), [[2, 0, 3, 1], [3, 1, 0, 2], [0, 1, 3, 2]]
    other, batches = permuted(model, orders), batches_with_roles()
    circuit = Circuit.from_edges(model.graph, ["embed->a0.h2.q", "a0.h2->a2.h3.k", "a2.h3->logits"])
    image = Circuit.from_edges(model.graph, ["embed->a0.h0.q", "a0.h0->a2.h2.k", "a2.h2->logits"])
    first, second = role_profile(model, batches, circuit), role_profile(other, batches, image)
    matches = {match.first: match.second for match in match_heads(first, second)}
    assert matches == {"a0.h2": "a0.h0", "a2.h3": "a2.h2"}
    torch.testing.assert_close(first.importance, second.importance)
    found = importance_similarity(first, second, seeds=range(5))
    assert found.cosine == pytest.approx(1)
    assert found.cosine_above_graph == pytest.approx(1)
    assert len(found.random) == 5
    assert max(found.random_above_graph) < 0.999  # random circuits of three edges are not the same
    assert found.to_dict()["cosine_of_scores"] is None


def test_models_of_other_shapes() -> None:
    """GPT-2 of 12 heads against Llama of 12 in other layers; fewer heads than that in the circuit."""
    models, batches = (tiny("gpt2"), small_llama()), batches_with_roles()
    profiles = [role_profile(item, batches, Circuit.random(item.graph, 30, 0)) for item in models]
    result = compare_roles(*profiles, seeds=[0, 1, 2])
    sizes = [len(profile.heads) for profile in profiles]
    assert len(result.best_of_first) == sizes[0]
    assert len(result.best_of_second) == sizes[1]
    assert len(result.one_to_one) == min(sizes)
    assert len({match.second for match in result.one_to_one}) == min(sizes)
    best = {match.first: match.similarity for match in result.best_of_first}
    assert all(match.similarity <= best[match.first] for match in result.one_to_one)
    values = [match.similarity for match in result.one_to_one]
    assert values == sorted(values, reverse=True)
    assert result.importance.random != result.importance.random[:1] * 3
    json.dumps(result.to_dict(), allow_nan=False)


def test_similarity_by_hand() -> None:
    """The matching has the largest sum, though it leaves out the pair with the largest similarity."""

    def profile(rows: list[list[float]]) -> RoleProfile:
        hf = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=9, bos_token_id=1, eos_token_id=2))
        graph = MaskedModel(hf).graph
        patterns = torch.tensor(rows, dtype=torch.float64)[:, None]
        patterns = torch.cat([patterns, torch.full_like(patterns, torch.nan)], 1)  # the role asks nowhere
        attention = HeadRoles(("a0.h0", "a0.h1"), (SCORED, "IO"), ("IO", REST), patterns, torch.ones(2), 1)
        return RoleProfile(Circuit(graph, graph.exists), attention)

    first, second = profile([[1, 0], [3, 4]]), profile([[3, 4], [0, 1]])
    similarity = {(match.first, match.second): match.similarity for match in match_heads(first, second)}
    assert similarity == pytest.approx({("a0.h1", "a0.h1"): 0.8, ("a0.h0", "a0.h0"): 0.6})
    assert list(similarity) == [("a0.h1", "a0.h1"), ("a0.h0", "a0.h0")]
    best = [(match.second, match.similarity) for match in match_heads(first, second, one_to_one=False)]
    assert [name for name, _ in best] == ["a0.h0", "a0.h0"]
    assert [value for _, value in best] == pytest.approx([0.6, 1.0])
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.6)
    assert math.isnan(cosine(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])))


def test_tasks_without_a_common_role() -> None:
    model = tiny("gpt2")
    first = role_profile(model, batches_with_roles(), everything(model))
    second = role_profile(model, batches_with_roles(pairs_with_roles(roles={"year": (2, 3)})), everything(model))
    with pytest.raises(EdgepruneError, match="share no role"):
        compare_roles(first, second)
