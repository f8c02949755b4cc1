"""Patching against gates, against other tokens, and against hooks in the Hugging Face model; in float64."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import edgeprune as ep
from datamodules import TokenPair
from datamodules.collate import collate
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import IGNORE, PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.methods.problem import Metric, Problem
from edgeprune.models.masked import MaskedModel
from edgeprune.patching import PatchingResult
from tests.models.test_conformance import KV, VOCAB, WIRED, build, prompts

CLOSE: dict[str, float] = {"atol": 1e-9, "rtol": 1e-9}
FAMILIES = {param.id: param.values for param in WIRED}
GPT2 = next(values for name, values in FAMILIES.items() if name.startswith("GPT2"))


def batch_of(clean: Tensor, corrupted: Tensor, **more: Any) -> PairBatch:
    """Pairs scored at their last two positions, with an answer and a distractor at each."""
    rows, seq = clean.shape
    positions = torch.tensor([[seq - 2, seq - 1]]).expand(rows, 2)
    return PairBatch(
        clean=clean,
        corrupted=corrupted,
        attention_mask=torch.ones_like(clean),
        positions=positions,
        position_mask=torch.ones_like(positions).bool(),
        targets=torch.full_like(positions, 3),
        distractors=torch.full_like(positions, 4),
        index=torch.arange(rows),
        **more,
    )


def problem_of(model: MaskedModel, *batches: PairBatch, metric: Metric = "squared_error") -> Problem:
    return Problem(model, batches, ReferenceRuns(model, "interchange"), metric)


def random_problem(model: MaskedModel, **more: Any) -> Problem:
    return problem_of(model, batch_of(*prompts(2, 6)), **more)


def gated_metric(problem: Problem, gates: Tensor) -> Tensor:
    """Mean metric of the masked model with these gates, in float64."""
    (batch,) = problem.batches
    ablated = problem.model.record(batch.corrupted)
    logits = problem.model(batch.clean, gates, ablated, positions=batch.positions)
    full = problem.model.full(batch.clean, positions=batch.positions)
    return problem.losses(full, logits, batch).mean()


def close_all(found: Tensor, expected: Sequence[Tensor]) -> None:
    torch.testing.assert_close(found.flatten(), torch.stack(list(expected)), **CLOSE)
    assert found.unique().numel() > 1  # sites differ: this was no comparison of nothing with nothing


# ---------------------------------------------------------------- identities
@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_the_whole_stream_of_a_layer_is_the_other_run(family: Any, index: int, direction: Any) -> None:
    problem = random_problem(build(family, index))
    result = ep.patching.activation(problem, "residual", ("layer",), direction=direction)
    other, base = (result.corrupted, result.clean) if direction == "noising" else (result.clean, result.corrupted)
    torch.testing.assert_close(result.values, other, **CLOSE)
    assert (base - other).abs().min() > 1e-3
    full = torch.full_like(other, -1.0 if direction == "noising" else 1.0)
    torch.testing.assert_close(result.effect, full, **CLOSE)
    assert result.labels == ((*map(str, range(len(other) - 1)), "end"),)


@pytest.mark.parametrize("what", ["residual", "attention_out", "mlp_out", "z", "q", "k", "v"])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_a_run_s_own_values_change_nothing(family: Any, index: int, what: Any) -> None:
    model = build(family, index)
    if what == "mlp_out" and not model.graph.arch.has_mlp:
        pytest.skip("no MLP in this model")
    clean, _ = prompts(2, 6)
    result = ep.patching.activation(problem_of(model, batch_of(clean, clean), metric="logit_difference"), what)
    torch.testing.assert_close(result.values, result.clean, **CLOSE)
    torch.testing.assert_close(result.corrupted, result.clean, **CLOSE)


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_patching_a_writer_is_closing_all_its_edges(family: Any, index: int) -> None:
    problem = random_problem(build(family, index))
    graph, arch = problem.model.graph, problem.model.graph.arch
    heads = [f"a{x}.h{y}" for x, y in product(range(arch.num_layers), range(arch.num_heads))]
    kinds = {"head_out": heads} if arch.coupled_heads else {"head_out": heads, "z": heads}  # a norm would see another z
    kinds |= {"mlp_out": [f"m{layer}" for layer in range(arch.num_layers)]} if arch.has_mlp else {}
    for what, writers in kinds.items():
        result = ep.patching.activation(problem, what, ("layer",) if what == "mlp_out" else ("layer", "head"))  # pyright: ignore[reportArgumentType]
        expected: list[Tensor] = []
        for writer in writers:
            gates = graph.all_open(torch.float64)
            gates[:, graph.writers.index(writer)] = 0
            expected.append(gated_metric(problem, gates))
        close_all(result.values, expected)


@pytest.mark.parametrize("kv_readers", KV)
@pytest.mark.parametrize("what", ["q", "k", "v"])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_patching_a_read_is_closing_all_edges_into_it(family: Any, index: int, what: Any, kv_readers: str) -> None:
    problem = random_problem(build(family, index, kv_readers=kv_readers))
    if what != "v" and problem.model.blocks[0].qk_norm == "layer":
        pytest.skip("edges end before the norm of all heads, which moves the others; q and k are patched behind it")
    graph = problem.model.graph
    result = ep.patching.activation(problem, what)
    expected: list[Tensor] = []
    for layer, head in product(*result.labels):
        gates = graph.all_open(torch.float64)
        gates[graph.readers.index(f"a{layer}.h{head}.{what}")] = 0
        expected.append(gated_metric(problem, gates))
    close_all(result.values, expected)


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_the_first_stream_at_a_position_is_the_other_token_there(family: Any, index: int) -> None:
    problem = random_problem(build(family, index), metric="kl")
    model, (batch,) = problem.model, problem.batches
    result = ep.patching.activation(problem, "residual", ["position", "layer"])
    assert result.dims == ("layer", "position")
    full = model.hf(batch.clean).logits[:, -2:]
    expected: list[Tensor] = []
    for position in range(batch.clean.shape[1]):
        ids = batch.clean.clone()
        ids[:, position] = batch.corrupted[:, position]
        expected.append(problem.losses(full, model.hf(ids).logits[:, -2:], batch).mean().double())
    close_all(result.values[0], expected)


# ---------------------------------------------------------------- against hooks
Change = Callable[[Tensor], Tensor]


def hooked(model: MaskedModel, ids: Tensor, changes: dict[tuple[str, int], Change]) -> Tensor:
    """GPT-2's logits with hooks: `qkv` `[b, s, 3d]`, `z` `[b, s, d]`, `attention_out`, `mlp_out`, by layer."""
    with ExitStack() as stack:
        for (kind, layer), change in changes.items():
            block = model.hf.transformer.h[layer]
            if kind == "z":
                handle = block.attn.c_proj.register_forward_pre_hook(lambda _, inputs, f=change: (f(inputs[0]),))
            else:
                module = {"qkv": block.attn.c_attn, "attention_out": block.attn.c_proj, "mlp_out": block.mlp}[kind]
                handle = module.register_forward_hook(lambda *call, f=change: f(call[-1]))
            stack.callback(handle.remove)
        return model.hf(ids).logits


def keep(store: dict[tuple[str, int], Tensor], key: tuple[str, int]) -> Change:
    def change(value: Tensor) -> Tensor:
        store[key] = value.clone()
        return value

    return change


def everything(model: MaskedModel, ids: Tensor) -> dict[tuple[str, int], Tensor]:
    store: dict[tuple[str, int], Tensor] = {}
    keys = product(("qkv", "z", "attention_out", "mlp_out"), range(model.graph.arch.num_layers))
    hooked(model, ids, {key: keep(store, key) for key in keys})
    return store


def swap(other: Tensor, where: tuple[Any, ...]) -> Change:
    def change(value: Tensor) -> Tensor:
        value = value.clone()
        value[where] = other[where]
        return value

    return change


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_single_positions_and_heads_equal_hooks(direction: Any) -> None:
    problem = random_problem(build(*GPT2))
    model, (batch,) = problem.model, problem.batches
    full = model.hf(batch.clean).logits[:, -2:]
    ids, other = (batch.clean, batch.corrupted) if direction == "noising" else (batch.corrupted, batch.clean)
    states, width = everything(model, other), 8
    offsets = {"q": ("qkv", 0), "k": ("qkv", 32), "v": ("qkv", 64), "z": ("z", 0)}

    def expected(what: str, layer: int, position: int, head: int | None) -> Tensor:
        kind, offset = offsets.get(what, (what, 0))
        columns = slice(None) if head is None else slice(offset + head * width, offset + (head + 1) * width)
        change = swap(states[kind, layer], (slice(None), position, columns))
        logits = hooked(model, ids, {(kind, layer): change})[:, -2:]
        return problem.losses(full, logits, batch).mean().double()

    for what in ("attention_out", "mlp_out"):
        result = ep.patching.activation(problem, what, direction=direction)
        sites = product(range(3), range(6))
        close_all(result.values, [expected(what, layer, position, None) for layer, position in sites])
    for what in ("q", "k", "v", "z"):
        by = ("layer", "head", "position")
        result = ep.patching.activation(problem, what, by, direction=direction)
        sites = product(range(3), range(4), range(6))
        close_all(result.values, [expected(what, layer, position, head) for layer, head, position in sites])


# ---------------------------------------------------------------- batches
LENGTHS = (6, 4, 7)


def pair(number: int, corrupted_length: int | None = None) -> TokenPair:
    """A pair of its own length, with a role in all but the last."""
    generator = torch.Generator().manual_seed(number)
    length = LENGTHS[number]
    clean, corrupted = (
        tuple(torch.randint(0, VOCAB, (size,), generator=generator).tolist())
        for size in (length, corrupted_length or length)
    )
    shift = len(corrupted) - length
    return TokenPair(
        clean=clean,
        corrupted=corrupted,
        positions=(length - 1,),
        targets=(3,),
        distractors=(IGNORE,),
        roles={"middle": (1, 3), "end": (length - 1, length)} if number < 2 else {"end": (length - 1, length)},
        alignment=tuple(max(0, place + shift) for place in range(length)) if shift else (),
    )


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("what", ["q", "k"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith(("Qwen3-", "Olmo2-"))])
def test_normed_queries_and_keys_are_put_behind_their_norms(name: str, what: Any, direction: Any) -> None:
    """By hooks on the model's own norms: one head's share, one position, from the other run."""
    problem = random_problem(build(*FAMILIES[name]))
    model, (batch,) = problem.model, problem.batches
    ids, other = (batch.clean, batch.corrupted) if direction == "noising" else (batch.corrupted, batch.clean)
    norms = [getattr(layer.self_attn, f"{what}_norm") for layer in model.hf.model.layers]

    def run(ids: Tensor, changes: dict[int, Change]) -> Tensor:
        with ExitStack() as stack:
            for layer, change in changes.items():
                handle = norms[layer].register_forward_hook(lambda *call, f=change: f(call[-1]))
                stack.callback(handle.remove)
            return model.hf(ids).logits

    states: dict[tuple[str, int], Tensor] = {}
    run(other, {layer: keep(states, (what, layer)) for layer in range(3)})
    full = run(batch.clean, {})[:, -2:]
    expected: list[Tensor] = []
    heads = model.graph.arch.num_heads if what == "q" else model.graph.arch.num_kv_heads
    for layer, head, position in product(range(3), range(heads), range(6)):
        width = states[what, layer][0, 0].numel() // heads
        columns = slice(head * width, (head + 1) * width)

        def put(own: Tensor, layer: int = layer, position: int = position, columns: slice = columns) -> Tensor:
            flat = own.flatten(2).clone()
            flat[:, position, columns] = states[what, layer].flatten(2)[:, position, columns]
            return flat.view(own.shape)

        expected.append(problem.losses(full, run(ids, {layer: put})[:, -2:], batch).mean().double())
    result = ep.patching.activation(problem, what, ("layer", "head", "position"), direction=direction)
    close_all(result.values, expected)


@pytest.mark.parametrize("by", ["position", "role"])
@pytest.mark.parametrize(("what", "dims"), [("residual", ("layer",)), ("z", ("layer", "head")), ("k", ())])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_neither_padding_nor_the_cut_into_batches_matters(
    family: Any, index: int, what: Any, dims: tuple[str, ...], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples = build(family, index), [(number, pair(number)) for number in range(3)]
    together = ep.patching.activation(problem_of(model, collate(examples, pad_id=7)), what, (*dims, by))
    monkeypatch.setattr("edgeprune.patching.activations.ROWS", 1)
    apart = ep.patching.activation(problem_of(model, *(collate([one]) for one in examples)), what, (*dims, by))
    assert apart.labels == together.labels
    for name in ("values", "clean", "corrupted", "count"):
        torch.testing.assert_close(getattr(apart, name), getattr(together, name), **CLOSE)
    last = together.count.flatten()[: len(together.labels[-1])].tolist()
    assert last == ([3, 3, 3, 3, 2, 2, 1] if by == "position" else [2, 3])


def test_a_role_is_its_tokens() -> None:
    model = build(*GPT2)
    batch = collate([(0, pair(0))])
    problem = problem_of(model, batch)
    result = ep.patching.activation(problem, "residual", ("layer", "role"))
    ids = batch.clean.clone()
    ids[:, 1:3] = batch.corrupted[:, 1:3]
    full, patched = (model.hf(tokens).logits[:, -1:] for tokens in (batch.clean, ids))
    torch.testing.assert_close(
        result.values[0, result.labels[1].index("middle")], problem.losses(full, patched, batch)[0], **CLOSE
    )


def test_prompts_of_unequal_length_are_patched_where_they_are_aligned() -> None:
    model = build(*GPT2)
    batch = collate([(0, pair(0, 5)), (1, pair(1, 6))])
    problem = problem_of(model, batch)
    result = ep.patching.activation(problem, "z")
    _, states = problem.runs(batch, "train")
    gates = model.graph.all_open(torch.float64)
    gates[:, model.graph.writers.index("a1.h2")] = 0
    logits = model(batch.clean, gates, states, batch.attention_mask, batch.positions)
    full = model.full(batch.clean, batch.attention_mask, batch.positions)
    torch.testing.assert_close(
        result.values.flatten()[result.at(layer=1, head=2)], problem.losses(full, logits, batch).mean(), **CLOSE
    )
    with pytest.raises(EdgepruneError, match="use direction 'noising'"):
        ep.patching.activation(problem, "z", direction="denoising")


# ---------------------------------------------------------------- paths
def some_edges(model: MaskedModel, count: int) -> list[str]:
    edges = [model.graph.edge_name(*entry) for entry in model.graph.exists.nonzero().tolist()]
    order = torch.randperm(len(edges), generator=torch.Generator().manual_seed(0)).tolist()
    return [edges[number] for number in order[:count]]


@pytest.mark.parametrize("kv_readers", KV)
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_with_all_between_frozen_a_path_is_one_edge(family: Any, index: int, kv_readers: str) -> None:
    problem = random_problem(build(family, index, kv_readers=kv_readers))
    graph = problem.model.graph
    for edge in [*some_edges(problem.model, 12), "a0.h0->logits", "embed->a1.h0.q"]:
        writer, _, reader = edge.partition("->")
        gates = graph.all_open(torch.float64)
        gates[graph.index(edge)] = 0
        result = ep.patching.path(problem, writer, reader, "freeze")
        expected = gated_metric(problem, gates)
        assert expected > 0
        torch.testing.assert_close(result.values[0], expected, **CLOSE)


@pytest.mark.parametrize(("family", "index"), WIRED)
def test_a_head_as_receiver_is_its_three_edges(family: Any, index: int) -> None:
    problem = random_problem(build(family, index))
    graph, arch = problem.model.graph, problem.model.graph.arch
    head = arch.num_heads - 1
    shared = head * arch.num_kv_readers // arch.num_heads
    senders = ["embed", "a0.h0"]
    result = ep.patching.path(problem, senders, f"a1.h{head}", "freeze")
    assert result.dims == ("sender",)
    for sender, value in zip(senders, result.values, strict=True):
        gates = graph.all_open(torch.float64)
        for reader in (f"a1.h{head}.q", f"a1.h{shared}.k", f"a1.h{shared}.v"):
            gates[graph.index(f"{sender}->{reader}")] = 0
        torch.testing.assert_close(value, gated_metric(problem, gates), **CLOSE)


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_paths_to_the_logits_by_gates(family: Any, index: int, mlps: Any) -> None:
    """In the corrupted run with clean values on closed edges: open what leads to the sender, and its direct paths."""
    problem = random_problem(build(family, index))
    model, (batch,) = problem.model, problem.batches
    graph, arch = model.graph, model.graph.arch
    result = ep.patching.path(problem, "heads", "logits", mlps)
    full, clean = model.full(batch.clean, positions=batch.positions), model.record(batch.clean)
    expected: list[Tensor] = []
    for layer, head in product(range(arch.num_layers), range(arch.num_heads)):
        sender, gates = graph.writers.index(f"a{layer}.h{head}"), graph.all_closed(torch.float64)
        gates[: graph.first_reader(layer) + arch.num_attention_readers] = 1  # the sender is that of the corrupted run
        gates[-1, sender] = 1
        later = [n for n in range(arch.num_layers) if graph.readers.count(f"m{n}") and mlps == "recompute"]
        later = [n for n in later if graph.num_visible[graph.readers.index(f"m{n}")] > sender]
        through = [sender, *(graph.writers.index(f"m{n}") for n in later)]
        for reader in (*(graph.readers.index(f"m{n}") for n in later), len(graph.readers) - 1):
            gates[reader] = 0
            gates[reader, through] = 1
        logits = model(batch.corrupted, gates, clean, positions=batch.positions)
        expected.append(problem.losses(full, logits, batch).mean())
    close_all(result.values, expected)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
@pytest.mark.parametrize(
    ("sender", "receivers"),
    [
        ("a0.h1", ("a2.h3.q",)),
        ("a0.h1", ("a1.h0.v", "a2.h3.q", "a2.h2.k")),
        ("m0", ("a1.h0", "a2.h1.v")),
        ("a0.h2", ("m1", "a2.h0.k")),
    ],
)
def test_three_runs_by_hooks(sender: str, receivers: tuple[str, ...], mlps: Any, direction: Any) -> None:
    problem = random_problem(build(*GPT2))
    model, (batch,) = problem.model, problem.batches
    full = model.hf(batch.clean).logits[:, -2:]
    ids, foreign = (batch.clean, batch.corrupted) if direction == "noising" else (batch.corrupted, batch.clean)
    base, other = everything(model, ids), everything(model, foreign)
    reads = [f"{name}.{kind}" for name in receivers for kind in "qkv" if name.count(".") == 1]
    reads += [name for name in receivers if name.count(".") == 2]
    columns: dict[int, list[int]] = {0: [], 1: [], 2: []}  # of c_attn's output that receivers read
    heads: dict[int, list[int]] = {0: [], 1: [], 2: []}  # columns of z of receiving heads
    for name in reads:
        layer, head = int(name[1]), int(name[4])
        columns[layer] += range("qkv".index(name[-1]) * 32 + head * 8, "qkv".index(name[-1]) * 32 + head * 8 + 8)
        heads[layer] += range(head * 8, head * 8 + 8)
    mlp_receivers = [int(name[1:]) for name in receivers if name.startswith("m")]
    read: dict[tuple[str, int], Tensor] = {}

    def second(kind: str, layer: int) -> Change:
        def change(value: Tensor) -> Tensor:
            own, value = value, value.clone()
            if kind in ("qkv", "z"):
                chosen = columns[layer] if kind == "qkv" else heads[layer]
                value[:] = base[kind, layer]
                value[..., chosen] = own[..., chosen]
            elif mlps == "freeze" and layer not in mlp_receivers:
                value[:] = base[kind, layer]
            if kind == "z" and sender[:2] == f"a{layer}":
                place = slice(int(sender[4]) * 8, int(sender[4]) * 8 + 8)
                value[..., place] = other["z", layer][..., place]
            if kind == "mlp_out" and sender == f"m{layer}":
                value[:] = other["mlp_out", layer]
            read[kind, layer] = value
            return value

        return change

    hooked(model, ids, {key: second(*key) for key in product(("qkv", "z", "mlp_out"), range(3))})
    third = {("qkv", layer): swap(read["qkv", layer], (..., chosen)) for layer, chosen in columns.items() if chosen}
    third |= {("mlp_out", layer): swap(read["mlp_out", layer], (...,)) for layer in mlp_receivers}
    expected = problem.losses(full, hooked(model, ids, third)[:, -2:], batch).mean().double()
    result = ep.patching.path(problem, sender, receivers, mlps, direction=direction)
    torch.testing.assert_close(result.values[0], expected, **CLOSE)
    start = result.clean if direction == "noising" else result.corrupted
    assert (result.values - start).abs().min() > 1e-9


def test_heads_before_no_receiver_have_no_value() -> None:
    result = ep.patching.path(random_problem(build(*GPT2)), "heads", "a1.h0.q")
    assert result.values[0].isfinite().all()
    assert result.values[1:].isnan().all()
    assert result.count.tolist() == [[2] * 4, [0] * 4, [0] * 4]


def test_one_of_two_embeddings_is_a_sender() -> None:
    problem = random_problem(build(*GPT2, split_embedding=True))
    gates = problem.model.graph.all_open(torch.float64)
    gates[problem.model.graph.index("tok_embed->m1")] = 0
    result = ep.patching.path(problem, ["tok_embed", "pos_embed"], "m1", "freeze")
    torch.testing.assert_close(result.values[0], gated_metric(problem, gates), **CLOSE)
    assert result.effect[1].abs() < 1e-12  # both prompts have the same positions


# ---------------------------------------------------------------- results
def small_result(**more: Any) -> PatchingResult:
    return PatchingResult(
        **{
            "values": torch.tensor([[2.0, 0.5], [-1.0, 1.0]]),
            "clean": torch.full((2, 2), 2.0),
            "corrupted": torch.tensor([[-1.0, -1.0], [-1.0, 2.0]]),
            "count": torch.tensor([[4, 4], [4, 1]]),
            "dims": ("layer", "role"),
            "labels": (("0", "end"), ("io", "subject")),
            "what": "residual",
            "metric": "logit_difference",
            "direction": "noising",
            "model": "some",
            **more,
        }
    )


def test_normalised_is_one_at_clean_and_zero_at_corrupted() -> None:
    result = small_result()
    torch.testing.assert_close(result.normalised, torch.tensor([[1.0, 0.5], [0.0, torch.nan]]), equal_nan=True)
    torch.testing.assert_close(result.effect, torch.tensor([[0.0, -0.5], [-1.0, torch.nan]]), equal_nan=True)
    assert torch.equal(small_result(direction="denoising").effect[0], result.normalised[0])


def test_rows_are_plain() -> None:
    row = small_result().rows()[1]
    assert row == {"layer": "0", "role": "subject", "value": 0.5, "normalised": 0.5, "effect": -0.5, "count": 4}
    assert small_result().at(role="io", layer="end") == 2
    with pytest.raises(EdgepruneError, match="no layer 7 in this result, it has 0, end"):
        small_result().at(role="io", layer=7)
    with pytest.raises(EdgepruneError, match="has layer, role"):
        small_result().at(layer=0)


def test_the_logit_difference_has_its_own_sign() -> None:
    model = build(*GPT2)
    problem = random_problem(model, metric="logit_difference")
    (batch,) = problem.batches
    logits = model.hf(batch.clean).logits[:, -2:]
    result = ep.patching.activation(problem, "residual", ("layer",))
    torch.testing.assert_close(result.clean[0], (logits[..., 3] - logits[..., 4]).mean().double(), **CLOSE)


def test_a_result_returns_from_its_file(tmp_path: Path) -> None:
    result = ep.patching.path(random_problem(build(*GPT2)), "heads", "logits")
    loaded = PatchingResult.load(result.save(tmp_path / "new" / "result.safetensors"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result.safetensors"]
    for name in ("dims", "labels", "what", "metric", "direction", "model", "about"):
        assert getattr(loaded, name) == getattr(result, name)
    for name in ("values", "clean", "corrupted", "count"):
        assert torch.equal(getattr(loaded, name), getattr(result, name))
    assert loaded.about["mlps"] == "recompute"


def test_files_that_are_no_results(tmp_path: Path) -> None:
    path = small_result().save(tmp_path / "result.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(EdgepruneError, match="not a whole result of patching of format edgeprune-patching/1"):
        PatchingResult.load(path)
    with pytest.raises(EdgepruneError, match="no result of patching at"):
        PatchingResult.load(tmp_path / "absent")
    circuit = ep.Circuit.random(ep.EdgeGraph(ep.ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1)), 2)
    with pytest.raises(EdgepruneError, match="it holds edgeprune-circuit/1"):
        PatchingResult.load(circuit.save(tmp_path / "circuit.safetensors"))
    with pytest.raises(EdgepruneError, match="is a folder"):
        small_result().save(tmp_path)


def test_labels_must_fit() -> None:
    with pytest.raises(EdgepruneError, match="differ"):
        small_result(labels=(("0",), ("io", "subject")))


# ---------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"what": "resid"}, "what must be one of residual"),
        ({"by": ("depth",)}, r"got \['depth'\]"),
        ({"by": ("layer", "layer")}, "different axes"),
        ({"by": ()}, r"got \[\]"),
        ({"by": ("layer", "head")}, "residual has no heads"),
        ({"what": "z", "by": ("position", "role")}, "not both"),
        ({"by": ("role",)}, "no roles"),
        ({"direction": "backwards"}, "direction must be one of noising, denoising"),
    ],
)
def test_mistakes_of_a_sweep(options: dict[str, Any], named: str) -> None:
    with pytest.raises(EdgepruneError, match=named) as caught:
        ep.patching.activation(random_problem(build(*GPT2)), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("a0.h9", "logits"), "no writer named 'a0.h9'"),
        (("a0.h0", "logit"), "did you mean 'logits'"),
        (("a1.h0", "a1.h2.q"), "not computed before"),
        (("a1.h0", ("m1", "a0.h0.q")), "'a1.h0->a0.h0.q' does not exist"),
        ((("m0", "m0"), "logits"), "several different ones"),
        (("m0", ()), "no receivers"),
        (("m0", "logits", "ignore"), "mlps must be one of recompute, freeze"),
    ],
)
def test_mistakes_of_a_path(arguments: tuple[Any, ...], named: str) -> None:
    with pytest.raises(EdgepruneError, match=named):
        ep.patching.path(random_problem(build(*GPT2)), *arguments)


def test_pairs_of_another_model_are_refused() -> None:
    model, (clean, corrupted) = build(*GPT2), prompts(2, 6)
    corrupted[1, 2] = 500
    problem = problem_of(model, batch_of(clean, corrupted))
    for question in (lambda: ep.patching.activation(problem), lambda: ep.patching.path(problem, "m0", "logits")):
        with pytest.raises(EdgepruneError, match=r"corrupted input id 500.* made for another model"):
            question()


def test_zero_ablation_has_no_other_run() -> None:
    model = build(*GPT2)
    problem = Problem(model, [batch_of(*prompts(2, 6))], ReferenceRuns(model, "zero"))
    with pytest.raises(EdgepruneError, match="the ablation is 'zero'; use ablation 'interchange'"):
        ep.patching.activation(problem)


def test_models_without_mlps_have_no_mlp_out() -> None:
    for family, index in FAMILIES.values():
        model = build(family, index)
        if not model.graph.arch.has_mlp:
            with pytest.raises(EdgepruneError, match="no MLPs"):
                ep.patching.activation(random_problem(model), "mlp_out")
            return
    pytest.fail("no tiny model without MLPs is left to test this on")


def test_progress_is_reported() -> None:
    seen: list[tuple[str, int, int]] = []
    problem = random_problem(build(*GPT2))
    ep.patching.activation(problem, "mlp_out", report=lambda *args: seen.append(args))
    ep.patching.path(problem, ("m0", "m1"), "logits", report=lambda *args: seen.append(args))
    assert seen == [("patching mlp_out", n, 3) for n in (1, 2, 3)] + [("patching paths", n, 2) for n in (1, 2)]
