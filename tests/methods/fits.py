"""Short runs of `edgeprune fit` for tests of recipes: the shipped configs, with less to do."""

from pathlib import Path

from edgeprune.cli import main

ROOT = Path(__file__).parents[2]
XPROPORTION = (
    *("--model.name", "compiled:xproportion", "--data.task.init_args.program", "xproportion"),
    *("--model.objective", "squared_error"),
)


def fit(folder: Path, config: str, steps: int, *more: str) -> int:
    """Run `configs/{config}.yaml` for some steps, everything written below `folder`; the exit status."""
    arguments = [
        *("fit", "--config", str(ROOT / "configs" / f"{config}.yaml")),
        *("--trainer.max_steps", str(steps)),
        *("--trainer.default_root_dir", str(folder)),
        *("--trainer.logger.init_args.save_dir", str(folder)),
        *("--trainer.enable_progress_bar", "false"),
    ]
    return main([*arguments, *more])


def only(folder: Path, pattern: str) -> Path:
    """The one file below `folder` whose path ends like `pattern`."""
    (path,) = folder.rglob(pattern)
    return path
