"""What a file format of circuits is, what reading a file gives, and what writing one needs."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph

Kind = Literal["circuit", "tensors", "json", "torch", "pickle"]
Holds = Literal["scores", "circuit"]

# Of the file that a circuit came from; a note on losing them would help nobody.
PROVENANCE = frozenset({"source", "source_format", "notes", "d_model"})
_WRITTEN_ANEW = frozenset({"format", "graph", "num_edges", "sparsity", "num_dangling", "sha256"})


@dataclass(frozen=True, eq=False)
class Loaded:
    """The plain values in a file, read without running code from it.

    Attributes:
        path: The file or folder.
        kind: What was found by its first bytes: `"circuit"`, a safetensors file without masks of Edge Pruning, which is
            left to `Circuit.load`; `"tensors"`, masks of Edge Pruning by name; `"json"`; `"torch"`, what `torch.save`
            wrote; `"pickle"`, plain values and ACDC's indices.
        value: The content; None for `"circuit"`.
        holds: What the file holds by the caller, for formats whose files may not say.
    """

    path: Path
    kind: Kind
    value: Any
    holds: Holds | None = None


@dataclass(frozen=True, eq=False)
class Imported:
    """A circuit from a file.

    Attributes:
        circuit: The circuit.
        notes: One sentence for everything that the file does not say, or that its conventions made different.
    """

    circuit: Circuit
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportOptions:
    """What a file may need beside the circuit.

    Attributes:
        d_model: Width of the residual stream, which EAP-IG's files name; None if it is not known.
        membership: Write which edges are kept, and leave the scores out, where a format could hold them.
    """

    d_model: int | None = None
    membership: bool = False


class AbstractFormat(ABC):
    """One format.

    Attributes:
        name: As on the command line.
        suffixes: Endings of the files that are written so; none for a format that is read alone.
        holds: What a file holds, in a few words.
        folder: Files are written into a folder.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    holds: ClassVar[str]
    folder: ClassVar[bool] = False

    @abstractmethod
    def recognises(self, loaded: Loaded) -> bool:
        """Whether the content looks like this format."""

    @abstractmethod
    def read(self, loaded: Loaded, graph: EdgeGraph | None) -> Imported:
        """The circuit in a file, on the file's own graph or on `graph`.

        Args:
            loaded: The content.
            graph: The graph that the circuit is wanted on; formats that hold none of their own need it.

        Raises:
            EdgepruneError: The content is not of this format, or has edges that the graph lacks.
        """

    @abstractmethod
    def write(self, circuit: Circuit, path: Path, options: ExportOptions) -> list[str]:
        """Write a circuit, whole or not at all.

        Returns:
            One sentence for everything about the circuit that the file cannot hold.

        Raises:
            EdgepruneError: The format has no such graphs, or cannot be written.
        """


def need_graph(graph: EdgeGraph | None) -> EdgeGraph:
    """The graph that a format without one of its own must be given."""
    if graph is None:
        raise EdgepruneError(
            "a list of edges does not say which graph they are of; give the model (--model) or a circuit of the same "
            "graph (--like)"
        )
    return graph


def refuse_twice(edges: Iterable[str]) -> None:
    """Refuse a list that has an edge twice: one of the two is a mistake, and nobody knows which."""
    seen = set[str]()
    for edge in edges:
        if edge in seen:
            raise EdgepruneError(f"{edge[:80]!r} is listed twice; list each edge once")
        seen.add(edge)


def not_held(circuit: Circuit, *, scores: bool) -> list[str]:
    """Sentences on the header, and on scores unless the format holds them."""
    lost = sorted(set(circuit.header) - PROVENANCE - _WRITTEN_ANEW)
    notes = [f"header left out ({shown(lost)})"] if lost else []
    if circuit.scores is not None and not scores:
        notes.append("scores left out: only which edges are kept is written")
    return notes


def is_number(value: Any) -> bool:
    """A float, or a whole number that is not too large for one; true and false are none."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def shown(names: Iterable[str], limit: int = 5) -> str:
    """Some names, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return ", ".join(known[:limit]) + more
