"""What every family must satisfy, on tiny random models, without network."""

import copy
import os
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgeprune import ablations
from edgeprune.models.block import Block
from edgeprune.models.families.llama import Llama
from edgeprune.models.family import registry
from edgeprune.models.masked import MaskedModel
from edgeprune.models.places import position_ids
from tests.models.reference import in_float64, output_bias, same_experts, slow_logits, writer_outputs

VOCAB = 29
CASES = [
    pytest.param(family, index, id=f"{family.__name__}-{config.model_type}{index}")
    for family in sorted(set(registry().values()), key=lambda item: item.__name__)
    for index, config in enumerate(family.tiny())
]
# One model for every way in which layers are wired: what runs the masked model is tested on these, or on all with
# EDGEPRUNE_ALL_FAMILIES=1, which takes an hour.
_WIRED = (
    "GPT2-gpt20",
    "Compiled-edgeprune_compiled1",
    "Compiled-edgeprune_compiled2",
    "Llama-llama1",
    "Llama-mistral2",
    "GPTNeoX-gpt_neox0",
    "Cohere-cohere1",
    "Qwen3-qwen30",
    "Gemma2-gemma20",
    "Gemma3-gemma3_text0",
    "Olmo2-olmo21",
    "Mixtral-mixtral0",
    "Olmoe-olmoe0",
    "GptOss-gpt_oss0",
    "Nemotron-nemotron0",
)
WIRED = CASES if os.environ.get("EDGEPRUNE_ALL_FAMILIES") else [case for case in CASES if case.id in _WIRED]
KV = ("group", "head")


def variants(*, kernels: bool = False) -> list[Any]:
    """All models with each way to count k and v readers that differs, and with each attention kernel that it has."""
    found: list[Any] = []
    for case in CASES:
        family, index = case.values
        config = family.tiny()[index]
        grouped = getattr(config, "num_key_value_heads", None) not in (None, config.num_attention_heads)
        own = [name for name in ("eager", "sdpa") if name in family.attention_implementations] if kernels else [""]
        for kernel, kv_readers in product(own, KV if grouped else KV[:1]):
            values = (family, index, kv_readers, *([kernel] if kernels else []))
            found.append(pytest.param(*values, id="-".join(filter(None, (case.id, kernel, kv_readers)))))
    return found


READERS, KERNELS = variants(), variants(kernels=True)
LENGTHS, BATCHES = range(1, 18), range(1, 9)


def build(
    family: Any, index: int, dtype: torch.dtype = torch.float64, implementation: str = "sdpa", **options: Any
) -> MaskedModel:
    """A tiny random model; biases and norm weights too are random, so that none is 0 or 1 by luck."""
    torch.manual_seed(index)
    config = copy.deepcopy(family.tiny()[index])
    implementation = implementation if implementation in family.attention_implementations else "eager"
    hf = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    for parameter in hf.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    hf = in_float64(hf) if dtype == torch.float64 else hf.to(dtype)
    return MaskedModel(hf.eval(), **options)


def prompts(batch: int = 3, seq: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randint(0, VOCAB, (batch, seq), generator=generator) for _ in range(2))


def random_gates(model: MaskedModel, fractional: bool) -> Tensor:
    noise = torch.rand(model.graph.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return noise if fractional else (noise > 0.5).double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("family", "index", "kv_readers", "implementation"), KERNELS)
def test_open_gates_leave_logits_untouched(
    family: Any, index: int, dtype: torch.dtype, implementation: str, kv_readers: str
) -> None:
    model = build(family, index, dtype, implementation, kv_readers=kv_readers)
    clean, corrupted = prompts()
    expected = model.hf(clean).logits
    ablated = model.record(corrupted)
    assert torch.equal(model(clean, model.graph.all_open(), ablated), expected)
    assert torch.equal(model.full(clean), expected)
    with torch.no_grad():  # a gradient-free run takes the same path
        assert torch.equal(model(clean, model.graph.all_open(), ablated), expected)


@pytest.mark.parametrize(("family", "index"), CASES)
def test_open_gates_are_exact_at_every_length_and_batch(family: Any, index: int) -> None:
    """Every length with every batch the plain way; each of them with masks, and with other kernels and readers."""
    model = build(family, index, torch.float32, "eager")
    same = {(seq, batch): is_exact(model, batch, seq) for seq, batch in product(LENGTHS, BATCHES)}
    grouped = model.graph.arch.num_kv_heads < model.graph.arch.num_heads
    for implementation, kv_readers in product(("eager", "sdpa"), KV if grouped else KV[:1]):
        model = build(family, index, torch.float32, implementation, kv_readers=kv_readers)
        for seq, side in product(LENGTHS, (None, "left", "right")):
            batch = BATCHES[3 * seq % len(BATCHES)]
            same[implementation, kv_readers, side, seq, batch] = is_exact(model, batch, seq, side)
    assert not [case for case, exact in same.items() if not exact]


@torch.no_grad()
def is_exact(model: MaskedModel, batch: int, seq: int, side: str | None = None) -> bool:
    """Whether open gates, and `full`, give Hugging Face's logits bit for bit, for rows padded on `side`."""
    clean, _ = prompts(batch, seq)
    mask, options = None, {}
    if side is not None:
        real = torch.arange(seq) >= (torch.arange(batch)[:, None] * 5 % seq)
        mask = real.long() if side == "left" else real.flip(1).long()
        options = {"attention_mask": mask, "position_ids": position_ids(clean, mask)}
    expected = model.hf(clean, **options).logits
    opened = model(clean, model.graph.all_open(), ablations.zero(model), mask)
    return torch.equal(opened, expected) and torch.equal(model.full(clean, mask), expected)


Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype] | None


def layout(tensor: Tensor | None) -> Layout:
    """Shape, strides and dtype; None: there is no mask."""
    return None if tensor is None else (tuple(tensor.shape), tensor.stride(), tensor.dtype)


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize(("family", "index", "kv_readers", "implementation"), KERNELS)
def test_kernels_get_what_the_library_hands_them(
    family: Any, index: int, implementation: str, kv_readers: str, cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors laid out alike: products of the same numbers laid out otherwise differ on some processors."""
    model = build(family, index, torch.float32, implementation, kv_readers=kv_readers)
    model.hf.config.use_cache = cache
    seen: list[list[Any]] = []

    def kernel(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any) -> tuple[Tensor, None]:
        seen.append([mask, q, k, v])
        groups = getattr(module, "num_key_value_groups", 1)
        values = torch.nn.functional.scaled_dot_product_attention(q, repeat_kv(k, groups), repeat_kv(v, groups))
        return values.transpose(1, 2).contiguous(), None

    def own_kernel(*arguments: Any) -> tuple[Tensor, None]:
        return kernel(*arguments)[0].transpose(1, 2), None

    def layouts(call: Any, *arguments: Any) -> list[list[Layout]]:
        seen.clear()
        call(*arguments)
        return [[layout(part) for part in layer] for layer in seen]

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, model.hf.config._attn_implementation, kernel)
    for module in model.hf.modules():
        if hasattr(module, "_attn"):  # attention of its own
            monkeypatch.setattr(module, "_attn", partial(own_kernel, module))
    times = model.graph.arch.num_kv_readers // model.graph.arch.num_kv_heads
    for batch, seq in ((3, 9), (8, 9), (1, 5), (3, 1), (1, 1)):
        clean, _ = prompts(batch, seq)
        ablated = ablations.zero(model)
        expected = layouts(model.hf, clean)
        assert len(expected) == len(model.blocks)
        with torch.no_grad():
            assert layouts(model, clean, model.graph.all_open(), ablated) == expected
        assert layouts(model.full, clean) == expected
        layouts(model.hf, clean)
        for layer in seen:  # with some gates closed, heads of a group have k and v of their own
            layer[2:] = (part.repeat_interleave(times, 1) if times > 1 else part for part in layer[2:])
        repeated = [[layout(part) for part in layer] for layer in seen]
        assert layouts(model, clean, random_gates(model, fractional=True), ablated) == repeated


@pytest.mark.parametrize(("family", "index"), CASES)
def test_closed_gates_give_the_corrupted_run(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts()
    logits = model(clean, model.graph.all_closed(), model.record(corrupted))
    torch.testing.assert_close(logits, model.hf(corrupted).logits, atol=1e-10, rtol=0)
    assert (model.hf(clean).logits - logits).abs().max() > 0.1  # the two prompts do differ


@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize(("family", "index", "kv_readers"), READERS)
def test_equals_the_sum_over_edges(family: Any, index: int, fractional: bool, kv_readers: str) -> None:
    model = build(family, index, kv_readers=kv_readers)
    clean, corrupted = prompts()
    gates, ablated = random_gates(model, fractional), model.record(corrupted)
    expected = slow_logits(model, clean, gates, ablated)
    torch.testing.assert_close(model(clean, gates, ablated), expected, atol=1e-10, rtol=0)
    zero = ablations.zero(model)
    torch.testing.assert_close(
        model(clean, gates, zero),
        slow_logits(model, clean, gates, _broadcast(zero, ablated)),
        atol=1e-10,
        rtol=0,
    )


def _broadcast(states: Any, like: Any) -> Any:
    mlps = None if states.mlps is None else states.mlps.expand_as(like.mlps)
    return type(states)(
        embeddings=states.embeddings.expand_as(like.embeddings),
        heads=states.heads.expand_as(like.heads),
        mlps=mlps,
    )


@pytest.mark.parametrize("all_open", [False, True])
@pytest.mark.parametrize(("family", "index", "kv_readers"), READERS)
def test_gate_gradients_match_the_slow_model(family: Any, index: int, kv_readers: str, all_open: bool) -> None:
    model = build(family, index, kv_readers=kv_readers)
    clean, corrupted = prompts(2, 5)
    ablated = model.record(corrupted)
    weights = torch.randn(2, 5, model.hf(clean).logits.shape[-1], dtype=torch.float64)
    gates = model.graph.all_open(torch.float64) if all_open else random_gates(model, fractional=True)
    gates.requires_grad_()
    (expected,) = torch.autograd.grad((slow_logits(model, clean, gates, ablated) * weights).sum(), gates)
    (found,) = torch.autograd.grad((model(clean, gates, ablated) * weights).sum(), gates)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)
    assert found[~model.graph.exists].abs().max() == 0


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.1), (torch.float16, 0.05), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("family", "index"), CASES)
def test_gate_gradients_in_other_dtypes(family: Any, index: int, dtype: torch.dtype, limit: float) -> None:
    """Those of the same model in float64, to the rounding of its weights: 8, 11 and 24 bits."""
    clean, corrupted = prompts()
    gradients: list[Tensor] = []
    experts: list[Tensor] = []
    for model in (build(family, index), build(family, index, dtype)):
        gates = random_gates(model, fractional=True).float().requires_grad_()
        with same_experts(experts):
            logits = model(clean, gates, model.record(corrupted))
        assert logits.dtype == model.dtype
        (gradient,) = torch.autograd.grad(logits.double().log_softmax(-1)[..., 0].sum(), gates)
        assert gradient.dtype == torch.float32
        gradients.append(gradient)
    expected, found = gradients
    assert (found - expected).norm() / expected.norm() < limit


@pytest.mark.parametrize(("family", "index"), CASES)
def test_gate_gradients_match_central_differences(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts(2, 5)
    ablated = model.record(corrupted)
    gates = random_gates(model, fractional=True).requires_grad_()
    direction = torch.randn(model.graph.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss(values: Tensor) -> Tensor:
        return model(clean, values, ablated).log_softmax(-1)[..., 0].sum()

    (gradient,) = torch.autograd.grad(loss(gates), gates)
    step = 1e-5
    with torch.no_grad():
        difference = (loss(gates + step * direction) - loss(gates - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("family", "index"), CASES)
def test_scoring_some_positions_equals_slicing_all(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts()
    ablated, gates = model.record(corrupted), random_gates(model, fractional=True).requires_grad_()
    positions = torch.tensor([[6, 2], [1, 1], [0, 5]])
    rows = torch.arange(3)[:, None]
    some, every = (
        model(clean, gates, ablated, positions=positions),
        model(clean, gates, ablated)[rows, positions],
    )
    torch.testing.assert_close(some, every, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        model.full(clean, positions=positions), model.full(clean)[rows, positions], atol=1e-12, rtol=0
    )
    (first,) = torch.autograd.grad(some.square().sum(), gates)
    (second,) = torch.autograd.grad(every.square().sum(), gates)
    torch.testing.assert_close(first, second, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("family", "index"), CASES)
def test_writers_sum_to_the_stream(family: Any, index: int) -> None:
    model = build(family, index)
    clean, _ = prompts()
    total = sum(writer_outputs(model, model.record(clean)))
    total = total + sum(output_bias(block) for block in model.blocks)
    torch.testing.assert_close(model.family.finish(total), model.hf(clean).logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "index"), CASES)
def test_padding_never_leaks(family: Any, index: int, side: str) -> None:
    model = build(family, index)
    clean, corrupted = prompts(2, 6)
    gates = random_gates(model, fractional=True)
    expected = model(clean, gates, model.record(corrupted))
    pad = torch.full((2, 3), 7)
    ones, zeros = torch.ones_like(clean), torch.zeros_like(pad)

    def padded(real: Tensor, filler: Tensor) -> Tensor:
        return torch.cat([filler, real] if side == "left" else [real, filler], 1)

    mask, ids = padded(ones, zeros), padded(clean, pad)
    real = slice(3, None) if side == "left" else slice(6)
    found = model(ids, gates, model.record(padded(corrupted, pad + 1), mask), mask)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, real], expected, atol=1e-10, rtol=0)
    opened = model(ids, model.graph.all_open(), model.record(padded(corrupted, pad), mask), mask)
    outside = model.hf(ids, attention_mask=mask, position_ids=position_ids(ids, mask)).logits
    assert torch.equal(opened[:, real], outside[:, real])


@pytest.mark.parametrize(("family", "index"), CASES)
def test_a_closed_edge_changes_only_what_lies_downstream(family: Any, index: int) -> None:
    model = build(family, index)
    graph, arch = model.graph, model.graph.arch
    clean, corrupted = prompts()
    ablated = model.record(corrupted)
    others = graph.all_open(torch.float64)
    others[-1, 0] = 0  # with every gate open the reads take another way, see `edgeprune/models/stack.py`
    gates = others.clone()
    layer = arch.num_layers - 1
    reader = graph.first_reader(layer) + 1  # q of head 1 in the last layer
    gates[reader, 0] = 0
    seen: list[list[Tensor]] = []
    outputs: list[Tensor] = []

    def spy(block: Block) -> None:
        heads, attend = block.heads, block.attend

        def note_projected(q: Tensor, k: Tensor, v: Tensor) -> Any:
            seen.append([q, k, v])
            return heads(q, k, v)

        def attend_and_note(q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
            outputs.append(attend(q, k, v, context))
            return outputs[-1]

        block.heads, block.attend = note_projected, attend_and_note

    for block in model.blocks:
        spy(block)
    model(clean, others, ablated)
    model(clean, gates, ablated)
    before, after = seen[: arch.num_layers], seen[arch.num_layers :]
    for index_ in range(layer):
        assert all(torch.equal(one, other) for one, other in zip(before[index_], after[index_], strict=True))
    changed = [
        (one != other).flatten(0, 1).any(-1).any(0).nonzero().flatten().tolist()
        for one, other in zip(before[layer], after[layer], strict=True)
    ]
    assert changed == [[1], [], []]
    heads_changed = (outputs[layer] != outputs[-1]).flatten(0, 1).any(-1).any(0)
    together = model.blocks[layer].qk_norm == "layer"  # the norm of all heads' queries moves all of them
    assert heads_changed.nonzero().flatten().tolist() == (list(range(arch.num_heads)) if together else [1])


@pytest.mark.parametrize(("family", "index"), CASES)
def test_entries_of_missing_edges_are_ignored(family: Any, index: int) -> None:
    model = build(family, index)
    clean, corrupted = prompts()
    ablated, gates = model.record(corrupted), random_gates(model, fractional=True)
    other = torch.where(model.graph.exists, gates, torch.full_like(gates, 17.0))
    assert torch.equal(model(clean, gates, ablated), model(clean, other, ablated))


@pytest.mark.parametrize(("family", "index"), CASES)
def test_split_embeddings_are_two_writers(family: Any, index: int) -> None:
    if not family.has_position_embedding:
        with pytest.raises(ValueError, match="rotary"):
            build(family, index, split_embedding=True)
        return
    model = build(family, index, split_embedding=True)
    clean, corrupted = prompts()
    gates, ablated = random_gates(model, fractional=True), ablations.zero(model)
    like = model.record(corrupted)
    torch.testing.assert_close(
        model(clean, gates, ablated),
        slow_logits(model, clean, gates, _broadcast(ablated, like)),
        atol=1e-10,
        rtol=0,
    )
    assert torch.equal(model(clean, model.graph.all_open(), like), model.hf(clean).logits)


def test_backward_twice_through_one_graph_and_after_a_failed_one() -> None:
    family = registry()["gpt2"]
    model = build(family, 0)
    clean, corrupted = prompts()
    gates = random_gates(model, fractional=True).requires_grad_()
    loss = model(clean, gates, model.record(corrupted)).square().sum()
    (first,) = torch.autograd.grad(loss, gates, retain_graph=True)
    (second,) = torch.autograd.grad(loss, gates)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_many_chunks_equal_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(registry()[name], 1)
    clean, corrupted = prompts(5, 7)
    ablated, gates = model.record(corrupted), random_gates(model, fractional=True).requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        logits = model(clean, gates, ablated)
        return logits, torch.autograd.grad(logits.square().sum(), gates)[0]

    whole = run()
    monkeypatch.setattr("edgeprune.models.read_ops.ReadOps.chunk_bytes", 3 * 30 * 32 * 8)
    for one, many in zip(whole, run(), strict=True):
        torch.testing.assert_close(many, one, atol=1e-9, rtol=1e-9)


def test_autocast_keeps_open_gates_exact_and_gradients_close() -> None:
    model = build(registry()["llama"], 1, torch.float32)
    clean, corrupted = prompts()
    gates = random_gates(model, fractional=True).float().requires_grad_()
    (expected,) = torch.autograd.grad(model(clean, gates, model.record(corrupted)).square().mean(), gates)
    with torch.autocast("cpu", torch.bfloat16):
        ablated = model.record(corrupted)
        assert torch.equal(model(clean, model.graph.all_open(), ablated), model.hf(clean).logits)
        logits = model(clean, gates, ablated)
    (found,) = torch.autograd.grad(logits.float().square().mean(), gates)
    assert found.dtype == torch.float32
    # bfloat16 has 8 bits of mantissa: a few percent of the gradient's length
    assert (found - expected).norm() / expected.norm() < 0.05


@torch.no_grad()
def test_a_window_that_the_model_ignores_is_ignored() -> None:
    """Some models have windows by their config alone; in Llama's nothing reads it."""
    config = LlamaConfig(**{**Llama.shape(), "sliding_window": 3})
    assert is_exact(MaskedModel(AutoModelForCausalLM.from_config(config)), 2, 9)


def test_the_models_of_other_tests_cover_every_wiring() -> None:
    def wiring(case: Any) -> tuple[Any, ...]:
        model = build(*case.values, dtype=torch.float32)
        block, arch = model.blocks[0], model.graph.arch
        return arch.parallel_blocks, arch.has_mlp, block.qk_norm, block.post_norm is not None

    def norms(case: Any) -> tuple[Any, ...]:
        norm = build(*case.values, dtype=torch.float32).blocks[0].input_spec()
        return norm.eps is None, norm.centred, norm.unit_offset

    chosen = [case for case in CASES if case.id in _WIRED]
    assert len(chosen) == len(_WIRED)
    for facts in (wiring, norms):
        assert {facts(case) for case in CASES} == {facts(case) for case in chosen}


def test_stays_in_evaluation_mode() -> None:
    model = build(registry()["gpt2"], 0)
    model.train()
    assert not any(module.training for module in model.modules())


def test_errors_name_the_shapes() -> None:
    model = build(registry()["gpt2"], 0)
    clean, corrupted = prompts()
    with pytest.raises(ValueError, match=r"gates have shape \(2, 2\)"):
        model(clean, torch.ones(2, 2), model.record(corrupted))
    with pytest.raises(ValueError, match="padded alike"):
        model(clean, model.graph.all_open(), model.record(corrupted[:, :4]))
