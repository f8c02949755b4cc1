"""What closed edges carry besides the corrupted run (`model.record(corrupted_ids)`, called interchange ablation)."""

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates


def zero(model: MaskedModel) -> WriterStates:
    """Every writer silent, `[..., 1, 1, ...]`. The bias of an attention output has no owner and stays."""
    arch, weight = model.graph.arch, model.family.output_weight(0)
    heads, head_dim, width = weight.shape
    return WriterStates(
        embeddings=weight.new_zeros(arch.num_embeddings, 1, 1, width),
        heads=weight.new_zeros(arch.num_layers, 1, 1, heads, head_dim),
        mlps=weight.new_zeros(arch.num_layers, 1, 1, width) if arch.has_mlp else None,
    )


def mean(
    model: MaskedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    positional: bool = False,
    batch_size: int = 32,
) -> WriterStates:
    """Average output of every writer over prompts `[num_prompts, seq]`; padding never enters it.

    Args:
        model: The model to run.
        input_ids: Prompts to average over.
        attention_mask: 1 for a token, 0 for padding, same shape.
        positional: One mean per position, `[..., 1, seq, ...]` (a position that is padding in every prompt gets 0),
            instead of one over all tokens, `[..., 1, 1, ...]`.
        batch_size: Prompts per forward pass; it does not change the result.
    """
    if not len(input_ids):
        raise EdgepruneError("a mean needs at least one prompt, got none")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    axes = (1,) if positional else (1, 2)
    total: WriterStates | None = None
    for ids, rows in zip(input_ids.split(batch_size), mask.split(batch_size), strict=True):
        states = model.record(ids, None if attention_mask is None else rows)
        part = states.map(lambda field, rows=rows: _masked_sum(field, rows, axes))
        total = part if total is None else _add(total, part)
    assert total is not None
    count = mask.sum(0).clamp(min=1) if positional else mask.sum()
    return total.map(lambda field: field / count.to(field).view(1, 1, -1, *[1] * (field.dim() - 3)))


def _masked_sum(field: Tensor, mask: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum `[item, batch, seq, ...]` over `axes`, padding left out (not multiplied by 0: it may hold anything)."""
    keep = mask.bool().view(1, *mask.shape, *[1] * (field.dim() - 3))
    return field.masked_fill(~keep, 0).sum(axes, keepdim=True)


def _add(left: WriterStates, right: WriterStates) -> WriterStates:
    mlps = None if left.mlps is None or right.mlps is None else left.mlps + right.mlps
    return WriterStates(embeddings=left.embeddings + right.embeddings, heads=left.heads + right.heads, mlps=mlps)
