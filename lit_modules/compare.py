"""Snapshots against a circuit that is known already: the truth, an ACDC run, another method's circuit."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast, final

import lightning.pytorch as pl
from rich.table import Table
from rich.text import Text

from edgeprune.circuit import Circuit
from edgeprune.comparison.overlap import compare_edges, edge_overlap, scientific
from edgeprune.errors import EdgepruneError
from edgeprune.formats import is_native
from edgeprune.models.loading import COMPILED
from edgeprune.reference import ablated_positions, read_reference
from edgeprune.tables import Numbers, table
from lit_modules.progress import show
from lit_modules.pruning import PruningModule
from lit_modules.snapshots import Snapshot, SnapshotCircuits, log_values, measure_circuits

TRUTH = "truth"
SHOWN = ("precision", "recall", "jaccard")


class Known(NamedTuple):
    """A reference and its faithfulness on the validation pairs."""

    circuit: Circuit
    measures: dict[str, float]


class Compared(NamedTuple):
    """A snapshot against the nearest reference, as it is and with as many edges as the reference.

    Attributes:
        snapshot: The snapshot.
        known: The reference.
        overlap: Shared edges of the two, and what chance would give.
        cut: Shared edges when the snapshot's best edges, as many as the reference has, take its place.
        measures: Faithfulness of these edges.
    """

    snapshot: Snapshot
    known: Known
    overlap: dict[str, float]
    cut: dict[str, float]
    measures: dict[str, float]


@final
class CompareToReference(pl.Callback):
    """Log how every snapshot compares with a reference.

    Where circuits have roles and the reference none, their unions are compared. Attention edges are not: matched
    figures are with all of them open; the difference in faithfulness is that of the snapshot with those it closes.

    Under `reference/`: precision, recall, Jaccard; `missing` and `extra`, the edges that only one of the two has;
    `log10_p_value` of the overlap; the difference in faithfulness; and, with the snapshot cut to the reference's size
    (or grown to it) by its scores, `matched_jaccard` and the measures of both, `matched_kl` and `kl` among them.

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
        self.rows: list[Compared] = []
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
        row = self._compare(trainer, module, snapshot)
        values = {f"reference/{name}": row.overlap[name] for name in (*SHOWN, "log10_p_value")}
        values |= {"reference/missing": row.overlap["only_reference"], "reference/extra": row.overlap["only_found"]}
        values["reference/matched_jaccard"] = row.cut["jaccard"]
        for name in (module.error, "logit_difference"):
            values[f"reference/{name}_minus_reference"] = snapshot.measures[name] - row.known.measures[name]
        for name in dict.fromkeys((module.error, "kl", "logit_difference")):
            values[f"reference/{name}"] = row.known.measures[name]
            values[f"reference/matched_{name}"] = row.measures[name]
        log_values(trainer, values)
        self.rows.append(row)

    def _compare(self, trainer: pl.Trainer, module: PruningModule, snapshot: Snapshot) -> Compared:
        circuit = self._comparable(snapshot.circuit)
        known = self._nearest(trainer, module, circuit)
        overlap = compare_edges(circuit, known.circuit)
        scores = circuit.keep.float() if circuit.scores is None else circuit.scores
        best = Circuit.from_scores(circuit.graph, scores, num_edges=known.circuit.num_edges)
        cut = edge_overlap(best.keep, known.circuit.keep, circuit.graph.exists)
        return Compared(snapshot, known, overlap, cut, *measure_circuits(trainer, module, [best]))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the comparison; by now every snapshot is taken, those of a resumed run's first part included."""
        module = cast("PruningModule", pl_module)
        for callback in [item for item in trainer.callbacks if isinstance(item, SnapshotCircuits)]:  # pyright: ignore[reportAttributeAccessIssue]
            callback.on_fit_end(trainer, pl_module)
            known = {row.snapshot.path for row in self.rows}
            missing = [snapshot for snapshot in callback.snapshots if snapshot.path not in known]
            if missing:
                pl_module.to(trainer.strategy.root_device)  # Lightning has put it away
            self.rows = [*(self._compare(trainer, module, snapshot) for snapshot in missing), *self.rows]
        if not self.rows or not trainer.is_global_zero:
            return
        objective = cast("PruningModule", pl_module).error
        last, known, *_ = self.rows[-1]
        rows = sorted(self.rows, key=lambda row: row.snapshot.circuit.sparsity)
        error = f"{objective.replace('_', ' ')} {known.measures[objective]:.4g}"
        title = f"Against the reference, {known.circuit.num_edges} edges ({error})"
        counts = ("both", "only_reference", "only_found")
        lines = [
            [
                *(row.snapshot.circuit.sparsity, row.snapshot.circuit.num_edges),
                *(int(row.overlap[name]) for name in counts),
                *(row.overlap[name] for name in SHOWN),
            ]
            for row in rows
        ]
        columns = [Numbers("sparsity", 4), *map(Numbers, ("edges", "recovered", "missing", "extra", *SHOWN))]
        show(trainer, table(title, columns, lines), _matched_table(rows, objective))
        if self.show_edges:
            show(trainer, *self._lines(self._comparable(last.circuit), known.circuit))

    def _lines(self, found: Circuit, known: Circuit) -> Iterator[str | Text]:
        """Edges that both circuits have, and those of one alone."""
        ours, theirs = set(found.edges()), set(known.edges())
        for title, edges, style in (
            ("recovered", [edge for edge in known.edges() if edge in ours], "green"),
            ("missing", [edge for edge in known.edges() if edge not in ours], "red"),
            ("extra", [edge for edge in found.edges() if edge not in theirs], "yellow"),
        ):
            yield Text.assemble((f"{title} {len(edges)}", style), *(f"\n  {edge}" for edge in edges))
        verdict = "exactly the true circuit" if ours == theirs else "not the same circuit"
        yield f"recovered {len(ours & theirs)} of {len(theirs)} edges, {len(ours - theirs)} extra: {verdict}"

    def _comparable(self, circuit: Circuit) -> Circuit:
        """A circuit with all attention edges open, or where it has roles and references none, its union."""
        return replace(circuit, attend=None) if self._circuits[0].roles else circuit.union()

    def _nearest(self, trainer: pl.Trainer, module: PruningModule, circuit: Circuit) -> Known:
        """The reference that shares most with `circuit`: programs may have several equal circuits."""
        if not self._known:
            measures = measure_circuits(trainer, module, self._circuits)
            self._known = [Known(*pair) for pair in zip(self._circuits, measures, strict=True)]
        exists = circuit.graph.exists
        return max(self._known, key=lambda known: edge_overlap(circuit.keep, known.circuit.keep, exists)["jaccard"])

    def _read(self, module: PruningModule) -> list[Circuit]:
        graph: Any = module.masked.graph
        if not (is_native(self.reference) and Circuit.load(self.reference).roles):
            graph = graph.without_roles
        kind, _, ablation = self.reference.partition(":")
        if kind != TRUTH:
            circuit = read_reference(self.reference, graph)
            if circuit.num_edges == graph.num_edges:
                raise EdgepruneError(
                    f"{self.reference} keeps every edge, as a file of scores does; there is nothing to compare with: "
                    "give a circuit, such as one of `circuits/` beside it"
                )
            wrong = ablated_positions(circuit, module.masked, module.ablation)
            if wrong and module.global_rank == 0:
                sys.stderr.write(f"edgeprune: warning: {self.reference} {wrong}; set model.split_embedding to true\n")
            return [circuit]
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
    from edgeprune.compiled.tracr_format import is_tracr_folder, known_edges

    if not is_tracr_folder(Path(name)):
        raise EdgepruneError(f"the true circuit of {name!r} is not known; give `reference` a circuit file")
    return [known_edges(name, ablation)]


def _matched_table(rows: list[Compared], objective: str) -> Table:
    """How likely each overlap is by chance, and both circuits at the reference's size."""
    known = rows[-1].known
    shown = [name for name in (objective, "logit_difference") if not math.isnan(known.measures[name])]
    title = f"Chance, and at the reference's size ({known.circuit.num_edges} edges by score)"
    headings = ("p-value", "recovered", "jaccard", *(name.replace("_", " ") for name in shown))
    lines = [
        [
            *(f"{row.snapshot.circuit.sparsity:.4f}", scientific(row.overlap["log10_p_value"])),
            *(int(row.cut["both"]), row.cut["jaccard"], *(row.measures[name] for name in shown)),
        ]
        for row in rows
    ]
    last = ["reference", "", known.circuit.num_edges, "", *(known.measures[name] for name in shown)]
    return table(title, [Numbers("sparsity"), *map(Numbers, headings)], [*lines, [], last])
