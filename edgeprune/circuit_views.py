"""A circuit as a graph of networkx, as a table of pandas, and as HTML for a notebook."""

import html
import importlib
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.nodes import layer_of, node_names, nodes_of_readers, present, reader_kind, writer_kind

if TYPE_CHECKING:
    import networkx
    import pandas

_STRONGEST = 10  # edges that a notebook shows
_FACTS = ("model", "task", "method", "objective", "ablation", "metrics")


def library(name: str) -> Any:
    """A library of the extra `analysis`.

    Raises:
        EdgepruneError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise EdgepruneError(
            f"{name} is not installed, this needs it: install the extra, edgeprune[analysis]"
        ) from None


def edge_rows(graph: EdgeGraph, keep: Tensor, scores: Tensor | None) -> list[dict[str, Any]]:
    """A row for each kept edge, in the order of `Circuit.edges`: edge, score, layer, kind, writer, reader, any role."""
    rows: list[dict[str, Any]] = []
    for place in keep.nonzero().tolist():
        *role, row, column = place
        writer, reader = graph.writers[column], graph.readers[row]
        rows.append(
            {
                "edge": graph.edge_name(*place),
                "score": None if scores is None else float(scores[tuple(place)]),
                "layer": layer_of(reader, graph.arch.num_layers),
                "kind": f"{writer_kind(writer)}->{reader_kind(reader)}",
                "writer": writer,
                "reader": reader,
                **({"role": graph.roles.names[role[0]]} if graph.roles else {}),
            }
        )
    return rows


def to_dataframe(graph: EdgeGraph, keep: Tensor, scores: Tensor | None) -> "pandas.DataFrame":
    """See `Circuit.to_dataframe`."""
    columns = ["edge", "score", "layer", "kind", "writer", "reader", *(["role"] if graph.roles else [])]
    frame = library("pandas").DataFrame(edge_rows(graph, keep, scores), columns=columns)
    return frame.astype({"score": "float64", "layer": "int64"})


def to_networkx(graph: EdgeGraph, keep: Tensor, scores: Tensor | None, inner: bool = True) -> "networkx.DiGraph[str]":
    """See `Circuit.to_networkx`."""
    made, names, nodes = library("networkx").DiGraph(), node_names(graph), nodes_of_readers(graph)

    def add(name: str, kind: str) -> None:
        made.add_node(name, kind=kind, layer=layer_of(name, graph.arch.num_layers))

    for name in present(graph, keep):
        add(name, "logits" if name == "logits" else writer_kind(name))
    for row in edge_rows(graph, keep, scores):
        add(row["reader"], reader_kind(row["reader"]))
        known = {key: row[key] for key in ("score", "layer", "kind") if row[key] is not None}
        made.add_edge(row["writer"], row["reader"], **known)
    if inner:
        for place in keep.any(1).nonzero().flatten().tolist():
            reader = graph.readers[place]
            made.add_edges_from([(reader, names[node]) for node in nodes[place] if names[node] != reader], kind="inner")
    return made


# -------------------------------------------------------------------- notebooks
def to_html(
    graph: EdgeGraph, keep: Tensor, scores: Tensor | None, ranking: Tensor | None, header: Mapping[str, Any]
) -> str:
    """What a notebook shows: size, where the circuit is from, edges by kind, and the strongest ones."""
    rows, nodes = edge_rows(graph, keep, scores), present(graph, keep)
    kinds = Counter(row["kind"] for row in rows)
    heads = sum(writer_kind(name) == "head" for name in nodes)
    parts = [
        f"<p><b>Circuit</b>: {len(rows):,} of {graph.num_edges:,} edges "
        f"(sparsity {1 - len(rows) / graph.num_edges:.4f}), {len(nodes):,} nodes of which {heads:,} heads, "
        f"{int(graph.dangling(keep).sum()):,} dangling edges</p>",
        _table([(name, _plain(header[name])) for name in _FACTS if name in header]),
        _table([("edges by kind", ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common()))]),
    ]
    if ranking is not None and rows:
        best = ranking[keep].double().argsort(descending=True, stable=True)[:_STRONGEST].tolist()
        parts.append(
            _table([(rows[place]["edge"], f"{rows[place]['score']:.4g}") for place in best], "strongest edges")
        )
    return f"<div>{''.join(parts)}</div>"


def _table(rows: list[tuple[str, str]], caption: str = "") -> str:
    lines = [f'<tr><th style="text-align:left">{html.escape(a)}</th><td>{html.escape(b)}</td></tr>' for a, b in rows]
    head = f'<caption style="text-align:left">{caption}</caption>' if caption else ""
    return f"<table>{head}{''.join(lines)}</table>" if lines else ""


def _plain(value: Any) -> str:
    """A value of the header on one line; of a task only its name, of measures those that are defined."""
    if isinstance(value, dict):
        if "task" in value:
            return str(value["task"])
        known = {key: item for key, item in value.items() if isinstance(item, int | float) and not math.isnan(item)}
        return ", ".join(f"{key} {item:.4g}" for key, item in known.items())
    return str(value)
