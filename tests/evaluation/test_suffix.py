"""Ablated nodes and the output vector: by hand on a compiled program, at both ends, and what does not matter."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.compiled import minimal_circuits
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.controls import columns, without_nodes
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.evaluation.suffix import SPACES, SuffixAblation, ablate_suffix, change
from edgeprune.metrics.measure import gated_logits
from tests.methods.small_problems import compiled_problem, linear_model, problem, tiny


def evaluator(asked: Any, **changes: Any) -> Evaluator:
    return Evaluator(asked.model, asked.runs, asked.batches, "train", **changes)


def test_vectors_by_hand() -> None:
    base = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    ablated = torch.tensor([[3.0, 4.0], [2.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    relative, ratio, cosine = change(base, ablated).tolist()
    assert relative[:3] == pytest.approx([0, math.sqrt(2), 1])
    assert ratio[:3] == [1, 1, 0]
    assert cosine[:2] == pytest.approx([1, 0])
    assert all(math.isnan(value) for value in (relative[3], ratio[3], cosine[2], cosine[3]))


def test_or_gate_by_hand() -> None:
    """The stream at the end holds the bit, the sum of both heads and the answer; one head and the MLP write 0."""
    asked = compiled_problem("or_gate", "zero", 20)
    keep = asked.model.graph.keep_matrix(minimal_circuits("or_gate", "zero")[0])
    found = ablate_suffix(evaluator(asked), keep, [0])
    assert found.sets[:2] == (("a0.h0", "m0"), ("a0.h1",))
    expected: list[list[float]] = []
    for batch in asked.batches:
        for ids, mask in zip(batch.clean, batch.attention_mask, strict=True):
            bits = ids[mask == 1][1:]  # BOS adds nothing, but is averaged over
            head = 8 * float((bits == 1).sum()) / (len(bits) + 1)
            answer = float(head > 0)
            each = [_norms((float(bit == 1), 2 * head, answer), (float(bit == 1), head, 0.0)) for bit in bits]
            expected.append([sum(values) / len(values) for values in zip(*each, strict=True)])
    hand = torch.tensor(expected, dtype=torch.float64).T
    defined = ~hand[0].isnan()
    assert not defined.all()  # a word of zeros leaves an empty stream
    torch.testing.assert_close(found.values[0, 0], hand, rtol=1e-5, atol=1e-6, equal_nan=True)
    figures = found.to_dict()
    assert figures["circuit"]["stream"]["relative_change"] == pytest.approx(float(hand[0, defined].mean()), rel=1e-5)
    # the only logit is the answer, 1 or 0 before, 0 after; centred, one logit is nothing
    assert figures["circuit"]["logits"] == {"relative_change": pytest.approx(1), "norm_ratio": 0, "cosine": None}
    assert figures["others"]["logits"]["relative_change"] == 0  # the other head alone was not needed
    assert figures["circuit"]["logits_centred"]["relative_change"] is None
    assert figures["verdict"]["logits_centred"] == {"ratio": None, "p_value": None}


def _norms(base: tuple[float, ...], ablated: tuple[float, ...]) -> tuple[float, float, float]:
    before, after = math.hypot(*base), math.hypot(*ablated)
    if not before:
        return (math.nan,) * 3
    product = sum(one * other for one, other in zip(base, ablated, strict=True))
    return math.dist(base, ablated) / before, after / before, product / (before * after)


@pytest.mark.parametrize(("name", "index"), [("gpt2", 0), ("llama", 1), ("gpt_neox", 0)])
def test_logits_are_those_of_the_masked_model(name: str, index: int) -> None:
    """And the stream is what the final norm and the unembedding turn into them."""
    model = tiny(name, index)
    judge = evaluator(problem(model))
    keep = Circuit.random(model.graph, model.graph.num_edges // 3).keep
    batch = judge.batches[0]
    before = model.full(batch.clean, batch.attention_mask, batch.positions)
    found = ablate_suffix(judge, keep, [4])
    for place, chosen in enumerate(found.sets):
        ablated = judge.runs(batch, "train")[1]
        gates = without_nodes(model.graph.exists, columns(model.graph, chosen))
        logits = gated_logits(model, batch, gates.double(), ablated)
        for space, (base, other) in enumerate([(before, logits), (_centred(before), _centred(logits))], start=1):
            mask = batch.position_mask
            relative = [
                float(((own - full)[kept].norm(dim=-1) / full[kept].norm(dim=-1)).mean())
                for full, own, kept in zip(base, other, mask, strict=True)
            ]
            torch.testing.assert_close(
                found.values[place, space, 0, : len(batch)], torch.tensor(relative).double(), rtol=1e-3, atol=1e-5
            )
    assert torch.equal(model.full(batch.clean, batch.attention_mask, batch.positions), before)  # nothing was changed


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def test_both_ends() -> None:
    """Nothing to ablate moves nothing, and is no more than chance; all nodes are the only set of their profile."""
    judge = evaluator(problem(tiny("gpt2")))
    empty = ablate_suffix(judge, judge.graph.all_closed(), range(3))
    assert empty.sets[0] == empty.sets[2] == ()
    assert empty.figures()[0, :, 0].tolist() == [0, 0, 0]
    torch.testing.assert_close(empty.figures()[0, :, 1:], torch.ones(3, 2, dtype=torch.float64))
    assert all(row["p_value"] == 1 and math.isnan(row["ratio"]) for row in empty.verdict().values())
    assert empty.overlap == 0
    full = ablate_suffix(judge, judge.graph.exists, range(3))
    assert full.sets[0] == full.sets[2] == judge.graph.writers[1:] == empty.sets[1]
    assert full.sets[1] == ()
    assert full.log10_num_sets == 0
    assert full.overlap == 1
    torch.testing.assert_close(full.figures()[0], empty.figures()[1])
    assert all(row == {"p_value": 1, "ratio": pytest.approx(1)} for row in full.verdict().values())


def test_random_sets_have_the_circuits_profile() -> None:
    judge = evaluator(problem(tiny("gpt2")))
    edges = ("embed->a0.h1.v", "a0.h1->m0", "m0->a1.h0.q", "m0->a1.h2.q", "a1.h0->logits", "a1.h2->logits")
    keep = judge.graph.keep_matrix(edges)
    found = ablate_suffix(judge, keep, range(12))
    assert found.sets[0] == ("a0.h1", "m0", "a1.h0", "a1.h2")
    assert set(found.sets[0]) | set(found.sets[1]) == set(judge.graph.writers[1:])
    for chosen in found.sets[2:]:
        kinds = sorted(name.split(".")[0] if "." in name else "mlp" for name in chosen)
        assert kinds == ["a0", "a1", "a1", "mlp"]
    assert len(set(found.sets[2:])) > 6
    assert found.log10_num_sets == pytest.approx(math.log10(4 * 6 * 3))
    heads = ablate_suffix(judge, keep, range(2), heads_only=True)
    assert heads.sets[0] == ("a0.h1", "a1.h0", "a1.h2")
    assert not any(name.startswith("m") for chosen in heads.sets for name in chosen)


def test_the_verdict_by_hand() -> None:
    """Relative changes 2 of the circuit, and 1, 2, 3 and 4 of random sets: three of four are at least as large."""
    changes = torch.tensor([2.0, 5, 1, 2, 3, 4], dtype=torch.float64)
    values = changes[:, None, None, None].expand(-1, len(SPACES), 3, 2)
    sets = (("a",), ("b", "c"), ("a",), ("b",), ("b",), ("c",))
    found = SuffixAblation("zero", False, sets, (0, 1, 2, 3), 0.5, values, torch.arange(2))
    assert found.verdict()["stream"] == {"ratio": 0.8, "p_value": 0.8}
    assert found.overlap == 0.25
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["random"]["logits"]["relative_change"] == 2.5
    assert [row["stream"]["cosine"] for row in plain["each_random"]] == [1, 2, 3, 4]


def test_neither_batches_nor_the_order_of_seeds_matter() -> None:
    model = tiny("gpt2")
    keep = Circuit.random(model.graph, 50).keep
    whole, cut = (
        ablate_suffix(evaluator(problem(model, cuts=cuts)), keep, seeds)
        for cuts, seeds in (((), (0, 1, 2)), ((1, 4), (2, 1, 0)))
    )
    order = [0, 1, 4, 3, 2]
    assert whole.sets == tuple(cut.sets[place] for place in order)
    torch.testing.assert_close(whole.values, cut.values[order], rtol=1e-4, atol=1e-5)


def test_models_without_mlps_progress_and_what_is_refused() -> None:
    told: list[tuple[str, int, int]] = []
    judge = evaluator(problem(linear_model()), progress=lambda *about: told.append(about))
    found = ablate_suffix(judge, judge.graph.keep_matrix(["tok_embed->a1.h0.v", "a1.h0->logits"]), range(4))
    assert {chosen[0][:3] for chosen in found.sets[2:]} == {"a1."}
    assert told == [("suffix ablation", number, 3) for number in range(4)]
    with pytest.raises(EdgepruneError, match="at least one seed"):
        ablate_suffix(judge, judge.graph.exists, [])
    with pytest.raises(EdgepruneError, match="keep has shape"):
        ablate_suffix(judge, torch.ones(2, 2))
