"""auto-circuit's prune scores, `{module_name: tensor}` by `torch.save`, and lists of its edges' names.

A module takes in: `blocks.L.hook_q_input` (k, v) with scores `[head, source]`, `blocks.L.hook_mlp_in` and
`blocks.LAST.hook_resid_post` with `[source]`; where q, k and v of a head are one reader, `blocks.L.hook_attn_in`. With
token positions a first axis counts them. Sources are the writers of our order that come before. The shapes tell the
graph: one embedding, readers per query head.

The tool keeps edges by the absolute value of their scores, and writes a circuit as scores of 0 and 1: such a file is
read as membership. Its ACDC gives each edge the largest threshold that removes it, and infinity if none does: edges
with infinity are the circuit. Every other file is one of scores, the tool's being slopes, and keeps every edge.
"""

import math
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats.base import AbstractFormat, ExportOptions, Imported, Loaded, not_held
from edgeprune.formats.edge_list import NO_GRAPH, AbstractEdgeList, Tool, save_list
from edgeprune.formats.views import convert_circuit, on_graph, per_head
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.paths import whole_file

_MODULE = re.compile(r"blocks\.(\d+)\.hook_(q_input|k_input|v_input|attn_in|mlp_in|resid_post)")


@final
class PruneScores(AbstractFormat):
    """`PruneScores` of auto-circuit."""

    name: ClassVar[str] = "auto-circuit"
    suffixes: ClassVar[tuple[str, ...]] = (".pt",)
    holds: ClassVar[str] = "auto-circuit: prune scores by module, or a circuit as 0 and 1"

    def recognises(self, loaded: Loaded) -> bool:
        """A dict with a module of auto-circuit."""
        value: Any = loaded.value
        return loaded.kind == "torch" and isinstance(value, dict) and any(_MODULE.fullmatch(str(key)) for key in value)

    def read(self, loaded: Loaded, graph: EdgeGraph | None) -> Imported:
        """The circuit in a file, on its own graph or on the one that is wanted."""
        content = _content(loaded.value)
        modules, notes = _checked(loaded.value, is_slope=content == "slopes")
        there = _graph_of(modules)
        values = _matrix(modules, there)
        header: dict[str, Any] = {"source": loaded.path.name, "source_format": self.name}
        if content == "membership":
            circuit = Circuit(there, values != 0, None, header)
        elif content == "thresholds":
            circuit, note = _of_thresholds(there, values, header)
            notes.append(note)
        else:
            circuit = Circuit(there, there.exists, values, header)
            notes.append("it is a file of scores, and every edge is kept; auto-circuit ranks them by absolute value")
        if graph is None:
            return Imported(circuit, (*notes, "its graph has k and v readers of every query head, and one embedding"))
        fitted = on_graph(circuit, graph)
        return Imported(fitted.circuit, (*notes, *fitted.notes))

    def write(self, circuit: Circuit, path: Path, options: ExportOptions) -> list[str]:
        """Write the scores, or 0 and 1 where there are none or membership is wanted."""
        view = convert_circuit(circuit, per_head(circuit.graph, split_embedding=False))
        there, scored = view.circuit, circuit.scores is not None and not options.membership
        notes = [*not_held(circuit, scores=scored), *view.notes]
        values = there.keep.float()
        if scored and there.scores is not None:
            values = there.scores.float()
            if circuit.num_edges < circuit.graph.num_edges:
                notes.append("which edges are kept is left out: the scores alone are written")
            if (values < 0).any():
                notes.append("auto-circuit ranks by absolute value: edges with scores below 0 count as important there")
        with whole_file(path) as partial:
            torch.save(_modules(there.graph, values), partial)
        return notes


# -------------------------------------------------------------------- what the numbers are
def _content(value: dict[Any, Any]) -> Literal["membership", "thresholds", "slopes"]:
    """Which kind of file it is, by all of its numbers.

    Raises:
        EdgepruneError: A number is NaN or minus infinity.
    """
    tensors = [scores.detach().float().flatten() for scores in value.values() if isinstance(scores, Tensor)]
    values = torch.cat(tensors) if tensors else torch.zeros(0)
    wrong = values[values.isnan() | (values == -math.inf)].tolist()
    if wrong:
        raise EdgepruneError(
            f"{len(wrong):,} scores cannot be ranked, such as {wrong[0]}; expected finite ones, or inf where ACDC kept "
            "an edge"
        )
    if bool(values.isinf().any()):
        return "thresholds"
    return "membership" if bool(((values == 0) | (values == 1)).all()) else "slopes"


def _of_thresholds(graph: EdgeGraph, values: Tensor, header: dict[str, Any]) -> tuple[Circuit, str]:
    """ACDC's circuit, and a sentence on it. Kept edges score just above the largest threshold that removed another."""
    keep, header = values.isinf(), {**header, "method": "acdc"}
    removed = values[graph.exists & ~keep]
    note = f"{int(keep.sum()):,} edges score inf, as ACDC leaves those that no threshold removes: they are the circuit"
    if not len(removed):
        return Circuit(graph, keep, None, header), note
    least = torch.nextafter(removed.max(), torch.tensor(math.inf))
    note += f", and score just above the largest threshold, {removed.max():g}"
    return Circuit(graph, keep, torch.where(keep, least, values), header), note


# -------------------------------------------------------------------- modules and graphs
def _names(graph: EdgeGraph) -> list[tuple[str, int, int]]:
    """Every module with its first row and its number of rows, 0 where its scores have no axis of heads."""
    arch = graph.arch
    names: list[tuple[str, int, int]] = []
    for layer in range(arch.num_layers):
        rows = graph.rows(layer)
        names += [
            (f"blocks.{layer}.hook_{letter}_input", kind.start, arch.num_heads)
            for letter, kind in zip("qkv", rows, strict=False)
        ]
        names += [(f"blocks.{layer}.hook_mlp_in", rows.mlp.start, 0)] * arch.has_mlp
    return [*names, (f"blocks.{arch.num_layers - 1}.hook_resid_post", graph.shape[0] - 1, 0)]


def _modules(graph: EdgeGraph, values: Tensor) -> dict[str, Tensor]:
    modules: dict[str, Tensor] = {}
    for name, row, heads in _names(graph):
        cells = values[row : row + heads] if heads else values[row]
        modules[name] = cells[..., : graph.num_visible[row]].clone()
    return modules


def _matrix(modules: dict[str, Tensor], graph: EdgeGraph) -> Tensor:
    """Values `[reader, writer]`, 0 where no edge exists."""
    values = torch.zeros(graph.shape)
    names = _names(graph)
    if set(modules) != {name for name, _, _ in names}:
        strange = sorted(set(modules) ^ {name for name, _, _ in names})
        raise EdgepruneError(f"its modules are not those of one transformer: {strange[0]!r} is missing or too much")
    for name, row, heads in names:
        shape = (heads, graph.num_visible[row]) if heads else (graph.num_visible[row],)
        if tuple(modules[name].shape) != shape:
            raise EdgepruneError(f"{name!r} has shape {tuple(modules[name].shape)}, expected {shape} in this graph")
        values[row : row + max(heads, 1), : graph.num_visible[row]] = modules[name]
    return values


def _checked(value: dict[Any, Any], *, is_slope: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Float scores by module, one per edge, and what was merged or repeated for that.

    Slopes of token positions add up to that of the edge; of other scores the highest counts.
    """
    how = "the sum" if is_slope else "the highest"
    modules: dict[str, Tensor] = {}
    notes: dict[str, None] = {}
    for name, scores in value.items():
        found = _MODULE.fullmatch(str(name))
        if found is None or not isinstance(scores, Tensor):
            raise EdgepruneError(f"{str(name)[:80]!r} is no module of auto-circuit with a tensor of scores")
        heads = found[2] not in ("mlp_in", "resid_post")
        scores = scores.detach().float()
        if scores.dim() == 2 + heads:
            scores = scores.double().sum(0).float() if is_slope else scores.amax(0)
            notes[f"scores of token positions are merged: an edge has {how} of its positions"] = None
        if scores.dim() != 1 + heads:
            raise EdgepruneError(
                f"{name!r} has scores of shape {tuple(scores.shape)}; expected [head, source] or [source]"
            )
        if found[2] == "attn_in":
            notes["q, k and v of a head are one reader there: each has its scores"] = None
            modules |= {f"blocks.{found[1]}.hook_{letter}_input": scores for letter in "qkv"}
        else:
            modules[str(name)] = scores
    return modules, list(notes)


def _graph_of(modules: dict[str, Tensor]) -> EdgeGraph:
    """The graph of these shapes."""
    layers = {int(name.split(".")[1]) for name in modules}
    first, mlp = modules.get("blocks.0.hook_q_input"), modules.get("blocks.0.hook_mlp_in")
    if first is None:
        raise EdgepruneError("it has no scores of 'blocks.0.hook_q_input'; it is no whole set of prune scores")
    return EdgeGraph(
        ArchSpec(
            num_layers=max(layers) + 1,
            num_heads=first.shape[0],
            num_kv_heads=first.shape[0],
            parallel_blocks=mlp is not None and mlp.shape[0] == first.shape[1],
            has_mlp=mlp is not None,
        )
    )


# -------------------------------------------------------------------- names of edges
@final
class AutoCircuitEdges(AbstractEdgeList):
    """Names of edges as auto-circuit's `Edge.name` gives them."""

    name: ClassVar[str] = "auto-circuit-edges"
    holds: ClassVar[str] = "auto-circuit: list of names of kept edges"
    tools: ClassVar[tuple[Tool, ...]] = ("auto-circuit",)

    def write(self, circuit: Circuit, path: Path, options: ExportOptions) -> list[str]:
        """Write `"A3.0->MLP 4"` of every kept edge."""
        view = convert_circuit(circuit, per_head(circuit.graph, split_embedding=False))
        save_list(path, ["->".join(map(auto_circuit_name, edge.split("->"))) for edge in view.circuit.edges()])
        return [*not_held(circuit, scores=False), *view.notes, NO_GRAPH]


def auto_circuit_name(name: str) -> str:
    """Auto-circuit's name of a writer or a reader: `Resid Start`, `A3.0`, `A3.0.Q`, `MLP 2`, `Resid End`."""
    ends = {"embed": "Resid Start", "logits": "Resid End"}
    if name in ends:
        return ends[name]
    if name.startswith("m"):
        return f"MLP {name[1:]}"
    layer, head, *letter = name[1:].split(".")
    return ".".join([f"A{layer}", head[1:], *(item.upper() for item in letter)])
