"""`edgeprune fit` as a trial of `edgeprune sweep` or `wandb agent`: it logs to W&B and to a folder of its own."""

import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from edgeprune.sweeps.worker import FOLDER_VARIABLE, RUN

CSV_LOGGER, TRACKER = "lightning.pytorch.loggers.CSVLogger", "lit_modules.WandbTracker"


def trial_folder() -> Path | None:
    """The folder of the trial that this process is; None outside of sweeps.

    `edgeprune sweep` names it. For `wandb agent` it is `runs/sweeps/SWEEP/RUN`: its trials would otherwise share the
    folder that their config names.
    """
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return Path("runs") / "sweeps" / sweep / run if sweep and run else None


def log_as_trial(config: Namespace, folder: Path) -> None:
    """Replace the loggers of a config: a CSV log in the trial's folder, and W&B, with the config's own W&B settings."""
    given = config.trainer.logger
    loggers: list[Any] = given if isinstance(given, list) else [given]
    trackers = [
        item for item in loggers if isinstance(item, Namespace) and str(item.class_path).endswith("WandbTracker")
    ]
    tracker = trackers[0].clone() if trackers else Namespace(class_path=TRACKER, init_args=Namespace())
    settings: Namespace = tracker.init_args
    settings.save_dir = str(folder)
    settings.name = None  # the sweep names its runs
    settings.project = os.environ.get("WANDB_PROJECT") or settings.get("project") or "edgeprune"
    if os.environ.get("WANDB_MODE") == "offline":
        settings.offline = True
    table = Namespace(
        class_path=CSV_LOGGER, init_args=Namespace(save_dir=str(folder / RUN), name="", version="", prefix="")
    )
    config.trainer.logger = [table, tracker]
