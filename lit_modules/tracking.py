"""Weights & Biases: curves, resolved config, and the run's circuits as an artifact."""

import netrc
import os
from pathlib import Path
from typing import Any, cast, final

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger

from lit_modules.snapshots import run_folder


def has_wandb_key() -> bool:
    """Whether a W&B key is set in the environment or in `~/.netrc`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@final
class WandbTracker(WandbLogger):
    """Lightning's W&B logger, offline by itself when there is no key. Sync an offline run later with `wandb sync`.

    Args:
        project: W&B project.
        save_dir: Folder for W&B's files, circuits staged for upload included, so that it can be copied whole.
        name: Name of the run; null for one that W&B makes up.
        offline: Force one or the other; null: offline if there is no key.
        group: Group of the run.
        tags: Tags of the run.
    """

    def __init__(
        self,
        project: str = "edgeprune",
        save_dir: str = "runs",
        name: str | None = None,
        offline: bool | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        offline = not has_wandb_key() if offline is None else offline
        os.environ.setdefault("WANDB_DATA_DIR", str(Path(save_dir).absolute() / "wandb-data"))
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        super().__init__(project=project, save_dir=save_dir, name=name, offline=offline, group=group, tags=tags)


@final
class UploadCircuits(pl.Callback):
    """At the end, hand the run's circuits and frontier to W&B as one artifact; does nothing without a W&B logger."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the artifact; by now every file is written."""
        import wandb

        folder = run_folder(trainer)
        files = [*sorted((folder / "circuits").glob("*.safetensors")), *sorted(folder.glob("frontier.*"))]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and files and trainer.is_global_zero:
                run = cast("Any", logger.experiment)
                artifact = wandb.Artifact(f"circuits-{run.id}", type="circuits")
                for file in files:
                    artifact.add_file(str(file))
                run.log_artifact(artifact)
