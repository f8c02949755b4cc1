"""Attention patterns of heads in a circuit's run, and in that of the full model.

Weights are those of the run itself: queries and keys are what the partly closed edges make of them, and the model's own
kernel weighs them (`kernel_weights`), so that mask, scale, rotary positions and windows are the model's own, whatever
its family. The kernel is run on values that mark sets of tokens: a value of 1 at the tokens of a set gives the sum of
the weights over that set.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.graph import EdgeGraph
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.block import Block, keeping, walk
from edgeprune.models.masked import MaskedModel
from edgeprune.models.read_ops import exact_dtype
from edgeprune.nodes import writer_kind
from edgeprune.reading.patterns import AttentionPatterns
from edgeprune.reading.prompts import Prompt, prompts_of, real_tokens


def circuit_heads(circuit: Circuit) -> tuple[str, ...]:
    """Heads that matter in the circuit: a path of kept edges leads from them to logits, with roles to scored ones."""
    graph, keep = circuit.graph, circuit.keep
    reaching = (keep & graph.reaching_logits(keep)[..., None]).flatten(0, -2).any(0).tolist()
    return tuple(
        name for name, found in zip(graph.writers, reaching, strict=True) if found and writer_kind(name) == "head"
    )


@torch.no_grad()
def attention_patterns(
    evaluator: Evaluator, circuit: Circuit, heads: Sequence[str] | None = None, tokenizer: Any = None
) -> AttentionPatterns:
    """Attention weights of heads in a circuit's run and in the full model's.

    Args:
        evaluator: Model, ablation and pairs; of long lists take `evaluator.limited(n)`.
        circuit: The circuit; its roles, if it has some, must be those of the model (`MaskedModel.use_roles`).
        heads: Any heads of the model; None: those of the circuit (`circuit_heads`).
        tokenizer: For the labels of tokens; see `prompts_of`.

    Raises:
        EdgepruneError: The circuit is of another graph, has no heads, or one asked for does not exist.
    """
    circuit.check_fits(evaluator.graph)
    chosen = circuit_heads(circuit) if heads is None else tuple(heads)
    if not chosen:
        raise EdgepruneError("no head of the circuit has a path to the logits; name `heads` to see others' attention")
    places = [_head_place(evaluator.graph, name) for name in chosen]
    prompts: list[Prompt] = []
    in_circuit: list[Tensor] = []
    full: list[Tensor] = []
    for batch in evaluator.batches:
        batch = batch.to(evaluator.model.device)
        everywhere = torch.eye(batch.clean.shape[1], device=batch.clean.device, dtype=torch.bool)
        parts = everywhere.expand(len(batch), -1, -1)
        found = _of_heads(attention_in(evaluator, batch, circuit.keep, parts, {layer for layer, _ in places}), places)
        whole = attention_to(evaluator.model, batch.clean, batch.attention_mask, parts)
        other = _of_heads(dict(enumerate(whole)), places)
        prompts += prompts_of(batch, tokenizer)
        for row in range(len(batch)):
            span = real_tokens(batch, row)
            in_circuit.append(found[row, :, span, span].cpu())
            full.append(other[row, :, span, span].cpu())
    return AttentionPatterns(chosen, tuple(prompts), tuple(in_circuit), tuple(full))


@torch.no_grad()
def attention_in(
    evaluator: Evaluator, batch: PairBatch, keep: Tensor, parts: Tensor, layers: set[int] | None = None
) -> dict[int, Tensor]:
    """Attention that every token pays to sets of tokens in a circuit's run.

    Args:
        evaluator: Model and ablation.
        batch: On the model's device.
        keep: The circuit, bool of the graph's shape.
        parts: Bool or 0/1 `[batch, seq, part]`: which tokens each set has.
        layers: Which layers; None: all.

    Returns:
        By layer `[batch, seq, head, part]` in the model's dtype; rows of padding mean nothing.
    """
    model = evaluator.model
    _, ablated = evaluator.runs(batch, evaluator.split)
    with _watched(model.blocks) as seen:
        gated_logits(model, batch, keep.to(model.device, exact_dtype(model.dtype)), ablated)
    return {
        layer: kernel_weights(model, layer, q, k, parts, context)
        for layer, (q, k, context) in enumerate(seen)
        if layers is None or layer in layers
    }


@contextmanager
def _watched(blocks: Sequence[Block]) -> Generator[list[tuple[Tensor, Tensor, Any]]]:
    """What each layer's kernel gets in a run: queries, keys, and what the family's layers share."""
    seen: list[tuple[Tensor, Tensor, Any]] = []

    def watching(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def seeing(q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
            seen.append((q, k, context))
            return attend(q, k, v, context)

        return seeing

    for block in blocks:
        vars(block)["attend"] = watching(block.attend)
    try:
        yield seen
    finally:
        for block in blocks:
            del vars(block)["attend"]


def _head_place(graph: EdgeGraph, name: str) -> tuple[int, int]:
    """Layer and head of a name such as `a3.h7`."""
    if name not in graph.writers or writer_kind(name) != "head":
        arch = graph.arch
        raise EdgepruneError(
            f"no head named {name!r} in this model; heads are a0.h0 to a{arch.num_layers - 1}.h{arch.num_heads - 1}"
        )
    layer, _, head = name[1:].partition(".h")
    return int(layer), int(head)


def _of_heads(found: dict[int, Tensor], places: Sequence[tuple[int, int]]) -> Tensor:
    """Weights of some heads, `[batch, head, query, key]`, from those by layer `[batch, query, head, key]`."""
    return torch.stack([found[layer][:, :, head] for layer, head in places], 1)


# -------------------------------------------------------------------- attention to sets of tokens
@torch.no_grad()
def attention_to(model: MaskedModel, ids: Tensor, mask: Tensor, parts: Tensor) -> Tensor:
    """Attention that every token of the full model pays to sets of tokens.

    Args:
        model: Of any family, with any attention kernel.
        ids: Long `[batch, seq]`.
        mask: 1 for a token, 0 for padding, long `[batch, seq]`.
        parts: Bool or 0/1 `[batch, seq, part]`: which tokens each set has.

    Returns:
        `[layer, batch, seq, head, part]` in the model's dtype; rows of padding mean nothing.
    """
    _, stream, context = model.start(ids, mask)
    q: list[Tensor] = []
    found: list[Tensor] = []

    def look(layer: int, k: Tensor) -> Tensor:
        found.append(kernel_weights(model, layer, q[layer], k, parts, context))
        return k

    walk(model.blocks, stream, context, {"q": keeping(q), "k": look}, model.graph.arch.kv_readers_per_head)
    return torch.stack(found)


def kernel_weights(model: MaskedModel, layer: int, q: Tensor, k: Tensor, parts: Tensor, context: Any) -> Tensor:
    """Attention of one layer to sets of tokens: the model's own kernel, run on values that mark them.

    Args:
        model: Of any family, with any attention kernel.
        layer: The layer.
        q: Queries as `Block.heads` gives them, before rotary positions, `[batch, seq, head, c]`.
        k: Keys, likewise.
        parts: Bool or 0/1 `[batch, seq, part]`.
        context: What the family's layers share.

    Returns:
        `[batch, seq, head, part]` in the model's dtype; rows of padding mean nothing.
    """
    width = k.shape[-1]  # of a value: as many parts fit in one run of the kernel
    marks = (pad(some, (0, width - some.shape[-1])) for some in parts.to(q).split(width, -1))
    values = (mark[:, :, None].expand(-1, -1, k.shape[2], -1).contiguous() for mark in marks)
    block = model.blocks[layer]
    return torch.cat([block.attend(q, k, value, context) for value in values], -1)[..., : parts.shape[-1]]
