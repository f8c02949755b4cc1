"""`edgeprune fit | validate | test`: LightningCLI with one-line errors; the config wins over a checkpoint."""

import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import lazy_instance
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger

import edgeprune.methods
import edgeprune.objectives
from datamodules import PairDataModule
from edgeprune.checkpoint_files import load_checkpoint
from edgeprune.cli.arguments import innermost
from edgeprune.cli.checks import check_interval, check_options, refused_options
from edgeprune.cli.configs import with_paths
from edgeprune.cli.resume import LAST, NAMED, check_unfinished, differences, go_on
from edgeprune.cli.strict_parser import StrictParser, check_numbers
from edgeprune.cli.trial import log_as_trial, trial_folder
from edgeprune.errors import EdgepruneError
from edgeprune.models.limits import Limits
from edgeprune.paths import write_whole_text
from lit_modules import PruningModule, RunCheckpoint, RunProgress, UploadCircuits, WandbTracker
from lit_modules.batch_losses import check_pairs
from lit_modules.checkpoint_checks import check_checkpoint, check_start
from lit_modules.checkpoints import SealedCheckpoints, StoppedAtOnceError, StoppedBySignalError
from lit_modules.finite import NotFiniteError
from lit_modules.memory import plan_fit
from lit_modules.metrics_log import MetricsTable
from lit_modules.ranks import OfAllRanksError, all_ranks_agree, first_rank
from lit_modules.sharded import start_processes
from lit_modules.snapshots import check_folders

__all__ = ["EdgepruneCLI", "run"]
_ = (
    edgeprune.methods,
    edgeprune.objectives,
)  # imported so that configs can name their classes without a path


class OneLineParser(StrictParser, LightningArgumentParser):
    """Reports a bad argument or config on one line instead of sixty lines of usage."""


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config, whole or not at all, and hands it to W&B.

    The file names no checkpoint: it is the config of the whole run, however often that was resumed.
    """

    resumed: bool = False  # the run goes on, so the folder's config should be the same

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write `config.yaml` of a subcommand that only evaluates."""
        if stage != "fit":
            self._save(trainer, pl_module, stage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `config.yaml` of a run, once its checkpoint is accepted; by now there is a folder for checkpoints."""
        self._save(trainer, pl_module, "fit")

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.already_saved:
            return
        path = Path(trainer.log_dir or trainer.default_root_dir) / self.config_filename  # asks all ranks
        self.already_saved = True
        if trainer.is_global_zero:
            self._write(path)
            self.save_config(trainer, pl_module, stage)

    def _write(self, path: Path) -> None:
        text = self.parser.dump(self.config, skip_none=False)
        changed = differences(path, text) if self.resumed and path.is_file() else []
        if changed:
            print(f"the config is not the one that the run began with: {'; '.join(changed)}")  # noqa: T201
        write_whole_text(path, text)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Log the config as hyper-parameters of the run."""
        config = self.parser.dump(self.config, skip_none=False, format="json")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import json

                logger.log_hyperparams(json.loads(config))


class EdgepruneCLI(LightningCLI):
    """Links seeds and tokenizer, adds the checkpoint section, and lets no checkpoint change the config."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for gate noise and data order; masks are checkpointed every 50 steps."""
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{name}": value for name, value in CHECKPOINT_DEFAULTS.items()})
        parser.add_lightning_class_args(UploadCircuits, "upload_circuits")
        parser.add_lightning_class_args(RunProgress, "progress")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Refuse, of what is parsed, what would only fail once it runs."""
        super().parse_arguments(parser, args)
        config = self.config.get(str(self.config.get("subcommand")), self.config)
        check_numbers(config)
        check_options(config)

    def before_instantiate_classes(self) -> None:
        """Where no tokenizer is named, use the model's own; a trial of a sweep has loggers of its own."""
        config = self.config.get(str(self.subcommand), self.config)
        folder = trial_folder()
        if self.subcommand == "fit" and folder is not None:
            log_as_trial(config, folder)
        if config.data.tokenizer is None:
            config.data.tokenizer = config.model.name
        self.given = config.clone()
        self.given.ckpt_path = None
        self.kept_rows = go_on(config, fit=self.subcommand == "fit") if config.get("ckpt_path") == LAST else 0

    def instantiate_classes(self) -> None:
        """Build everything, model and pairs included, so that a mistake shows before any file is written."""
        with refused_options(
            self.config.get(str(self.subcommand), self.config), ValueError, TypeError, ImportError, OSError
        ):
            super().instantiate_classes()
        if self.subcommand is not None:
            check_folders(self.trainer)
            checkpoint = self.config[self.subcommand].get("ckpt_path")
            if checkpoint in ("best", "registry"):
                raise EdgepruneError(
                    f"ckpt_path cannot be {checkpoint}, which no new process knows; give last, or a file"
                )
            saved = None if checkpoint is None or checkpoint in NAMED else load_checkpoint(checkpoint)
            start_processes(self.trainer, self.model)
            with all_ranks_agree(self.trainer):
                self._load(saved)
            if self.subcommand == "fit":
                with all_ranks_agree(self.trainer):
                    plan = plan_fit(self.model, self.datamodule, self.trainer)
                    check_interval(self.trainer, len(self.datamodule.train_dataloader()))
                if self.trainer.is_global_zero:
                    print(plan)  # noqa: T201
            self._write_whole_files()

    def _load(self, saved: dict[str, Any] | None) -> None:
        """Load the model and the pairs, and check that a checkpoint fits."""
        self.model.find_roles(self.datamodule)
        self.model.configure_model()
        if saved is not None:
            check_checkpoint(saved, self.model.recipe, self.model.masked, self.model.name)
            if self.subcommand == "fit":
                checkpoint = self.config.fit.ckpt_path
                check_unfinished(saved, Path(str(checkpoint)), self.config.fit)
                check_start(saved, self.model.recipe)
        if self.config[str(self.subcommand)].get("ckpt_path") is None:
            self.model.check_started()
        if self.subcommand == "fit":
            self.model.aim(self.trainer)
        self.datamodule.setup(str(self.subcommand))
        splits = {"fit": ("train", "validation"), "validate": ("validation",)}.get(str(self.subcommand), ("test",))
        for split in splits:
            self.datamodule.check(Limits.of(self.model.masked), split)
        if self.subcommand == "fit":
            check_pairs(self.model, self.datamodule)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> pl.Trainer:
        """Leave our progress out where it is switched off, and where the config names a bar of its own."""
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        replaced = any(isinstance(item, ProgressBar) for item in given)
        shown = not replaced and config.get("enable_progress_bar") is not False
        progress = [item for item in callbacks if isinstance(item, RunProgress)] if shown else []
        config["callbacks"] = [*progress, *given]  # first, so that it stops before what others show at the end
        return super()._instantiate_trainer(config, [item for item in callbacks if not isinstance(item, RunProgress)])

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; what Lightning refuses only now is one line too."""
        with refused_options(self.config[subcommand], ValueError):
            super()._run_subcommand(subcommand)

    def _write_whole_files(self) -> None:
        """Let logs and checkpoints be written whole or not at all, where they are Lightning's; the config, as given."""
        for callback in self.trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, SaveConfig):
                callback.config = self.given
                callback.resumed = bool(self.config[str(self.subcommand)].get("ckpt_path"))
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbTracker):
                _ = logger.experiment  # a refusal shows before anything is written
            if type(logger) is CSVLogger:
                MetricsTable.attach(logger, self.kept_rows)
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = SealedCheckpoints()

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would replace the config's values by those of the checkpoint, without a word."""


def _seed(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


class CheckedCLI(EdgepruneCLI):
    """Builds what a config names, and loads its pairs, but neither a model nor loggers' runs, and trains nothing."""

    def before_instantiate_classes(self) -> None:
        """Where no tokenizer is named, use the model's own."""
        config = self.config[str(self.subcommand)]
        if config.data.tokenizer is None:
            config.data.tokenizer = config.model.name

    def instantiate_classes(self) -> None:
        """Refuse what constructors, folders and pairs refuse."""
        with refused_options(self.config[str(self.subcommand)], ValueError, TypeError, ImportError, OSError):
            LightningCLI.instantiate_classes(self)
        check_folders(self.trainer)
        self.datamodule.setup(str(self.subcommand))
        self.model.find_roles(self.datamodule)

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing."""


CHECKPOINT_DEFAULTS: dict[str, Any] = {
    "save_last": True,
    "save_top_k": 1,
    "every_n_train_steps": 50,
    "save_on_exception": True,
    "enable_version_counter": False,  # a resumed run writes the same files again
}
TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,
    "use_distributed_sampler": False,  # the data module shards by rank itself
    "check_val_every_n_epoch": None,
    "val_check_interval": 100,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
    "logger": lazy_instance(CSVLogger, save_dir="runs", name="edgeprune"),
}


def run(arguments: list[str]) -> None:
    """Train gates on edges, or judge a checkpoint of them."""
    train(arguments, PruningModule)


def train(
    arguments: list[str], module: type[PruningModule], cli: type[EdgepruneCLI] = EdgepruneCLI
) -> EdgepruneCLI | None:
    """Build everything from the arguments and run the subcommand; return what did it, if it came to its end.

    Args:
        arguments: The subcommand and its options.
        module: What is trained.
        cli: What builds and runs.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # on purpose: see main(args)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # torch deprecation inside Lightning itself
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # steps count, not epochs
    warnings.filterwarnings("ignore", message=".*dirpath has changed.*")  # a run from another one's checkpoint
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # a resumed run goes on in its folder
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # prompts are short: 0 is fastest
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # the frozen model stays so
    warnings.filterwarnings("ignore", message=".*`tensorboardX` has been removed.*")  # `logger: true` is a CSV log
    try:
        return cli(
            module,
            PairDataModule,
            args=with_paths(arguments),
            parser_class=OneLineParser,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            seed_everything_default=0,
        )
    except (TypeError, ValueError) as error:  # jsonargparse wraps what a constructor raised
        cause = innermost(error)
        if isinstance(cause, NotFiniteError | OfAllRanksError) and not first_rank():
            return None  # all ranks have it, the first reports it
        raise cause from None
    except StoppedBySignalError as stop:
        _leave(stop.signal, f"by {stop.signal.name} after step {stop.step}", stop.checkpoint)
    except SystemExit as stop:  # --help and --print_config; Lightning's end of an interrupted run
        if isinstance(stop.__context__, StoppedAtOnceError):
            at_once = stop.__context__
            _leave(at_once.signal, f"at once by {at_once.signal.name}", at_once.checkpoint)
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if stop.code not in (0, None):
            sys.exit(stop.code)


def _leave(number: signal.Signals, how: str, checkpoint: Path | None) -> None:
    """Say how to go on, and leave with the status of a process that the signal ended: 130, 143 or 129."""
    if not first_rank():
        return
    saved = "nothing is saved" if checkpoint is None else f"{checkpoint} is written"
    print(  # noqa: T201
        f"edgeprune: stopped {how}, {saved}; to go on, give the same command with --ckpt_path last", file=sys.stderr
    )
    sys.exit(128 + number)
