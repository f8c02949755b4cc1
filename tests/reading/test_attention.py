"""Attention in a circuit's run, against eager weights of the Hugging Face model and against the masked model's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.circuit import Circuit
from edgeprune.circuit_views import library
from edgeprune.compiled import CompiledConfig
from edgeprune.compiled import transformer as compiled_transformer
from edgeprune.errors import EdgepruneError
from edgeprune.graph import RoleSpec
from edgeprune.models.families.gpt2 import GPT2
from edgeprune.models.families.gpt_oss import GptOss
from edgeprune.models.masked import MaskedModel
from edgeprune.reading import attention_by_role, attention_patterns
from edgeprune.reading.attention import circuit_heads
from edgeprune.reading.attention_roles import SCORED, head_roles
from edgeprune.reading.patterns import draw_attention
from edgeprune.roles import observed_roles, role_of
from tests.methods.small_problems import tiny
from tests.models.test_conformance import KV, WIRED, build
from tests.reading.small import circuit_of, evaluator, pairs

Spy = list[Tensor]


def all_heads(model: MaskedModel) -> list[str]:
    return [name for name in model.graph.writers if name.startswith("a")]


@pytest.fixture
def eager_weights(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Weights `[batch, head, query, key and a sink if any]` of every softmax of eager attention, in float64."""
    seen: Spy = []

    def softmax(scores: Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
        del dtype  # eager attention would round to float32
        weights = torch.softmax(scores, dim)
        if weights.ndim == 4:  # not those of a router
            seen.append(weights)
        return weights

    monkeypatch.setattr(functional, "softmax", softmax)
    monkeypatch.setattr(Tensor, "softmax", softmax)
    return seen


def eager_copy(family: Any, index: int, **options: Any) -> MaskedModel:
    return build(family, index, implementation="eager", **options)


@pytest.mark.parametrize("kv_readers", KV)
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_with_open_edges_it_is_the_eager_attention_of_transformers(
    family: Any, index: int, kv_readers: str, eager_weights: Spy
) -> None:
    """Through sdpa on our side: windows, rotary positions, shared keys, scaled layers, padding, no mask at all."""
    model, eager = build(family, index, kv_readers=kv_readers), eager_copy(family, index)
    judge = evaluator(model)
    everything = Circuit(model.graph, model.graph.exists)
    found = attention_patterns(judge, everything, all_heads(model))
    example = 0
    for batch in judge.batches:
        eager_weights.clear()
        eager.hf(batch.clean, attention_mask=batch.attention_mask)
        expected = torch.cat(eager_weights, 1)  # heads of all layers
        assert expected.shape[1] == len(found.heads)
        for row in range(len(batch)):
            size = int(batch.attention_mask[row].sum())
            for weights in (found.circuit, found.full):
                torch.testing.assert_close(weights[example], expected[row, :, :size, :size], atol=1e-12, rtol=0)
            example += 1
    assert example == len(found.prompts) == 5


@pytest.mark.parametrize("kv_readers", KV)
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_in_a_circuit_it_is_what_the_masked_model_s_run_uses(
    family: Any, index: int, kv_readers: str, eager_weights: Spy
) -> None:
    model = eager_copy(family, index, kv_readers=kv_readers)
    judge, circuit = evaluator(model), circuit_of(model)
    found = attention_patterns(judge, circuit, all_heads(model))
    assert max(float((own - full).abs().max()) for own, full in zip(found.circuit, found.full, strict=True)) > 1e-3
    example = 0
    for batch in judge.batches:
        ablated = model.record(batch.corrupted, batch.corrupted_mask)
        eager_weights.clear()
        model(batch.clean, circuit.gates(torch.float64), ablated, batch.attention_mask)
        expected = torch.cat(eager_weights, 1)
        for row in range(len(batch)):
            size = int(batch.attention_mask[row].sum())
            torch.testing.assert_close(found.circuit[example], expected[row, :, :size, :size], atol=1e-12, rtol=0)
            example += 1


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_in_a_circuit_with_roles_it_is_what_gates_of_single_tokens_give(
    family: Any, index: int, eager_weights: Spy
) -> None:
    model = eager_copy(family, index)
    judge = evaluator(model)
    model.use_roles(observed_roles(judge.batches))
    circuit = circuit_of(model)
    found = attention_patterns(judge, circuit, all_heads(model))
    example = 0
    for batch in judge.batches:
        ablated = model.record(batch.corrupted, batch.corrupted_mask)
        each = circuit.gates(torch.float64)[role_of(batch, circuit.roles)]  # [batch, seq, reader, writer]
        eager_weights.clear()
        model(batch.clean, each, ablated, batch.attention_mask)
        expected = torch.cat(eager_weights, 1)
        for row in range(len(batch)):
            size = int(batch.attention_mask[row].sum())
            torch.testing.assert_close(found.circuit[example], expected[row, :, :size, :size], atol=1e-12, rtol=0)
            example += 1
    model.use_roles(None)
    union = attention_patterns(judge, circuit.union(), all_heads(model))
    assert max(float((one - two).abs().max()) for one, two in zip(found.circuit, union.circuit, strict=True)) > 1e-3


def test_heads_of_a_circuit_with_roles_lead_to_scored_logits() -> None:
    model = tiny("gpt2")
    roles = RoleSpec(("IO", "END"), (("IO",), ("IO", "END")), ("END",))
    graph = model.graph.with_roles(roles)
    edges = ["embed->a0.h0.v@IO", "a0.h0->logits@END", "embed->a0.h1.q@IO", "a0.h1->logits@IO", "a0.h2->a1.h0.q@IO"]
    edges += ["a0.h1->a1.h1.k@IO", "a1.h1->logits@END"]
    assert circuit_heads(Circuit.from_edges(graph, edges)) == ("a0.h0", "a0.h1", "a1.h1")
    assert circuit_heads(Circuit.from_edges(graph, edges[:-2])) == ("a0.h0",)  # nothing scored hears the others
    assert circuit_heads(Circuit.from_edges(graph, edges[:-2]).union()) == ("a0.h0", "a0.h1")


@pytest.mark.parametrize("index", [0, 1])
def test_rows_of_a_model_with_sinks_sum_to_what_its_sinks_leave(index: int, eager_weights: Spy) -> None:
    model = build(GptOss, index)
    judge = evaluator(model)
    found = attention_patterns(judge, circuit_of(model), all_heads(model))
    example = 0
    for batch in judge.batches:
        ablated = model.record(batch.corrupted, batch.corrupted_mask)
        eager_weights.clear()
        model(batch.clean, circuit_of(model).gates(torch.float64), ablated, batch.attention_mask)
        sinks = torch.cat(eager_weights, 1)[..., -1]  # [batch, head, query]
        for row in range(len(batch)):
            size = int(batch.attention_mask[row].sum())
            rest = 1 - sinks[row, :, :size]
            assert rest.max() < 0.9999
            assert rest.mean() < 0.9
            torch.testing.assert_close(found.circuit[example].sum(-1), rest, atol=1e-12, rtol=0)
            example += 1
    assert example == len(found.prompts)


def test_the_compiled_transformer_is_among_the_families() -> None:
    names = {family.__name__ for family, _ in (case.values for case in WIRED)}
    assert {"Compiled", "GPT2", "Llama"} <= names
    assert compiled_transformer.CompiledTransformer.config_class is CompiledConfig


def test_rows_frame_and_dict_say_the_same() -> None:
    model = tiny("gpt2")
    found = attention_patterns(evaluator(model), circuit_of(model), ["a1.h2", "a2.h0"])
    torch.testing.assert_close(found.of("a2.h0", 3), found.circuit[3][1])
    torch.testing.assert_close(found.of("a2.h0", 3, "full"), found.full[3][1])
    for weights in (*found.circuit, *found.full):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2], dtype=torch.float64))
        assert weights.triu(1).abs().max() == 0
    frame = found.to_dataframe(least=0.0)
    assert len(frame) == sum(2 * len(prompt) ** 2 for prompt in found.prompts)
    row = frame[(frame["head"] == "a2.h0") & (frame["example"] == 3) & (frame["query"] == 5) & (frame["key"] == 1)]
    assert row["circuit"].item() == found.of("a2.h0", 3)[5, 1]
    assert row["to"].item() == f"{found.prompts[3].tokens[1]} (IO)"
    few = found.to_dataframe()
    assert 0 < len(few) < len(frame)
    assert few[["circuit", "full"]].max(axis=1).min() >= 0.05
    plain = found.to_dict()
    assert plain["heads"] == ["a1.h2", "a2.h0"]
    assert plain["prompts"][0]["scored"] == [4, 5]
    assert plain["prompts"][0]["roles"] == {"IO": [1, 2], "S1": [2, 4], "S2": [3, 5]}
    assert plain["prompts"][3]["circuit"][1][5][1] == pytest.approx(float(found.of("a2.h0", 3)[5, 1]), abs=5e-5)
    scored = found.rows(least=0.0, queries="scored")
    assert {row["query"] for row in scored if row["example"] == 0} == {4, 5}
    assert library("rich.console").Console(width=200).render_lines(found.__rich__())


def test_tokens_have_the_text_of_their_tokenizer() -> None:
    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return f" {ids[0]}\n"

    model = tiny("gpt2")
    judge = evaluator(model)
    found = attention_patterns(judge, circuit_of(model), tokenizer=Tokenizer())
    assert found.prompts[1].tokens == tuple(f"·{token}\\n" for token in judge.batches[0].clean[1, :7].tolist())


def test_heads_of_a_circuit_have_a_path_to_the_logits() -> None:
    graph = tiny("gpt2").graph
    edges = ["embed->a0.h1.q", "a0.h1->a2.h3.k", "a2.h3->logits", "embed->a1.h0.v", "a1.h1->m1", "a0.h2->a1.h2.q"]
    assert circuit_heads(Circuit.from_edges(graph, edges)) == ("a0.h1", "a2.h3")


def test_attention_by_role_is_the_mean_over_patterns() -> None:
    model = tiny("llama", 1)
    judge, circuit = evaluator(model), circuit_of(model)
    own, full = attention_by_role(judge, circuit)
    torch.testing.assert_close(full.patterns, head_roles(model, judge.batches).patterns)
    found = attention_patterns(judge, circuit, all_heads(model))
    both = zip(found.prompts, found.circuit, strict=True)
    expected = torch.stack([weights[:, list(prompt.scored)].mean(1)[:, 1] for prompt, weights in both]).mean(0)
    torch.testing.assert_close(own.patterns[:, own.queries.index(SCORED), own.keys.index("IO")], expected)
    assert (own.patterns - full.patterns).abs().max() > 1e-3


def test_padding_on_the_left_is_cut_off() -> None:
    model = tiny("gpt2")
    judge, circuit = evaluator(model, examples=pairs(1)), circuit_of(model)
    (batch,) = judge.batches
    fill = torch.full((1, 2), 7)
    wide = {name: torch.cat([fill, getattr(batch, name)], 1) for name in ("clean", "corrupted")}
    mask = torch.cat([0 * fill, batch.attention_mask], 1)
    roles = {name: span + 2 for name, span in batch.roles.items()}
    padded = replace(
        batch, **wide, attention_mask=mask, corrupted_mask=mask, positions=batch.positions + 2, roles=roles
    )
    found = attention_patterns(replace(judge, batches=[padded]), circuit)
    expected = attention_patterns(judge, circuit)
    assert found.prompts == expected.prompts
    torch.testing.assert_close(found.circuit[0], expected.circuit[0], atol=1e-10, rtol=0)


def test_figure(tmp_path: Path) -> None:
    model = tiny("gpt2")
    found = attention_patterns(evaluator(model), circuit_of(model))
    head = found.heads[0]
    figure = found.plot(head, 2, tmp_path / "one.png")
    first, second, _ = figure.axes
    assert (first.get_title(), second.get_title()) == (f"{head}, circuit", f"{head}, full model")
    assert first.images[0].get_array().tolist() == found.of(head, 2).tolist()
    assert second.images[0].get_array().tolist() == found.of(head, 2, "full").tolist()
    assert [label.get_text() for label in first.get_yticklabels()] == list(found.prompts[2].labels)
    assert (tmp_path / "one.png").stat().st_size > 1000
    with pytest.raises(EdgepruneError, match="cannot draw to"):
        found.plot(head, 0, tmp_path / "one.xyz")
    with pytest.raises(EdgepruneError, match="no heads to draw"):
        draw_attention(found, [])


def test_what_cannot_be_shown() -> None:
    model = tiny("gpt2")
    judge = evaluator(model)
    with pytest.raises(EdgepruneError, match="no head of the circuit has a path to the logits"):
        attention_patterns(judge, Circuit.from_edges(model.graph, ["embed->logits"]))
    for name in ("a9.h0", "m1", "a0.h0.q"):
        with pytest.raises(EdgepruneError, match=f"no head named '{name}' in this model; heads are a0.h0 to a2.h3"):
            attention_patterns(judge, circuit_of(model), [name])
    with pytest.raises(EdgepruneError, match="the circuit was made for a graph with kv_readers='head'"):
        attention_patterns(judge, circuit_of(build(GPT2, 0, kv_readers="head")))
    found = attention_patterns(judge, circuit_of(model), ["a0.h0"])
    with pytest.raises(EdgepruneError, match=r"no pattern of head 'a0\.h1' here; there are a0\.h0"):
        found.of("a0.h1")
    with pytest.raises(EdgepruneError, match="example must be 0 to 4, the prompts read, got 5"):
        found.of("a0.h0", 5)
