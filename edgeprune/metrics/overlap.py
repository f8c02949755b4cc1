"""How far two circuits have the same edges."""

from torch import Tensor

from edgeprune.errors import EdgepruneError


def edge_overlap(found: Tensor, reference: Tensor, exists: Tensor) -> dict[str, float]:
    """Compare the edges of a circuit with those of a reference.

    With B edges in both, F in `found` and R in `reference`: precision is B/F, recall B/R, jaccard B/(F+R-B)
    and f1 2B/(F+R). Where a denominator is 0, the value is 1 if both circuits are empty (they agree), else 0.

    Args:
        found: Bool `[reader, writer]`, the circuit to judge.
        reference: Bool `[reader, writer]`, what it is held against.
        exists: Bool `[reader, writer]`; entries outside it do not count.

    Returns:
        `precision`, `recall`, `jaccard`, `f1`, and the edge counts `both`, `only_found`, `only_reference`.
    """
    if not found.shape == reference.shape == exists.shape:
        shapes = ", ".join(str(tuple(matrix.shape)) for matrix in (found, reference, exists))
        raise EdgepruneError(f"found, reference and exists must be matrices of one graph, got shapes {shapes}")
    found, reference = found.bool() & exists.bool(), reference.bool() & exists.bool()
    both, in_found, in_reference = (int(edges.sum()) for edges in (found & reference, found, reference))
    empty = float(in_found == in_reference == 0)
    return {
        "precision": both / in_found if in_found else empty,
        "recall": both / in_reference if in_reference else empty,
        "jaccard": both / (in_found + in_reference - both) if in_found or in_reference else empty,
        "f1": 2 * both / (in_found + in_reference) if in_found or in_reference else empty,
        "both": both,
        "only_found": in_found - both,
        "only_reference": in_reference - both,
    }
