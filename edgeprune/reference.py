"""Circuits to compare with, from the files in which people keep them: see `edgeprune.formats`."""

from pathlib import Path

from edgeprune.circuit import Circuit
from edgeprune.formats import Holds, read_circuit
from edgeprune.graph import EdgeGraph


def read_reference(path: str | Path, graph: EdgeGraph, holds: Holds | None = None) -> Circuit:
    """Read a circuit to compare with, as a circuit of `graph`.

    Where the graph has one embedding writer, token and position embedding are merged into it. Where query heads share a
    k and a v reader, those of a tool that has one per query head become its group's. What that made different is in the
    circuit's header, under `notes`.

    Args:
        path: A file of any format that `edgeprune convert --list` names, told by its content.
        graph: The graph that the edges must belong to; for our own files the very same.
        holds: As in `read_circuit`, for a file that does not tell whether it holds scores or a circuit.

    Raises:
        EdgepruneError: The file is missing, damaged or of another kind, or has an edge that the graph lacks.
    """
    return read_circuit(path, graph, holds=holds).circuit
