"""Polish the circuits that a run took on the way: as many edges, better chosen."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, final

import lightning.pytorch as pl

from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.console import Progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods.polish import Polisher, Polishing, polished
from edgeprune.methods.problem import Metric, Problem
from edgeprune.metrics.registry import STANDARD as MEASURES
from edgeprune.tables import Numbers, table
from lit_modules.checkpoints import run_checkpoint
from lit_modules.progress import run_progress, show
from lit_modules.pruning import PruningModule
from lit_modules.ranks import every_batch
from lit_modules.roles import refuse_attention
from lit_modules.snapshots import Snapshot, SnapshotCircuits, log_values, measure_circuits, run_folder

FOLDER = "polished"  # in the run's folder


@final
class Polish(pl.Callback):
    """Polish every snapshot when training is over, as `edgeprune polish` does.

    Swaps are chosen on the first training pairs and must help on the validation pairs too, so that a polished circuit's
    figures on these are somewhat too good: `edgeprune evaluate` judges it on the test pairs. A run that is killed
    meanwhile goes on from its last checkpoint with the circuit that it was at. Files, in the run's folder:
    `polished/*.safetensors`. To be listed after `SnapshotCircuits`.

    Args:
        limit: Training pairs to polish on, the first ones.
        sparsities: Of the snapshots to polish; None: all of those that were asked for by their sparsity.
        max_passes: Stop after so many forward and backward passes over these pairs, with `parts` over those of a part.
        probes: Backward passes per pair for the curvature of the loss.
        overshoot: The most edges to open before as many are closed by measured effects.
        seed: Of the curvature's random functions.
        parts: Of the pairs to polish on, one in turn after each swap that stays, so that swaps cannot fit a few pairs.
    """

    def __init__(
        self,
        limit: int = 128,
        sparsities: list[float] | None = None,
        max_passes: float = 100.0,
        probes: int = 2,
        overshoot: int = 32,
        seed: int = 0,
        parts: int = 1,
    ) -> None:
        super().__init__()
        if limit < 1:
            raise EdgepruneError(f"limit must be at least 1, got {limit}: circuits are polished on training pairs")
        self.limit, self.sparsities = limit, sparsities
        self.settings = Polishing(max_passes, probes, overshoot=overshoot, seed=seed, parts=parts)
        self.circuits: dict[float, Circuit] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse, before anything is trained, what could not be polished in the end."""
        if stage != "fit":
            return
        refuse_attention(cast("PruningModule", pl_module).recipe, "Polish")
        if trainer.world_size > 1:
            raise EdgepruneError(
                f"Polish works in one process, not in {trainer.world_size}: leave it out, and give the circuits of the "
                "finished run to `edgeprune polish`"
            )
        if cast("PruningModule", pl_module).objective == "cmd":
            raise EdgepruneError(
                "Polish has no loss of a circuit alone under objective 'cmd': leave it out, and give the circuits of "
                "the finished run to `edgeprune polish` with another --metric"
            )
        takers = [item for item in trainer.callbacks if isinstance(item, SnapshotCircuits)]  # pyright: ignore[reportAttributeAccessIssue]
        if not takers:
            raise EdgepruneError("Polish has no circuits to polish: add the callback SnapshotCircuits beside it")
        taken = {sparsity for item in takers for sparsity in item.sparsities}
        missing = [sparsity for sparsity in self.sparsities or [] if sparsity not in taken]
        if missing:
            raise EdgepruneError(
                f"sparsity {missing[0]} of Polish is none of those that SnapshotCircuits takes: {sorted(taken)}; "
                "add it there, or leave it out here"
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Polish the snapshots, those of a resumed run's first part included, and show what was gained."""
        module = cast("PruningModule", pl_module)
        snapshots: list[Snapshot] = []
        for callback in [item for item in trainer.callbacks if isinstance(item, SnapshotCircuits)]:  # pyright: ignore[reportAttributeAccessIssue]
            callback.on_fit_end(trainer, pl_module)
            snapshots += [item for item in callback.snapshots if self._is_wanted(item)]
        if not snapshots:
            return
        pl_module.to(trainer.strategy.root_device)  # Lightning has put it away
        folder = run_folder(trainer) / FOLDER
        pairs = self._pairs(trainer, module)
        rows = [self._polish(trainer, module, snapshot, folder, *pairs) for snapshot in snapshots]
        columns = [Numbers("sparsity", 4), Numbers("edges"), Numbers("swapped")]
        columns += [Numbers(f"{module.error} before"), Numbers("after"), Numbers("passes", 1)]
        show(trainer, table("Polished circuits on the validation pairs", columns, sorted(rows)))
        show(trainer, f"polished circuits are in {folder}")

    def _is_wanted(self, snapshot: Snapshot) -> bool:
        some = 0 < snapshot.circuit.num_edges < snapshot.circuit.graph.num_edges
        return some and snapshot.sparsity is not None and snapshot.sparsity in (self.sparsities or [snapshot.sparsity])

    def _pairs(self, trainer: pl.Trainer, module: PruningModule) -> tuple[Problem, Problem]:
        """Training pairs to polish on, and the validation pairs."""
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

        def problem(split: str, limit: int | None, size: int) -> Problem:
            collate = data.ordered_dataloader(split).collate_fn
            batches: list[PairBatch] = list(every_batch(data.pairs(split)[:limit], collate, size))
            return Problem(module.masked, batches, module.runs, cast("Metric", module.objective), split)

        return problem("train", self.limit, data.batch_size), problem("validation", None, data.eval_batch_size)

    def _polish(
        self,
        trainer: pl.Trainer,
        module: PruningModule,
        snapshot: Snapshot,
        folder: Path,
        problem: Problem,
        held_out: Problem,
    ) -> list[float]:
        """Polish one snapshot, unless that was done already; a row of the table."""
        path, circuit = folder / snapshot.path.name, snapshot.circuit
        state = folder / f"{path.stem}-state"
        polisher = Polisher(problem, circuit.keep, self.settings, held_out, state)
        made = _done(path, polisher.key)
        if made is None:
            polisher.run(self._report(trainer, path.stem))
            made = polished(circuit, polisher)
            measures, control = measure_circuits(
                trainer, module, [made, Circuit.random(made.graph, made.num_edges)], stoppable=False
            )
            about = {
                "split": "validation",
                "reached": circuit.header.get("reached", True),
                "metrics": measures,
                "random_control": control,
            }
            made = replace(made, header={**made.header, **about})
            made.save(path)
            shutil.rmtree(state)
        measures, about = made.header["metrics"], made.header["derived"][-1]["polished"]
        log_values(
            trainer, {f"polished/{name}": measures[name] for name in MEASURES} | {"polished/sparsity": made.sparsity}
        )
        assert snapshot.sparsity is not None
        self.circuits[snapshot.sparsity] = made
        return [
            *(made.sparsity, made.num_edges, about["swaps"]),
            *(snapshot.measures[module.error], measures[module.error], about["passes"]),
        ]

    @staticmethod
    def _report(trainer: pl.Trainer, name: str) -> Progress:
        """Shows how far one circuit is; stops the run where a signal asked for it."""
        progress, checkpoint = run_progress(trainer), run_checkpoint(trainer)

        def report(what: str, done: int, total: int) -> None:
            if progress is not None:
                progress.report(f"{name}: {what}", done, total)
            if checkpoint is not None and done < total:
                checkpoint.stop_if_asked(trainer)

        return report


def _done(path: Path, key: str) -> Circuit | None:
    """The polished circuit in a file, if it is that of this very task; else None."""
    if not path.is_file():
        return None
    circuit = Circuit.load(path)
    return circuit if circuit.header["derived"][-1]["polished"]["key"] == key else None
