"""Circuits taken on the way: written, measured, compared, and shown as one table and one plot at the end."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, final, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.measure import gates_of, measure_examples, random_like
from edgeprune.metrics.registry import STANDARD as MEASURES
from edgeprune.objectives import Objective
from edgeprune.paths import check_writable
from edgeprune.report.frontier import frontier_row, frontier_table, write_frontier
from edgeprune.runs import numbered_name
from lit_modules.checkpoints import run_checkpoint
from lit_modules.progress import STEP, counted, run_progress, show
from lit_modules.pruning import PruningModule
from lit_modules.ranks import of_all_ranks
from lit_modules.roles import sparsities_at_roles


@dataclass(frozen=True)
class Snapshot:
    """One circuit of the run."""

    sparsity: float | None  # one of those in the config; None for the circuit that the final gates stand for
    reached: bool  # the gates had got that sparse; if not, the circuit is the final gates' best edges
    circuit: Circuit  # with its measures in the header
    path: Path  # of its file
    measures: dict[str, float]  # faithfulness on the validation pairs
    control: dict[str, float]  # the same for a random circuit of as many edges, and attention edges

    @property
    def size(self) -> tuple[int, int]:
        """Edges, and attention edges; 0 of these where the circuit has none of its own."""
        return self.circuit.num_edges, 0 if self.circuit.attend is None else int(self.circuit.attend.sum())


@runtime_checkable
class SnapshotListener(Protocol):
    """A callback that wants to see every snapshot."""

    def on_snapshot(self, trainer: pl.Trainer, module: PruningModule, snapshot: Snapshot) -> None:
        """Called after a snapshot was written and measured."""
        ...


def run_folder(trainer: pl.Trainer) -> Path:
    """Where this run's files go: the first logger's folder, else the Trainer's root; all ranks must call it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def check_folders(trainer: pl.Trainer) -> None:
    """Refuse, before any work is done, a folder for logs or checkpoints that could not be made or written into.

    Raises:
        EdgepruneError: It could not.
    """
    folders: dict[str, Any] = {
        f"folder of {type(logger).__name__}": getattr(logger, "root_dir", None) or logger.save_dir
        for logger in trainer.loggers  # not `log_dir`, for that numbers the run, which is for rank 0 to do
    }
    if not folders:
        folders["trainer.default_root_dir"] = trainer.default_root_dir
    for callback in trainer.checkpoint_callbacks:
        folders[f"dirpath of {type(callback).__name__}"] = getattr(callback, "dirpath", None)
    for name, folder in folders.items():
        if folder is not None:
            check_writable(folder, name, folder=True)


class EvaluationStoppedError(Exception):
    """A signal came while circuits were measured."""


def measure_circuits(
    trainer: pl.Trainer, module: PruningModule, circuits: list[Circuit], *, stoppable: bool = False
) -> list[dict[str, float]]:
    """Faithfulness of each circuit on all of the run's validation pairs; all ranks must call it, and share the work.

    Raises:
        EvaluationStoppedError: A signal asked the run to stop meanwhile; with several ranks the work is finished first.
    """
    loader: Any = trainer.datamodule.val_dataloader()  # pyright: ignore[reportAttributeAccessIssue]
    shown = counted(trainer, "judging circuits: batch", loader)
    stops = stoppable and trainer.world_size == 1
    batches = _until_stopped(trainer, shown) if stops else shown
    gates = [gates_of(circuit) for circuit in circuits]
    values = measure_examples(module.masked, module.runs, batches, gates, "validation")
    return of_all_ranks(trainer, values).as_dicts()


def _until_stopped(trainer: pl.Trainer, batches: Iterable[PairBatch]) -> Iterator[PairBatch]:
    callback = run_checkpoint(trainer)
    for batch in batches:
        if callback is not None and callback.stop_requested():
            raise EvaluationStoppedError
        yield batch


def log_values(trainer: pl.Trainer, values: dict[str, float]) -> None:
    """Hand numbers to every logger at the present step."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)


@final
class SnapshotCircuits(pl.Callback):
    """Write a circuit whenever the run passes a requested sparsity, and measure it on the validation pairs.

    A sparsity is passed when the gates themselves are that sparse, and the annealed target, if the recipe has one,
    has got there too; under `Pace` the gates alone decide, which may be ahead. Deviation from "when the target passes":
    gates may lag behind their target, and cutting them short of it costs faithfulness. The circuit has exactly the
    edges asked for: the best ones over the whole graph. Sparsities that the run never reaches are cut from the final
    gates and marked so; the circuit of the final gates themselves, those above one half, is written as
    `final.safetensors`. Of a recipe that ranks edges for every size (`Matryoshka`) all circuits are cut from the
    final scores.

    Where gates are opened again at the last sparsity (`EdgePruning.regrow`), its circuit is that of the end.

    Where attention edges are learned too, a sparsity is passed when both kinds are that sparse, attention edges at most
    as sparse as their recipe says.

    Files, in the run's folder: `circuits/*.safetensors`, `frontier.csv`, `frontier.png`.

    At the end the knee is named: the smallest of the circuits whose error stays below a share of that of the circuit
    without edges.

    Args:
        sparsities: Edge sparsities, in (0, 1). `Pace` arrives at the highest.
        control_seed: Seeds the random circuit that each snapshot is compared with.
        knee: That share.
    """

    def __init__(self, sparsities: list[float], control_seed: int = 0, knee: float = 0.1) -> None:
        super().__init__()
        if not 0 < knee < 1:
            raise EdgepruneError(f"knee is a share of the empty circuit's error in (0, 1), got {knee}")
        wrong = [value for value in sparsities if not 0 < value < 1]
        if wrong:
            raise EdgepruneError(f"sparsities must lie in (0, 1), got {wrong[0]}; 0.95 keeps 5 % of the edges")
        self.sparsities = sorted(set(sparsities))
        self.control_seed, self.knee = control_seed, knee
        self._empty_error: float | None = None
        self.snapshots: list[Snapshot] = []
        self._done: list[float] = []
        self._finished = False
        self._restored: list[tuple[float, Path]] = []  # sparsities and files, until the folder is known

    # ---------------------------------------------------------------- when
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Of a run that goes on: find the circuits of its first part; copy them if it has another folder now."""
        folder = run_folder(trainer) / "circuits"
        former = [Path(trainer.ckpt_path).absolute().parent.parent / "circuits"] if trainer.ckpt_path else []
        for sparsity, file in self._restored:
            snapshot = _read(sparsity, file.name, [folder, *former, file.parent])
            if not snapshot.reached:
                continue
            self._done.append(sparsity)
            if snapshot.path.parent.resolve() != folder.resolve():
                snapshot = replace(snapshot, path=folder / file.name)
                if trainer.is_global_zero:
                    snapshot.circuit.save(snapshot.path)
            self.snapshots.append(snapshot)
        self._restored = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what `Pace` wants to know. Of a run that goes on: take what its last step reached, if left."""
        module = cast("PruningModule", pl_module)
        paces = [pace for pace in module.recipe.paces if pace.worth is not None]
        if paces:
            if module.objective != module.error:
                raise EdgepruneError(f"worth needs objective kl or squared_error, got {module.objective}: leave it out")
            for pace in paces:
                pace.calibrate(self._error_of_empty(trainer, module))
        if trainer.global_step:
            self._take_reached(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the snapshots that the last step reached."""
        self._take_reached(trainer, cast("PruningModule", pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take what is left, then show and write the frontier."""
        self.finish(trainer, cast("PruningModule", pl_module))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same for a run that was stopped after its last step: no step is left, so training does not begin."""
        if not self._finished:
            pl_module.to(trainer.strategy.root_device)  # Lightning has put it away
            self.finish(trainer, cast("PruningModule", pl_module))

    # ---------------------------------------------------------------- how
    def _take_reached(self, trainer: pl.Trainer, module: PruningModule) -> None:
        """A pure function of the gates and the step, so that a stopped run takes later what it did not get to."""
        if module.recipe.ranks_every_size:
            return
        target = None if module.recipe.paces else module.recipe.target(module.progress)
        now = module.recipe.passed if target is None else min(module.recipe.passed, target)
        with suppress(EvaluationStoppedError):  # the run stops after this step
            for sparsity in self.sparsities:
                late = module.recipe.settles(sparsity) and trainer.global_step < module.total_steps
                if sparsity <= now and sparsity not in self._done and not late:
                    self._take(trainer, module, sparsity, reached=True)

    def finish(self, trainer: pl.Trainer, module: PruningModule) -> None:
        """Take what the run did not reach and the final circuit, show and write the frontier; once."""
        if self._finished:
            return
        try:
            for sparsity in self.sparsities:
                if sparsity not in self._done:
                    self._take(trainer, module, sparsity, reached=False)
            self._take(trainer, module, None, reached=True)
        except EvaluationStoppedError:
            callback = run_checkpoint(trainer)
            assert callback is not None
            callback.stop_if_asked(trainer)
        self._finished = True
        self._report(trainer, run_folder(trainer), module.error, self._error_of_empty(trainer, module))

    def _error_of_empty(self, trainer: pl.Trainer, module: PruningModule) -> float:
        """That of the circuit without edges, measured once."""
        if self._empty_error is None:
            empty = Circuit.from_edges(module.recipe.graph, [])
            (measures,) = measure_circuits(trainer, module, [empty])
            self._empty_error = measures[module.error]
        return self._empty_error

    def _take(self, trainer: pl.Trainer, module: PruningModule, sparsity: float | None, reached: bool) -> None:
        circuit = module.circuit(sparsity)
        control = random_like(circuit, self.control_seed)
        measures, random = measure_circuits(trainer, module, [circuit, control], stoppable=True)
        about: dict[str, Any] = {"task": trainer.datamodule.describe(), "split": "validation"}  # pyright: ignore[reportAttributeAccessIssue]
        about |= {"reached": reached or module.recipe.ranks_every_size, "metrics": measures, "random_control": random}
        circuit = replace(circuit, header={**circuit.header, **about})
        name = "final" if sparsity is None else numbered_name(sparsity)
        path = run_folder(trainer) / "circuits" / f"{name}.safetensors"
        if trainer.is_global_zero:
            circuit.save(path)
        snapshot = Snapshot(sparsity, reached, circuit, path, measures, random)
        self.snapshots.append(snapshot)
        self._done += [] if sparsity is None else [sparsity]
        log_values(
            trainer,
            {f"snapshot/{name}": measures[name] for name in MEASURES}
            | {"snapshot/sparsity": circuit.sparsity, **sparsities_at_roles(circuit, "snapshot")},
        )
        if (progress := run_progress(trainer)) is not None:
            progress.print(_line(snapshot, trainer.global_step, module.error))
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, SnapshotListener):
                callback.on_snapshot(trainer, module, snapshot)

    @rank_zero_only
    def _report(self, trainer: pl.Trainer, folder: Path, objective: Objective, empty: float) -> None:
        ordered = sorted(self.snapshots, key=lambda item: item.size, reverse=True)
        knee = knee_of(ordered, objective, self.knee * empty)
        rows = [_row(item) | {"knee": item is knee} for item in ordered]
        show(trainer, frontier_table("Circuits on the validation pairs", rows, objective))
        show(trainer, knee_line(knee, objective, empty, self.knee))
        write_frontier(folder, rows, objective)
        show(trainer, f"circuits, frontier.csv and frontier.png are in {folder}")

    # ---------------------------------------------------------------- going on
    def state_dict(self) -> dict[str, Any]:
        """Sparsities that were reached, so that a resumed run does not take them again from later gates.

        Circuits cut from the final gates do not belong to the state: a run that is prolonged takes them anew.
        """
        taken = [item for item in self.snapshots if item.reached and item.sparsity is not None]
        return {"done": [item.sparsity for item in taken], "files": [str(item.path.absolute()) for item in taken]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note which circuits the run has; they are read when its folder is known."""
        self._restored = list(zip(state_dict["done"], map(Path, state_dict["files"]), strict=False))


def _read(sparsity: float, name: str, folders: list[Path]) -> Snapshot:
    """A snapshot of the run's first part, from the first of the folders that has its file."""
    path = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
    circuit = Circuit.load(path)
    header = circuit.header
    return Snapshot(sparsity, header["reached"], circuit, path, header["metrics"], header["random_control"])


def _line(snapshot: Snapshot, step: int, objective: Objective) -> str:
    circuit, which = snapshot.circuit, f"sparsity {snapshot.sparsity!r}"
    if snapshot.sparsity is None:
        which = f"the final gates, sparsity {circuit.sparsity:.4g}"
    cut = "" if snapshot.reached else ", cut from the final gates"
    return (
        f"{STEP} {step:,}: circuit of {which}{cut}, {_size(circuit)}, {objective} "
        f"{snapshot.measures[objective]:.4g} (random circuit {snapshot.control[objective]:.4g})"
    )


def knee_of(snapshots: Iterable[Snapshot], objective: Objective, limit: float) -> Snapshot | None:
    """The smallest circuit whose error stays below `limit`."""
    good = [item for item in snapshots if item.measures[objective] < limit]
    return min(good, key=lambda item: item.size, default=None)


def knee_line(snapshot: Snapshot | None, objective: Objective, empty: float, share: float) -> str:
    """What `fit` says of it."""
    whose = f"{100 * share:g} % of the empty circuit's {objective}, {empty:.4g}"
    if snapshot is None:
        return f"knee: none of these circuits stays below {whose}; ask for lower sparsities"
    circuit, error = snapshot.circuit, snapshot.measures[objective]
    return (
        f"knee: sparsity {circuit.sparsity:.4g}, {_size(circuit)}, {objective} {error:.4g}: the smallest of "
        f"these circuits that stays below {whose}"
    )


def _size(circuit: Circuit) -> str:
    inside = "" if circuit.attend is None else f" and {int(circuit.attend.sum()):,} attention edges"
    return f"{circuit.num_edges:,} edges{inside}"


def _row(snapshot: Snapshot) -> dict[str, Any]:
    return {
        **frontier_row(
            "final gates" if snapshot.sparsity is None else snapshot.sparsity,
            snapshot.circuit,
            snapshot.measures,
            snapshot.control,
        ),
        "reached": snapshot.circuit.header["reached"],
        "step": snapshot.circuit.header["step"],
    }
