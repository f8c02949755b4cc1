"""EAP-IG's and MIB's JSON (`eap.graph.Graph.to_json`).

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"a0.h0": {"in_graph", ["score"], ["neurons"], ["neurons_scores"]}, ...},
     "edges": {"input->a0.h0<q>": {"score", "in_graph"}, ...}}

Numbers are written so that float32 scores come back bit for bit. An edge that a file leaves out is not in its graph.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.formats.base import Loaded, is_number
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
from edgeprune.graph import EdgeGraph
from edgeprune.paths import write_whole_text

_KEYS = ("cfg", "nodes", "edges")


@final
class EapIgJson(AbstractEapIg):
    """JSON of EAP-IG and MIB."""

    name: ClassVar[str] = "eap-ig-json"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    holds: ClassVar[str] = "EAP-IG and MIB: graph, scores and membership by name"

    def recognises(self, loaded: Loaded) -> bool:
        """A JSON object with edges and nodes."""
        return loaded.kind == "json" and isinstance(loaded.value, dict) and "cfg" in loaded.value

    def parse(self, loaded: Loaded) -> EapIgFile:
        """The content of a JSON file."""
        value = checked_mapping(loaded, _KEYS)
        graph, width = graph_of(value["cfg"]), width_of(value["cfg"])
        in_graph, scores = _parse_edges(value["edges"], graph)
        nodes = _parse_nodes(value["nodes"], graph)
        return EapIgFile(
            graph,
            width,
            in_graph,
            scores,
            torch.tensor([bool(node.get("in_graph")) for node in nodes]),
            _node_scores(nodes),
            _neurons(nodes, width),
            has_edges=bool(value["edges"]),
            holds=holds_of(value["cfg"]),
        )

    def save(self, content: EapIgFile, path: Path) -> None:
        """Write a JSON file."""
        if content.scores is not None and not content.graph.to_vector(content.scores).isfinite().all():
            raise EdgepruneError("scores of existing edges must be finite: JSON has no NaN and no infinity")
        write_whole_text(path, json.dumps(to_json(content)))


# -------------------------------------------------------------------- reading
def _parse_edges(edges: Any, graph: EdgeGraph) -> tuple[Tensor, Tensor | None]:
    if not isinstance(edges, dict):
        raise EdgepruneError(f"'edges' must be a mapping of names, got a {type(edges).__name__}")
    cells = {name: cell for name, *cell in _edges(graph)}
    members: list[list[int]] = []
    scored: list[list[int]] = []
    values: list[float] = []
    for name, info in edges.items():
        if name not in cells:
            raise EdgepruneError(f"its graph has no edge {name!r}; an edge is 'input->a0.h0<q>' or 'a0.h0->m0'")
        member, score = (info.get("in_graph", False), info.get("score")) if isinstance(info, dict) else (info, None)
        if not isinstance(member, bool):
            raise EdgepruneError(f"edge {name!r} has in_graph={member!r}; expected true or false")
        members += [cells[name]] * member
        if score is not None:
            scored.append(cells[name])
            values.append(_number(score, name))
    in_graph = _at(members, torch.ones(len(members), dtype=torch.bool), graph)
    return in_graph, _at(scored, torch.tensor(values), graph) if scored else None


def _at(cells: list[list[int]], values: Tensor, graph: EdgeGraph) -> Tensor:
    """Values at some cells `[reader, writer]`, 0 or False elsewhere."""
    matrix = values.new_zeros(graph.shape)
    rows, columns = torch.tensor(cells, dtype=torch.long).view(-1, 2).T
    matrix[rows, columns] = values
    return matrix


def _number(value: Any, name: str) -> float:
    if not is_number(value):
        raise EdgepruneError(f"{name!r} has the score {str(value)[:20]!r}; expected a number")
    return float(value)


def _parse_nodes(nodes: Any, graph: EdgeGraph) -> list[dict[str, Any]]:
    """What a file says of each node that writes, in the forward order; nothing for one that it leaves out."""
    if not isinstance(nodes, dict):
        raise EdgepruneError(f"'nodes' must be a mapping of names, got a {type(nodes).__name__}")
    names = node_names(graph)
    strange = sorted(set(nodes) - {*names, "logits"})
    if strange:
        raise EdgepruneError(f"its graph has no node {strange[0]!r}; nodes are input, a0.h0, ..., m0, ..., logits")
    found = [nodes.get(name, {}) for name in names]
    return [info if isinstance(info, dict) else {"in_graph": info} for info in found]


def _node_scores(nodes: list[dict[str, Any]]) -> Tensor | None:
    if not any("score" in node for node in nodes):
        return None
    return torch.tensor([_number(node.get("score", float("nan")), "a node") for node in nodes])


def _neurons(nodes: list[dict[str, Any]], width: int) -> Tensor | None:
    """Bool `[writer, d_model]`; all neurons of a node that lists none."""
    if not any("neurons" in node for node in nodes):
        return None
    rows = [node.get("neurons", [True] * width) for node in nodes]
    if not all(isinstance(row, list) and len(row) == width and set(map(type, row)) <= {bool} for row in rows):
        raise EdgepruneError(f"'neurons' of a node must list d_model={width} values, true or false")
    return torch.tensor(rows).bool()


# -------------------------------------------------------------------- writing
def to_json(content: EapIgFile) -> dict[str, Any]:
    """The plain values of a JSON file."""
    scores = torch.zeros(content.graph.shape) if content.scores is None else content.scores
    values, members = scores.tolist(), content.in_graph.tolist()  # float32 to the double of the same value
    nodes = dict(zip(node_names(content.graph), content.nodes.tolist(), strict=True)) | {"logits": True}
    return {
        "cfg": content.cfg,
        "nodes": {name: {"in_graph": member} for name, member in nodes.items()},
        "edges": {
            name: {"score": values[row][column], "in_graph": members[row][column]}
            for name, row, column in _edges(content.graph)
        },
    }


def _edges(graph: EdgeGraph) -> list[tuple[str, int, int]]:
    """Every edge by name, with its row and its column."""
    writers, readers = node_names(graph), reader_names(graph)
    return [
        (f"{writers[column]}->{readers[row]}", row, column)
        for row, count in enumerate(graph.num_visible)
        for column in range(count)
    ]
