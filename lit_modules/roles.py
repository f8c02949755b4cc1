"""The roles of a run: found in the pairs of its task, and what is said of circuits that have them."""

from typing import Any

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import RoleSpec
from edgeprune.roles import RoleOption, roles_of_option
from lit_modules.ranks import every_batch

PAIRS = 256  # that are looked at at once
LEARNED_FROM = ("train", "validation")


def roles_of_data(option: RoleOption, data: Any) -> RoleSpec | None:
    """The roles that `model.roles` asks for, from all training and validation pairs: the same on all ranks.

    A run that tests looks at these pairs too, so that its roles are those of the run that learned.

    Args:
        option: See `roles_of_option`.
        data: The data module, if there is one.

    Raises:
        EdgepruneError: There is none, or its prompts do not have the roles.
    """
    if not option:
        return roles_of_option(option, [])
    if data is None:
        raise EdgepruneError("roles are those of a task's prompts: give the trainer a data module")
    collate = data.ordered_dataloader(LEARNED_FROM[0]).collate_fn
    return roles_of_option(
        option, [batch for split in LEARNED_FROM for batch in every_batch(data.pairs(split), collate, PAIRS)]
    )


def union_sparsity(circuit: Circuit, split: str) -> dict[str, float]:
    """What to log of a circuit with roles on a split, beside its own sparsity: its union's; nothing without roles."""
    prefix = "val" if split == "validation" else split
    return {f"{prefix}/union_sparsity": circuit.union().sparsity} if circuit.roles else {}
