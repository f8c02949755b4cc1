"""The masked model, written slowly: every reader's input is summed edge by edge. Used to check the fast one."""

from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.models.block import Block
from edgeprune.models.masked import COMPUTED, MaskedModel, position_ids
from edgeprune.models.states import FixedOutputs, WriterStates


def writer_outputs(model: MaskedModel, states: WriterStates) -> list[Tensor]:
    """One `[batch, seq, d]` per writer, in column order."""
    outputs = list(states.embeddings)
    for layer, block in enumerate(model.blocks):
        weight = block.output_weight()
        outputs += [states.heads[layer][:, :, head] @ weight[head] for head in range(len(weight))]
        if states.mlps is not None:
            outputs.append(states.mlps[layer])
    return outputs


def output_bias(block: Block) -> Tensor:
    """What the output projection adds when all its inputs are zero: the bias that no head owns."""
    weight = block.projection_weight()
    return block.output_projection(weight.new_zeros(1, 1, *weight.shape[:2]))


def head_outputs(block: Block, values: Tensor) -> list[Tensor]:
    """What each head writes, `[batch, seq, d]`, from attention-weighted values: `w s(o) o_h` with o the sum of all o_h.

    The norm behind the attention in plain numbers: w its gain, s(o) = (mean of o squared + eps)^(-1/2). Without one,
    w = s = 1.
    """
    weight = block.projection_weight()
    raw = [values[:, :, head] @ weight[head] for head in range(len(weight))]
    if block.post_norm is None:
        return raw
    norm = block.spec_of(block.post_norm)
    assert norm.weight is not None
    assert norm.eps is not None
    gain = norm.weight + 1 if norm.unit_offset else norm.weight
    scale = (sum(raw[1:], raw[0]).pow(2).mean(-1, keepdim=True) + norm.eps) ** -0.5
    return [gain * scale * own for own in raw]


def slow_logits(
    model: MaskedModel,
    ids: Tensor,
    gates: Tensor,
    ablated: WriterStates,
    mask: Tensor | None = None,
    fixed: FixedOutputs = COMPUTED,
    relative: bool = False,
) -> Tensor:
    """Logits by explicit sums over edges; shares only the leaves with the fast model."""
    graph, arch, family = model.graph, model.graph.arch, model.family
    positions = position_ids(ids, mask)
    parts = family.embed(ids, positions)
    own = list(parts) if arch.split_embedding else [sum(parts[1:], parts[0])]
    own = own if fixed.embeddings is None else list(fixed.embeddings)
    context = family.context(own[0], mask, positions)
    other = writer_outputs(model, ablated)
    bias = torch.zeros_like(own[0])

    def read(reader: int) -> Tensor:
        total = bias.clone()
        for writer in range(graph.num_visible[reader]):
            gate = gates[reader, writer]
            closed = own[writer] + other[writer] if relative else other[writer]
            total = total + gate * own[writer] + (1 - gate) * closed
        return total

    reader = 0
    for layer, block in enumerate(model.blocks):
        columns: list[list[Tensor]] = [[], [], []]
        for kind, count in enumerate((arch.num_heads, arch.num_kv_readers, arch.num_kv_readers)):
            heads = arch.num_heads if kind == 0 else arch.num_kv_heads
            for index in range(count):
                projected = block.project(block.norm(read(reader)))[kind]
                columns[kind].append(projected[:, :, index * heads // count])
                reader += 1
        q, k, v = (torch.stack(column, 2) for column in columns)
        values = block.attend(*block.heads(q, k, v), context)
        if layer in fixed.heads:
            weight = block.output_weight()
            written = [fixed.heads[layer][:, :, head] @ weight[head] for head in range(len(weight))]
        else:
            written = head_outputs(block, values)
        sees_heads = arch.has_mlp and not arch.parallel_blocks
        own += written if sees_heads or not arch.has_mlp else []
        bias = bias + output_bias(block) if sees_heads or not arch.has_mlp else bias
        if arch.has_mlp:
            mlp = fixed.mlps.get(layer, block.mlp(read(reader)))
            reader += 1
            own += [mlp] if sees_heads else [*written, mlp]
            bias = bias if sees_heads else bias + output_bias(block)
    return family.finish(read(reader))


class Float64Norm(nn.Module):
    """RMSNorm without the cast to float32 that the library's has: needed to compare in float64."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = self.variance_epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        self.unit_offset = type(norm).__name__.startswith("Gemma")

    def forward(self, x: Tensor) -> Tensor:
        gain = 1 + self.weight if self.unit_offset else self.weight
        return gain * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Float64LayerNorm(nn.Module):
    """LayerNorm without weights, and without the cast to float32 that OLMo's has."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5)


_softmax = torch.nn.functional.softmax


def softmax(scores: Tensor, *arguments: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    """The library's, but scores in float64 stay so: its eager attention would have their softmax in float32."""
    return _softmax(scores, *arguments, dtype=None if scores.dtype == torch.float64 else dtype, **options)


def in_float64(hf: nn.Module) -> nn.Module:
    """The model in float64 all the way through its norms and its attention."""
    torch.nn.functional.softmax = softmax
    hf = hf.double()
    for parent in list(hf.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, Float64Norm(child))
            elif type(child).__name__ == "OlmoLayerNorm":
                setattr(parent, name, Float64LayerNorm())
    return hf
