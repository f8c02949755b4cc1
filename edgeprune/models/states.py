"""What every writer puts on the residual stream in one run: the values that closed edges carry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


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

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply `function` to every field."""
        mlps = None if self.mlps is None else function(self.mlps)
        return type(self)(embeddings=function(self.embeddings), heads=function(self.heads), mlps=mlps)

    def to(self, device: torch.device | str) -> Self:
        """Move every field to `device`."""
        return self.map(lambda field: field.to(device))
