"""The parts that prompts fall into: a task's position roles, and all other tokens, `REST`.

In a graph with roles every token of every prompt has one: the first of the task's roles that lies on it, else `REST`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph, RoleSpec

REST = "rest"


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
    return (*roles, REST)


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


# -------------------------------------------------------------------- roles of a graph
def role_of(batch: PairBatch, names: Sequence[str]) -> Tensor:
    """The number of each token's role, long `[batch, seq]`, as `MaskedModel.forward` takes it.

    Args:
        batch: Prompts.
        names: Roles of the graph, `REST` last: it has tokens without any other, and padding.
    """
    parts = positions_by_part(batch, names[:-1])
    return torch.where(parts.any(0), parts.long().argmax(0), len(names) - 1)


def roles_in(graph: EdgeGraph, batch: PairBatch) -> Tensor | None:
    """The number of each token's role in a graph with roles, long `[batch, seq]`; None in one without."""
    return None if graph.roles is None else role_of(batch, graph.roles.names)


def observed_roles(batches: Sequence[PairBatch], names: Sequence[str] | None = None) -> RoleSpec:
    """The roles of a task for a graph, and what its prompts say of them: which sees which, and where logits are scored.

    Args:
        batches: Of all prompts that the graph is for.
        names: Some of the task's roles; tokens of others are `REST`. None: all of them.

    Raises:
        EdgepruneError: The prompts have no roles, lack one of those asked for, or one is called `rest`.
    """
    known = role_names(batches)
    names = known if names is None else tuple(names)
    if not names:
        raise EdgepruneError("the task marks no position roles, so edges cannot be told apart by them; give it `roles`")
    if lacking := [name for name in names if name not in known]:
        raise EdgepruneError(f"no prompt has a role {lacking[0]!r}; this task's are {', '.join(known) or 'none'}")
    if REST in names:
        raise EdgepruneError(f"a role of the task is called {REST!r}, the role of tokens without any; rename it")
    names = (*names, REST)
    sees = torch.zeros(len(names), len(names), dtype=torch.bool)
    scored = torch.zeros(len(names), dtype=torch.bool)
    for batch in batches:
        roles, real = role_of(batch, names), batch.attention_mask.bool()
        is_of = torch.nn.functional.one_hot(roles, len(names)).bool() & real[..., None]
        before = is_of.cumsum(1) > 0  # or there
        sees |= torch.einsum("bsq,bsk->qk", is_of.to(torch.float32), before.to(torch.float32)).cpu() > 0
        scored[roles.gather(1, batch.positions)[batch.position_mask].cpu()] = True
    return RoleSpec(
        names,
        tuple(tuple(name for name, seen in zip(names, row, strict=True) if seen) for row in sees.tolist()),
        tuple(name for name, found in zip(names, scored.tolist(), strict=True) if found),
    )
