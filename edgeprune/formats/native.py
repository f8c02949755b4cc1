"""The native circuit file: everything about a circuit."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, final

from edgeprune.circuit import Circuit
from edgeprune.formats.base import AbstractFormat, ExportOptions, Imported, Loaded
from edgeprune.graph import EdgeGraph


@final
class NativeFile(AbstractFormat):
    """`edgeprune-circuit/1`, with roles `edgeprune-circuit/2`."""

    name: ClassVar[str] = "edgeprune"
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)
    holds: ClassVar[str] = "edgeprune: graph, kept edges, scores, header"

    def recognises(self, loaded: Loaded) -> bool:
        """A safetensors file without masks of Edge Pruning."""
        return loaded.kind == "circuit"

    def read(self, loaded: Loaded, graph: EdgeGraph | None) -> Imported:
        """The circuit, with its attention edges; its graph must be the one that is wanted."""
        circuit = Circuit.load(loaded.path)
        if graph is not None:
            circuit.check_fits(graph, "the one it is wanted on", attention=True)
        return Imported(circuit)

    def write(self, circuit: Circuit, path: Path, options: ExportOptions) -> list[str]:
        """Save the circuit, without its scores where membership alone is wanted."""
        kept = replace(circuit, scores=None, attend_scores=None) if options.membership else circuit
        kept.save(path)
        return ["scores left out: only which edges are kept is written"] if kept.scores is not circuit.scores else []
