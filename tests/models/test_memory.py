"""The memory plan: its terms are the sizes of what they name, and what is available is what the system says."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from datamodules.collate import collate
from datamodules.tasks.base import TokenPair
from edgeprune.memory import (
    EVALUATION_LOGITS,
    LOSS_LOGITS,
    UNUSED,
    BatchShape,
    MemoryPlan,
    _kept_by_autograd,
    activations_per_example,
    evaluation_terms,
    plan_of,
    resident,
    spare_memory,
    training_terms,
)
from edgeprune.metrics.faithfulness import faithfulness
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.family import registry
from edgeprune.models.masked import MaskedModel
from edgeprune.models.reads import LayerReads
from edgeprune.models.stack import Workspace
from edgeprune.objectives import masked_mean
from edgeprune.objectives.losses import kl_divergence
from tests.models.test_conformance import build

SHAPE = BatchShape(batch=5, seq=7, positions=2, masks=3)
FAMILIES = sorted({family.model_types[0] for family in registry().values() if family.tiny()})


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> MaskedModel:
    return build(registry()[request.param], 0, torch.float32)


def test_the_stack_and_the_states_have_their_sizes(model: MaskedModel) -> None:
    ids = torch.zeros(SHAPE.batch, SHAPE.seq, dtype=torch.long)
    states = model.record(ids)
    stream = states.embeddings[0].flatten(0, 1)
    closed = torch.full((1, *model.graph.shape), 0.5, requires_grad=True)
    reads = LayerReads(model.graph, model.blocks, model.projections, closed, stream, Workspace())
    size = states.embeddings.nbytes + states.heads.nbytes + (0 if states.mlps is None else states.mlps.nbytes)
    terms = training_terms(model, SHAPE, 1000)
    assert terms["stack"] == terms["its gradient"] == reads.stack.delta.nbytes == reads.stack.take_grad().nbytes
    kept = [reads.stack.enter(segment) or reads.stack.mixed for segment in range(len(reads.segments))]
    assert terms["readers' inputs"] == sum({rows.data_ptr(): rows.nbytes for rows in kept}.values())
    layers = range(model.graph.arch.num_layers)
    assert terms["readers' weights"] == sum(model.projections(layer).weight.nbytes for layer in layers)
    num_scored = SHAPE.batch * SHAPE.positions
    assert terms["scored tokens"] == reads.stack.select(0, len(model.graph.writers), torch.arange(num_scored)).nbytes
    assert terms["frozen states"] == size
    assert terms["activations"] == 5000
    evaluated = evaluation_terms(model, SHAPE)
    assert evaluated["stack"] == terms["stack"]
    assert "its gradient" not in evaluated
    after = evaluation_terms(model, replace(SHAPE, batch=1), terms)  # buffers of training steps are kept
    buffers = ("stack", "its gradient", "readers' inputs", "scored tokens", "readers' weights")
    assert [after[name] for name in buffers] == [terms[name] for name in buffers]
    logits = model.full(ids, positions=ids[:, :2]).float().nbytes
    assert terms["logits"] == int(LOSS_LOGITS * logits)
    assert evaluated["logits"] == int(EVALUATION_LOGITS * logits)


def test_activations_grow_with_the_examples(model: MaskedModel) -> None:
    """Found out with one and two examples, they are right for more."""
    each = activations_per_example(model, SHAPE, kl_divergence)
    five, nine = (
        _kept_by_autograd(model, BatchShape(batch=batch, seq=7, positions=2), kl_divergence) for batch in (5, 9)
    )
    assert 0.98 < 4 * each / (nine - five) < 1.02


def test_long_examples_are_scaled_up(model: MaskedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = activations_per_example(model, BatchShape(batch=1, seq=8), kl_divergence)
    monkeypatch.setattr("edgeprune.memory.PROBE_TOKENS", 4)
    assert activations_per_example(model, BatchShape(batch=1, seq=8), kl_divergence) == pytest.approx(whole, rel=0.25)


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes that tensors made by `work` take at one time."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        work()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
def test_a_vocabulary_of_256_000(train: bool, dtype: torch.dtype) -> None:
    """Where nearly all is logits, the plan is within 15 % of what a step takes beside the model and its kept runs."""
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=256_000,
        tie_word_embeddings=True,
    )
    model = MaskedModel(AutoModelForCausalLM.from_config(config).to(dtype))
    shape = BatchShape(batch=6, seq=3, positions=2)
    ids = torch.zeros(6, 3, dtype=torch.long)
    pairs = [TokenPair((1, 2, 3), (2, 1, 3), (1, 2), (1, 2), (2, 3))] * 6
    batch, states = collate(list(enumerate(pairs))), model.record(ids)
    full = model.full(batch.clean, positions=batch.positions).float()
    gates = torch.full(model.graph.shape, 0.5, requires_grad=train)

    def step() -> None:
        own = full.clone()  # as read from where it is kept
        if train:
            logits = gated_logits(model, batch, gates, states)
            masked_mean(kl_divergence(own, logits), batch.position_mask).backward()
        else:
            with torch.no_grad():
                faithfulness().update(own, gated_logits(model, batch, gates, states), batch)

    step()
    if train:
        terms = training_terms(model, shape, activations_per_example(model, shape, kl_divergence))
    else:
        terms = evaluation_terms(model, shape)
    needed = plan_of(model, {**terms, "chunks": 0}, 0)  # of which this model needs none
    asked = needed.total - needed.weights - needed.process
    assert 0.85 < asked / peak_of(step) < 1.15


def test_a_plan_adds_up() -> None:
    plan = MemoryPlan(weights=10, process=20, terms={"stack": 30}, kept=10, available=80)
    assert plan.total == 10 + 20 + 30 + 10 + int(UNUSED * 40)
    assert plan.fits
    assert not MemoryPlan(10, 20, {"stack": 30}, 10, plan.total - 1).fits
    assert MemoryPlan(10, 20, {"stack": 30}, 10, None).fits


def test_a_plan_is_one_line() -> None:
    plan = MemoryPlan(500_000_000, 400_000_000, {"stack": 240_000_000}, 160_000_000, 8_000_000_000)
    assert str(plan) == (
        "memory in GB: at most 1.34 of 8.0 available (process 0.40, weights 0.50, stack 0.24, kept runs 0.16, "
        "allocator 0.04)"
    )


def test_the_plan_of_a_loaded_model_starts_from_what_the_process_holds() -> None:
    model = build(registry()["gpt2"], 0, torch.float32)
    plan = plan_of(model, {}, 0)
    assert plan.weights == sum(parameter.nbytes for parameter in model.hf.parameters())
    assert plan.process + plan.weights == pytest.approx(resident(), rel=0.05)


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:    4000 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MEMINFO, 4_096_000),
        (
            MEMINFO
            | {
                "sys/fs/cgroup/memory.max": "3000000\n",
                "sys/fs/cgroup/memory.current": "1000000\n",
                "sys/fs/cgroup/memory.stat": "anon 400000\ninactive_file 500000\n",
            },
            2_500_000,
        ),
        (
            MEMINFO
            | {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 100000\n",
            },
            2_100_000,
        ),
        (MEMINFO | {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "1000000\n"}, 4_096_000),
    ],
    ids=["nothing known", "machine", "group", "group of the first kind", "group without a limit"],
)
def test_what_is_available(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert spare_memory(system(tmp_path, files)) == expected
