"""Plans without weights: their terms are those of models with weights, and their counts those of what runs."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgeprune import plan
from edgeprune.costs import CARDS, Card, step_cost
from edgeprune.memory import BatchShape, activations_per_example, evaluation_terms, training_terms
from edgeprune.models.family import registry
from edgeprune.models.masked import MaskedModel
from edgeprune.models.meta import SHAPES, meta_model, shape_config, without_values
from edgeprune.objectives import kl_divergence
from edgeprune.plan import CONTEXT, Run, remedies, shortfall
from tests.models.test_conformance import build

SHAPE = BatchShape(batch=3, seq=7, positions=2, masks=2)
CUDA = torch.device("cuda")
KERNELS = (
    "gemma3_text",
    "phi3",
    "qwen3",
    "starcoder2",
    "mixtral",
    "opt",
    "gpt_neox",
)  # sliding, fused, normed, experts
CASES = [
    *((family, dtype) for family in ("gpt2", "llama", "gemma2") for dtype in (torch.float32, torch.bfloat16)),
    *((family, torch.float32) for family in KERNELS),
]


def tiny(family: str, dtype: torch.dtype = torch.float32) -> MaskedModel:
    """The conformance suite's first model of a family, without weights."""
    return meta_model(registry()[family].tiny()[0], dtype)


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_terms_are_those_of_a_model_with_weights(family: str, dtype: torch.dtype) -> None:
    """The same to the byte; what autograd keeps, which depends on the kernel, within a tenth."""
    real, meta = build(registry()[family], 0, dtype), tiny(family, dtype)
    found, expected = (sum(own.nbytes for own in model.hf.parameters()) for model in (meta, real))
    assert found == expected
    for device in (None, CUDA):
        host = device or torch.device("cpu")
        assert training_terms(meta, SHAPE, 11, host) == training_terms(real, SHAPE, 11, device)
        assert evaluation_terms(meta, SHAPE, device=host) == evaluation_terms(real, SHAPE, device=device)
    kept = activations_per_example(meta, SHAPE, kl_divergence)
    assert kept == pytest.approx(activations_per_example(real, SHAPE, kl_divergence), rel=0.1)


def test_chunks_and_segments_are_those_of_the_device() -> None:
    model = tiny("gpt2")
    here, there = (training_terms(model, SHAPE, 0, device) for device in (torch.device("cpu"), CUDA))
    assert there["chunks"] == 32 * here["chunks"]


def test_the_optimizer_counts() -> None:
    model = tiny("llama")
    assert training_terms(model, SHAPE, 0)["optimizer"] == 4 * 4 * model.graph.shape[0] * model.graph.shape[1]


# -------------------------------------------------------------------- operations
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gpt_neox"])
def test_the_body_and_the_head_are_what_a_run_multiplies(family: str) -> None:
    model = tiny(family)
    ids = torch.zeros(2, 5, dtype=torch.long, device="meta")
    with without_values(), FlopCounterMode(display=False) as counter:  # attention itself is left out there, too
        stream = model.run(ids)
        body = counter.get_total_flops()
        model.logits(stream)
    cost = step_cost(model, BatchShape(batch=2, seq=5))
    assert body == 2 * cost.body * 10 == cost.operations("layers once") - 2 * cost.head * 2
    assert counter.get_total_flops() - body == 2 * cost.head * 10


def test_of_experts_those_count_that_a_token_goes_to() -> None:
    config = registry()["mixtral"].tiny()[0]
    model = meta_model(config)
    dense, share = 0, config.num_experts_per_tok / config.num_local_experts
    assert share < 1
    for weight in model.blocks[0].module.parameters():
        dense += weight.numel() * (share if weight.ndim == 3 else weight.ndim > 1)
    assert step_cost(model, SHAPE).body == dense * len(model.blocks)


@pytest.mark.parametrize(
    ("name", "edges", "body", "mixing", "ratios", "stack", "traffic"),
    [
        ("gpt2", 32491, 84.93, 24.95, (1.44, 1.94, 1.52, 2.02), 482.30, 4.94),
        ("smollm2-135m", 70651, 106.17, 40.69, (1.57, 2.07, 1.67, 2.17), 693.50, 9.10),
        ("codellama-13b", 3_877_661, 12687.77, 19853.62, (3.35, 3.85, 3.60, 4.10), 33607.68, 3312.46),
    ],
)
def test_counts_of_known_shapes(
    name: str, edges: int, body: float, mixing: float, ratios: tuple[float, ...], stack: float, traffic: float
) -> None:
    """As docs/performance.md has them, by hand: float32, segments of a processor, inputs of 21 tokens kept in 1 GiB."""
    cost = step_cost(meta_model(shape_config(name)), SHAPE, device=torch.device("cpu"))
    per_token = cost.per_token
    assert cost.edges == edges
    found = [value / per_token["plain step"] for value in list(per_token.values())[3:]]
    assert [round(value, 2) for value in found] == list(ratios)
    assert (round(cost.body / 1e6, 2), round(cost.mixing / 1e6, 2)) == (body, mixing)
    assert (round(cost.stack_row / 1e3, 2), round(cost.traffic / 1e6, 2)) == (stack, traffic)


def test_k_and_v_of_every_query_head_cost_more() -> None:
    config = shape_config("llama-3.2-1b")
    group, head = (step_cost(meta_model(config, kv_readers=readers), SHAPE) for readers in ("group", "head"))
    assert (group.copies, head.body) == (0, group.body)
    assert head.copies == 16 * 2 * (32 - 8) * 64 * 2048


def test_seconds_are_of_what_takes_longer() -> None:
    cost = step_cost(tiny("llama"), SHAPE, 1000)
    slow_cores, slow_memory = Card(1, 1e9, 0, 0.5), Card(1, 0.5, 0, 1e9)
    operations = cost.operations("floor, ablated run kept")
    assert cost.seconds(slow_cores, built=False) == pytest.approx(operations / 0.5e12)
    assert cost.seconds(slow_memory, built=False) == pytest.approx(cost.bytes_moved(built=False) / 0.5e12)
    assert cost.operations("plain step", runs=2) == 2 * cost.operations("plain step")
    assert cost.bytes_moved(built=True) - cost.bytes_moved(built=False) == 7 * cost.readers_row * cost.tokens


# -------------------------------------------------------------------- runs
@pytest.fixture
def run() -> Run:
    config = shape_config("smollm2-135m")
    config.num_hidden_layers = 12
    return Run(config=config, batch=60, tokens=24, positions=2, eval_batch=64, masks=2)


def test_parts_of_a_run(run: Run) -> None:
    trained = training_terms(run.model, run.shape, run.activations, CUDA)
    assert run.training.parts == {
        "process": CONTEXT,
        "weights": sum(own.nbytes for own in run.model.hf.parameters()),
        **trained,
        "kept runs": 0,
        "allocator": int(0.1 * sum(trained.values())),
    }
    assert run.evaluation.terms["its gradient"] == trained["its gradient"]  # its memory stays
    assert run.evaluated.batch == 64
    assert replace(run, eval_batch=None).evaluated.batch == 512 // 24


def test_weights_are_shared_out(run: Run) -> None:
    """Each card has its part, and at times one layer and what lies outside of the layers whole."""
    whole, part = run.training, replace(run, world=4, sharded=True).training
    assert part.weights == whole.weights / 4
    layer = sum(own.nbytes for own in run.model.blocks[0].module.parameters())
    assert part.terms["gathered weights"] == layer + whole.weights - 12 * layer
    assert {**part.terms, "gathered weights": 0} == {**whole.terms, "gathered weights": 0}


def test_shorter_prompts_in_proportion(run: Run) -> None:
    """What autograd keeps is found out once, at the longest: for shorter prompts it is no less, and hardly more."""
    assert run.activations == activations_per_example(run.model, run.shape, kl_divergence)
    shorter = replace(run, tokens=12)
    own = activations_per_example(shorter.model, shorter.shape, kl_divergence)
    assert own <= shorter.activations < 1.1 * own


@pytest.fixture
def small_card(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run on a card that holds batches of 20 in float32, and not of 30."""
    need = replace(run, batch=20, eval_batch=None).peak.total
    monkeypatch.setitem(CARDS, "small", Card(1.02 * need / 1e9, 1, 1, 1))
    return replace(run, device="small")


def test_remedies_fit_and_are_no_larger_than_they_must(small_card: Run) -> None:
    assert not small_card.peak.fits
    found = remedies(small_card)
    assert all(remedy.run.peak.fits for remedy in found)
    words = [remedy.change for remedy in found]
    parts = next(remedy.run for remedy in found if remedy.change.startswith("data.batch_size"))
    assert (parts.batch, parts.accumulate, parts.eval_batch) == (20, 3, None)
    assert any("accumulate_grad_batches: 3, data.eval_batch_size: auto" in change for change in words)
    shorter = next(remedy.run for remedy in found if remedy.change.startswith("prompts of"))
    assert not replace(shorter, tokens=shorter.tokens + 1).peak.fits


def test_what_is_too_large_is_named(small_card: Run) -> None:
    line = shortfall(small_card)
    peak, largest = small_card.peak, max(small_card.peak.parts.items(), key=lambda item: item[1])
    assert f"needs {peak.total / 1e9:.1f} GB of" in line
    assert f"largest: {largest[0]} {largest[1] / 1e9:.1f}" in line
    assert shortfall(replace(small_card, device=None)) == ""
    assert remedies(replace(small_card, device=None)) == []


def test_where_no_change_is_enough_they_come_together(small_card: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    half = replace(small_card, dtype=torch.bfloat16, batch=20, accumulate=3, eval_batch=None)
    monkeypatch.setitem(CARDS, "small", Card(half.peak.total / 1e9 + 1e-6, 1, 1, 1))
    (both,) = remedies(small_card)
    assert both.run.peak.fits
    assert both.change.startswith("model.dtype: bfloat16, data.batch_size: 20 with")
    monkeypatch.setitem(CARDS, "small", Card(0.5, 1, 1, 1))
    assert remedies(small_card) == []


def test_a_model_too_large_for_one_card_is_sharded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded = replace(run, world=4, sharded=True)
    monkeypatch.setitem(CARDS, "small", Card(sharded.peak.total / 1e9 + 1e-6, 1, 1, 1))
    found = {remedy.change: remedy.run for remedy in remedies(replace(run, device="small"))}
    assert found["weights sharded over 4 cards"].world == 4
    copies = replace(run, world=4, device="small")  # as many as there are will do
    assert "weights sharded over 4 cards" in {remedy.change for remedy in remedies(copies)}


def test_on_a_processor_kept_runs_count(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(run, device="cpu", kept=10**10)
    need = replace(here, kept=0).peak.total
    monkeypatch.setattr(plan, "resident", lambda: 0)
    monkeypatch.setattr(plan, "spare_memory", lambda: need)
    assert here.peak.parts["kept runs"] == 10**10
    assert "model.cache_gb: 0" in {remedy.change for remedy in remedies(here)}


def test_every_known_shape_has_an_adapter() -> None:
    assert {shape_config(name).model_type for name in SHAPES} <= set(registry())
