"""`--ckpt_path last`: find the newest run of a command, and go on in its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from jsonargparse import Namespace

from edgeprune.checkpoint_files import load_checkpoint
from edgeprune.errors import EdgepruneError
from edgeprune.parsing import parse_yaml, read_table, read_text
from edgeprune.paths import PARTIAL
from lit_modules.checkpoints import RUN
from lit_modules.metrics_log import FILE
from lit_modules.ranks import first_rank

LAST, CHECKPOINTS = "last", "checkpoints"
NAMED = (LAST, "best", "hpc", "registry")  # what `ckpt_path` may be beside a file


@final
@dataclass(frozen=True)
class Place:
    """Folders of a run."""

    checkpoints: Path
    folder: Path
    version: int | str | None = None  # what the logger calls it; None if its config names it already

    def newest(self) -> Path | None:
        """The checkpoint to go on from: `last.ckpt`, else the newest."""
        files = list(self.checkpoints.glob("*.ckpt"))
        last = [path for path in files if path.stem.partition("-v")[0] == LAST]
        return max(last or files, key=lambda path: path.stat().st_mtime, default=None)


def go_on(config: Namespace, fit: bool) -> int:
    """Put the newest run's checkpoint in a config whose `ckpt_path` is `last`, and let `fit` go on in its folder.

    Args:
        config: Of the subcommand; changed.
        fit: Whether the subcommand is `fit`; the others only evaluate the checkpoint.

    Returns:
        Rows of `metrics.csv` that were logged before the checkpoint.

    Raises:
        EdgepruneError: There is no such run, or it has ended, or its checkpoint is damaged.
    """
    place = newest_run(config, fit)
    path = place.newest()
    config.ckpt_path = None if path is None else str(path)
    if not fit:
        return 0
    if path is None:
        _print(f"no checkpoint in {place.checkpoints} yet: the run begins again at step 0 in {place.folder}")
        _use(config, place, None)
        return 0
    checkpoint = load_checkpoint(path)
    check_unfinished(checkpoint, path, config)
    _print(f"going on from {path} after step {checkpoint['global_step']}, in {place.folder}")
    _use(config, place, checkpoint)
    return _rows(checkpoint, place.folder)


def check_unfinished(checkpoint: dict[str, Any], path: Path, config: Namespace) -> None:
    """Refuse a checkpoint after which there is nothing to train.

    Raises:
        EdgepruneError: The run has ended, or the checkpoint has no state of the optimizer.
    """
    if "optimizer_states" not in checkpoint:
        raise EdgepruneError(f"{path} holds masks without the optimizer: set checkpoint.save_weights_only to false")
    step, limit, run = checkpoint["global_step"], config.trainer.max_steps, checkpoint.get(RUN)
    limits = [limit, -1 if config.trainer.max_epochs is None else config.trainer.max_epochs]
    over = 0 <= limit <= step if run is None else run["finished"] and (0 <= limit <= step or run["limits"] == limits)
    if over:
        raise EdgepruneError(
            f"the run of {path} has ended, after {step} steps: raise trainer.max_steps to train on, or leave "
            "--ckpt_path out for a new run"
        )


def newest_run(config: Namespace, fit: bool = True) -> Place:
    """The newest run that the config's first logger, or `checkpoint.dirpath`, has a place for.

    Raises:
        EdgepruneError: There is none.
    """
    given = config.trainer.logger
    first: Any = given[0] if isinstance(given, list) and given else given
    places = _places(first, Path(config.trainer.default_root_dir or "."))
    dirpath = config.checkpoint.dirpath
    if dirpath is not None:
        places = [Place(Path(dirpath), place.folder, place.version) for place in places[:1]]
    found = [place for place in places if place.checkpoints.is_dir() and (fit or place.newest())]
    if not found:
        raise EdgepruneError(
            f"no run with a checkpoint below {_root(places, first)}: leave --ckpt_path out, or give the path of a "
            "checkpoint"
        )
    return found[0]


def _places(logger: Any, root: Path) -> list[Place]:
    """Places of runs, newest first, whether there are checkpoints or not."""
    if logger is False:
        return [Place(root / CHECKPOINTS, root)]
    options: Any = getattr(logger, "init_args", None)
    if options is None or "save_dir" not in options:
        raise EdgepruneError(
            "--ckpt_path last needs a logger with a save_dir in the config: give the path of a checkpoint"
        )
    save_dir = Path(str(options.save_dir))
    if "project" in options:  # W&B: a run's folder is called by its id
        runs = [path for path in (save_dir / options.project).glob("*") if (path / CHECKPOINTS).is_dir()]
        runs.sort(key=lambda path: (path / CHECKPOINTS).stat().st_mtime, reverse=True)
        return [Place(path / CHECKPOINTS, save_dir, path.name) for path in runs]
    below, version = save_dir / (options.name or ""), options.get("version")
    if version is not None:
        folder = below / (version if isinstance(version, str) else f"version_{version}")
        return [Place(folder / CHECKPOINTS, folder)]
    numbers = [path.name.removeprefix("version_") for path in below.glob("version_*")]
    versions = sorted((int(number) for number in numbers if number.isdigit()), reverse=True)
    return [Place(below / f"version_{n}" / CHECKPOINTS, below / f"version_{n}", n) for n in versions]


def _root(places: list[Place], logger: Any) -> Path:
    if places:
        return places[0].checkpoints if len(places) == 1 else places[0].folder.parent
    options: Any = logger.init_args
    return Path(str(options.save_dir)) / (options.get("project") or options.get("name") or "")


def _use(config: Namespace, place: Place, checkpoint: dict[str, Any] | None) -> None:
    """Let loggers go on with the run; remove what a process that was killed left half written."""
    given = config.trainer.logger
    loggers: list[Any] = given if isinstance(given, list) else [given]
    ids: list[str] = [] if checkpoint is None else list((checkpoint.get(RUN) or {}).get("wandb", []))
    if place.version is not None and "version" in loggers[0].init_args:
        loggers[0].init_args.version = place.version
    elif isinstance(place.version, str) and not ids:
        ids = [place.version]
    trackers = [item.init_args for item in loggers if isinstance(item, Namespace) and "run_id" in item.init_args]
    for options, ident in zip(trackers, ids, strict=False):
        options.run_id = ident
    if first_rank():
        for folder in {place.checkpoints, place.folder, place.folder / "circuits"}:
            for path in folder.glob(f"*{PARTIAL}"):
                path.unlink()


def _rows(checkpoint: dict[str, Any], folder: Path) -> int:
    """Rows of the log that were there when the checkpoint was written."""
    run = checkpoint.get(RUN)
    if run is not None:
        return run["rows"]
    return sum(int(row["step"]) < checkpoint["global_step"] for row in read_table(folder / FILE))


def differences(former: Path, present: str) -> list[str]:
    """Keys in which a run's saved config differs from the present one, with both values."""
    try:
        old, new = (_flat(parse_yaml(text, str(former))) for text in (read_text(former), present))
    except EdgepruneError:
        return [f"{former} is no config"]
    keys = [key for key in dict.fromkeys([*new, *old]) if old.get(key) != new.get(key)]
    return [f"{key} was {old.get(key)}, is {new.get(key)}" for key in keys]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {name: item for part in value for name, item in _flat(value[part], f"{key}.{part}".strip(".")).items()}


def _print(line: str) -> None:
    if first_rank():
        print(line, flush=True)  # noqa: T201
