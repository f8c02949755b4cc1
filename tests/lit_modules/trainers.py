"""A trainer for tests: on the CPU, silent, without files and without validation."""

from typing import Any

import lightning.pytorch as pl


def quiet_trainer(steps: int, **options: Any) -> pl.Trainer:
    """For so many steps; `options` are those of the trainer, and win."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": steps,
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return pl.Trainer(**settings | options)
