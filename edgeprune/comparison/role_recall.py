"""How much of a published circuit a found one has: by role, by node, by edge."""

from typing import Any

from edgeprune.canonical import CanonicalCircuit
from edgeprune.circuit import Circuit
from edgeprune.comparison.overlap import edge_overlap


def role_recall(circuit: Circuit, known: CanonicalCircuit) -> dict[str, Any]:
    """Which roles of a published circuit were found.

    A node is found when a kept edge leaves or enters it that is not dangling (that lies on a path of kept edges from an
    embedding to the logits). A role is found when at least one of its nodes is; it is complete when all are.

    Args:
        circuit: The circuit to judge.
        known: The published one, of the same model.

    Returns:
        `roles`: for each role `found` and `complete` (whether), `nodes_found`, `nodes_missed` (names) and `recall`
        (share of its nodes). `num_roles`, `roles_found`, `roles_complete`; `summary`, such as "5 of 5 component types".
        `node_recall`: share of all nodes with a role. `edges`: `edge_overlap` of all kept edges with the published
        ones, on the circuit's graph; `edges_not_dangling`: that of the kept edges that are not dangling.

    Raises:
        EdgepruneError: The circuit's graph is of another shape than the model's.
    """
    truth, graph = known.circuit(circuit.graph), circuit.graph
    useful = Circuit(graph, circuit.keep & ~graph.dangling(circuit.keep))
    present = set(useful.nodes())
    roles = {name: _role(members, present) for name, members in known.roles.items()}
    found = sum(role["found"] for role in roles.values())
    named = [node for members in known.roles.values() for node in members]
    return {
        "roles": roles,
        "num_roles": len(roles),
        "roles_found": found,
        "roles_complete": sum(role["complete"] for role in roles.values()),
        "summary": f"{found} of {len(roles)} component types",
        "node_recall": len(present.intersection(named)) / len(named),
        "edges": edge_overlap(circuit.keep, truth.keep, graph.exists),
        "edges_not_dangling": edge_overlap(useful.keep, truth.keep, graph.exists),
    }


def _role(members: tuple[str, ...], present: set[str]) -> dict[str, Any]:
    found = [node for node in members if node in present]
    return {
        "found": bool(found),
        "complete": len(found) == len(members),
        "nodes_found": found,
        "nodes_missed": [node for node in members if node not in present],
        "recall": len(found) / len(members),
    }
