"""EAP-IG's and MIB's PT (`eap.graph.Graph.to_pt`): a dict of matrices `[writer, reader]`, written by `torch.save`.

Required are `cfg`, `src_nodes`, `dst_nodes`, `edges_scores`, `edges_in_graph` and `nodes_in_graph`; `nodes_scores`,
`neurons_in_graph` and `neurons_scores` may follow. Cells that are no edge may hold anything, such as -inf.
"""

from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.formats.base import Loaded
from edgeprune.formats.eap_ig import (
    AbstractEapIg,
    EapIgFile,
    checked_mapping,
    graph_of,
    holds_of,
    node_names,
    reader_names,
    width_of,
)
from edgeprune.paths import whole_file

_KEYS = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")


@final
class EapIgPt(AbstractEapIg):
    """PT of EAP-IG and MIB."""

    name: ClassVar[str] = "eap-ig-pt"
    suffixes: ClassVar[tuple[str, ...]] = (".pt",)
    holds: ClassVar[str] = "EAP-IG and MIB: graph, scores and membership as matrices"

    def recognises(self, loaded: Loaded) -> bool:
        """A dict with a matrix of scores of edges."""
        return loaded.kind == "torch" and isinstance(loaded.value, dict) and "edges_scores" in loaded.value

    def parse(self, loaded: Loaded) -> EapIgFile:
        """The content of a PT file."""
        value = checked_mapping(loaded, _KEYS)
        graph, width = graph_of(value["cfg"]), width_of(value["cfg"])
        for key, expected in (("src_nodes", node_names(graph)), ("dst_nodes", reader_names(graph))):
            if not isinstance(value[key], list) or value[key] != expected:
                raise EdgepruneError(
                    f"{key!r} is not in the order of EAP-IG's graphs; expected {expected[0]}, {expected[1]}, ..."
                )
        cells, count, nodes_scores = tuple(reversed(graph.shape)), (graph.shape[1],), None
        if "nodes_scores" in value:
            nodes_scores = _tensor(value, "nodes_scores", count).float()
        neurons = _tensor(value, "neurons_in_graph", (*count, width)).bool() if "neurons_in_graph" in value else None
        return EapIgFile(
            graph,
            width,
            _tensor(value, "edges_in_graph", cells).bool().T.contiguous(),
            _tensor(value, "edges_scores", cells).float().T.contiguous(),
            _tensor(value, "nodes_in_graph", count).bool(),
            nodes_scores,
            neurons,
            holds=holds_of(value["cfg"]),
        )

    def save(self, content: EapIgFile, path: Path) -> None:
        """Write a PT file."""
        scores = torch.zeros(content.graph.shape) if content.scores is None else content.scores
        values = {
            "cfg": content.cfg,
            "src_nodes": node_names(content.graph),
            "dst_nodes": reader_names(content.graph),
            "edges_scores": scores.T.contiguous(),
            "edges_in_graph": content.in_graph.T.contiguous(),
            "nodes_in_graph": content.nodes.clone(),
        }
        with whole_file(path) as partial:
            torch.save(values, partial)


def _tensor(value: dict[str, Any], key: str, shape: tuple[int, ...]) -> Tensor:
    tensor = value[key]
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise EdgepruneError(f"{key!r} must be a tensor of shape {shape} for this 'cfg', got {got}")
    return tensor.detach()
