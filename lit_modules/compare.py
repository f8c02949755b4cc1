"""Snapshots against a circuit that is known already: the truth, an ACDC run, another method's circuit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, final

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.overlap import edge_overlap
from edgeprune.models.loading import COMPILED
from edgeprune.reference import read_reference
from lit_modules.pruning import PruningModule
from lit_modules.snapshots import Snapshot, judge, log_values

TRUTH = "truth"
SHOWN = ("precision", "recall", "jaccard")


class Known(NamedTuple):
    """A reference and its faithfulness on the validation pairs."""

    circuit: Circuit
    measures: dict[str, float]


@final
class CompareToReference(pl.Callback):
    """Log precision, recall, Jaccard and the difference in faithfulness of every snapshot against a reference.

    Args:
        reference: A circuit file, a saved ACDC edge list (`.pth`, `.pkl`, `.json`), or `"truth"`: the known circuit of
            a compiled model (the nearest, where it has several) or of a ground-truth folder, under this run's ablation;
            `"truth:interchange_pad"` names another ablation of a folder.
        show_edges: At the end, list recovered, missing and extra edges of the final gates' circuit.
    """

    def __init__(self, reference: str, show_edges: bool = False) -> None:
        super().__init__()
        if reference.partition(":")[0] != TRUTH and not Path(reference).is_file():
            raise EdgepruneError(f"no reference circuit at {reference}; give a file, or 'truth' for a compiled model")
        self.reference = reference
        self.show_edges = show_edges
        self.rows: list[tuple[Snapshot, Known, dict[str, float]]] = []
        self._circuits: list[Circuit] = []
        self._known: list[Known] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look the reference up before anything is trained or written."""
        if stage == "fit":
            module = cast("PruningModule", pl_module)
            module.configure_model()
            self._circuits = self._read(module)

    def on_snapshot(self, trainer: pl.Trainer, module: PruningModule, snapshot: Snapshot) -> None:
        """Compare one snapshot and log it."""
        known, overlap = self._nearest(trainer, module, snapshot.circuit)
        values = {f"reference/{name}": overlap[name] for name in SHOWN}
        for name in (module.objective, "logit_difference"):
            values[f"reference/{name}_minus_reference"] = snapshot.measures[name] - known.measures[name]
        log_values(trainer, values)
        self.rows.append((snapshot, known, overlap))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the comparison; by now every snapshot is taken."""
        if not self.rows or not trainer.is_global_zero:
            return
        objective = cast("PruningModule", pl_module).objective
        last, known, _ = self.rows[-1]
        error = f"{objective.replace('_', ' ')} {known.measures[objective]:.4g}"
        table = Table(title=f"Against the reference, {known.circuit.num_edges} edges ({error})")
        for name in ("sparsity", "edges", "recovered", "missing", "extra", *SHOWN):
            table.add_column(name, justify="right")
        for snapshot, _, overlap in sorted(self.rows, key=lambda row: row[0].circuit.sparsity):
            counts = (f"{overlap[name]:.0f}" for name in ("both", "only_reference", "only_found"))
            shares = (f"{overlap[name]:.3f}" for name in SHOWN)
            circuit = snapshot.circuit
            table.add_row(f"{circuit.sparsity:.4f}", f"{circuit.num_edges:,}", *counts, *shares)
        Console().print(table)
        if self.show_edges:
            self._show(last.circuit, known.circuit)

    def _show(self, found: Circuit, known: Circuit) -> None:
        console = Console()
        ours, theirs = set(found.edges()), set(known.edges())
        for title, edges, style in (
            ("recovered", [edge for edge in known.edges() if edge in ours], "green"),
            ("missing", [edge for edge in known.edges() if edge not in ours], "red"),
            ("extra", [edge for edge in found.edges() if edge not in theirs], "yellow"),
        ):
            console.print(f"[{style}]{title} {len(edges)}[/{style}]" + "".join(f"\n  {edge}" for edge in edges))
        verdict = "exactly the true circuit" if ours == theirs else "not the same circuit"
        console.print(f"recovered {len(ours & theirs)} of {len(theirs)} edges, {len(ours - theirs)} extra: {verdict}")

    def _nearest(self, trainer: pl.Trainer, module: PruningModule, circuit: Circuit) -> tuple[Known, dict[str, float]]:
        """The reference that shares most with `circuit`, and the overlap: programs may have several equal circuits."""
        if not self._known:
            measures = judge(trainer, module, self._circuits)
            self._known = [Known(*pair) for pair in zip(self._circuits, measures, strict=True)]
        overlaps = [edge_overlap(circuit.keep, known.circuit.keep, circuit.graph.exists) for known in self._known]
        return max(zip(self._known, overlaps, strict=True), key=lambda pair: pair[1]["jaccard"])

    def _read(self, module: PruningModule) -> list[Circuit]:
        graph: Any = module.masked.graph
        kind, _, ablation = self.reference.partition(":")
        if kind != TRUTH:
            return [read_reference(self.reference, graph)]
        circuits = _known_edges(module.name, ablation or module.ablation)
        if not graph.arch.split_embedding:
            raise EdgepruneError(
                "known circuits have token and position embedding apart: set model.split_embedding to true or null, or "
                "give `reference` a circuit file"
            )
        return [Circuit.from_edges(graph, edges) for edges in circuits]


def _known_edges(name: str, ablation: Any) -> Sequence[Sequence[str]]:
    """All circuits of a model that count as true; `ablation` is checked where it is looked up."""
    if name.startswith(COMPILED):
        from edgeprune.compiled import minimal_circuits

        return minimal_circuits(name.removeprefix(COMPILED), ablation)
    from edgeprune.compiled.tracr_format import is_tracr_folder, read_circuit

    if not is_tracr_folder(Path(name)):
        raise EdgepruneError(f"the true circuit of {name!r} is not known; give `reference` a circuit file")
    return [read_circuit(Path(name), ablation)]
