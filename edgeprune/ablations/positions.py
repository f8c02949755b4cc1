"""States moved between positions: from corrupted prompts to clean ones, and past padding on the left; rows merged."""

import torch
from torch import Tensor

from edgeprune.models.states import WriterStates


def aligned(states: WriterStates, alignment: Tensor) -> WriterStates:
    """States `[item, batch, other_seq, ...]` taken at `alignment`, long `[batch, seq]`."""
    rows = torch.arange(len(alignment), device=alignment.device)[:, None]
    return states.map(lambda field: field[:, rows, alignment])


def from_first_token(states: WriterStates, mask: Tensor) -> tuple[WriterStates, Tensor]:
    """States `[item, batch, seq, ...]` and their mask with every row shifted so that its first token comes first."""
    if mask[:, 0].all():
        return states, mask
    columns = torch.arange(mask.shape[1], device=mask.device) + mask.long().argmax(1, keepdim=True)
    inside, columns = columns < mask.shape[1], columns.clamp(max=mask.shape[1] - 1)
    return aligned(states, columns), mask.gather(1, columns) * inside


def merged(read: Tensor, run: Tensor, places: Tensor, axis: int) -> Tensor:
    """Two parts along `axis`, put in order: `places` long `[n]` counts in the first, then in the second."""
    return torch.cat([read, run], axis).index_select(axis, places)
