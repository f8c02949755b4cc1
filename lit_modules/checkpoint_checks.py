"""Whether a checkpoint fits the run that is to go on from it."""

from typing import Any

from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.methods import AbstractRecipe
from edgeprune.models.loading import fingerprint
from edgeprune.models.masked import MaskedModel


def check_checkpoint(checkpoint: dict[str, Any], recipe: AbstractRecipe, model: MaskedModel, name: str) -> None:
    """Refuse a checkpoint of another model, which is called `name`, or of another recipe.

    Raises:
        EdgepruneError: The graphs, the models' weights or the recipes' parameters differ.
    """
    saved = checkpoint.get("edgeprune")
    if saved is None:
        raise EdgepruneError("this checkpoint is not one of edgeprune: it holds no masks")
    graph = EdgeGraph.from_dict(saved["graph"])
    if graph.roles != recipe.graph.roles:
        theirs, ours = (None if roles is None else list(roles.names) for roles in (graph.roles, recipe.graph.roles))
        raise EdgepruneError(
            f"the checkpoint's masks are for roles {theirs}, this run has {ours}: set model.roles back"
        )
    if graph != recipe.graph:
        raise EdgepruneError(
            f"the checkpoint's masks are for a graph of {saved['graph']}, this model has {recipe.graph.to_dict()}"
        )
    theirs, ours = saved["header"]["model_fingerprint"], fingerprint(model)
    if theirs != ours:
        raise EdgepruneError(
            f"the checkpoint belongs to model {saved['header']['model']!r} (fingerprint {theirs}), not to "
            f"{name!r} ({ours}): same shape, other weights"
        )
    want = {f"recipe.{name}" for name in recipe.state_dict()}
    have = set(checkpoint["state_dict"])
    if want != have:
        raise EdgepruneError(
            f"the checkpoint does not fit this recipe: missing {sorted(want - have)}, unknown {sorted(have - want)}"
        )
    theirs, ours = (about.get("attention_edges") for about in (saved["header"], recipe.describe()))
    if theirs != ours:  # the same keys, but not all of them are trained
        raise EdgepruneError(f"attention_edges is {ours}, the checkpoint is of a run with {theirs}: set it back")


def check_start(checkpoint: dict[str, Any], recipe: AbstractRecipe) -> None:
    """Refuse to go on with gates whose start is not the one that the recipe asks for.

    Raises:
        EdgepruneError: A setting of the start differs; it would have no effect.
    """
    theirs, ours = _start(checkpoint["edgeprune"]["header"]), _start(recipe.describe())
    for key in dict.fromkeys([*ours, *theirs]):
        if theirs.get(key) != ours.get(key):
            raise EdgepruneError(
                f"{key} is {ours.get(key)}, but the run to go on with began with {theirs.get(key)}, and gates that "
                "are under way do not start again: set it back, or leave --ckpt_path out for a new run"
            )


def _start(about: dict[str, Any]) -> dict[str, Any]:
    """Of a recipe's description, what says where gates begin."""
    warm = {f"warm_start.{key}": value for key, value in about.get("warm_start", {}).items() if key != "sha256"}
    return {key: about[key] for key in ("init", "init_mean", "init_std") if key in about} | warm
