"""JSON lists of edges, in our names and in those of Edge Pruning, auto-circuit and ACDC.

An entry is `[writer, reader]`, `"writer->reader"`, or ACDC's `[child, child_index, parent, parent_index]`. Names of
several tools may stand in one list. What a k or v reader's number counts depends on whose name it is: with Edge Pruning
key/value heads, with ACDC and auto-circuit query heads, and with ours what the graph counts.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats import acdc
from edgeprune.formats.base import AbstractFormat, ExportOptions, Imported, Loaded, need_graph, not_held, refuse_twice
from edgeprune.formats.views import on_graph, per_group, per_head
from edgeprune.graph import EdgeGraph
from edgeprune.paths import write_whole_text

NO_GRAPH = "the graph is left out: reading needs the model"
Tool = Literal["native", "edge-pruning", "auto-circuit", "acdc"]

# Edge Pruning's, and those of the ground-truth files
_WRITERS = {
    "tok_embeds": "tok_embed",
    "tok": "tok_embed",
    "pos_embeds": "pos_embed",
    "pos": "pos_embed",
    "embeds": "embed",
}
_READERS = {"resid_post": "logits", "out": "logits"}
_EDGE_PRUNING = {"tok_embeds", "pos_embeds", "embeds", "resid_post"}
_AUTO_CIRCUIT = re.compile(r"A(\d+)\.(\d+)(?:\.([QKV]))?|MLP (\d+)|Resid (Start|End)")


class _Entry(NamedTuple):
    tool: Tool
    content: Any  # (writer, reader), or the four parts of an ACDC edge


# -------------------------------------------------------------------- reading
def read_entries(entries: list[Any], graph: EdgeGraph) -> Imported:
    """The circuit of a list's edges.

    Raises:
        EdgepruneError: An entry is no edge, one that the graph lacks, or one that is listed twice.
    """
    parsed = [_parsed(entry) for entry in entries]
    if any(entry.tool == "edge-pruning" for entry in parsed):  # heads and MLPs have our names there
        parsed = [entry._replace(tool="edge-pruning") if entry.tool == "native" else entry for entry in parsed]
    refuse_twice(_listed(entry) for entry in parsed)
    keep, notes = torch.zeros(graph.shape, dtype=torch.bool), dict[str, None]()
    for tool, (view, named) in _TOOLS.items():
        there = view(graph)
        names = [name for entry in parsed if entry.tool == tool for name in named(entry.content, there)]
        found = on_graph(Circuit.from_edges(there, names), graph)
        keep |= found.circuit.keep
        notes |= dict.fromkeys(found.notes if names else ())
    return Imported(Circuit(graph, keep), tuple(notes))


def _parsed(entry: Any) -> _Entry:
    match entry:
        case str():
            writer, _, reader = (part.strip() for part in entry.partition("->"))
        case [str(writer), str(reader)]:
            pass
        case [str(), _, str(), _]:
            return _Entry("acdc", entry)
        case _:
            raise EdgepruneError(
                f"{str(entry)[:80]!r} is no edge; write [writer, reader], 'writer->reader' or "
                "[child, child_index, parent, parent_index]"
            )
    if _AUTO_CIRCUIT.fullmatch(writer) or _AUTO_CIRCUIT.fullmatch(reader):
        return _Entry("auto-circuit", (writer, reader))
    return _Entry("edge-pruning" if {writer, reader} & _EDGE_PRUNING else "native", (writer, reader))


def _listed(entry: _Entry) -> str:
    """The edge as its tool names it: one that is listed twice is the same twice."""
    if entry.tool == "acdc":
        return str(entry.content)
    writer, reader = entry.content
    return f"{_WRITERS.get(writer, writer)}->{_READERS.get(reader, reader)}"


def _our_names(ends: tuple[str, str], graph: EdgeGraph) -> Iterator[str]:
    writer = acdc.fit_embedding(_WRITERS.get(ends[0], ends[0]), graph)
    yield f"{writer}->{_READERS.get(ends[1], ends[1])}"


def _from_acdc(entry: Any, graph: EdgeGraph) -> Iterator[str]:
    name = acdc.our_edge(entry, graph)
    if name is not None:
        yield name


def _from_auto_circuit(ends: tuple[str, str], graph: EdgeGraph) -> Iterator[str]:
    """One edge, or three where q, k and v of a head are one reader."""
    writer = acdc.fit_embedding(_auto_circuit_name(ends[0]), graph)
    reader = _auto_circuit_name(ends[1])
    several = re.fullmatch(r"a\d+\.h\d+", reader)
    yield from (f"{writer}->{reader}.{letter}" for letter in "qkv") if several else (f"{writer}->{reader}",)


def _auto_circuit_name(name: str) -> str:
    match _AUTO_CIRCUIT.fullmatch(name):
        case None:
            raise EdgepruneError(
                f"no node of auto-circuit is named {name!r}; they are A0.1, A0.1.Q, MLP 0, Resid Start"
            )
        case found if found[5]:
            return "embed" if found[5] == "Start" else "logits"
        case found if found[4]:
            return f"m{found[4]}"
        case found:
            return f"a{found[1]}.h{found[2]}" + (f".{found[3].lower()}" if found[3] else "")


def _as_it_is(graph: EdgeGraph) -> EdgeGraph:
    return graph


# For each tool: the view of a graph that its names are of, and our names of an entry.
_TOOLS: dict[Tool, tuple[Callable[[EdgeGraph], EdgeGraph], Callable[[Any, EdgeGraph], Iterator[str]]]] = {
    "native": (_as_it_is, _our_names),
    "edge-pruning": (per_group, _our_names),
    "auto-circuit": (per_head, _from_auto_circuit),
    "acdc": (per_head, _from_acdc),
}


class AbstractEdgeList(AbstractFormat):
    """What the lists of edges have in common.

    Attributes:
        tools: Whose names make a list one of this format.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    tools: ClassVar[tuple[Tool, ...]]

    def recognises(self, loaded: Loaded) -> bool:
        """A JSON list in which the first entry of a known tool is one of this."""
        if loaded.kind != "json" or not isinstance(loaded.value, list):
            return False
        tools = {_tool(entry) for entry in loaded.value} - {"native"}
        return (next(iter(sorted(tools))) if tools else "native") in self.tools

    def read(self, loaded: Loaded, graph: EdgeGraph | None) -> Imported:
        """The circuit of the list's edges."""
        if not isinstance(loaded.value, list):
            kind = type(loaded.value).__name__
            raise EdgepruneError(f"expected a list of edges, got a {kind}; give the list alone")
        found = read_entries(loaded.value, need_graph(graph))
        header = {"source": loaded.path.name, "source_format": self.name}
        return Imported(Circuit(found.circuit.graph, found.circuit.keep, None, header), found.notes)


def _tool(entry: Any) -> Tool:
    """Whose names an entry has; native where it is no edge, which reading refuses."""
    try:
        return _parsed(entry).tool
    except EdgepruneError:
        return "native"


def save_list(path: Path, content: list[Any]) -> None:
    """Write a JSON list, whole or not at all."""
    write_whole_text(path, json.dumps(content, indent=1) + "\n")


# -------------------------------------------------------------------- ours
@final
class EdgeList(AbstractEdgeList):
    """Our names, and ACDC's, which are only read."""

    name: ClassVar[str] = "edges"
    holds: ClassVar[str] = "list of kept edges in our names (ACDC's are read too)"
    tools: ClassVar[tuple[Tool, ...]] = ("native", "acdc")

    def write(self, circuit: Circuit, path: Path, options: ExportOptions) -> list[str]:
        """Write `"writer->reader"` of every kept edge."""
        save_list(path, circuit.edges())
        return [*not_held(circuit, scores=False), NO_GRAPH]
