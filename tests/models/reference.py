"""The masked model, written slowly: every reader's input is summed edge by edge. Used to check the fast one."""

import torch
from torch import Tensor, nn

from edgeprune.models.masked import COMPUTED, MaskedModel, _position_ids
from edgeprune.models.states import FixedOutputs, WriterStates


def writer_outputs(model: MaskedModel, states: WriterStates) -> list[Tensor]:
    """One `[batch, seq, d]` per writer, in column order."""
    outputs = list(states.embeddings)
    for layer in range(model.graph.arch.num_layers):
        weight = model.family.output_weight(layer)
        outputs += [states.heads[layer][:, :, head] @ weight[head] for head in range(len(weight))]
        if states.mlps is not None:
            outputs.append(states.mlps[layer])
    return outputs


def output_bias(model: MaskedModel, layer: int) -> Tensor:
    """What the output projection adds when all its inputs are zero: the bias that no head owns."""
    weight = model.family.output_weight(layer)
    return model.family.attention_output(layer, weight.new_zeros(1, 1, *weight.shape[:2]))


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
    positions = _position_ids(ids, mask)
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

    def head_slice(flat: Tensor, heads: int, head: int) -> Tensor:
        return flat.unflatten(-1, (heads, -1))[..., head, :]

    for layer in range(arch.num_layers):
        first, norm = graph.first_reader(layer), family.attention_norm(layer)
        columns: list[list[Tensor]] = [[], [], []]
        reader = first
        for kind, count in enumerate((arch.num_heads, arch.num_kv_readers, arch.num_kv_readers)):
            heads = arch.num_heads if kind == 0 else arch.num_kv_heads
            for index in range(count):
                flat = family.qkv(layer, norm(read(reader)))[kind]
                columns[kind].append(head_slice(flat, heads, index * heads // count))
                reader += 1
        values = family.attend(layer, *(torch.cat(column, -1) for column in columns), context)
        values = fixed.heads.get(layer, values)
        weight = family.output_weight(layer)
        before = list(own)
        own += [values[:, :, head] @ weight[head] for head in range(arch.num_heads)]
        if arch.has_mlp and arch.parallel_blocks:
            own, new = before, own[len(before) :]
            mlp = fixed.mlps.get(layer, family.mlp(layer, read(reader)))
            own += [*new, mlp]
            bias = bias + output_bias(model, layer)
        else:
            bias = bias + output_bias(model, layer)
            if arch.has_mlp:
                own.append(fixed.mlps.get(layer, family.mlp(layer, read(reader))))
    return family.finish(read(len(graph.readers) - 1))


class Float64Norm(nn.Module):
    """RMSNorm without the cast to float32 that the library's has: needed to compare in float64."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def in_float64(hf: nn.Module) -> nn.Module:
    """The model in float64 all the way through its norms."""
    hf = hf.double()
    for parent in list(hf.modules()):
        for name, child in parent.named_children():
            if hasattr(child, "variance_epsilon"):
                setattr(parent, name, Float64Norm(child))
    return hf
