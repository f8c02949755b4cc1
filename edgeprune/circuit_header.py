"""What a circuit's header keeps when other edges are made from its own."""

from collections.abc import Mapping
from typing import Any

# What the header says of these very edges: it does not hold for others that are made from them.
_OF_THE_EDGES = (
    "metrics",
    "random_control",
    "split",
    "reached",
    "num_edges",
    "sparsity",
    "num_dangling",
    "sha256",
    "union",
    "attention",
)


def of_a_part(header: Mapping[str, Any], how: dict[str, Any]) -> dict[str, Any]:
    """The header of edges made from a circuit's: `how` they were, and without what was measured of the old ones."""
    kept = {name: value for name, value in header.items() if name not in _OF_THE_EDGES}
    return {**kept, "derived": [*kept.get("derived", []), how]}
