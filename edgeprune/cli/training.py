"""`edgeprune fit | validate | test`: LightningCLI with one-line errors; the config wins over a checkpoint."""

import logging
import sys
import warnings
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import lazy_instance
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger

import edgeprune.methods
import edgeprune.objectives
from datamodules import PairDataModule
from datamodules.tasks.base import AbstractTask
from edgeprune.circuit import read_checkpoint
from edgeprune.cli.arguments import innermost
from edgeprune.cli.mistakes import one_sentence
from edgeprune.cli.trial import log_as_trial, trial_folder
from edgeprune.errors import EdgepruneError
from edgeprune.methods import AbstractRecipe
from lit_modules import PruningModule, UploadCircuits

__all__ = ["EdgepruneCLI", "run"]
_ = (
    edgeprune.methods,
    edgeprune.objectives,
)  # imported so that configs can name their classes without a path
KINDS: dict[str, type] = {"model.recipe": AbstractRecipe, "data.task": AbstractTask}  # options that name a class


class OneLineParser(LightningArgumentParser):
    """Reports a bad argument or config on one line instead of sixty lines of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what the command line prints: the innermost reason, which names the key."""
        raise EdgepruneError(one_sentence(message or str(ex), KINDS))


class SaveConfig(SaveConfigCallback):
    """Also hands the resolved config to W&B."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Log the config as hyper-parameters of the run."""
        config = self.parser.dump(self.config, skip_none=False, format="json")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import json

                logger.log_hyperparams(json.loads(config))


class EdgepruneCLI(LightningCLI):
    """Links seeds and tokenizer, adds the checkpoint section, and leaves a checkpoint no say in the config."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for gate noise and data order; masks are checkpointed every 50 steps."""
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {"checkpoint.save_last": True, "checkpoint.save_top_k": 1, "checkpoint.every_n_train_steps": 50}
        )
        parser.add_lightning_class_args(UploadCircuits, "upload_circuits")

    def before_instantiate_classes(self) -> None:
        """Where no tokenizer is named, use the model's own; a trial of a sweep has loggers of its own."""
        config = self.config.get(str(self.subcommand), self.config)
        folder = trial_folder()
        if self.subcommand == "fit" and folder is not None:
            log_as_trial(config, folder)
        if config.data.tokenizer is None:
            config.data.tokenizer = config.model.name

    def instantiate_classes(self) -> None:
        """Build everything, model and pairs included, so that a mistake shows before any file is written."""
        super().instantiate_classes()
        if self.subcommand is not None:
            checkpoint = self.config[self.subcommand].get("ckpt_path")
            if checkpoint not in (None, "last", "best", "hpc", "registry"):
                read_checkpoint(checkpoint)
            self.model.configure_model()
            if checkpoint is None:
                self.model.check_started()
            self.datamodule.setup({"fit": "fit", "validate": "validate", "test": "test"}[self.subcommand])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would replace the config's values by those of the checkpoint, without a word."""


def _seed(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


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
    """Build everything from the arguments and run the subcommand."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # on purpose: see main(args)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # torch deprecation inside Lightning itself
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # steps count, not epochs
    warnings.filterwarnings("ignore", message=".*dirpath has changed.*")  # a resumed run has a folder of its own
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # prompts are short: 0 is fastest
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # the frozen model stays so
    warnings.filterwarnings("ignore", message=".*anonymous setting has no effect.*")  # Lightning passes it to W&B
    try:
        EdgepruneCLI(
            PruningModule,
            PairDataModule,
            args=arguments,
            parser_class=OneLineParser,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            seed_everything_default=0,
        )
    except (TypeError, ValueError) as error:  # jsonargparse wraps what a constructor raised
        raise innermost(error) from None
    except SystemExit as stop:  # --help and --print_config
        if stop.code not in (0, None):
            sys.exit(stop.code)
