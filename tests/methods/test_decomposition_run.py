"""Contextual decomposition of a run: sums, zeros, exactness of linear models, and hand values, for every family."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune import ablations
from edgeprune.batch import PairBatch
from edgeprune.methods.decomposition_passes import writer_groups
from edgeprune.methods.decomposition_rules import larger_takes_all, norm_part, relevant_share
from edgeprune.methods.decomposition_run import AttentionRule, DecomposedRun, Rules, Source
from edgeprune.methods.relevance import Unseen
from edgeprune.models.block import NormSpec, Projected
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from tests.methods.decomposition_reference import streams
from tests.methods.small_problems import tiny, without_biases
from tests.models.test_conformance import CASES, build, prompts

EXACT: dict[str, Any] = {"atol": 1e-10, "rtol": 0}
# Sizes of parts that are nearly 0, and norms of them, magnify what was rounded.
ROUNDED: dict[str, Any] = {"atol": 1e-8, "rtol": 0}


def batch_of(clean: Tensor, corrupted: Tensor) -> PairBatch:
    last = torch.full((len(clean), 1), clean.shape[1] - 1)
    return PairBatch(
        clean=clean,
        corrupted=corrupted,
        attention_mask=torch.ones_like(clean),
        positions=last,
        position_mask=last > 0,
        targets=torch.zeros_like(last),
        distractors=torch.ones_like(last),
        index=torch.arange(len(clean)),
    )


def decomposed(model: MaskedModel, rules: Rules, zero: bool = False) -> tuple[DecomposedRun, WriterStates]:
    clean, corrupted = prompts(2, 6)
    ablated = ablations.zero(model) if zero else model.record(corrupted)
    return DecomposedRun(model, batch_of(clean, corrupted), ablated, rules), ablated


class Streams:
    """A `Looker` that keeps what it sees."""

    def __init__(self) -> None:
        self.qkv: list[Projected] = []
        self.written: list[Tensor] = []
        self.mlps: list[Tensor] = []

    def attention(self, layer: int, qkv: Projected, direct: Tensor) -> None:
        self.qkv.append(qkv)

    def heads(self, layer: int, written: Tensor) -> None:
        self.written.append(written)

    def mlp(self, layer: int, normed: Tensor, out: Tensor, direct: Tensor) -> None:
        self.mlps.append(out)


@pytest.mark.parametrize("rule", ["relevant", "frozen"])
@pytest.mark.parametrize(("family", "index"), CASES)
@torch.no_grad()
def test_both_parts_add_up_at_every_layer(family: Any, index: int, rule: AttentionRule) -> None:
    """Each carried by its own rule; the run's relevant part is the one of them."""
    model = build(family, index)
    run, ablated = decomposed(model, Rules(rule))
    clean = run.batch.clean
    where = torch.ones_like(clean, dtype=torch.bool)
    where[:, :2] = False
    own, _, _ = model.start(clean, None)
    start = (own[0] - ablated.embeddings[0]) * where[..., None]
    *parts, logits = streams(model, clean, start, rule == "frozen")
    for part, total in zip(parts, run.clean["residual"], strict=True):
        torch.testing.assert_close(part.total, total, **EXACT)
    torch.testing.assert_close(logits.total, model.hf(clean).logits, **EXACT)
    stream, _ = run([Source(0, where)], Unseen())
    total, irrelevant = run.logits(stream)
    torch.testing.assert_close(total, logits.total[:, -1:], **EXACT)
    if family.__name__ != "GptOss":  # its router's bias is split too; the reference leaves it to the experts
        torch.testing.assert_close(stream[0], parts[-1].relevant, **ROUNDED)
        torch.testing.assert_close(irrelevant[0], logits.irrelevant[:, -1:], **ROUNDED)
    assert stream.abs().max() > 1e-2
    if getattr(model.hf.config, "causal", True):
        assert (stream[0, :, :2] == 0).all()  # nothing there is relevant, and nothing becomes it


@pytest.mark.parametrize("rules", [Rules(), Rules("frozen", "irrelevant"), Rules(larger=True)], ids=str)
@pytest.mark.parametrize(("family", "index"), CASES)
@torch.no_grad()
def test_what_begins_without_a_relevant_part_has_none(family: Any, index: int, rules: Rules) -> None:
    model = build(family, index)
    run, _ = decomposed(model, rules)
    nowhere = torch.zeros_like(run.batch.clean, dtype=torch.bool)
    for group in writer_groups(model):
        sources = [Source(writer, ~nowhere) for writer in group]
        stream, direct = run([Source(group[0], nowhere), *sources], Unseen())
        assert (stream[0] == 0).all()
        assert (direct[0] == 0).all()
        assert stream[1:].flatten(1).any(1).all()
        total, irrelevant = run.logits(stream)
        torch.testing.assert_close(irrelevant[0], total, atol=1e-12, rtol=0)


XIELU = "Apertus-apertus0"  # its activation of 0 is not 0


@pytest.mark.parametrize(("family", "index"), [case for case in CASES if case.id != XIELU])
@torch.no_grad()
def test_all_is_relevant_where_nothing_is_irrelevant(family: Any, index: int) -> None:
    """The embedding against zero, without biases: the relevant part is the activation to the end, pattern included."""
    model = without_biases(build(family, index))
    run, _ = decomposed(model, Rules(), zero=True)
    stream, _ = run([Source(0, run.batch.attention_mask.bool())], Unseen())
    torch.testing.assert_close(stream[0], run.clean["residual"][-1], **EXACT)
    assert run.logits(stream)[1].abs().max() < 1e-10


@torch.no_grad()
def test_a_layers_only_head_against_zero_is_all_that_attention_adds() -> None:
    """With its bias, as nothing irrelevant is there to share it."""
    config = copy.deepcopy(tiny().hf.config)
    config.n_head = 1
    hf = type(tiny().hf)(config).double()
    hf.transformer.h[1].attn.c_proj.bias.data.fill_(0.3)
    model = MaskedModel(hf.eval())
    run, _ = decomposed(model, Rules(), zero=True)
    _, direct = run([Source(model.graph.heads(1).start, run.batch.attention_mask.bool())], Unseen())
    torch.testing.assert_close(direct[0], run.clean["attention_out"][1], **EXACT)


@torch.no_grad()
def test_one_attention_layer_by_hand() -> None:
    """Queries that know nothing of the source look at all visible tokens alike, whatever the model's own pattern."""
    model = tiny()
    attention = model.hf.transformer.h[0].attn
    attention.c_attn.weight.data[:, :32] = 0  # queries are their bias alone
    attention.c_attn.bias.data[:32] = torch.linspace(-3, 3, 32)
    run, _ = decomposed(model, Rules())
    seen = Streams()
    run([Source(0, run.batch.attention_mask.bool())], seen)
    q, _, v = seen.qkv[0]
    assert (q == 0).all()
    counts = torch.arange(1.0, 7, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(seen.written[0], v.cumsum(2) / counts, **EXACT)
    own = run.clean["v"][0].cumsum(1) / counts
    assert (run.clean["z"][0] - own).abs().max() > 0.05  # the model's own pattern is another one
    frozen, _ = decomposed(model, Rules("frozen"))
    looked = Streams()
    frozen([Source(0, run.batch.attention_mask.bool())], looked)
    assert (looked.written[0] - seen.written[0]).abs().max() > 0.01


def test_a_norm_by_hand() -> None:
    """LayerNorm of (1, 3) with relevant part (1, 1): the mean goes from each part, the scale is that of the total."""
    total, relevant = torch.tensor([1.0, 3.0]).double(), torch.tensor([[1.0, 0.0]]).double()
    spec = NormSpec(3.0, True, torch.tensor([2.0, 4.0]).double(), torch.tensor([10.0, 10.0]).double())
    found = norm_part(spec, total, relevant, "irrelevant")  # std = sqrt(1 + 3) = 2; (0.5, -0.5) / 2 * gain
    torch.testing.assert_close(found, torch.tensor([[0.5, -1.0]]).double())
    torch.testing.assert_close(norm_part(spec, total, relevant, "split"), torch.tensor([[10.5, -1.0]]).double())


def test_shares_and_opposed_signs_by_hand() -> None:
    relevant, irrelevant = torch.tensor([1.0, 0.0, 0.0, -3.0]), torch.tensor([-3.0, 2.0, 0.0, 1.0])
    assert relevant_share(relevant, irrelevant).tolist() == [0.25, 0.0, 0.0, 0.75]
    assert larger_takes_all(relevant, irrelevant).tolist() == [0.0, 0.0, 0.0, -2.0]
