"""What a circuit with roles needs beside one without: how it is refused, and scores of its union."""

from typing import Any

from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph

_REMEDY = "take its union: `Circuit.union`"


def require_none(graph: EdgeGraph, what: str) -> None:
    """Refuse the graph of a circuit with roles where `what` is done."""
    if graph.roles is not None:
        raise EdgepruneError(f"{what} takes circuits without roles, this one has {_names(graph)}; {_REMEDY}")


def check_same(ours: EdgeGraph, theirs: EdgeGraph, what: str) -> None:
    """Refuse a graph `theirs`, that of `what`, which is another than a circuit's own, naming the first difference."""
    if ours == theirs:
        return
    if ours.roles != theirs.roles:
        if theirs.roles is None:
            remedy = _REMEDY
        elif ours.roles is None:
            remedy = "give it these: `Circuit.with_roles`"
        else:
            remedy = "compare unions, `Circuit.union`, or take the roles in the circuit's header"
        raise EdgepruneError(f"the circuit has {_names(ours)}, {what} has {_names(theirs)}; {remedy}")
    own, other = ours.to_dict(), theirs.to_dict()
    name = next(key for key in own if own[key] != other[key])
    raise EdgepruneError(
        f"the circuit was made for a graph with {name}={own[name]!r}, {what} has {other[name]!r}; "
        "use the model and conventions in the circuit's header"
    )


def best(scores: Tensor | None, ranking: Tensor) -> Tensor | None:
    """For each edge the score of the role whose `ranking` `[role, reader, writer]` is highest, `[reader, writer]`."""
    return None if scores is None else scores.gather(0, ranking.argmax(0, keepdim=True))[0]


def size_of_union(graph: EdgeGraph, keep: Tensor) -> dict[str, Any]:
    """What the header says of the union of `keep` `[role, reader, writer]`; nothing without roles."""
    if graph.roles is None:
        return {}
    kept, existing = int(keep.any(0).sum()), graph.with_roles(None).num_edges
    return {"union": {"num_edges": kept, "sparsity": 1 - kept / existing}}


def _names(graph: EdgeGraph) -> str:
    return "no roles" if graph.roles is None else f"the roles {', '.join(graph.roles.names)}"
