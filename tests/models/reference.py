"""The masked model, written slowly: every reader's input is summed edge by edge. Used to check the fast one."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgeprune.models.block import Block, Projected
from edgeprune.models.masked import COMPUTED, MaskedModel
from edgeprune.models.places import position_ids
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
    role_of: Tensor | None = None,
    attention_gates: Tensor | None = None,
) -> Tensor:
    """Logits by explicit sums over edges; shares only the leaves with the fast model.

    With `role_of` each token has gates of its own, `[batch, seq, reader, writer]`, looked up one by one, and with
    `attention_gates` keys and values of its own.
    """
    if role_of is not None and gates.ndim > 2:
        gates = torch.stack(
            [
                torch.stack([gates_of(gates, row, len(role_of))[role] for role in roles])
                for row, roles in enumerate(role_of.tolist())
            ]
        )
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
            gate = gates[..., reader, writer]
            gate = gate[..., None] if gates.ndim > 2 else gate
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
        if attention_gates is None or role_of is None:
            values = block.attend(*block.heads(q, k, v), context)
        else:
            empty = block.project(block.norm(sum(other[: graph.first_writer(layer)], bias)))
            values = slow_attention(block, (q, k, v), empty, context, attention_gates, role_of)
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


def slow_attention(
    block: Block, own: Projected, empty: Projected, context: Any, gates: Tensor, role_of: Tensor
) -> Tensor:
    """Attention token by token: each query with keys and values of its own, mixed with those of closed readers."""
    (q, *kv), (_, *closed) = block.heads(*own), block.heads(*empty)
    heads, roles, values = q.shape[2], role_of.tolist(), list[Tensor]()
    gates = gates if gates.ndim == 5 else gates[None]
    for token in range(q.shape[1]):
        rows = [
            torch.stack([gates[row * len(gates) // len(roles), block.layer, :, own[token], key] for key in own])
            for row, own in enumerate(roles)
        ]
        gate = torch.stack(rows)[..., None]
        seen = [
            gate * each_head(part, heads) + (1 - gate) * each_head(other, heads)
            for part, other in zip(kv, closed, strict=True)
        ]
        values.append(block.attend(q, *seen, context)[:, token])
    return torch.stack(values, 1)


def each_head(part: Tensor, heads: int) -> Tensor:
    """K or v of each query head, looked up."""
    return torch.stack([part[:, :, head * part.shape[2] // heads] for head in range(heads)], 2)


def gates_of(gates: Tensor, row: int, batch: int) -> Tensor:
    """Gates `[role, reader, writer]` of example `row`, of all or of one group each."""
    return gates if gates.ndim == 3 else gates[row * len(gates) // batch]


CASTING = ("RMSNorm", "CohereLayerNorm", "Cohere2LayerNorm", "OlmoLayerNorm")  # norms that compute in float32


class Float64Norm(nn.Module):
    """RMSNorm or LayerNorm without the cast to float32 that the library's has: needed to compare in float64."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = getattr(norm, "weight", None)
        self.eps = self.variance_epsilon = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", 1e-5)
        self.unit_offset = "Gemma" in type(norm).__name__
        self.centred = type(norm).__name__.endswith("LayerNorm")

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        gain: Any = 1 if self.weight is None else self.weight + self.unit_offset
        return gain * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Float64Router(nn.Module):
    """Mixtral's router without the cast to float32."""

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.weight, self.top_k = router.weight, router.top_k

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = x.reshape(-1, x.shape[-1]) @ self.weight.T
        best, chosen = torch.topk(logits.exp(), self.top_k)
        return logits, best / best.sum(-1, keepdim=True), chosen


@contextlib.contextmanager
def same_experts(chosen: list[Tensor]) -> Iterator[None]:
    """Choices of experts in here are noted in `chosen`; if it holds some, those are made again.

    Two dtypes may round a token to other experts, and then compute two functions that are not near each other.
    """
    topk, noted = torch.topk, iter(tuple(chosen))
    first = not chosen

    def choose(scores: Tensor, k: int, dim: int = -1) -> tuple[Tensor, Tensor]:
        if not first:
            indices = next(noted)
            return scores.gather(dim, indices), indices
        best, indices = topk(scores, k, dim=dim)
        chosen.append(indices)
        return best, indices

    torch.topk = choose
    try:
        yield
        assert next(noted, None) is None  # all of them were made again
    finally:
        torch.topk = topk


_softmax = torch.nn.functional.softmax


def softmax(scores: Tensor, *arguments: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    """The library's, but scores in float64 stay so: its eager attention would have their softmax in float32."""
    return _softmax(scores, *arguments, dtype=None if scores.dtype == torch.float64 else dtype, **options)


class KeepFloat64(TorchFunctionMode):
    """Float64 stays so where a model asks for float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.to, Tensor.float) and args[0].dtype == torch.float64 and args[1:] in ((), (torch.float32,)):
            return args[0]
        return func(*args, **(kwargs or {}))


def keeping_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the library, in which float64 stays so."""

    @functools.wraps(function)
    def kept(*arguments: Any, **options: Any) -> Any:
        with KeepFloat64():
            return function(*arguments, **options)

    return kept


def in_float64(hf: nn.Module) -> nn.Module:
    """The model in float64 all the way through its norms, rotary positions, attention and routers."""
    torch.nn.functional.softmax = softmax
    file: Any = sys.modules[type(hf).__module__]
    rotate = getattr(file, "apply_rotary_pos_emb", None)
    if rotate is not None and not hasattr(rotate, "__wrapped__"):
        file.apply_rotary_pos_emb = keeping_float64(rotate)
    hf = hf.double()
    for parent in list(hf.modules()):
        if hasattr(parent, "_attn"):  # attention of its own, not one of the library's kernels
            parent._attn = keeping_float64(parent._attn)
        for name, child in parent.named_children():
            if type(child).__name__.endswith(CASTING):
                setattr(parent, name, Float64Norm(child))
            elif type(child).__name__ == "MixtralTopKRouter":
                setattr(parent, name, Float64Router(child))
    return hf
