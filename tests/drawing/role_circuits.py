"""Small circuits with roles to draw: what sees what is not all, one role is never kept, one is scored."""

import torch

from edgeprune.circuit import Circuit
from edgeprune.graph import ArchSpec, EdgeGraph, RoleSpec

NAMES = ("IO", "S1", "S2", "END", "rest")
ROLES = RoleSpec(NAMES, (("IO", "rest"), ("IO", "S1"), ("IO", "S1", "S2"), NAMES, ("rest",)), ("END",))
PLAIN = EdgeGraph(ArchSpec(num_layers=4, num_heads=4, num_kv_heads=2))
GRAPH = PLAIN.with_roles(ROLES)


def role_circuit(num_edges: int = 120, seed: int = 0) -> Circuit:
    """Random edges, none of them at `S1`."""
    scores = torch.rand(GRAPH.shape, generator=torch.Generator().manual_seed(seed))
    scores[1] = -1
    return Circuit.from_scores(GRAPH, scores, num_edges=num_edges, header={"model": "m", "metrics": {"kl": 0.5}})


def from_edges(*edges: str) -> Circuit:
    """The named edges."""
    return Circuit.from_edges(GRAPH, edges)
