"""ACDC's two files: `save_edges`' pickle of the edges that are present, `save_subgraph`'s dict of all edges.

An ACDC edge is `(child, child_index, parent, parent_index)`, where names are hooks of TransformerLens and an index is
`(None,)` or `(None, None, head)`. Beside the edges of our graph (of type ADDITION), its graph has one edge behind each
q, k and v input of a head (DIRECT_COMPUTATION, which its counts hold) and edges that join the parts of a head or an MLP
(PLACEHOLDER, which they do not). An edge inside a head or an MLP is written as present exactly if a kept edge enters
its input: so ACDC counts the published circuits as their papers do. On reading, these edges are left out.

In the pickle, indices are instances of `acdc.TLACDCEdge.TorchIndex`. The writer composes the pickle itself, so that it
needs no ACDC; loading it elsewhere than here does.
"""

import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, final

import torch

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats.base import (
    AbstractFormat,
    ExportOptions,
    Imported,
    Loaded,
    is_number,
    need_graph,
    not_held,
    refuse_twice,
)
from edgeprune.formats.plain_values import TorchIndex
from edgeprune.formats.views import ONE_EMBEDDING, convert_circuit, on_graph, per_head
from edgeprune.graph import EdgeGraph
from edgeprune.paths import whole_file

Index = tuple[int | None, ...]
WHOLE: Index = (None,)

_EMBEDDINGS = {
    "hook_embed": "tok_embed",
    "hook_pos_embed": "pos_embed",
    "blocks.0.hook_resid_pre": "embed",
}
_HOOKS = {name: hook for hook, name in _EMBEDDINGS.items()}
_WRITER = re.compile(r"blocks\.(\d+)\.(attn\.hook_result|hook_mlp_out)")
_READER = re.compile(r"blocks\.(\d+)\.hook_([qkv]_input|mlp_in|resid_post)")
_INSIDE = re.compile(r"blocks\.\d+\.(attn\.hook_(q|k|v|result)|hook_mlp_out)")


class HookEdge(NamedTuple):
    """One ACDC edge and what it is of ours.

    Attributes:
        child: Hook that takes in.
        child_index: Which part of it.
        parent: Hook that is taken in.
        parent_index: Which part of it.
        row: The reader of our edge, or the input that an edge inside a head or an MLP lies behind.
        column: The writer of our edge; None for an edge inside a head or an MLP.
        counted: ACDC counts it.
    """

    child: str
    child_index: Index
    parent: str
    parent_index: Index
    row: int
    column: int | None
    counted: bool


# -------------------------------------------------------------------- names of ours in ACDC's
def hook_edges(graph: EdgeGraph) -> Iterator[HookEdge]:
    """Every edge of ACDC's graph, last layers first, as ACDC lists them.

    Args:
        graph: With k and v readers of every query head.
    """
    for row in reversed(range(len(graph.readers))):
        child, index = _reader(graph, row)
        for column in reversed(range(graph.num_visible[row])):
            yield HookEdge(child, index, *_writer(graph.writers[column]), row, column, counted=True)
        yield from _inside(graph.readers[row], index, row)


def _inside(reader: str, index: Index, row: int) -> Iterator[HookEdge]:
    """The edges between the input of a head or an MLP and its output."""
    if reader.startswith("a"):
        block, letter = f"blocks.{reader[1:].partition('.')[0]}", reader[-1]
        value = f"{block}.attn.hook_{letter}"
        yield HookEdge(value, index, f"{block}.hook_{letter}_input", index, row, None, counted=True)
        yield HookEdge(f"{block}.attn.hook_result", index, value, index, row, None, counted=False)
    elif reader.startswith("m"):
        block = f"blocks.{reader[1:]}"
        yield HookEdge(f"{block}.hook_mlp_out", WHOLE, f"{block}.hook_mlp_in", WHOLE, row, None, counted=False)


def _reader(graph: EdgeGraph, row: int) -> tuple[str, Index]:
    name = graph.readers[row]
    if name == "logits":
        return f"blocks.{graph.arch.num_layers - 1}.hook_resid_post", WHOLE
    if name.startswith("m"):
        return f"blocks.{name[1:]}.hook_mlp_in", WHOLE
    layer, head, letter = name[1:].split(".")
    return f"blocks.{layer}.hook_{letter}_input", (None, None, int(head[1:]))


def _writer(name: str) -> tuple[str, Index]:
    if name in _HOOKS:
        return _HOOKS[name], WHOLE
    if name.startswith("m"):
        return f"blocks.{name[1:]}.hook_mlp_out", WHOLE
    layer, head = name[1:].split(".")
    return f"blocks.{layer}.attn.hook_result", (None, None, int(head[1:]))


# -------------------------------------------------------------------- ACDC's names in ours
def our_edge(entry: Any, graph: EdgeGraph) -> str | None:
    """`"writer->reader"` of an ACDC edge, or None for one that lies inside a head or an MLP.

    Args:
        entry: `(child, child_index, parent, parent_index)`, a tuple or a list of JSON.
        graph: With k and v readers of every query head.

    Raises:
        EdgepruneError: It is no such edge, or none of this graph's.
    """
    match entry:
        case [str(child), child_index, str(parent), parent_index]:
            if _INSIDE.fullmatch(child):
                return None
            return f"{_our_writer(parent, parent_index, graph)}->{_our_reader(child, child_index, graph)}"
        case _:
            raise EdgepruneError(f"{str(entry)[:80]!r} is no edge of ACDC: [child, child_index, parent, parent_index]")


def _our_writer(name: str, index: Any, graph: EdgeGraph) -> str:
    head = _head(name, index)
    if name in _EMBEDDINGS:
        return fit_embedding(_EMBEDDINGS[name], graph)
    match = _WRITER.fullmatch(name)
    if match is None or (head is not None) != (match[2] == "attn.hook_result"):
        raise EdgepruneError(f"no writer of ACDC is named {name!r} with index {_shown(index)}")
    return f"m{match[1]}" if head is None else f"a{match[1]}.h{head}"


def _our_reader(name: str, index: Any, graph: EdgeGraph) -> str:
    head, match = _head(name, index), _READER.fullmatch(name)
    if match is None or (head is not None) != match[2].endswith("_input"):
        raise EdgepruneError(f"no reader of ACDC is named {name!r} with index {_shown(index)}")
    layer, hook, num_layers = int(match[1]), match[2], graph.arch.num_layers
    if hook == "resid_post" and layer != num_layers - 1:
        raise EdgepruneError(f"{name!r} is not the end of a graph with {num_layers} layers; use the same model")
    if head is None:
        return "logits" if hook == "resid_post" else f"m{layer}"
    return f"a{layer}.h{head}.{hook[0]}"


def fit_embedding(writer: str, graph: EdgeGraph) -> str:
    """The embedding writer of `graph` that an embedding of a file is; other writers stay."""
    split = graph.arch.split_embedding
    if writer == "embed" and split:
        raise EdgepruneError(ONE_EMBEDDING)
    return "embed" if writer in ("tok_embed", "pos_embed") and not split else writer


def _head(name: str, index: Any) -> int | None:
    """The head in an index; None for one that takes the whole tensor."""
    match index.hashable_tuple if isinstance(index, TorchIndex) else index:
        case [None]:
            return None
        case [None, None, int(head)]:
            return head
        case _:
            raise EdgepruneError(f"{name!r} has index {_shown(index)}; expected (None,) or (None, None, head)")


def _shown(index: Any) -> str:
    return str(index.hashable_tuple if isinstance(index, TorchIndex) else index)


# -------------------------------------------------------------------- the two formats
@final
class AcdcSubgraph(AbstractFormat):
    """`save_subgraph`: every edge of ACDC's graph, and whether it is present."""

    name: ClassVar[str] = "acdc-subgraph"
    suffixes: ClassVar[tuple[str, ...]] = (".pth",)
    holds: ClassVar[str] = "ACDC: which edges are present, of all"

    def recognises(self, loaded: Loaded) -> bool:
        """A dict of edges."""
        value: Any = loaded.value
        return loaded.kind == "torch" and isinstance(value, dict) and all(isinstance(key, tuple) for key in value)

    def read(self, loaded: Loaded, graph: EdgeGraph | None) -> Imported:
        """The circuit of the edges that are present."""
        wanted = need_graph(graph)
        there = per_head(wanted)
        strange = [present for present in loaded.value.values() if not isinstance(present, bool)]
        if strange:
            raise EdgepruneError(f"an edge is present={strange[0]!r}; ACDC's dict holds true and false alone")
        found = [our_edge(entry, there) for entry, present in loaded.value.items() if present]
        header = {"source": loaded.path.name, "source_format": self.name}
        return on_graph(Circuit.from_edges(there, filter(None, found), header), wanted)

    def write(self, circuit: Circuit, path: Path, options: ExportOptions) -> list[str]:
        """Write every edge of the circuit's graph."""
        view, is_present, notes = _for_acdc(circuit, scores=False)
        content = OrderedDict((edge[:4], is_present(edge)) for edge in hook_edges(view.graph))
        with whole_file(path) as partial:
            torch.save(content, partial)
        return notes


@final
class AcdcEdges(AbstractFormat):
    """`save_edges`: the edges that are present, each with the effect of removing it."""

    name: ClassVar[str] = "acdc-edges"
    suffixes: ClassVar[tuple[str, ...]] = (".pkl",)
    holds: ClassVar[str] = "ACDC: the edges that are present, with their effects"

    def recognises(self, loaded: Loaded) -> bool:
        """A pickle; nothing else that we read is one."""
        return loaded.kind == "pickle"

    def read(self, loaded: Loaded, graph: EdgeGraph | None) -> Imported:
        """The circuit, with the effects of its edges as scores where every edge has one."""
        wanted = need_graph(graph)
        there = per_head(wanted)
        pairs = list(_pairs(loaded.value))
        effects = {name: effect for entry, effect in pairs if (name := our_edge(entry, there))}
        refuse_twice(" ".join(_shown(part) for part in entry) for entry, _ in pairs)
        header = {"source": loaded.path.name, "source_format": self.name}
        circuit = Circuit.from_edges(there, effects, header)
        notes: list[str] = []
        if effects and all(is_number(effect) for effect in effects.values()):
            scores = torch.zeros(there.shape)
            for name, effect in effects.items():
                scores[there.index(name)] = float(effect)
            circuit = Circuit(there, circuit.keep, scores, header)
            notes.append(
                "scores are the effects of the edges that are present; the file has none of others: theirs are 0"
            )
        fitted = on_graph(circuit, wanted)
        return Imported(fitted.circuit, (*notes, *fitted.notes))

    def write(self, circuit: Circuit, path: Path, options: ExportOptions) -> list[str]:
        """Write the kept edges, and those inside the heads that they enter."""
        scored = circuit.scores is not None and not options.membership
        view, is_present, notes = _for_acdc(circuit, scores=scored)
        present = [edge for edge in hook_edges(view.graph) if edge.counted and is_present(edge)]
        effects = view.scores.tolist() if scored and view.scores is not None else None
        content = [
            (edge, None if effects is None or edge.column is None else effects[edge.row][edge.column])
            for edge in present
        ]
        if scored and circuit.num_edges < circuit.graph.num_edges:
            notes.append("scores of edges that are not kept are left out")
        with whole_file(path) as partial:
            partial.write_bytes(pickled(content))
        return notes


def _for_acdc(circuit: Circuit, *, scores: bool) -> tuple[Circuit, Callable[[HookEdge], bool], list[str]]:
    """The circuit with readers per query head, which of ACDC's edges are present in it, and what is left out."""
    view = convert_circuit(circuit, per_head(circuit.graph))
    notes = [*not_held(circuit, scores=scores), *view.notes]
    if circuit.graph.arch.parallel_blocks:
        notes.append("ACDC's graphs join heads to the MLP of their layer; parallel blocks have no such edges to write")
    keep, entered = view.circuit.keep.tolist(), view.circuit.keep.any(1).tolist()

    def is_present(edge: HookEdge) -> bool:
        return entered[edge.row] if edge.column is None else keep[edge.row][edge.column]

    return view.circuit, is_present, notes


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    for pair in value if isinstance(value, list) else [value]:
        match pair:
            case (edge, effect):
                yield edge, effect
            case _:
                raise EdgepruneError(f"{str(pair)[:80]!r} is no pair of edge and effect, as ACDC's save_edges writes")


# -------------------------------------------------------------------- the pickle
def pickled(content: list[tuple[HookEdge, float | None]]) -> bytes:
    """A pickle (protocol 2) of `[((child, TorchIndex, parent, TorchIndex), effect), ...]` that names ACDC's class.

    Names and indices are made once, kept in the pickle's memo, and fetched from there.
    """
    memo: dict[str | Index, int] = {}
    out = bytearray(b"\x80\x02")
    for edge, _ in content:
        for item in edge[:4]:
            if item not in memo:
                out += (
                    (_text(item) if isinstance(item, str) else _index(item))
                    + b"r"
                    + struct.pack("<I", len(memo))
                    + b"0"
                )
                memo[item] = len(memo)
    out += b"]("
    for edge, effect in content:
        out += b"(" + b"".join(b"j" + struct.pack("<I", memo[item]) for item in edge[:4]) + b"t"
        out += (b"N" if effect is None else b"G" + struct.pack(">d", effect)) + b"\x86"
    return bytes(out + b"e.")


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _index(index: Index) -> bytes:
    """An instance of ACDC's class, with the two attributes that it has."""
    slices = b"".join(_slice() if item is None else _integer(item) for item in index)
    plain = b"".join(b"N" if item is None else _integer(item) for item in index)
    state = b"}(" + _text("as_index") + b"(" + slices + b"t" + _text("hashable_tuple") + b"(" + plain + b"tu"
    return b"cacdc.TLACDCEdge\nTorchIndex\n)\x81" + state + b"b"


def _slice() -> bytes:
    return b"c__builtin__\nslice\nNNN\x87R"


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)
