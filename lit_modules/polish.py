"""Polish the circuits that a run took on the way: as many edges, better chosen."""

import shutil
from pathlib import Path
from typing import Any, cast, final

import lightning.pytorch as pl

from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.console import Progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods.polish import Polisher, Polishing, polished
from edgeprune.methods.problem import Metric, Problem
from lit_modules.checkpoints import run_checkpoint
from lit_modules.improve import AbstractImprovement, measured
from lit_modules.progress import run_progress
from lit_modules.pruning import PruningModule
from lit_modules.ranks import every_batch
from lit_modules.snapshots import Snapshot


@final
class Polish(AbstractImprovement):
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

    WHAT, BY_HAND = "polished", "`edgeprune polish`"

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
        super().__init__(sparsities)
        if limit < 1:
            raise EdgepruneError(f"limit must be at least 1, got {limit}: circuits are polished on training pairs")
        self.limit = limit
        self.settings = Polishing(max_passes, probes, overshoot=overshoot, seed=seed, parts=parts)
        self._problems: tuple[Problem, Problem] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse, before anything is trained, what could not be polished in the end."""
        if stage == "fit" and cast("PruningModule", pl_module).objective == "cmd":
            raise EdgepruneError(
                "Polish has no loss of a circuit alone under objective 'cmd': leave it out, and give the circuits of "
                "the finished run to `edgeprune polish` with another --metric"
            )
        super().setup(trainer, pl_module, stage)

    def _pairs(self, trainer: pl.Trainer, module: PruningModule) -> tuple[Problem, Problem]:
        """Training pairs to polish on, and the validation pairs."""
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

        def problem(split: str, limit: int | None, size: int) -> Problem:
            collate = data.ordered_dataloader(split).collate_fn
            batches: list[PairBatch] = list(every_batch(data.pairs(split)[:limit], collate, size))
            return Problem(module.masked, batches, module.runs, cast("Metric", module.objective), split)

        return problem("train", self.limit, data.batch_size), problem("validation", None, data.eval_batch_size)

    def improve(self, trainer: pl.Trainer, module: PruningModule, snapshot: Snapshot, path: Path) -> Circuit:
        """Polish one snapshot, unless that was done already."""
        if self._problems is None:
            self._problems = self._pairs(trainer, module)
        problem, held_out = self._problems
        circuit, state = snapshot.circuit, path.with_name(f"{path.stem}-state")
        polisher = Polisher(problem, circuit.keep, self.settings, held_out, state)
        made = _done(path, polisher.key)
        if made is None:
            polisher.run(self._report(trainer, path.stem))
            made = measured(trainer, module, polished(circuit, polisher))
            made.save(path)
            shutil.rmtree(state)
        return made

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
