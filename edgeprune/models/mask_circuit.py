"""A mask on weights as a circuit, so that what judges circuits judges it: all edges, on the weights that are kept."""

from pathlib import Path
from typing import Any

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.models.weight_mask import WeightMask, named_in_header

_OF_THE_FILE = ("sha256", "file", "format", "shapes", "weights_fingerprint", "nodes", "density", "graph")
_OF_ALL_WEIGHTS = "model_fingerprint"  # which the model no longer has once the mask is on it


def mask_circuit(path: str | Path) -> Circuit:
    """The circuit of all edges that names a weight mask; its closed edges carry 0, as closed weights are 0.

    Args:
        path: The mask's file.

    Raises:
        EdgepruneError: It is damaged, or does not say of which graph it is.
    """
    mask = WeightMask.load(path)
    try:
        graph = EdgeGraph.from_dict(mask.header["graph"])
    except (KeyError, TypeError, ValueError):
        raise EdgepruneError(
            f"{path} does not say how its model's edges are counted, which earlier versions left out: give a circuit "
            "that names the mask, or train it again"
        ) from None
    left_out = (*_OF_THE_FILE, _OF_ALL_WEIGHTS)
    about: dict[str, Any] = {key: value for key, value in mask.header.items() if key not in left_out}
    return Circuit(graph, graph.exists, None, {**about, "ablation": "zero", **named_in_header(mask)})
