"""Edges before the norm behind the attention, against sums written out reader by reader."""

import itertools

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.models.before_norm import EdgesBeforeNorm
from edgeprune.models.circuit_run import CircuitRun
from edgeprune.models.family import registry
from edgeprune.models.masked import MaskedModel
from edgeprune.models.outputs import writer_outputs
from tests.methods.small_problems import problem
from tests.models.test_conformance import KV, WIRED, build, prompts, random_gates

COUPLED = [case for case in WIRED if build(*case.values).blocks[0].post_norm is not None]


def by_hand(model: MaskedModel, clean: Tensor, corrupted: Tensor, gates: Tensor) -> Tensor:
    """Logits from explicit loops over readers, layers and heads."""
    graph, arch = model.graph, model.graph.arch
    raw: list[list[list[Tensor]]] = []  # of both runs, by layer and head: what a head gives before the norm
    mlps: list[list[Tensor]] = []
    starts = [model.start(ids, None)[1] for ids in (clean, corrupted)]
    for ids in (clean, corrupted):
        values, outputs = list[Tensor](), list[Tensor]()
        model.run(
            ids,
            edits={"z": lambda _, z, v=values: v.append(z) or z, "mlp_out": lambda _, m, o=outputs: o.append(m) or m},
        )
        weights = [block.projection_weight() for block in model.blocks]
        raw.append(
            [[z[:, :, head] @ w[head] for head in range(arch.num_heads)] for z, w in zip(values, weights, strict=True)]
        )
        mlps.append(outputs)
    own_raw, own_mlps = list[list[Tensor]](), list[Tensor]()
    context = model.start(clean, None)[2]

    def read(reader: int) -> Tensor:
        total = gates[reader, 0] * starts[0] + (1 - gates[reader, 0]) * starts[1]
        for layer, heads in enumerate(own_raw):
            mixed = torch.zeros_like(starts[0])
            for head, own in enumerate(heads):
                gate = gates[reader, graph.heads(layer).start + head]
                mixed = mixed + gate * own + (1 - gate) * raw[1][layer][head]
            total = total + model.blocks[layer].post_norm(mixed)
        for layer, own in enumerate(own_mlps):
            gate = gates[reader, graph.mlp_writer(layer)]
            total = total + gate * own + (1 - gate) * mlps[1][layer]
        return total

    reader = itertools.count()
    for block in model.blocks:
        columns: list[list[Tensor]] = [[], [], []]
        for kind, count in enumerate(arch.reader_counts):
            heads = arch.num_heads if kind == 0 else arch.num_kv_heads
            for index in range(count):
                projected = block.project(block.norm(read(next(reader))))[kind]
                columns[kind].append(projected[:, :, index * heads // count])
        values = block.attend(*block.heads(*(torch.stack(column, 2) for column in columns)), context)
        weight = block.projection_weight()
        own_raw.append([values[:, :, head] @ weight[head] for head in range(arch.num_heads)])
        own_mlps.append(block.mlp(read(next(reader))))
    return model.logits(read(next(reader)))


@pytest.mark.parametrize("kv_readers", KV)
@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize(("family", "index"), COUPLED)
def test_equals_the_sum_by_hand(family: type, index: int, fractional: bool, kv_readers: str) -> None:
    additive = build(family, index, kv_readers=kv_readers)
    model = EdgesBeforeNorm(additive)
    clean, corrupted = prompts()
    gates = random_gates(model, fractional)
    found = model(clean, gates, model.record(corrupted))
    torch.testing.assert_close(found, by_hand(model, clean, corrupted, gates), atol=1e-10, rtol=0)
    other = additive(clean, gates, additive.record(corrupted))
    assert (found - other).abs().max() > 1e-3  # the conventions do differ between the ends


@pytest.mark.parametrize(("family", "index"), COUPLED)
def test_both_ends_are_those_of_the_library(family: type, index: int) -> None:
    model = EdgesBeforeNorm(build(family, index))
    clean, corrupted = prompts()
    ablated = model.record(corrupted)
    for value, ids in ((1.0, clean), (0.0, corrupted)):
        found = model(clean, torch.full(model.graph.shape, value), ablated)
        torch.testing.assert_close(found, model.hf(ids).logits, atol=1e-10, rtol=0)


def test_groups_positions_and_what_the_logits_read() -> None:
    model = EdgesBeforeNorm(build(registry()["gemma3_text"], 0))
    clean, corrupted = prompts(4, 6)
    ablated, positions = model.record(corrupted), torch.tensor([[5, 1]] * 4)
    gates = torch.stack([random_gates(model, fractional=False), model.graph.all_open(torch.float64)])
    both = model(clean, gates, ablated, None, positions)
    for place, own in enumerate(gates):
        alone = model(clean, own, ablated, None, positions)
        torch.testing.assert_close(
            both[2 * place : 2 * place + 2], alone[2 * place : 2 * place + 2], atol=1e-12, rtol=0
        )
    stream = model(clean, gates, ablated, None, positions, head=False)
    torch.testing.assert_close(model.logits(stream), both, atol=1e-12, rtol=0)


def test_a_model_without_such_a_norm_is_refused() -> None:
    with pytest.raises(EdgepruneError, match="llama has no norm behind its attention"):
        EdgesBeforeNorm(build(registry()["llama"], 0))


def test_what_rests_on_writers_that_add_up_is_refused() -> None:
    additive = build(registry()["gemma3_text"], 0)
    model = EdgesBeforeNorm(additive)
    ((batch, _, ablated),) = problem(additive, cuts=()).batches_with_runs()
    with pytest.raises(
        EdgepruneError, match="single edges of a circuit's run is not defined for edges before the norm"
    ):
        CircuitRun(model, batch, ablated, model.graph.exists)
    with pytest.raises(EdgepruneError, match="what each writer puts on the stream is not defined"):
        next(writer_outputs(model, ablated))
