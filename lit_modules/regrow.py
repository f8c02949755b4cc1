"""Train on at the size of each circuit that a run took on the way, with closed gates that open again."""

import hashlib
import json
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast, final

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger

from edgeprune.checkpoint_files import load_checkpoint
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.methods import EdgePruning, Regrow, WarmStart
from edgeprune.objectives.pace import Pace
from lit_modules.checkpoints import RUN, RunCheckpoint, SealedCheckpoints
from lit_modules.improve import AbstractImprovement, measured
from lit_modules.metrics_log import MetricsTable
from lit_modules.progress import run_progress
from lit_modules.pruning import PruningModule
from lit_modules.snapshots import Snapshot

CLOSED_AT = -6.0  # log-alpha of edges that the circuit leaves out: closed whatever the noise
BETAS = (0.9, 0.99)  # of Adam
EVERY = 50  # steps between two checkpoints


@final
class RegrowCircuits(AbstractImprovement):
    """Train on from every snapshot when training is over: `EdgePruning` that stays at its size, gates open again.

    Each circuit is trained for so many steps from the gates that it is, on the run's model, pairs and kept runs, which
    need not be made anew (decision 39). Any recipe's snapshots will do. A run that is stopped meanwhile goes on with
    the circuit and the step that it was at. Files, in the run's folder: `regrown/*.safetensors`, and for each a
    folder with its log and checkpoints. To be listed after `SnapshotCircuits`.

    Args:
        steps: For each circuit.
        sparsities: Of the snapshots to take; None: all of those that were asked for by their sparsity.
        batch_size: Pairs of a step; None: the run's.
        masks_per_batch: Samples of the gates in a step.
        learning_rate: Of the log-alphas.
        init_mean: Log-alpha at which the circuit's edges start, on average.
        regrow: How closed gates open again.
    """

    WHAT = "regrown"
    BY_HAND = "`edgeprune fit` with `warm_start` and `regrow`"

    def __init__(
        self,
        steps: int = 300,
        sparsities: list[float] | None = None,
        batch_size: int | None = None,
        masks_per_batch: int = 8,
        learning_rate: float = 0.06,
        init_mean: float = 3.0,
        regrow: Regrow | None = None,
    ) -> None:
        super().__init__(sparsities)
        for name, value in (("steps", steps), ("batch_size", batch_size), ("masks_per_batch", masks_per_batch)):
            if value is not None and value < 1:
                raise EdgepruneError(f"{name} of RegrowCircuits must be at least 1, got {value}")
        self.steps, self.batch_size, self.masks_per_batch = steps, batch_size, masks_per_batch
        self.learning_rate, self.init_mean = learning_rate, init_mean
        self.regrow = Regrow() if regrow is None else regrow

    def improve(self, trainer: pl.Trainer, module: PruningModule, snapshot: Snapshot, path: Path) -> Circuit:
        """Train on from one snapshot, unless that was done already."""
        data = self._data(trainer)
        recipe = self._recipe(module, snapshot)
        settings = {"steps": self.steps, "batch_size": data.batch_size, **recipe.describe()}
        key = hashlib.sha256(json.dumps([settings, data.describe()], sort_keys=True).encode()).hexdigest()
        made = _done(path, key)
        if made is None:
            own = _beside(module, recipe)
            self._train(trainer, own, data, path)
            about = {"regrown": {"key": key, "from": snapshot.path.name, **asdict(self.regrow), "steps": self.steps}}
            known = {"task": data.describe(), "reached": snapshot.reached, **about}
            found = own.circuit(snapshot.sparsity)
            module.to(trainer.strategy.root_device)  # the model is the same, and Lightning has put it away
            made = measured(trainer, module, replace(found, header={**found.header, **known}))
            made.save(path)
        return made

    def _data(self, trainer: pl.Trainer) -> Any:
        """The run's pairs, for another trainer, from the first batch on."""
        data: Any = copy(trainer.datamodule)  # pyright: ignore[reportAttributeAccessIssue]
        data.trainer = None
        data.load_state_dict({"epoch": 0, "batch": 0})
        if self.batch_size is not None:
            data.settle(batch_size=self.batch_size)
        return data

    def _recipe(self, module: PruningModule, snapshot: Snapshot) -> EdgePruning:
        """What trains at the size of a snapshot."""
        recipe = EdgePruning(
            Pace(cast("float", snapshot.sparsity), hold=0.9),
            masks_per_batch=self.masks_per_batch,
            betas=BETAS,
            learning_rate=self.learning_rate,
            init_mean=self.init_mean,
            warm_start=WarmStart(str(snapshot.path), closed_at=CLOSED_AT),
            regrow=self.regrow,
        )
        recipe.build(module.masked.graph)
        return recipe

    def _train(self, trainer: pl.Trainer, own: PruningModule, data: Any, path: Path) -> None:
        """The steps, or those that are left of them."""
        folder, device = path.with_suffix(""), trainer.strategy.root_device
        last = folder / "checkpoints" / "last.ckpt"
        logger = CSVLogger(path.parent, name="", version=folder.name)
        MetricsTable.attach(logger, load_checkpoint(last)[RUN]["rows"] if last.is_file() else 0)
        beside = pl.Trainer(
            accelerator="cpu" if device.type == "cpu" else "gpu",
            devices=[device.index] if device.type == "cuda" else 1,
            precision=trainer.precision,
            max_steps=self.steps,
            max_epochs=-1,
            logger=logger,
            callbacks=[_Steps(trainer, folder.name), RunCheckpoint(save_last=True, every_n_train_steps=EVERY)],
            limit_val_batches=0,
            gradient_clip_val=trainer.gradient_clip_val,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=10,
        )
        beside.strategy.checkpoint_io = SealedCheckpoints()
        beside.fit(own, datamodule=data, ckpt_path=str(last) if last.is_file() else None)


@final
class _Steps(pl.Callback):
    """Shows on the run's progress how far the steps of one circuit are."""

    def __init__(self, trainer: pl.Trainer, name: str) -> None:
        super().__init__()
        self._progress, self._name = run_progress(trainer), name

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show it."""
        if self._progress is not None:
            self._progress.report(f"regrowing {self._name}: step", trainer.global_step, trainer.max_steps)


def _beside(module: PruningModule, recipe: EdgePruning) -> PruningModule:
    """A module that trains other gates on the same model, with the runs that are kept of it."""
    options: dict[str, Any] = asdict(module.options) | {"name": module.name}
    del options["device"]
    own = PruningModule(
        recipe=recipe,
        objective=module.objective,
        complement_weight=module.complement_weight,
        seed=module.seed,
        **options,
    )
    own.masked, own.runs = module.masked, module.runs
    return own


def _done(path: Path, key: str) -> Circuit | None:
    """The regrown circuit in a file, if it is that of this very task; else None."""
    if not path.is_file():
        return None
    circuit = Circuit.load(path)
    return circuit if circuit.header["regrown"]["key"] == key else None
