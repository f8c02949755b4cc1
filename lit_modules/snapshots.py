"""Circuits taken on the way: written, judged, compared, and shown as one table and one plot at the end."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, final, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.evaluate import evaluate_gates
from edgeprune.metrics.frontier import frontier_row, frontier_table, write_frontier
from edgeprune.metrics.table import MEASURES
from edgeprune.objectives import Objective
from lit_modules.pruning import PruningModule


@dataclass(frozen=True)
class Snapshot:
    """One circuit of the run.

    Attributes:
        sparsity: Sparsity asked for; None for the circuit that the final gates stand for.
        reached: Whether the gates had got that sparse; if not, the circuit is the final gates' best edges.
        circuit: The circuit, with its measures in the header.
        path: Its file.
        measures: Faithfulness on the validation pairs.
        control: The same for a random circuit of as many edges.
    """

    sparsity: float | None
    reached: bool
    circuit: Circuit
    path: Path
    measures: dict[str, float]
    control: dict[str, float]


@runtime_checkable
class SnapshotListener(Protocol):
    """A callback that wants to see every snapshot."""

    def on_snapshot(self, trainer: pl.Trainer, module: PruningModule, snapshot: Snapshot) -> None:
        """Called after a snapshot was written and judged."""
        ...


def run_folder(trainer: pl.Trainer) -> Path:
    """Where this run's files go: the first logger's folder, else the Trainer's root."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def judge(trainer: pl.Trainer, module: PruningModule, circuits: list[Circuit]) -> list[dict[str, float]]:
    """Faithfulness of each circuit on the run's validation pairs."""
    loader = trainer.datamodule.val_dataloader()  # pyright: ignore[reportAttributeAccessIssue]
    gates = [circuit.gates() for circuit in circuits]
    return evaluate_gates(module.masked, module.runs, cast("list[PairBatch]", loader), gates, "validation")


def log_values(trainer: pl.Trainer, values: dict[str, float]) -> None:
    """Hand numbers to every logger at the present step."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)


@final
class SnapshotCircuits(pl.Callback):
    """Write a circuit whenever the run passes a requested sparsity, and judge it on the validation pairs.

    A sparsity is passed when the gates themselves are that sparse, and the annealed target, if the recipe has one,
    has got there too. Deviation from "when the target passes": gates may lag behind their target, and cutting them
    short of it costs faithfulness. The circuit has exactly the edges asked for: the best ones over the whole graph.
    Sparsities that the run never reaches are cut from the final gates and marked so; the circuit of the final gates
    themselves, those above one half, is written as `final.safetensors`.

    Files, in the run's folder: `circuits/*.safetensors`, `frontier.csv`, `frontier.png`.

    Args:
        sparsities: Edge sparsities, in (0, 1).
        control_seed: Seeds the random circuit that each snapshot is compared with.
    """

    def __init__(self, sparsities: list[float], control_seed: int = 0) -> None:
        super().__init__()
        wrong = [value for value in sparsities if not 0 < value < 1]
        if wrong:
            raise EdgepruneError(f"sparsities must lie in (0, 1), got {wrong[0]}; 0.95 keeps 5 % of the edges")
        self.sparsities = sorted(set(sparsities))
        self.control_seed = control_seed
        self.snapshots: list[Snapshot] = []
        self._done: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the snapshots that the last step reached."""
        module = cast("PruningModule", pl_module)
        target = module.recipe.target(module.progress)
        now = module.recipe.sparsity if target is None else min(module.recipe.sparsity, target)
        for sparsity in self.sparsities:
            if sparsity <= now and sparsity not in self._done:
                self._take(trainer, module, sparsity, reached=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take what is left, then show and write the frontier."""
        module = cast("PruningModule", pl_module)
        if trainer.interrupted:
            return
        for sparsity in self.sparsities:
            if sparsity not in self._done:
                self._take(trainer, module, sparsity, reached=False)
        self._take(trainer, module, None, reached=True)
        self._report(run_folder(trainer), module.objective)

    def _take(self, trainer: pl.Trainer, module: PruningModule, sparsity: float | None, reached: bool) -> None:
        circuit = module.circuit(sparsity)
        control = Circuit.random(circuit.graph, circuit.num_edges, self.control_seed)
        measures, random = judge(trainer, module, [circuit, control])
        about = {"task": trainer.datamodule.describe(), "split": "validation"}  # pyright: ignore[reportAttributeAccessIssue]
        header = {
            **circuit.header,
            **about,
            "reached": reached,
            "metrics": measures,
            "random_control": random,
        }
        circuit = Circuit(circuit.graph, circuit.keep, circuit.scores, header)
        name = "final" if sparsity is None else f"sparsity-{sparsity:.4f}"
        path = run_folder(trainer) / "circuits" / f"{name}.safetensors"
        if trainer.is_global_zero:
            circuit.save(path)
        snapshot = Snapshot(sparsity, reached, circuit, path, measures, random)
        self.snapshots.append(snapshot)
        self._done += [] if sparsity is None else [sparsity]
        log_values(
            trainer,
            {f"snapshot/{name}": measures[name] for name in MEASURES} | {"snapshot/sparsity": circuit.sparsity},
        )
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, SnapshotListener):
                callback.on_snapshot(trainer, module, snapshot)

    @rank_zero_only
    def _report(self, folder: Path, objective: Objective) -> None:
        rows = [_row(snapshot) for snapshot in sorted(self.snapshots, key=lambda item: item.circuit.sparsity)]
        table = frontier_table("Circuits on the validation pairs", rows, objective)
        if not all(row["reached"] for row in rows):
            table.caption = "* never reached: cut from the final gates"
        Console().print(table)
        write_frontier(folder, rows, objective)
        Console().print(f"circuits, frontier.csv and frontier.png are in {folder}", soft_wrap=True)

    def state_dict(self) -> dict[str, Any]:
        """Sparsities already taken, so that a resumed run does not take them again from later gates."""
        return {"done": list(self._done), "files": [str(snapshot.path) for snapshot in self.snapshots]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the snapshots of the run so far back from their files."""
        self._done = list(state_dict["done"])
        for name in state_dict["files"]:
            circuit = Circuit.load(name)
            header = circuit.header
            asked = None if Path(name).stem == "final" else float(Path(name).stem.removeprefix("sparsity-"))
            self.snapshots.append(
                Snapshot(asked, header["reached"], circuit, Path(name), header["metrics"], header["random_control"])
            )


def _row(snapshot: Snapshot) -> dict[str, Any]:
    return {
        **frontier_row(
            "final gates" if snapshot.sparsity is None else snapshot.sparsity,
            snapshot.circuit,
            snapshot.measures,
            snapshot.control,
        ),
        "reached": snapshot.reached,
        "step": snapshot.circuit.header["step"],
    }
