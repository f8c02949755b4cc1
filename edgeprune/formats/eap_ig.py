"""What EAP-IG's and MIB's two file formats have in common: one graph, by name in JSON and by matrix in PT.

The graph has one embedding (`input`) and k and v readers of every query head. Its forward order is input, then in each
layer heads and MLP; its backward order is in each layer q, k and v of the heads, then the MLP, with the logits last:
the orders of `EdgeGraph`, so a matrix there is one here, transposed. GPT-2 small has 157 x 445 cells, 32,491 of them
edges.

Files hold scores and membership side by side. EAP-IG writes its scores before anything is cut, with no edge in the
graph, and an empty circuit just so. Files that are written here tell these apart by `holds` in `cfg`, others by the
argument `holds` of reading. A score is positive where patching the edge raises the loss, as ours.

`input` is the embedding of tokens alone: EAP-IG never ablates a position embedding. So on a graph with two embeddings
it is `tok_embed`, both ways, and every edge of `pos_embed` is kept.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats.base import AbstractFormat, ExportOptions, Holds, Imported, Loaded, not_held
from edgeprune.formats.views import (
    convert_circuit,
    on_graph,
    one_embedding,
    per_head,
    with_open_positions,
    without_positions,
)
from edgeprune.graph import ArchSpec, EdgeGraph

_MOST = 1000  # layers, or heads of a layer: a damaged number must not fill the memory
_HOLDS = "holds"  # in `cfg`; EAP-IG takes over keys that it does not know
EAP_IG_FORMATS = ("eap-ig-json", "eap-ig-pt")
TOKENS_ALONE = (
    "its embedding is that of the tokens alone: a position embedding (GPT-2) always stays there, and is ablated with "
    "the tokens' here; for zero or mean ablation read it with split_embedding=True"
)


@dataclass(frozen=True, eq=False)
class EapIgFile:
    """The content of one file, JSON or PT.

    Attributes:
        graph: One embedding, readers per query head, an MLP in every layer.
        d_model: Width of the residual stream; 0 where it is not known.
        in_graph: Bool `[reader, writer]`, True where an edge is in the file's graph.
        scores: Float32 `[reader, writer]`, as in the file, cells that are no edge too; None in JSON without any.
        nodes: Bool `[writer]`, True where a node is in the file's graph.
        nodes_scores: Float32 `[writer]`, or None.
        neurons: Bool `[writer, d_model]`, the neurons of a node that are in the file's graph, or None.
        has_edges: False for JSON with nodes alone.
        holds: What the file itself says; None for what EAP-IG and MIB write.
    """

    graph: EdgeGraph
    d_model: int
    in_graph: Tensor
    scores: Tensor | None
    nodes: Tensor
    nodes_scores: Tensor | None = None
    neurons: Tensor | None = None
    has_edges: bool = True
    holds: Holds | None = None

    def __post_init__(self) -> None:
        if self.neurons is not None and not self.d_model:
            raise EdgepruneError("it lists neurons, but its 'cfg' has no d_model to count them by")

    @property
    def is_scored(self) -> bool:
        """An edge has a score other than 0, which is what files without scores are filled with."""
        return self.scores is not None and bool((self.scores[self.graph.exists] != 0).any())

    @property
    def num_edges(self) -> int:
        """Edges in the file's graph."""
        return int((self.in_graph & self.graph.exists).sum())

    @property
    def weighted_edge_count(self) -> float:
        """Edges in the file's graph, each weighted by the share of its writer's neurons that are in the graph.

        EAP-IG, `Graph.weighted_edge_count`. Deviation: cells that are no edge are never counted.
        """
        if self.neurons is None:
            return float(self.num_edges)
        leaving = (self.in_graph & self.graph.exists).sum(0)
        return float((leaving * self.neurons.sum(1)).sum()) / self.d_model

    @cached_property
    def cfg(self) -> dict[str, Any]:
        """The graph as the files describe it."""
        arch = self.graph.arch
        return {
            "n_layers": arch.num_layers,
            "n_heads": arch.num_heads,
            "parallel_attn_mlp": arch.parallel_blocks,
            "d_model": self.d_model,
            **({} if self.holds is None else {_HOLDS: self.holds}),
        }


# -------------------------------------------------------------------- names
def node_names(graph: EdgeGraph) -> list[str]:
    """Names of the nodes that write, in the forward order: `input`, `a0.h0`, ..., `m11`."""
    return ["input", *graph.writers[1:]]


def reader_names(graph: EdgeGraph) -> list[str]:
    """Names of the readers, in the backward order: `a0.h0<q>`, ..., `m11`, `logits`."""
    return [f"{name[:-2]}<{name[-1]}>" if name.startswith("a") else name for name in graph.readers]


def graph_of(cfg: Any) -> EdgeGraph:
    """The graph that a file's `cfg` describes."""
    if not isinstance(cfg, dict):
        raise EdgepruneError("'cfg' must be a mapping with n_layers, n_heads and parallel_attn_mlp")
    values = cast("dict[str, Any]", cfg)
    layers, heads, parallel = (values.get(name) for name in ("n_layers", "n_heads", "parallel_attn_mlp"))
    for name, number in (("n_layers", layers), ("n_heads", heads)):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= _MOST:
            raise EdgepruneError(f"'cfg' has {name}={str(number)[:20]}; expected a whole number from 1 to {_MOST}")
    if not isinstance(parallel, bool):
        raise EdgepruneError(f"'cfg' has parallel_attn_mlp={parallel!r}; expected true or false")
    return EdgeGraph(ArchSpec(num_layers=layers, num_heads=heads, num_kv_heads=heads, parallel_blocks=parallel))  # pyright: ignore[reportArgumentType]


def width_of(cfg: dict[str, Any]) -> int:
    """`d_model` of a file's `cfg`; 0 where it has none."""
    width = cfg.get("d_model", 0)
    return width if isinstance(width, int) and width > 0 else 0


def holds_of(cfg: dict[str, Any]) -> Holds | None:
    """What the file holds by its `cfg`; None where that has no word of it."""
    holds = cfg.get(_HOLDS)
    if holds not in (None, *get_args(Holds)):
        raise EdgepruneError(f"'cfg' has {_HOLDS}={str(holds)[:20]!r}; expected one of {', '.join(get_args(Holds))}")
    return holds


# -------------------------------------------------------------------- circuits
def to_file(circuit: Circuit, options: ExportOptions) -> tuple[EapIgFile, list[str]]:
    """What to write for a circuit, and what that leaves out.

    Raises:
        EdgepruneError: The graph has no MLPs.
    """
    if not circuit.graph.arch.has_mlp:
        raise EdgepruneError("EAP-IG's graphs have an MLP in every layer, this one has none; use another format")
    split = circuit.graph.arch.split_embedding
    view = convert_circuit(
        without_positions(circuit) if split else circuit, per_head(circuit.graph, split_embedding=False)
    )
    there = view.circuit
    d_model = options.d_model or int(circuit.header.get("d_model") or 0)
    scored = there.scores is not None and not options.membership
    scores = there.scores.float() if there.scores is not None and scored else torch.zeros(there.graph.shape)
    content = EapIgFile(there.graph, d_model, there.keep, scores, _touched(there))
    if content.is_scored and not there.keep.any():
        content = replace(content, holds="circuit")
    notes = [*not_held(circuit, scores=scored), *view.notes]
    if split:
        closed = int((circuit.graph.exists & ~circuit.keep)[:, 1].sum())
        notes.append(
            f"pos_embed is left out: EAP-IG keeps all of its edges, here {closed:,} of them are closed; its input is "
            "tok_embed"
        )
    elif circuit.header.get("source_format") not in EAP_IG_FORMATS:
        notes.append(
            "its input is the embedding of the tokens alone: EAP-IG keeps a position embedding (GPT-2), which embed "
            "here ablates with the tokens'; under zero or mean ablation circuits differ"
        )
    if there.num_dangling:
        notes.append(f"{there.num_dangling:,} dangling edges are written; EAP-IG and MIB drop them when they evaluate")
    if not d_model:
        notes.append(
            "the width of the model is not known: d_model is 0, which matters to neurons alone (--model says it)"
        )
    if scored and not content.is_scored:
        notes.append("all scores are 0, which reads as a file without scores")
    return content, notes


def _touched(circuit: Circuit) -> Tensor:
    """Bool `[writer]`: a kept edge leaves the node or enters it."""
    graph, keep = circuit.graph, circuit.keep
    entered = keep.any(1)
    column = {name: index for index, name in enumerate(graph.writers)}
    touched = keep.any(0)
    for row in entered.nonzero().flatten().tolist():
        name = graph.readers[row]
        if name != "logits":
            touched[column[name[:-2] if name.startswith("a") else name]] = True
    return touched


def to_circuit(content: EapIgFile, loaded: Loaded, form: str, graph: EdgeGraph | None) -> Imported:
    """The circuit in a file, on its own graph or on the one that is wanted.

    Raises:
        EdgepruneError: The file has nodes alone, is of another model than the graph, or may be an empty circuit as well
            as scores.
    """
    if not content.has_edges:
        raise EdgepruneError("it has scores or membership of nodes alone; a circuit needs its edges")
    notes: list[str] = []
    keep, scores = content.in_graph & content.graph.exists, None
    if content.is_scored and content.scores is not None:
        scores = torch.where(content.graph.exists, content.scores, 0.0)
        if not keep.any():
            keep, note = _before_or_after_a_cut(content, loaded.holds)
            notes.append(note)
    if content.nodes_scores is not None:
        notes.append("scores of nodes are left out")
    if content.neurons is not None:
        count = content.weighted_edge_count
        notes.append(f"neurons are left out; with them the file counts {count:,.1f} edges for {content.num_edges:,}")
    header = {"source": loaded.path.name, "source_format": form}
    circuit = Circuit(content.graph, keep, scores, header | ({"d_model": content.d_model} if content.d_model else {}))
    if graph is None:
        notes.append("its graph has k and v readers of every query head, and one embedding")
        return Imported(circuit, (*notes, TOKENS_ALONE))
    fitted = on_graph(circuit, one_embedding(graph))
    notes += fitted.notes
    if not graph.arch.split_embedding:
        return Imported(fitted.circuit, (*notes, TOKENS_ALONE))
    notes.append("its one embedding is that of the tokens: it is tok_embed here, and all edges of pos_embed are kept")
    return Imported(with_open_positions(fitted.circuit), tuple(notes))


def _before_or_after_a_cut(content: EapIgFile, given: Holds | None) -> tuple[Tensor, str]:
    """What a file with scores and no edge in its graph keeps, and a sentence on it."""
    empty = "no edge is in the file's graph"
    match content.holds or given:
        case "scores":
            return content.graph.exists, f"{empty}: it is a file of scores, and every edge is kept"
        case "circuit":
            return content.in_graph & content.graph.exists, f"{empty}: it is a circuit without edges"
        case None:
            raise EdgepruneError(
                f"{empty}, and edges have scores: EAP-IG saves scores and an empty circuit alike; say which it is by "
                "--holds scores or --holds circuit (of convert, evaluate and compare; holds=... in Python)"
            )


def checked_mapping(loaded: Loaded, keys: tuple[str, ...]) -> dict[str, Any]:
    """The content as a mapping that has these keys."""
    value: Any = loaded.value
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise EdgepruneError(f"it has no {', '.join(map(repr, missing))}; EAP-IG's files have {', '.join(keys)}")
    return value


class AbstractEapIg(AbstractFormat):
    """What both formats have in common."""

    @abstractmethod
    def parse(self, loaded: Loaded) -> EapIgFile:
        """The content of a file.

        Raises:
            EdgepruneError: A key is missing, a value is of the wrong kind, or does not fit the file's own graph.
        """

    @abstractmethod
    def save(self, content: EapIgFile, path: Path) -> None:
        """Write a file, whole or not at all."""

    def read(self, loaded: Loaded, graph: EdgeGraph | None) -> Imported:
        """The circuit in a file."""
        return to_circuit(self.parse(loaded), loaded, self.name, graph)

    def write(self, circuit: Circuit, path: Path, options: ExportOptions) -> list[str]:
        """Write a circuit."""
        content, notes = to_file(circuit, options)
        self.save(content, path)
        return notes
