"""The roles that tokens of a task's prompts have, as far as the edge graph depends on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError

AT = "@"  # between an edge and its role: `a3.h7->a5.h1.q@S2`
FROM = "<-"  # between the roles of an attention edge: `a5.h1[END<-S2]`


@final
@dataclass(frozen=True)
class RoleSpec:
    """Roles of tokens: every token of every prompt has one of them.

    What the prompts are like says which edges matter to which (`EdgeGraph.dangling`), not which edges there are: specs
    that differ in it alone are equal.

    Attributes:
        names: In the order of the gates' rows.
        sees: For each role the roles of tokens at or before one of its own in some prompt, its own included: what
            attention may take from. Empty: every role sees all.
        scored: Roles with a position at which the logits are scored. Empty: all.
    """

    names: tuple[str, ...]
    sees: tuple[tuple[str, ...], ...] = field(default=(), compare=False)
    scored: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise EdgepruneError(f"roles must be one name or more, each another, got {list(self.names)}")
        if odd := [name for name in self.names if not name or any(mark in name for mark in (AT, "->", FROM))]:
            raise EdgepruneError(f"a role's name must be a text without {AT!r}, '->' and {FROM!r}, got {odd[0]!r}")
        if self.sees and len(self.sees) != len(self.names):
            raise EdgepruneError(f"sees must be of {len(self.names)} roles, as names, got {len(self.sees)}")
        for name in (*self.scored, *(name for seen in self.sees for name in seen)):
            self.index(name)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The number of a role, its row of the gates.

        Raises:
            EdgepruneError: There is none of that name.
        """
        if name not in self.names:
            raise EdgepruneError(f"no role named {name!r}; the roles are {', '.join(self.names)}")
        return self.names.index(name)

    @cached_property
    def sees_matrix(self) -> Tensor:
        """Bool `[role, role]`: whether a token of the first may attend to one of the second; its own always."""
        if not self.sees:
            return torch.ones(len(self), len(self), dtype=torch.bool)
        found = torch.eye(len(self), dtype=torch.bool)
        for row, names in enumerate(self.sees):
            found[row, [self.index(name) for name in names]] = True
        return found

    @cached_property
    def is_scored(self) -> Tensor:
        """Bool `[role]`: whether logits are scored there."""
        scored = self.scored or self.names
        return torch.tensor([name in scored for name in self.names])

    def to_dict(self) -> dict[str, Any]:
        """Plain values that rebuild it."""
        return {
            "names": list(self.names),
            "sees": {name: list(seen) for name, seen in zip(self.names, self.sees, strict=False)},
            "scored": list(self.scored),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild it from `to_dict`."""
        try:
            names, sees = tuple(values["names"]), values["sees"]
            return cls(names, tuple(tuple(sees[name]) for name in names) if sees else (), tuple(values["scored"]))
        except (KeyError, TypeError) as error:
            raise EdgepruneError(f"not the description of roles: {error}") from None
