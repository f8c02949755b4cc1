"""Which gates a token of a run has: tokens fall into groups, and a stack holds the tokens of one group side by side.

Without roles the groups are of equal size and lie one after the other as they are: parts of the batch, or single tokens
(`MaskedModel.forward`). With roles a group is what has one role, in the whole batch or in a part of it, wherever it
lies and however many tokens it is. A stack's columns are then sorted by group, once per run, so that each group is one
run of columns, and each read one product per group; everything else of the model sees tokens in their own order.
Shapes: T tokens (batch x seq), G groups.
"""

from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph


@final
@dataclass(frozen=True, eq=False)
class TokenGroups:
    """Groups of T tokens, and the order of a stack's columns.

    Attributes:
        sizes: Tokens of each group, as columns lie; None: all have the same number.
        tokens: The token of each column, long `[T]`; None: columns are tokens as they are.
        columns: The column of each token, long `[T]`.
        group_of: The group of each token, long `[T]`; None: there are no roles.
    """

    sizes: tuple[int, ...] | None = None
    tokens: Tensor | None = None
    columns: Tensor | None = None
    group_of: Tensor | None = None

    @classmethod
    def sorted(cls, group_of: Tensor, num_groups: int) -> tuple[Self, list[int]]:
        """Groups of tokens that lie anywhere.

        Args:
            group_of: The group of each token, long `[T]`.
            num_groups: How many there may be.

        Returns:
            Those that have a token, and which of all they are.
        """
        counts = group_of.bincount(minlength=num_groups).tolist()
        present = [group for group, count in enumerate(counts) if count]
        if len(present) == 1:
            return cls(), present
        sizes = tuple(counts[group] for group in present)
        if len(present) < num_groups:
            group_of = torch.searchsorted(torch.tensor(present, device=group_of.device), group_of)
        tokens = group_of.argsort(stable=True)
        columns = torch.empty_like(tokens)
        columns[tokens] = torch.arange(len(tokens), device=tokens.device)
        return cls(None if len(set(sizes)) == 1 else sizes, tokens, columns, group_of), present

    def sort(self, values: Tensor) -> Tensor:
        """Values of tokens `[T, ...]` as columns lie."""
        return values if self.tokens is None else _Rearrange.apply(values, self.tokens, self.columns)

    def unsort(self, values: Tensor) -> Tensor:
        """Values of columns `[T, ...]` as tokens lie."""
        return values if self.tokens is None else _Rearrange.apply(values, self.columns, self.tokens)

    def at(self, tokens: Tensor, closed: Tensor, num_tokens: int) -> "tuple[TokenGroups, Tensor, Tensor]":
        """Some tokens alone, in the order of their groups.

        Args:
            tokens: Which, long `[P]`; without roles as many of each group, in the order of groups.
            closed: 1 - gates, `[G, ...]`.
            num_tokens: T.

        Returns:
            Groups of these P tokens; their columns in this order, long `[P]`; `closed` of the groups that they are of.
        """
        if self.group_of is None or self.columns is None:
            return self, tokens, closed[tokens] if len(closed) == num_tokens else closed
        own, present = self.sorted(self.group_of[tokens], len(closed))
        return own, own.sort(self.columns[tokens]), closed[present]


ALIKE = TokenGroups()  # of equal size, as they lie


@final
class _Rearrange(torch.autograd.Function):
    """Rows `[T, ...]` in another order; the backward is the same again, not a sum over rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return values.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


def groups_of(gates: Tensor, role_of: Tensor | None, input_ids: Tensor) -> tuple[TokenGroups, list[int] | None]:
    """The groups of a run, and which matrices of `gates` they are of; None: all of them.

    Args:
        gates: As in `MaskedModel.forward`.
        role_of: Likewise.
        input_ids: Long `[batch, seq]`.
    """
    if role_of is None:
        return ALIKE, None
    num_roles, batch, role_of = gates.shape[-3], len(input_ids), role_of.to(input_ids.device)
    parts = len(gates) if gates.ndim == 4 else 1
    part = torch.arange(batch, device=role_of.device) // (batch // parts)
    groups, present = TokenGroups.sorted((part[:, None] * num_roles + role_of).flatten(), parts * num_roles)
    return groups, None if len(present) == parts * num_roles else present


def check_gates(gates: Tensor, role_of: Tensor | None, input_ids: Tensor, graph: EdgeGraph) -> None:
    """Refuse gates that do not fit a run.

    Args:
        gates: As in `MaskedModel.forward`.
        role_of: Likewise.
        input_ids: Long `[batch, seq]`.
        graph: Of the model; gates without roles fit one with roles too.

    Raises:
        EdgepruneError: They have another shape, or name roles that there are no gates for.
    """
    by_role, shape = role_of is not None, graph.without_roles.shape
    if graph.roles is not None and not by_role and gates.ndim == 3:
        raise EdgepruneError(f"gates of shape {tuple(gates.shape)} are those of roles here: give role_of with them")
    if tuple(gates.shape[-2:]) != shape or gates.ndim not in ((3, 4) if by_role else (2, 3, 4)):
        wanted = "[role, reader, writer], the last two" if by_role else "[reader, writer]"
        raise EdgepruneError(f"gates have shape {tuple(gates.shape)}, this model's graph needs {wanted} = {shape}")
    if gates.ndim == 3 + by_role and (not len(gates) or len(input_ids) % len(gates)):
        raise EdgepruneError(f"{len(input_ids)} examples do not fall into {len(gates)} groups of equal size")
    if role_of is None:
        if gates.ndim == 4 and gates.shape[:2] != input_ids.shape:
            raise EdgepruneError(
                f"gates of single tokens are for [batch, seq] = {tuple(gates.shape[:2])}, the prompts have "
                f"{tuple(input_ids.shape)}"
            )
    else:
        check_roles(role_of, gates.shape[-3], input_ids)


def check_roles(role_of: Tensor, num_roles: int, input_ids: Tensor) -> None:
    """Refuse numbers of roles, `[batch, seq]`, that are not of the prompts `input_ids`, or of `num_roles` roles.

    Raises:
        EdgepruneError: They have another shape or dtype, or name roles that there are no gates for.
    """
    if role_of.shape != input_ids.shape or role_of.is_floating_point():
        raise EdgepruneError(
            f"role_of must say the number of each token's role, [batch, seq] = {tuple(input_ids.shape)}, got "
            f"{role_of.dtype} of shape {tuple(role_of.shape)}"
        )
    if (highest := int(role_of.max())) >= num_roles or int(role_of.min()) < 0:
        raise EdgepruneError(
            f"role_of must be 0 to {num_roles - 1}, the roles that gates are for, got {int(role_of.min())} to {highest}"
        )
