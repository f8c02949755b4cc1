"""The parts that prompts fall into: a task's position roles, and all other tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.batch import PairBatch

OTHER = "other tokens"


def role_names(batches: Sequence[PairBatch]) -> tuple[str, ...]:
    """Names of all roles, in the task's order."""
    return tuple(dict.fromkeys(name for batch in batches for name in batch.roles))


def role_tokens(span: Tensor | None, place: Tensor, real: Tensor) -> Tensor:
    """Tokens `[batch, seq]` in a span `[batch, 2]`; none where the example, or the whole batch, lacks it."""
    if span is None:
        return torch.zeros_like(real)
    return real & (place >= span[:, :1]) & (place < span[:, 1:])


def parts_of(roles: Sequence[str]) -> tuple[str, ...]:
    """The parts that every prompt falls into: its roles, and all other tokens."""
    return (*roles, OTHER)


def positions_by_part(batch: PairBatch, roles: Sequence[str]) -> Tensor:
    """Positions of each part, bool `[part, batch, seq]`: a partition of the real tokens.

    A token with several roles belongs to the first of them in the order given; one without any to the last part.
    """
    free = batch.attention_mask.bool()
    place = torch.arange(free.shape[1], device=free.device)
    parts: list[Tensor] = []
    for name in roles:
        inside = role_tokens(batch.roles.get(name), place, free)
        parts.append(inside)
        free = free & ~inside
    return torch.stack([*parts, free])
