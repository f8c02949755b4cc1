"""Circuits to compare with, from the files in which people keep them.

Own circuit files; JSON lists of edges in our names, Edge Pruning's or the ground truth's; and the three forms
in which ACDC's edges travel. An ACDC edge is `(child, child_index, parent, parent_index)`, where names are
hooks of TransformerLens and an index is `(None,)` or `(None, None, head)`. Its edges inside a head or an MLP
(`hook_q_input` to `hook_q`, `hook_mlp_in` to `hook_mlp_out`, ...) are no edges of our graph and are left out.
"""

import json
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph

_WRITERS = {"tok_embeds": "tok_embed", "tok": "tok_embed", "pos_embeds": "pos_embed", "pos": "pos_embed"}
_READERS = {"resid_post": "logits", "out": "logits"}

_ACDC_EMBEDDINGS = {
    "hook_embed": "tok_embed",
    "hook_pos_embed": "pos_embed",
    "blocks.0.hook_resid_pre": "embed",
}
_ACDC_WRITER = re.compile(r"blocks\.(\d+)\.(attn\.hook_result|hook_mlp_out)")
_ACDC_READER = re.compile(r"blocks\.(\d+)\.hook_([qkv]_input|mlp_in|resid_post)")
_ACDC_INSIDE = re.compile(r"blocks\.\d+\.(attn\.hook_(q|k|v|result)|hook_mlp_out)")


def read_reference(path: str | Path, graph: EdgeGraph) -> Circuit:
    """Read a circuit to compare with, as a circuit of `graph`.

    Where the graph has one embedding writer, token and position embedding are merged into it. Where query
    heads share a k and a v reader, those of an ACDC head become its group's; other edges must name the
    readers of the graph.

    Args:
        path: `.safetensors` (our circuit file); `.json` (list of `[writer, reader]`, of `"writer->reader"`,
            or of ACDC's `[child, child_index, parent, parent_index]`); `.pth` (ACDC, dict of edge to bool);
            or `.pkl` (ACDC, list of `(edge, effect)`, read without running code from it).
        graph: The graph that the edges must belong to.

    Raises:
        EdgepruneError: The file is missing, damaged or of another kind, or has an edge that the graph lacks.
    """
    path = Path(path)
    if path.is_dir():
        raise EdgepruneError(f"{path} is a folder; name one file, such as a circuit in {path / 'circuits'}")
    if not path.is_file():
        raise EdgepruneError(f"no reference circuit at {path}")
    if path.suffix == ".safetensors":
        circuit = Circuit.load(path)
        circuit.check_fits(graph, "the one it is compared on")
        return circuit
    if path.suffix not in _FORMATS:
        known = ", ".join([".safetensors", *_FORMATS])
        raise EdgepruneError(f"{path}: cannot tell what a {path.suffix!r} file holds; known suffixes: {known}")
    try:
        edges = [edge for entry in _entries(path) if (edge := _edge(entry, graph)) is not None]
        return Circuit.from_edges(graph, edges, {"source": path.name})
    except EdgepruneError as error:
        raise EdgepruneError(f"{path}: {error}") from None


# -------------------------------------------------------------------- files
def _entries(path: Path) -> list[Any]:
    try:
        return list(_FORMATS[path.suffix](path))
    except EdgepruneError:
        raise
    except Exception as error:  # json, pickle and torch raise many kinds for a damaged file
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise EdgepruneError(f"not a whole {path.suffix} file of edges ({reason}); write it again") from None


def _read_json(path: Path) -> Iterable[Any]:
    content = json.loads(path.read_text())
    if not isinstance(content, list):
        raise EdgepruneError(f"expected a list of edges, got a {type(content).__name__}; give the list alone")
    return content


def _read_pth(path: Path) -> Iterable[Any]:
    try:
        content: dict[Any, bool] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message advises to switch the safety off
        raise EdgepruneError("damaged, or holds more than a dict of ACDC edge to bool; write it again") from None
    return [edge for edge, present in content.items() if present]


def _read_pkl(path: Path) -> Iterable[Any]:
    with path.open("rb") as file:
        return [edge for edge, _effect in _EdgeUnpickler(file).load()]


_FORMATS: dict[str, Callable[[Path], Iterable[Any]]] = {
    ".json": _read_json,
    ".pth": _read_pth,
    ".pkl": _read_pkl,
}


class _TorchIndex:
    """Stands in for ACDC's class of that name, whatever module it was in."""

    hashable_tuple: tuple[int | None, ...] = ()


class _EdgeUnpickler(pickle.Unpickler):
    """Builds plain values, `TorchIndex` and the slices in it: nothing that a file could make run."""

    def find_class(self, module: str, name: str, /) -> type:
        if name == "TorchIndex":
            return _TorchIndex
        if module in ("builtins", "__builtin__") and name == "slice":  # the older name is protocol 2's
            return slice
        raise EdgepruneError(
            f"the pickle asks for {module}.{name}, a list of ACDC edges needs only TorchIndex; refused"
        )


# -------------------------------------------------------------------- one edge
def _edge(entry: Any, graph: EdgeGraph) -> str | None:
    """`"writer->reader"` in our names, or None for an ACDC edge that lies inside a head or an MLP."""
    match entry:
        case str():
            writer, _, reader = (part.strip() for part in entry.partition("->"))
        case [str(writer), str(reader)]:
            pass
        case [str(child), child_index, str(parent), parent_index]:
            if _ACDC_INSIDE.fullmatch(child):
                return None
            writer, reader = _acdc_writer(parent, parent_index), _acdc_reader(child, child_index, graph)
        case _:
            raise EdgepruneError(
                f"{str(entry)[:80]!r} is no edge; write [writer, reader], 'writer->reader' or "
                "[child, child_index, parent, parent_index]"
            )
    return f"{_fit_embedding(_WRITERS.get(writer, writer), graph)}->{_READERS.get(reader, reader)}"


def _fit_embedding(writer: str, graph: EdgeGraph) -> str:
    split = graph.arch.split_embedding
    if writer == "embed" and split:
        raise EdgepruneError(
            "it has one embedding writer, the graph has tok_embed and pos_embed; use split_embedding=False"
        )
    return "embed" if writer in ("tok_embed", "pos_embed") and not split else writer


# -------------------------------------------------------------------- ACDC's names
def _acdc_writer(name: str, index: Any) -> str:
    head = _acdc_head(name, index)
    if name in _ACDC_EMBEDDINGS:
        return _ACDC_EMBEDDINGS[name]
    match = _ACDC_WRITER.fullmatch(name)
    if match is None or (head is not None) != (match[2] == "attn.hook_result"):
        raise EdgepruneError(f"no writer of ACDC is named {name!r} with index {_shown(index)}")
    return f"m{match[1]}" if head is None else f"a{match[1]}.h{head}"


def _acdc_reader(name: str, index: Any, graph: EdgeGraph) -> str:
    arch, head = graph.arch, _acdc_head(name, index)
    match = _ACDC_READER.fullmatch(name)
    if match is None or (head is not None) != match[2].endswith("_input"):
        raise EdgepruneError(f"no reader of ACDC is named {name!r} with index {_shown(index)}")
    layer, hook = int(match[1]), match[2]
    if hook == "resid_post" and layer != arch.num_layers - 1:
        raise EdgepruneError(f"{name!r} is not the end of a graph with {arch.num_layers} layers; use the same model")
    if head is None:
        return "logits" if hook == "resid_post" else f"m{layer}"
    if hook[0] in "kv":
        head = head * arch.num_kv_readers // arch.num_heads
    return f"a{layer}.h{head}.{hook[0]}"


def _acdc_head(name: str, index: Any) -> int | None:
    """The head in an index; None for one that takes the whole tensor."""
    match index.hashable_tuple if isinstance(index, _TorchIndex) else index:
        case [None]:
            return None
        case [None, None, int(head)]:
            return head
        case _:
            raise EdgepruneError(f"{name!r} has index {_shown(index)}; expected (None,) or (None, None, head)")


def _shown(index: Any) -> str:
    return str(index.hashable_tuple if isinstance(index, _TorchIndex) else index)
