"""What is done with the circuits of a run when training is over: as many edges, better chosen."""

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, cast

import lightning.pytorch as pl

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.registry import STANDARD as MEASURES
from edgeprune.tables import Numbers, table
from lit_modules.progress import show
from lit_modules.pruning import PruningModule
from lit_modules.roles import refuse_attention
from lit_modules.snapshots import Snapshot, SnapshotCircuits, log_values, measure_circuits, run_folder


class AbstractImprovement(pl.Callback, ABC):
    """Make a better circuit of every snapshot, from the largest to the smallest, when training is over.

    Files, in the run's folder: `WHAT/*.safetensors`. To be listed after `SnapshotCircuits`.

    Args:
        sparsities: Of the snapshots to take; None: all of those that were asked for by their sparsity.

    Attributes:
        circuits: The better circuits by sparsity.
    """

    WHAT: ClassVar[str]  # what they are then: `polished`
    BY_HAND: ClassVar[str]  # how a user does the same with the circuits of a finished run

    def __init__(self, sparsities: list[float] | None = None) -> None:
        super().__init__()
        self.sparsities = sparsities
        self.circuits: dict[float, Circuit] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse, before anything is trained, what could not be done in the end."""
        if stage != "fit":
            return
        name = type(self).__name__
        refuse_attention(cast("PruningModule", pl_module).recipe, name)
        if trainer.world_size > 1:
            raise EdgepruneError(
                f"{name} works in one process, not in {trainer.world_size}: leave it out, and give the circuits of "
                f"the finished run to {self.BY_HAND}"
            )
        takers = _takers(trainer)
        if not takers:
            raise EdgepruneError(f"{name} has no circuits to work on: add the callback SnapshotCircuits beside it")
        taken = {sparsity for item in takers for sparsity in item.sparsities}
        missing = [sparsity for sparsity in self.sparsities or [] if sparsity not in taken]
        if missing:
            raise EdgepruneError(
                f"sparsity {missing[0]} of {name} is none of those that SnapshotCircuits takes: {sorted(taken)}; "
                "add it there, or leave it out here"
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Work on the snapshots, those of a resumed run's first part included, and show what was gained."""
        module = cast("PruningModule", pl_module)
        snapshots: list[Snapshot] = []
        for callback in _takers(trainer):
            callback.on_fit_end(trainer, pl_module)
            snapshots += [item for item in callback.snapshots if self._is_wanted(item)]
        if not snapshots:
            return
        pl_module.to(trainer.strategy.root_device)  # Lightning has put it away
        folder, error = run_folder(trainer) / self.WHAT, module.error
        rows: list[list[float]] = []
        for snapshot in sorted(snapshots, key=lambda item: item.size, reverse=True):
            made, before = self.improve(trainer, module, snapshot, folder / snapshot.path.name), snapshot.circuit
            measures = made.header["metrics"]
            log_values(
                trainer,
                {f"{self.WHAT}/{name}": measures[name] for name in MEASURES} | {f"{self.WHAT}/sparsity": made.sparsity},
            )
            self.circuits[cast("float", snapshot.sparsity)] = made
            new = int((made.keep & ~before.keep).sum())
            rows.append([made.sparsity, made.num_edges, new, snapshot.measures[error], measures[error]])
        columns = [
            Numbers("sparsity", 4),
            Numbers("edges"),
            Numbers("new"),
            Numbers(f"{error} before"),
            Numbers("after"),
        ]
        show(trainer, table(f"{self.WHAT.capitalize()} circuits on the validation pairs", columns, rows))
        show(trainer, f"{self.WHAT} circuits are in {folder}")

    @abstractmethod
    def improve(self, trainer: pl.Trainer, module: PruningModule, snapshot: Snapshot, path: Path) -> Circuit:
        """The better circuit, with its figures on the validation pairs in its header, from its file if it is done."""

    def _is_wanted(self, snapshot: Snapshot) -> bool:
        some = 0 < snapshot.circuit.num_edges < snapshot.circuit.graph.num_edges
        return some and snapshot.sparsity is not None and snapshot.sparsity in (self.sparsities or [snapshot.sparsity])


def _takers(trainer: pl.Trainer) -> list[SnapshotCircuits]:
    return [item for item in trainer.callbacks if isinstance(item, SnapshotCircuits)]  # pyright: ignore[reportAttributeAccessIssue]


def measured(trainer: pl.Trainer, module: PruningModule, circuit: Circuit) -> Circuit:
    """The circuit with its figures on the validation pairs, and those of a random one, in its header."""
    control = Circuit.random(circuit.graph, circuit.num_edges)
    measures, random = measure_circuits(trainer, module, [circuit, control])
    known = {"split": "validation", "reached": circuit.header.get("reached", True)}
    return replace(circuit, header={**circuit.header, **known, "metrics": measures, "random_control": random})
