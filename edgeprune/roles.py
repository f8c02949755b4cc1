"""The parts that prompts fall into: a task's position roles, and all other tokens, `REST`.

In a graph with roles every token of every prompt has one: the first of the graph's that lies on it, else `REST`.
Or each position is a role of its own, `p0`, `p1`, ..., without `REST`: then all prompts have as many tokens as there
are roles.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph, RoleSpec

REST = "rest"
POSITIONS = "positions"
RoleOption = bool | list[str] | Literal["positions"] | None


def role_names(batches: Sequence[PairBatch]) -> tuple[str, ...]:
    """Names of all roles, in the order in which pairs have them: the task's, or if they were kept in a file by name."""
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
        names: Roles of the graph, `REST` last: it has tokens without any other, and padding. Or all positions.

    Raises:
        EdgepruneError: The roles are positions, and a prompt has another number of tokens.
    """
    if tuple(names) == _position_names(len(names)):
        _check_lengths([batch], len(names))
        return (batch.attention_mask.long().cumsum(1) - 1).clamp(min=0)  # padding does nothing, whatever it is called
    parts = positions_by_part(batch, names[:-1])
    return torch.where(parts.any(0), parts.long().argmax(0), len(names) - 1)


def roles_in(graph: EdgeGraph, batch: PairBatch) -> Tensor | None:
    """The number of each token's role in a graph with roles, long `[batch, seq]`; None in one without."""
    return None if graph.roles is None else role_of(batch, graph.roles.names)


def check_option(option: Any) -> None:
    """Refuse what says no roles: a name alone, or none.

    Raises:
        EdgepruneError: It is neither true nor false, nor names, nor `positions`.
    """
    names = list[Any](option) if isinstance(option, list | tuple) else []
    named = bool(names) and all(isinstance(name, str) for name in names)
    if not (option is None or isinstance(option, bool) or option == POSITIONS or named):
        raise EdgepruneError(f"roles must be true, a list of the task's roles, or {POSITIONS!r}, got {option!r}")


def roles_of_option(option: RoleOption, batches: Sequence[PairBatch]) -> RoleSpec | None:
    """The roles that an option asks for, in the prompts of a task.

    Args:
        option: True: all of the task's roles, in the order of their names. Names: these of them. `"positions"`: every
            position is one, which all prompts have. None or False: no roles.
        batches: Of all prompts that the graph is for.

    Raises:
        EdgepruneError: It is no such option; the prompts lack the roles; or they differ in length.
    """
    check_option(option)
    if option is None or option is False:
        return None
    if option == POSITIONS:
        if not batches:
            raise EdgepruneError("roles are taken from the prompts of a task, and there are none")
        length = int(batches[0].attention_mask[0].sum())
        _check_lengths(batches, length)
        return spec_of(batches, _position_names(length))
    # pairs kept in a file have lost the task's order, so that all roles have that of their names, kept or not
    names = sorted(role_names(batches)) or None
    return observed_roles(batches, names if isinstance(option, bool) else option)


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
    return spec_of(batches, (*names, REST))


def spec_of(batches: Sequence[PairBatch], names: tuple[str, ...]) -> RoleSpec:
    """Roles of these names, `REST` last or positions, with what the prompts say of them."""
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


def _position_names(number: int) -> tuple[str, ...]:
    return tuple(f"p{place}" for place in range(number))


def _check_lengths(batches: Sequence[PairBatch], length: int) -> None:
    """Refuse prompts that do not have `length` tokens."""
    lengths = torch.cat([batch.attention_mask.sum(1).cpu() for batch in batches])
    if (other := lengths[lengths != length]).numel():
        raise EdgepruneError(
            f"roles that are positions need prompts of one length, got {length} and {int(other[0])} tokens; "
            "choose a task whose prompts have one, or its own roles"
        )


def roles_named(names: Sequence[str], batches: Sequence[PairBatch]) -> RoleSpec:
    """The roles of a graph, such as a circuit's, as they lie in other prompts.

    Args:
        names: Of the graph's roles, `REST` last, or all positions.
        batches: Of all prompts.

    Raises:
        EdgepruneError: The prompts lack one, or are not of that length; or the last one is neither.
    """
    if tuple(names) == _position_names(len(names)):
        return spec_of(batches, tuple(names))
    if names[-1] != REST:
        raise EdgepruneError(f"the last role of a graph is {REST!r}, that of other tokens, got {names[-1]!r}")
    return observed_roles(batches, names[:-1])
