"""Options that Lightning refuses, or lets pass and stumbles over later: one line each, before anything is written."""

import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from edgeprune.cli.arguments import innermost
from edgeprune.errors import EdgepruneError

HERE = "edgeprune.cli."  # the commands, which call Lightning
LIBRARIES = ("jsonargparse", "lightning", "lightning_utilities", "torch", "numpy", "wandb")  # that look at options
LARGEST_SEED = 2**32 - 1  # of numpy's generator
MODEL_DTYPES = {"16": "float16", "bf16": "bfloat16", "64": "float64"}
REMEDIES = {
    "trainer.accelerator": "set it to cpu or auto",
    "trainer.devices": "set it to auto or to a number of processes, at least 1",
    "trainer.strategy": "set it to auto, ddp or sharded",
}


# -------------------------------------------------------------------- what Lightning does not look at
def _from(least: float) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, int | float) or value >= least


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "accumulate_grad_batches": (_from(1), "at least 1"),
    "val_check_interval": (lambda value: not isinstance(value, int | float) or value > 0, "more than 0"),
    "check_val_every_n_epoch": (_from(1), "at least 1, or null"),
    "log_every_n_steps": (_from(0), "at least 0"),
    "num_sanity_val_steps": (_from(-1), "at least 0, or -1 for all"),
    "gradient_clip_val": (_from(0), "at least 0; 0 or null for none"),
    "min_steps": (_from(0), "at least 0, or null"),
    "min_epochs": (_from(0), "at least 0, or null"),
}


def check_options(config: Namespace) -> None:
    """Refuse options of `fit`, `validate` or `test` that would only fail, or do something else, once it runs.

    Raises:
        EdgepruneError: One of them is out of its range, or the precision would round the gates.
    """
    seed, trainer = config.seed_everything, config.trainer
    if not isinstance(seed, bool) and not 0 <= seed <= LARGEST_SEED:
        raise EdgepruneError(f"seed_everything must lie in 0 to {LARGEST_SEED}, got {seed}; choose another")
    for name, (holds, rule) in RULES.items():
        value = trainer.get(name)
        if not holds(value):
            raise EdgepruneError(f"trainer.{name} must be {rule}, got {value}; change it or leave it out")
    _check_precision(trainer.precision)


def _check_precision(precision: Any) -> None:
    """Gates stay float32 into the op, and the frozen weights' precision is the model's own option."""
    kind = str(precision).partition("-")[0]
    if precision is None or kind == "32":
        return
    dtype = f"model.dtype to {MODEL_DTYPES[kind]}" if kind in MODEL_DTYPES else "model.dtype to bfloat16"
    raise EdgepruneError(
        f"trainer.precision must be 32-true, got {precision}: gates are learned in float32; leave it out, and set "
        f"{dtype} for the frozen model"
    )


def check_interval(trainer: Any, num_batches: int) -> None:
    """Refuse an interval between validations that an epoch of so many batches never reaches, where epochs count."""
    interval, limit = trainer.val_check_interval, trainer.limit_train_batches
    if trainer.check_val_every_n_epoch is None or not trainer.limit_val_batches:
        return
    batches = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
    if isinstance(interval, int) and interval > batches:
        raise EdgepruneError(
            f"trainer.val_check_interval is {interval} and an epoch has {batches} batches, so none would come; "
            "set trainer.check_val_every_n_epoch to null to count over epochs, or lower the interval"
        )


# -------------------------------------------------------------------- what Lightning refuses
@contextmanager
def refused_options(config: Namespace, *kinds: type[Exception]) -> Generator[None]:
    """Let libraries' refusals of options be one line; an error in other code stays what it is.

    Lightning has an exception for options that it refuses. Where it, or a library below it, raises another one of
    `kinds`, that is a refusal if nothing else was at work: no code of this project but the command line's, and none of
    the user's, such as a callback.

    Args:
        config: Of the subcommand, to name those that the refusal is about.
        kinds: Exceptions that are refusals if they come from others.

    Raises:
        EdgepruneError: In place of a refusal.
    """
    try:
        yield
    except EdgepruneError:
        raise
    except (MisconfigurationException, *kinds) as error:
        if isinstance(mistake := innermost(error), EdgepruneError):  # of a class that may also be null
            raise mistake from None
        if not isinstance(error, MisconfigurationException) and _other_code_was_running(error.__traceback__):
            raise
        raise EdgepruneError(_sentence(" ".join(str(error).split()), config)) from error


def _other_code_was_running(traceback: TracebackType | None) -> bool:
    """Whether code of this project or of the user raised it, or was running when a library did."""
    last = HERE
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__"))
        package = module.partition(".")[0]
        if not (module.startswith(HERE) or package in LIBRARIES or package in sys.stdlib_module_names):
            return True
        last, traceback = module, traceback.tb_next
    return last.startswith(HERE)


def _sentence(reason: str, config: Namespace) -> str:
    options = {key: value for key, value in config.items() if isinstance(value, str | int | float) and value != "auto"}
    named = [key for key in options if _names(reason, key.rpartition(".")[2])]
    if not named:  # some name only the value
        named = [key for key in options if key.startswith("trainer.") and _quotes(reason, options[key])]
        named = named or [key for key in options if key in REMEDIES]
    given = ", ".join(f"{key} {options[key]}" for key in named) or "an option"
    remedy = next((REMEDIES[key] for key in named if key in REMEDIES), "change it or leave it out")
    return f"Lightning refuses {given}: {reason.rstrip('.! ')}; {remedy}"


def _names(reason: str, name: str) -> bool:
    """Whether an option is named: in quotes or before its value, for many options are also words."""
    return re.search(rf"\b{name}\b" if "_" in name else rf"`{name}`|\b{name}=", reason) is not None


def _quotes(reason: str, value: Any) -> bool:
    return isinstance(value, str) and len(value) > 1 and value.lower() in reason.lower()
