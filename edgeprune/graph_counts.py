"""Edges of one architecture under each way to count that is in use."""

from typing import Literal

from edgeprune.graph_arch import ArchSpec


def counts(arch: ArchSpec) -> dict[str, int]:
    """Edges without roles, by convention."""
    direct = 3 * arch.num_layers * arch.num_heads
    return {
        "one embedding writer (EAP-IG, MIB, auto-circuit, DiscoGP)": _count(arch, 1, "head"),
        "one embedding writer, k and v readers per key/value head": _count(arch, 1, "group"),
        "token and position embedding apart (Edge Pruning with embedding nodes)": _count(arch, 2, "head"),
        "embeddings are no writers (Edge Pruning without embedding nodes)": _count(arch, 0, "head"),
        "one embedding writer + 3 direct edges per head (ACDC)": _count(arch, 1, "head") + direct,
        "token and position embedding apart + 3 direct edges per head (ACDC)": _count(arch, 2, "head") + direct,
        "one embedding writer, q, k and v of a head read as one": _count(arch, 1, "none"),
    }


def _count(arch: ArchSpec, num_embeddings: int, readers: Literal["head", "group", "none"]) -> int:
    """Closed form of the edge count, written independently of `EdgeGraph.exists`."""
    per_layer, heads = arch.writers_per_layer, arch.num_heads
    attention = {"head": 3 * heads, "group": heads + 2 * arch.num_kv_heads, "none": heads}[readers]
    seen = sum(num_embeddings + layer * per_layer for layer in range(arch.num_layers))
    own_mlp = arch.num_layers * heads if arch.has_mlp and not arch.parallel_blocks else 0
    return (attention + arch.has_mlp) * seen + own_mlp + num_embeddings + arch.num_layers * per_layer
