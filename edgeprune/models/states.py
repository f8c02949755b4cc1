"""What every writer puts on the residual stream in one run: the values that closed edges carry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError


@dataclass(frozen=True, kw_only=True)
class WriterStates:
    """Outputs of all writers, heads before their output projection (the projection is linear, and `head_dim` is small).

    Batch and sequence may be 1 in any field: such a field is the same for every example or position.

    Attributes:
        embeddings: `[num_embeddings, batch, seq, d_model]`.
        heads: Attention-weighted values of each head, `[layer, batch, seq, head, head_dim]`.
        mlps: `[layer, batch, seq, d_model]`; None for attention-only models.
    """

    embeddings: Tensor
    heads: Tensor
    mlps: Tensor | None

    def check_fits(self, input_ids: Tensor) -> None:
        """Refuse states of other prompts than `input_ids` `[batch, seq]`."""
        fits = self.heads.shape[1:3]
        if any(have not in (1, want) for have, want in zip(fits, input_ids.shape, strict=True)):
            raise EdgepruneError(
                f"ablated states are for [batch, seq] = {tuple(fits)}, the prompts have {tuple(input_ids.shape)}: "
                "record the corrupted prompts of the same batch, padded alike"
            )

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply `function` to every field."""
        return self.combine(function)

    def combine(self, function: Callable[..., Tensor], *others: Self) -> Self:
        """Apply `function` to every field and the same fields of `others`."""
        mlps = [states.mlps for states in (self, *others)]
        return type(self)(
            embeddings=function(self.embeddings, *(other.embeddings for other in others)),
            heads=function(self.heads, *(other.heads for other in others)),
            mlps=None if any(part is None for part in mlps) else function(*mlps),
        )

    def minus(self, other: Self) -> Self:
        """The difference, field by field; fields that are shared by all examples or positions are expanded."""
        return self.combine(torch.sub, other)

    def to(self, device: torch.device | str) -> Self:
        """Move every field to `device`."""
        return self.map(lambda field: field.to(device))


@dataclass(frozen=True, kw_only=True)
class FixedOutputs:
    """Outputs of some groups of writers that a run takes as given instead of computing them. No gradient passes them.

    Attributes:
        embeddings: `[num_embeddings, batch, seq, d_model]`; None: computed.
        heads: All heads of a layer together, before their output projection, `[batch, seq, head, head_dim]`, by layer.
        mlps: `[batch, seq, d_model]`, by layer.
    """

    embeddings: Tensor | None = None
    heads: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])
    mlps: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])
