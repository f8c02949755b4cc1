"""Where tokens are: positions that prompts begin to count from, and rows of batches that are laid out flat."""

import torch
from torch import Tensor


def rows_of(positions: Tensor, seq: int) -> Tensor:
    """Positions `[batch, n]` as rows of `[batch * seq, ...]`, long `[batch * n]`."""
    return (torch.arange(len(positions), device=positions.device)[:, None] * seq + positions).flatten()


def position_ids(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Positions `[1 or batch, seq]` from the first real token on, whatever the padding, which has those of the ends."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    if attention_mask is None:
        return positions
    mask = attention_mask.to(torch.long)
    first, behind = mask.argmax(1, keepdim=True), mask.flip(1).argmax(1, keepdim=True)
    return positions.clamp(first, positions[:, -1:] - behind) - first
