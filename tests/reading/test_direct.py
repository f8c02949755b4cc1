"""Direct logit attribution: it sums to the logits, and is the textbook's for GPT-2; in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from edgeprune.batch import IGNORE
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.registry import measure_named
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from edgeprune.reading import direct_attribution
from edgeprune.reading.direct import ATTENTION_BIAS, HEAD_BIAS
from tests.methods.small_problems import tiny
from tests.models.reference import output_bias, writer_outputs
from tests.models.test_conformance import KV, WIRED, build
from tests.reading.small import circuit_of, evaluator, pairs

CLOSE: dict[str, float] = {"atol": 1e-9, "rtol": 0}


def logit_differences(model: MaskedModel, judge: Any, gates: torch.Tensor) -> torch.Tensor:
    """By the masked model: right minus wrong answer, mean over scored positions, `[example]`."""
    found: list[torch.Tensor] = []
    for batch in judge.batches:
        _, ablated = judge.runs(batch, "test")
        logits = model(batch.clean, gates, ablated, batch.attention_mask, batch.positions)
        found.append(measure_named("logit_difference").values(logits, logits, batch))
    return torch.cat(found)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("ablation", ["interchange", "zero"])
@pytest.mark.parametrize("kv_readers", KV)
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_contributions_sum_to_the_logit_difference(family: Any, index: int, kv_readers: str, ablation: str) -> None:
    model = build(family, index, kv_readers=kv_readers)
    judge, circuit = evaluator(model, ablation), circuit_of(model, 0.5)
    if getattr(model.hf.config, "final_logit_softcapping", None):
        with pytest.raises(EdgepruneError, match="a cap on logits"):
            direct_attribution(judge, circuit)
        return
    found = direct_attribution(judge, circuit)
    expected = logit_differences(model, judge, circuit.gates(torch.float64))
    torch.testing.assert_close(found.logits, expected, **CLOSE)
    torch.testing.assert_close(found.values.sum(0), expected, **CLOSE)
    torch.testing.assert_close((found.own + found.ablated).sum(0), expected, **CLOSE)
    full = logit_differences(model, judge, model.graph.all_open(torch.float64))
    torch.testing.assert_close(found.full.sum(0), full, **CLOSE)
    torch.testing.assert_close(found.full_logits, full, **CLOSE)
    assert expected.abs().max() > 1e-2
    closed = ~found.kept
    assert closed.any()
    assert found.own[closed].abs().max() == 0
    assert found.ablated[~closed].abs().max() == 0
    if ablation == "zero":
        torch.testing.assert_close(found.ablated, torch.zeros_like(found.ablated), **CLOSE)
    else:
        assert found.ablated[closed].abs().max() > 1e-3


def textbook(model: MaskedModel, states: WriterStates, row: int, place: int, right: int, wrong: int) -> torch.Tensor:
    """By hand for GPT-2: centre each writer, divide by the stream's deviation, weigh, and dot with the unembedding."""
    norm, unembedding = model.hf.transformer.ln_f, model.hf.lm_head.weight
    parts = [part[row, place] for part in writer_outputs(model, states)]
    parts.append(torch.stack([output_bias(block)[0, 0] for block in model.blocks]).sum(0))
    stream = torch.stack(parts).sum(0)
    deviation = (stream.var(unbiased=False) + norm.eps).sqrt()
    direction = unembedding[right] - unembedding[wrong]
    added = [direction @ (norm.weight * (part - part.mean()) / deviation) for part in parts]
    return torch.stack([*added, direction @ norm.bias])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("options", [{}, {"split_embedding": True}])
def test_it_is_the_textbook_s_for_gpt2(options: dict[str, Any]) -> None:
    model = tiny("gpt2", **options)
    judge = evaluator(model)
    found = direct_attribution(judge, circuit_of(model))
    assert found.rows[:2] == (("tok_embed", "pos_embed") if options else ("embed", "a0.h0"))
    assert found.rows[-2:] == (ATTENTION_BIAS, HEAD_BIAS)
    example = 0
    for batch in judge.batches:
        states = model.record(batch.clean, batch.attention_mask)
        for row in range(len(batch)):
            places = batch.positions[row, batch.position_mask[row]].tolist()
            expected = [
                textbook(model, states, row, place, int(batch.targets[row, at]), int(batch.distractors[row, at]))
                for at, place in enumerate(places)
            ]
            torch.testing.assert_close(found.full[:, example], torch.stack(expected).mean(0), **CLOSE)
            example += 1


@pytest.mark.usefixtures("double")
def test_closed_edges_carry_the_corrupted_run_s_values() -> None:
    """Everything closed: the values are those of the full model on the corrupted prompts, in the same direction."""
    model = tiny("llama")
    judge = evaluator(model)
    found = direct_attribution(judge, Circuit(model.graph, model.graph.all_closed()))
    swapped = [replace(batch, clean=batch.corrupted, corrupted=batch.clean) for batch in judge.batches]
    other = direct_attribution(replace(judge, batches=swapped, runs=evaluator(model).runs), circuit_of(model))
    torch.testing.assert_close(found.values, other.full, **CLOSE)
    torch.testing.assert_close(found.own[:-2], torch.zeros_like(found.own[:-2]))


@pytest.mark.usefixtures("double")
def test_other_directions() -> None:
    model = tiny("gpt2")
    judge, circuit = evaluator(model), circuit_of(model)
    towards = torch.linspace(-1, 1, 61, dtype=torch.float64)
    given = direct_attribution(judge, circuit, towards)
    assert given.direction == "given"
    torch.testing.assert_close(given.values.sum(0), given.logits, **CLOSE)
    target = direct_attribution(judge, circuit, "target")
    torch.testing.assert_close(target.values.sum(0), target.logits, **CLOSE)
    assert not torch.allclose(target.logits, direct_attribution(judge, circuit).logits)


def test_in_single_precision_the_sum_holds_up_to_rounding() -> None:
    model = build(*WIRED[-1].values, dtype=torch.float32)
    found = direct_attribution(evaluator(model), circuit_of(model))
    torch.testing.assert_close(found.values.sum(0), found.logits, atol=1e-4, rtol=1e-4)


def test_table_frame_and_dict_say_the_same() -> None:
    model = tiny("gpt2")
    found = direct_attribution(evaluator(model), circuit_of(model))
    table = found.table()
    sizes = [abs(row["own"] + row["ablated"]) for row in table]
    assert sizes == sorted(sizes, reverse=True)
    frame = found.to_dataframe().set_index("writer")
    place = found.rows.index("m1")
    assert frame.loc["m1", "own"] + frame.loc["m1", "ablated"] == pytest.approx(float(found.values[place].mean()))
    assert frame.loc["m1", "deviation"] == pytest.approx(float(found.values[place].std()))
    assert frame.loc[ATTENTION_BIAS, "kind"] == frame.loc[HEAD_BIAS, "kind"] == "bias"
    plain = found.to_dict()
    assert plain["own"] + plain["ablated"] == pytest.approx(plain["logits"], abs=1e-5)
    assert plain["num_examples"] == 5
    alone = direct_attribution(evaluator(model, examples=pairs(1)), circuit_of(model)).to_dict()
    assert {row["deviation"] for row in alone["rows"]} == {None}
    assert repr(found).startswith("DirectAttribution(logit_difference ")


def test_what_is_not_defined() -> None:
    model = tiny("gpt2")
    judge, circuit = evaluator(model), circuit_of(model)
    with pytest.raises(EdgepruneError, match="direction must be 'logit_difference', 'target' or a tensor, got 'kl'"):
        direct_attribution(judge, circuit, "kl")
    with pytest.raises(EdgepruneError, match=r"one weight for each of 61 logits, got \(3,\)"):
        direct_attribution(judge, circuit, torch.ones(3))
    bare = [batch.map(lambda tensor: tensor) for batch in judge.batches]
    bare[1].distractors.fill_(IGNORE)
    with pytest.raises(EdgepruneError, match="pair 3 has no right and wrong answer, so 'logit_difference' is not"):
        direct_attribution(replace(judge, batches=bare), circuit)


def test_a_cap_on_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gpt2")
    finish = model.family.finish
    monkeypatch.setattr(model.family, "finish", lambda stream: 3 * torch.tanh(finish(stream) / 3))
    with pytest.raises(EdgepruneError, match="not linear in its final norm's output"):
        direct_attribution(evaluator(model), circuit_of(model))
