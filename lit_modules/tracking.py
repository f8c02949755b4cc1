"""Weights & Biases: curves, resolved config, version of the code, the run's circuits as artifacts, and their edges."""

import http.client
import netrc
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, final

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger

from edgeprune import __version__
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.models.hub import silence
from edgeprune.objectives import Objective
from edgeprune.paths import check_writable
from lit_modules.pruning import PruningModule
from lit_modules.ranks import first_rank
from lit_modules.snapshots import run_folder

ANSWER_WITHIN = 8.0  # seconds, or there is no network: W&B itself tries for 90
NO_SERVER_MODES = ("offline", "dryrun", "disabled")  # of $WANDB_MODE


def has_wandb_key() -> bool:
    """Whether a W&B key is set in the environment or in `~/.netrc`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def server() -> str:
    """Address of the W&B server in use."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.setup().settings.base_url)


def silence_of(url: str, seconds: float = ANSWER_WITHIN) -> str | None:
    """Why no server answers at an address in that time; None where one does, whatever it says."""

    def ask() -> str | None:
        try:
            with urllib.request.urlopen(url, timeout=seconds):
                return None
        except (urllib.error.HTTPError, http.client.HTTPException):
            return None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            return None if isinstance(reason, ssl.SSLError) else str(reason)

    return silence(ask, seconds)


def _is_offline(chosen: bool | None) -> bool:
    """Whether to log offline; prints so where a key is set, but no server answers.

    Raises:
        EdgepruneError: No server answers, and being online was chosen.
    """
    if chosen is None and not has_wandb_key():
        return True
    if chosen or os.environ.get("WANDB_MODE") in NO_SERVER_MODES or not first_rank():
        return bool(chosen)
    url = server()
    why = silence_of(url)
    if why is None:
        return False
    if chosen is False:
        raise EdgepruneError(f"no W&B server answers at {url} ({why}): set offline of the logger to null or true")
    print(  # noqa: T201
        f"edgeprune: no W&B server answers at {url} ({why}): this run is logged offline, `wandb sync` sends it later",
        file=sys.stderr,
    )
    return True


@final
class WandbTracker(WandbLogger):
    """Lightning's W&B logger, offline by itself without a key or a network. `wandb sync` sends such a run later.

    Args:
        project: W&B project.
        save_dir: Folder for W&B's files, circuits staged for upload included, so that it can be copied whole.
        name: Name of the run; null for one that W&B makes up.
        offline: Force one or the other; null: offline if there is no key, or no server answers.
        group: Group of the run.
        tags: Tags of the run.
        run_id: Go on with the run of this id, if there is one; null for a new one. `--ckpt_path last` sets it.
    """

    def __init__(
        self,
        project: str = "edgeprune",
        save_dir: str = "runs",
        name: str | None = None,
        offline: bool | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        run_id: str | None = None,
    ) -> None:
        check_writable(save_dir, "save_dir", folder=True)
        offline = _is_offline(offline)
        os.environ.setdefault("WANDB_DATA_DIR", str(Path(save_dir).absolute() / "wandb-data"))
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        more: dict[str, Any] = {} if run_id is None else {"id": run_id, "resume": "allow"}
        if offline:
            more["mode"] = "offline"  # W&B may have read the environment before Lightning sets it there
        super().__init__(project=project, save_dir=save_dir, name=name, offline=offline, group=group, tags=tags, **more)
        self._wandb_init.pop("anonymous", None)  # W&B warns that it has no effect

    @property
    def experiment(self) -> Any:
        """W&B's run, begun when it is first asked for.

        Raises:
            EdgepruneError: The server refuses it, a wrong key among other reasons.
        """
        import wandb

        try:
            return super().experiment
        except wandb.Error as error:
            raise EdgepruneError(
                f"W&B does not begin the run: {str(error).rstrip('.')}; set WANDB_API_KEY to a key of {server()}, or "
                "offline of the logger to true"
            ) from None


@final
class UploadCircuits(pl.Callback):
    """Hands the run's circuits to W&B; does nothing without a W&B logger.

    Each circuit is a version of the artifact `circuit-RUN`, with its sparsity as alias (`sparsity-0.95`, `final`). The
    alias `best` goes to the circuit that beats the random circuit of its size by most, in the run's objective: dense
    circuits and empty ones do no better than random ones. `frontier-RUN` holds the table and the plot of all of them,
    and `edges-RUN` a table of the edges of all circuits with their scores. The config gets the version of the code.

    Files go by their paths from the working folder, if they are below it, and are not copied: an offline run refers to
    them. So a folder of runs can be copied to another machine and synced there, from the same place relative to it.

    Args:
        max_edges: The most edges of a circuit in the table, the best-scored first.
    """

    def __init__(self, max_edges: int = 10_000) -> None:
        super().__init__()
        if max_edges < 0:
            raise EdgepruneError(f"max_edges must not be negative, got {max_edges}; 0 leaves the table of edges out")
        self.max_edges = max_edges

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the version of the code."""
        for run in _runs(trainer):
            run.config.update({"code": code_version()}, allow_val_change=True)  # a resumed run may have newer code

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log artifacts and the table; by now every file is written."""
        folder = run_folder(trainer)  # asks all ranks
        if not trainer.is_global_zero:
            return
        circuits = {path: Circuit.load(path) for path in sorted((folder / "circuits").glob("*.safetensors"))}
        best = best_circuit(list(circuits.values()), cast("PruningModule", pl_module).error)
        for run in _runs(trainer):
            for number, (path, circuit) in enumerate(circuits.items()):
                aliases = [_alias(path), *(["best"] if number == best else [])]
                _log_files(run, f"circuit-{run.id}", "circuit", [path], aliases, figures(circuit))
            _log_files(run, f"frontier-{run.id}", "frontier", sorted(folder.glob("frontier.*")), [], {})
            if circuits and self.max_edges:
                _log_table(run, edge_table({path.stem: item for path, item in circuits.items()}, self.max_edges))


def best_circuit(circuits: Sequence[Circuit], objective: Objective) -> int | None:
    """Index of the circuit that beats the random circuit of its size by most; None if none was measured."""
    gains = [
        (circuit.header["random_control"][objective] - circuit.header["metrics"][objective], -number)
        for number, circuit in enumerate(circuits)
        if "metrics" in circuit.header and "random_control" in circuit.header
    ]
    return -max(gains)[1] if gains else None


def edge_table(circuits: dict[str, Circuit], max_edges: int) -> Any:
    """W&B's table of the edges of circuits, by name: writer, reader, score, best-scored first."""
    import wandb

    rows: list[list[Any]] = []
    for name, circuit in circuits.items():
        scored = [(edge, _score(circuit, edge)) for edge in circuit.edges()]
        scored.sort(key=lambda item: -item[1])
        rows += [[name, edge, *edge.split("->"), score] for edge, score in scored[:max_edges]]
    return wandb.Table(columns=["circuit", "edge", "writer", "reader", "score"], data=cast("Any", rows))


def code_version() -> dict[str, Any]:
    """Version of this package and, in a checkout, its commit and whether files differ from it."""
    version: dict[str, Any] = {"edgeprune": __version__}
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return version
    commit, changed = (_git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    return version if commit is None else {**version, "commit": commit, "changed": bool(changed)}


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _runs(trainer: pl.Trainer) -> list[Any]:
    """W&B's runs of a trainer, on the first process."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return [cast("Any", logger.experiment) for logger in loggers] if trainer.is_global_zero else []


def _log_files(
    run: Any, name: str, kind: str, files: Sequence[Path], aliases: list[str], about: dict[str, Any]
) -> None:
    import wandb

    if not files:
        return
    artifact = wandb.Artifact(name, type=kind, metadata=about)
    for file in files:
        artifact.add_file(str(_portable(file)), name=file.name, policy="immutable")
    run.log_artifact(artifact, aliases=["latest", *aliases])


def _log_table(run: Any, table: Any) -> None:
    """Log `edges-RUN`. Not by `run.log`, which writes down where the table lies on this machine."""
    import wandb

    artifact = wandb.Artifact(f"edges-{run.id}", type="edges")
    entry: Any = artifact.add(table, "edges")
    entry.local_path = str(_portable(Path(entry.local_path)))  # staged in WANDB_DATA_DIR, beside the runs
    run.log_artifact(artifact)


def _portable(path: Path) -> Path:
    """The path from the working folder, if it is below it."""
    path, here = path.absolute(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _alias(path: Path) -> str:
    """`sparsity-0.95` for `sparsity-0.9500.safetensors`."""
    word, _, number = path.stem.partition("-")
    return f"{word}-{float(number)!r}" if word == "sparsity" else path.stem


def figures(circuit: Circuit) -> dict[str, Any]:
    """What an artifact says of its circuit: size, and the measures of validation."""
    inside = {} if circuit.attend is None else {"attention_edges": len(circuit.attention_edges())}
    return {"sparsity": circuit.sparsity, "edges": circuit.num_edges, **inside, **circuit.header.get("metrics", {})}


def _score(circuit: Circuit, edge: str) -> float:
    return 0.0 if circuit.scores is None else float(circuit.scores[circuit.graph.index(edge)])
