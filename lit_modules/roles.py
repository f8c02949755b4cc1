"""The roles of a run: found in the pairs of its task, and what is said of circuits that have them."""

from typing import TYPE_CHECKING, Any

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import RoleSpec
from edgeprune.roles import RoleOption, roles_of_option
from lit_modules.ranks import every_batch

if TYPE_CHECKING:
    from edgeprune.methods import AbstractRecipe

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


def sparsities_at_roles(circuit: Circuit, split: str) -> dict[str, float]:
    """What to log of a circuit with roles on a split, beside its own sparsity: its union's; nothing without roles.

    And that of its attention edges, if it has any of its own.
    """
    prefix = "val" if split == "validation" else split
    found = {f"{prefix}/union_sparsity": circuit.union().sparsity} if circuit.roles else {}
    if circuit.attend is not None:
        found[f"{prefix}/attention_sparsity"] = 1 - int(circuit.attend.sum()) / circuit.graph.attention.num_edges
    return found


def check_attention(recipe: "AbstractRecipe", roles: RoleOption, complement_weight: float) -> None:
    """Refuse a recipe that learns attention edges in a run that cannot.

    Raises:
        EdgepruneError: It has no roles, or a loss of the complement.
    """
    if not getattr(recipe, "attention_edges", False):
        return
    if not roles:
        raise EdgepruneError("attention edges lead from role to role: set model.roles, or leave attention_edges out")
    if complement_weight:
        raise EdgepruneError(
            f"complement_weight {complement_weight} is of edges alone: leave it out, or attention_edges"
        )


def refuse_attention(recipe: "AbstractRecipe", what: str) -> None:
    """Refuse a recipe that learns attention edges where a callback cannot take its circuits.

    Raises:
        EdgepruneError: It does.
    """
    if getattr(recipe, "attention_edges", False):
        raise EdgepruneError(f"{what} takes circuits without attention edges: leave it out, or attention_edges")
