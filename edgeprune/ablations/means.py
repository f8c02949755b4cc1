"""Values that are the same for every example: nothing, and means over prompts."""

from collections.abc import Iterable
from functools import partial
from typing import final

import torch
from torch import Tensor

from edgeprune.ablations.positions import aligned, from_first_token
from edgeprune.ablations.spec import Source
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates


def zero(model: MaskedModel) -> WriterStates:
    """Every writer silent, `[..., 1, 1, ...]`. The bias of an attention output has no owner and stays."""
    arch, (heads, head_dim, width) = model.graph.arch, model.head_shape
    new_zeros = partial(torch.zeros, dtype=model.dtype, device=model.device)
    return WriterStates(
        embeddings=new_zeros(arch.num_embeddings, 1, 1, width),
        heads=new_zeros(arch.num_layers, 1, 1, heads, head_dim),
        mlps=new_zeros(arch.num_layers, 1, 1, width) if arch.has_mlp else None,
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
            instead of one over all tokens, `[..., 1, 1, ...]`. Positions count from a prompt's first token.
        batch_size: Prompts per forward pass; it does not change the result.
    """
    if not len(input_ids):
        raise EdgepruneError("a mean needs at least one prompt, got none")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    sums = _Sums(positional)
    for ids, rows in zip(input_ids.split(batch_size), mask.split(batch_size), strict=True):
        sums.add(model.record(ids, None if attention_mask is None else rows), rows)
    return sums.mean()


def mean_of_pairs(
    model: MaskedModel, batches: Iterable[PairBatch], *, source: Source = "clean", positional: bool = False
) -> WriterStates:
    """Average output of every writer over pairs; neither padding nor how pairs are batched enters it.

    Args:
        model: The model to run.
        batches: The pairs.
        source: Prompts to average over: `"clean"`, `"corrupted"` or `"both"`, each of whose tokens counts once.
        positional: One mean per position, `[..., 1, longest, ...]`, instead of one over all tokens, `[..., 1, 1, ...]`.
            Positions count from the first token of the clean prompt; values of a corrupted prompt of another length
            stand where its alignment puts them.

    Raises:
        EdgepruneError: There are no pairs.
    """
    sums = _Sums(positional)
    for given in batches:
        batch = given.to(model.device)
        if source != "corrupted":
            sums.add(model.record(batch.clean, batch.attention_mask), batch.attention_mask)
        if source != "clean":
            sums.add(*_corrupted(model, batch, positional))
    if sums.total is None:
        raise EdgepruneError("a mean needs at least one training pair, got none")
    longest = int((sums.count > 0).sum())
    return sums.mean().map(lambda field: field[:, :, :longest])


def _corrupted(model: MaskedModel, batch: PairBatch, positional: bool) -> tuple[WriterStates, Tensor]:
    """States of the corrupted prompts and which of their columns count; at the clean positions if `positional`."""
    states = model.record(batch.corrupted, batch.corrupted_mask)
    if batch.alignment is None or not positional:
        return states, batch.corrupted_mask
    return aligned(states, batch.alignment), batch.attention_mask


@final
class _Sums:
    """Sums of states over tokens, in double precision, and the number of tokens."""

    def __init__(self, positional: bool) -> None:
        self.positional = positional
        self.total: WriterStates | None = None
        self.count = torch.zeros(0)
        self.dtype = torch.float32

    def add(self, states: WriterStates, mask: Tensor) -> None:
        """Add the tokens of `states` `[item, batch, seq, ...]` at which `mask` `[batch, seq]` is 1."""
        self.dtype = states.heads.dtype
        if self.positional:
            states, mask = from_first_token(states, mask)
        axes, count = ((1,), mask.sum(0)) if self.positional else ((1, 2), mask.sum().view(1))
        part = states.map(lambda field: _masked_sum(field, mask, axes))
        if self.total is None:
            self.total, self.count = part, count
        else:
            self.total = self.total.combine(partial(_sum, axis=2), part)
            self.count = _sum(self.count, count, axis=0)

    def mean(self) -> WriterStates:
        """The sums over the number of tokens, in the dtype of the states; 0 where there were none."""
        assert self.total is not None
        count = self.count.clamp(min=1).double()
        return self.total.map(lambda field: (field / count.view(1, 1, -1, *[1] * (field.dim() - 3))).to(self.dtype))


def _masked_sum(field: Tensor, mask: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum `[item, batch, seq, ...]` over `axes`, padding left out (not multiplied by 0: it may hold anything)."""
    keep = mask.bool().view(1, *mask.shape, *[1] * (field.dim() - 3))
    return field.masked_fill(~keep, 0).sum(axes, keepdim=True, dtype=torch.float64)


def _sum(left: Tensor, right: Tensor, axis: int) -> Tensor:
    """The sum of two tensors, the shorter of which goes on with zeros along `axis`."""
    longer, shorter = (left, right) if left.shape[axis] >= right.shape[axis] else (right, left)
    total = longer.clone()
    total.narrow(axis, 0, shorter.shape[axis]).add_(shorter)
    return total
