"""What is done to the optimizer beside its steps."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer


def keep_given_settings(trainer: pl.Trainer, optimizer: Optimizer, factor_of: Callable[[int], float]) -> None:
    """Let the settings of `optimizer`, made from the config, hold in the trainer's, which a checkpoint restored.

    Args:
        trainer: With its optimizers and schedules restored.
        optimizer: As the config has it.
        factor_of: Of a step, what its schedule multiplies learning rates by.
    """
    given = optimizer.param_groups
    for restored, place in zip(trainer.optimizers, trainer.lr_scheduler_configs, strict=True):
        schedule: Any = place.scheduler
        schedule.base_lrs = [new["lr"] for new in given]
        factor = factor_of(schedule.last_epoch)
        for group, new in zip(restored.param_groups, given, strict=True):
            rate = {"initial_lr": new["lr"], "lr": new["lr"] * factor}
            group.update({**new, **rate, "params": group["params"]})
        schedule._last_lr = [group["lr"] for group in restored.param_groups]


def clip_gates(optimizer: Optimizer, limit: float, algorithm: str | None) -> None:
    """Clip the gates' gradients, by norm unless by `"value"`; multipliers must feel the whole constraint."""
    gates = [p for group in optimizer.param_groups if not group["maximize"] for p in group["params"]]
    clip = clip_grad_value_ if algorithm == "value" else clip_grad_norm_
    clip(gates, limit)
