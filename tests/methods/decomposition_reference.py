"""Contextual decomposition, written slowly: both parts of every activation are carried, each by its own rule."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgeprune.models.block import Block, NormSpec
from edgeprune.models.masked import MaskedModel


class Parts(NamedTuple):
    """A relevant and an irrelevant part."""

    relevant: Tensor
    irrelevant: Tensor

    @property
    def total(self) -> Tensor:
        return self.relevant + self.irrelevant

    def map(self, function: Callable[[Tensor], Tensor]) -> "Parts":
        return Parts(function(self.relevant), function(self.irrelevant))

    def plus(self, other: "Parts") -> "Parts":
        return Parts(self.relevant + other.relevant, self.irrelevant + other.irrelevant)


def with_bias(parts: Parts, bias: Tensor, sizes: Parts) -> Parts:
    """A bias by sizes; where both are 0 the irrelevant part has it."""
    whole = sizes.relevant.abs() + sizes.irrelevant.abs()
    share = torch.where(whole > 0, sizes.relevant.abs() / whole.clamp(min=1e-300), 0.0)
    return Parts(parts.relevant + share * bias, parts.irrelevant + (1 - share) * bias)


def norm(spec: NormSpec, parts: Parts) -> Parts:
    if spec.eps is None:
        return parts
    eps = spec.eps
    centred = parts.map(lambda x: x - x.mean(-1, keepdim=True)) if spec.centred else parts
    out = centred.map(lambda x: x / (centred.total.pow(2).mean(-1, keepdim=True) + eps) ** 0.5)
    gain = spec.weight if spec.weight is None or not spec.unit_offset else 1 + spec.weight
    out = out if gain is None else out.map(lambda x: x * gain)
    return out if spec.bias is None else with_bias(out, spec.bias, parts)


def spec_of(block: Block, module: nn.Module | None) -> NormSpec:
    return NormSpec(None) if module is None else block.spec_of(module)


def function(step: Callable[[Tensor], Tensor], root: nn.Module, parts: Parts) -> Parts:
    """f(total) - f(irrelevant) and f(irrelevant), with the biases of linear layers inside split."""
    before: dict[nn.Module, Tensor] = {}
    named = [one for one in root.modules() if type(one).__name__ in ("Linear", "Conv1D")]
    linear = [one for one in named if getattr(one, "bias", None) is not None]

    def note(module: Any, args: Any, out: Tensor) -> None:
        before[module] = out - module.bias

    def split(module: Any, args: Any, out: Tensor) -> Tensor:
        own = out - module.bias
        whole = Parts(before[module] - own, own)
        return with_bias(whole, module.bias, whole).irrelevant

    found: list[Tensor] = []
    for hook, inputs in ((note, parts.total), (split, parts.irrelevant)):
        with ExitStack() as stack:
            for module in linear:
                stack.callback(module.register_forward_hook(hook).remove)
            found.append(step(inputs))
    return Parts(found[0] - found[1], found[1])


def attention(model: MaskedModel, block: Block, parts: Parts, context: Any, frozen: bool) -> Parts:
    """What attention adds to the stream."""
    normed = norm(block.input_spec(), parts)
    zero = torch.zeros_like(parts.relevant[:1, :1])
    projected: list[Parts] = []
    for weight, bias in zip(block.qkv_weights(), block.project(zero), strict=True):
        own = normed.map(lambda x, weight=weight: torch.einsum("bsd,hdc->bshc", x, weight))
        projected.append(with_bias(own, bias, own))
    behind = [block.heads(*(getattr(part, name) for part in projected)) for name in ("total", "irrelevant")]
    q, k, v = (Parts(total - irrelevant, irrelevant) for total, irrelevant in zip(*behind, strict=True))
    pattern = (q.total, k.total) if frozen else (q.relevant, k.relevant)
    relevant = block.attend(*pattern, v.relevant, context)
    values = Parts(relevant, block.attend(q.total, k.total, v.total, context) - relevant)
    out = values.map(lambda x: torch.einsum("bshc,hcd->bsd", x, block.projection_weight()))
    bias = block.output_projection(torch.zeros_like(relevant))
    return norm(spec_of(block, block.post_norm), with_bias(out, bias, out))


def streams(
    model: MaskedModel, ids: Tensor, relevant: Tensor, frozen: bool, start: int = 0, stream: Tensor | None = None
) -> Iterator[Parts]:
    """Both parts of the stream before layer `start` and after each layer, then of the logits.

    Args:
        model: The model.
        ids: Clean prompts.
        relevant: The relevant part before layer `start`.
        frozen: The pattern is the model's own.
        start: Layer.
        stream: The stream before it; None: the embeddings' sum.
    """
    _, embedded, context = model.start(ids, None)
    total = embedded if stream is None else stream
    parts = Parts(relevant, total - relevant)
    yield parts
    for block in model.blocks[start:]:
        added = attention(model, block, parts, context, frozen)
        if block.has_mlp:
            inputs = norm(spec_of(block, block.mlp_norm), parts if block.parallel else parts.plus(added))
            mlp = function(block.feed_forward, block.module, inputs)
            added = added.plus(norm(spec_of(block, block.mlp_post_norm), mlp))
        parts = parts.plus(added)
        yield parts
    last = norm(spec_of(model.blocks[-1], model.family.last_norm), parts)
    yield function(model.family.head, model.hf, last)
