"""Snapshots against a circuit that is known already: the truth, an ACDC run, another method's circuit."""

from pathlib import Path
from typing import Any, cast, final

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


@final
class CompareToReference(pl.Callback):
    """Log precision, recall, Jaccard and the difference in faithfulness of every snapshot against a reference.

    Args:
        reference: A circuit file, a saved ACDC edge list (`.pth`, `.pkl`, `.json`), or `"truth"`: the known circuit of
            a compiled model or of a ground-truth folder, under this run's ablation; `"truth:interchange_pad"` names
            another ablation of a folder.
        show_edges: At the end, list recovered, missing and extra edges of the final gates' circuit.
    """

    def __init__(self, reference: str, show_edges: bool = False) -> None:
        super().__init__()
        if reference.partition(":")[0] != TRUTH and not Path(reference).is_file():
            raise EdgepruneError(f"no reference circuit at {reference}; give a file, or 'truth' for a compiled model")
        self.reference = reference
        self.show_edges = show_edges
        self.rows: list[tuple[Snapshot, dict[str, float]]] = []
        self._circuit: Circuit | None = None
        self._measures: dict[str, float] = {}

    def on_snapshot(self, trainer: pl.Trainer, module: PruningModule, snapshot: Snapshot) -> None:
        """Compare one snapshot and log it."""
        known = self._known(trainer, module)
        overlap = edge_overlap(snapshot.circuit.keep, known.keep, known.graph.exists)
        values = {f"reference/{name}": overlap[name] for name in SHOWN}
        for name in (module.objective, "logit_difference"):
            values[f"reference/{name}_minus_reference"] = snapshot.measures[name] - self._measures[name]
        log_values(trainer, values)
        self.rows.append((snapshot, overlap))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the comparison; by now every snapshot is taken."""
        if not self.rows or self._circuit is None or not trainer.is_global_zero:
            return
        objective = cast("PruningModule", pl_module).objective
        error = f"{objective.replace('_', ' ')} {self._measures[objective]:.4g}"
        table = Table(title=f"Against the reference, {self._circuit.num_edges} edges ({error})")
        for name in ("sparsity", "edges", "recovered", "missing", "extra", *SHOWN):
            table.add_column(name, justify="right")
        for snapshot, overlap in sorted(self.rows, key=lambda row: row[0].circuit.sparsity):
            counts = (f"{overlap[name]:.0f}" for name in ("both", "only_reference", "only_found"))
            shares = (f"{overlap[name]:.3f}" for name in SHOWN)
            circuit = snapshot.circuit
            table.add_row(f"{circuit.sparsity:.4f}", f"{circuit.num_edges:,}", *counts, *shares)
        Console().print(table)
        if self.show_edges:
            self._show(self.rows[-1][0].circuit, self._circuit)

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

    def _known(self, trainer: pl.Trainer, module: PruningModule) -> Circuit:
        if self._circuit is None:
            self._circuit = self._read(module)
            (self._measures,) = judge(trainer, module, [self._circuit])
        return self._circuit

    def _read(self, module: PruningModule) -> Circuit:
        graph: Any = module.masked.graph
        kind, _, ablation = self.reference.partition(":")
        if kind != TRUTH:
            return read_reference(self.reference, graph)
        ablation = ablation or module.ablation
        if module.name.startswith(COMPILED):
            from edgeprune.compiled import true_circuit

            return Circuit.from_edges(graph, true_circuit(module.name.removeprefix(COMPILED), ablation))
        from edgeprune.compiled.tracr_format import is_tracr_folder, read_circuit

        if not is_tracr_folder(Path(module.name)):
            raise EdgepruneError(f"the true circuit of {module.name!r} is not known; give `reference` a circuit file")
        return Circuit.from_edges(graph, read_circuit(Path(module.name), ablation))
