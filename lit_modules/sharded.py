"""`trainer.strategy: sharded`: Lightning's ModelParallelStrategy (FSDP2) for a frozen model and replicated gates."""

from datetime import timedelta
from typing import Any, final

import lightning.pytorch as pl
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    StrategyRegistry,
)

from edgeprune.errors import EdgepruneError

SHARDED = "sharded"


@final
class ShardedStrategy(ModelParallelStrategy):
    """Every process holds its part of each frozen weight, all gates, and trains on its own rows of the batch.

    Lightning's strategy writes checkpoints of the whole model, gathered on one process or in a folder of shards. Here
    they hold masks only, which every process has: they are written and read as by any other strategy, and a run goes on
    with another number of processes or another strategy.

    Args:
        process_group_backend: `"nccl"`, `"gloo"`; None: what fits the device.
        timeout: How long processes wait for each other.
    """

    restore_checkpoint_after_setup = ParallelStrategy.restore_checkpoint_after_setup
    lightning_restore_optimizer = ParallelStrategy.lightning_restore_optimizer
    load_checkpoint = ParallelStrategy.load_checkpoint
    load_model_state_dict = ParallelStrategy.load_model_state_dict
    load_optimizer_state_dict = ParallelStrategy.load_optimizer_state_dict
    optimizer_state = ParallelStrategy.optimizer_state
    save_checkpoint = ParallelStrategy.save_checkpoint

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(tensor_parallel_size=1, process_group_backend=process_group_backend, timeout=timeout)

    def setup_environment(self) -> None:
        """Connect the processes and number them, once."""
        if self._device_mesh is None:
            self._data_parallel_size = self.num_nodes * self.num_processes
            super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained: shards of frozen weights are not asked for."""
        module: Any = self.lightning_module
        return module.recipe.state_dict(prefix="recipe.")


StrategyRegistry.register(SHARDED, ShardedStrategy, description="a frozen model sharded over processes, gates on each")


def start_processes(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Under `ShardedStrategy`, begin and connect the processes now: the model is loaded by all of them together.

    Raises:
        EdgepruneError: The strategy is one that cannot hold a frozen model and gates.
    """
    strategy = trainer.strategy
    if isinstance(strategy, ShardedStrategy):
        strategy.connect(module)
        launcher = strategy.launcher
        if launcher is None:
            strategy.setup_environment()
        else:
            launcher.launch(strategy.setup_environment)  # once: it finds later that there are processes
    elif isinstance(strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
        raise EdgepruneError(
            f"trainer.strategy {type(strategy).__name__} would shard gates, or write checkpoints of the whole model; "
            "set it to sharded, or to ddp where the model fits one device"
        )
