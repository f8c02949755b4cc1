"""What a run will need of memory: batch sizes that were left open are settled, and what cannot fit is refused."""

import sys
from bisect import bisect_left
from dataclasses import replace
from typing import Any, cast

import lightning.pytorch as pl

from edgeprune import memory_weights
from edgeprune.errors import EdgepruneError
from edgeprune.memory import (
    BatchShape,
    MemoryPlan,
    activations_per_example,
    evaluation_terms,
    plan_of,
    training_terms,
)
from edgeprune.metrics.measure import TOKENS_AT_ONCE
from edgeprune.models.sharding import Whole
from edgeprune.objectives import OBJECTIVES
from lit_modules.pruning import PruningModule
from lit_modules.weight_pruning import WeightPruningModule


def plan_fit(module: PruningModule, data: Any, trainer: pl.Trainer) -> MemoryPlan:
    """The plan of a training run. Settles batch sizes of `data` that are `"auto"`, and accumulates in `trainer`.

    An open `batch_size` becomes the largest divisor of `target_batch_size` that fits; `accumulate_grad_batches` then
    makes up for it, and `val_check_interval`, which counts batches, keeps its number of steps. An open
    `eval_batch_size` is halved until it fits.

    Args:
        module: With its model loaded.
        data: With its pairs loaded.
        trainer: That will fit.

    Raises:
        EdgepruneError: The run cannot fit, or both an open batch size and accumulation are set.
    """
    if data.open_sizes and not isinstance(module.masked.sharding, Whole):
        raise EdgepruneError(
            f"{sorted(data.open_sizes)[0]} auto would be settled by each process for itself, and a sharded model needs "
            "the same size in all: give a number"
        )
    needs = (_WeightNeeds if isinstance(module, WeightPruningModule) else _Needs)(module, data, trainer)
    if "batch_size" in data.open_sizes:
        if trainer.accumulate_grad_batches != 1:
            raise EdgepruneError(
                f"batch_size auto works out accumulate_grad_batches itself, got {trainer.accumulate_grad_batches}: "
                "leave it at 1, or give a batch_size"
            )
        sizes = _divisors(data.target_batch_size, len(data.pairs("train")))
        size = next((size for size in sizes if needs.training(size).fits), 1)
        data.settle(batch_size=size)
        _accumulate(trainer, data.target_batch_size // size)
    if "eval_batch_size" in data.open_sizes:
        size = data.eval_batch_size
        while size > 1 and not needs.evaluation(size, data.batch_size).fits:
            size //= 2
        data.settle(eval_batch_size=size)
    training, evaluation = needs.training(data.batch_size), needs.evaluation(data.eval_batch_size, data.batch_size)
    plan = max(training, evaluation, key=lambda plan: plan.total)
    if not plan.fits:
        raise EdgepruneError(f"{plan}: {_remedy(needs, data, plan is training)}")
    return plan


class _Needs:
    """Plans of one run for batches of different size; a batch holds no more than there are pairs."""

    remedy = "lower model.cache_gb, or set model.dtype to bfloat16"

    def __init__(self, module: PruningModule, data: Any, trainer: pl.Trainer) -> None:
        self.model, self.device, self.num_processes = module.masked, trainer.strategy.root_device, trainer.num_devices
        masks = getattr(module.recipe, "masks_per_batch", 1)
        attention = bool(getattr(module.recipe, "attention_edges", False))
        self.num_pairs = {split: len(data.pairs(split)) for split in ("train", "validation")}
        if data.stream:  # each batch is full
            self.num_pairs["train"] = sys.maxsize
        seq, positions = data.extent("train")
        self._training = BatchShape(batch=1, seq=seq, positions=positions, masks=masks, attention=attention)
        seq, positions = data.extent("validation")
        self._evaluation = BatchShape(batch=1, seq=seq, positions=positions)
        self._activations = self._probe(module)
        self._kept = _most_kept(module, data)

    def _probe(self, module: PruningModule) -> int:
        """Bytes per example that autograd keeps."""
        return activations_per_example(self.model, self._training, OBJECTIVES[module.error])

    def training(self, batch: int) -> MemoryPlan:
        """Of training steps."""
        batch = min(batch, self.num_pairs["train"])
        terms = training_terms(self.model, replace(self._training, batch=batch), self._activations, self.device)
        return plan_of(self.model, terms, self._kept, self.device, self.num_processes)

    def evaluation(self, batch: int, trained_with: int) -> MemoryPlan:
        """Of evaluating circuits, several of which are run at once as long as the batch is small."""
        shape, trained_with = self._evaluation, min(trained_with, self.num_pairs["train"])
        batch = min(batch, self.num_pairs["validation"])
        wide = replace(shape, batch=max(batch, TOKENS_AT_ONCE // shape.seq))
        trained = training_terms(self.model, replace(self._training, batch=trained_with), 0, self.device)
        return plan_of(
            self.model,
            evaluation_terms(self.model, wide, trained, self.device),
            self._kept,
            self.device,
            self.num_processes,
        )


class _WeightNeeds(_Needs):
    """The same for gates on weights, which the process holds already."""

    remedy = "gate fewer weights with model.recipe.tensors, or set model.dtype to bfloat16"

    def _probe(self, module: PruningModule) -> int:
        gates = cast("WeightPruningModule", module).gates
        names = gates.names
        self._gated = names, gates.num_gates
        loss = OBJECTIVES[module.error]
        return memory_weights.activations_per_example(self.model, names, self._training, loss)

    def training(self, batch: int) -> MemoryPlan:
        shape = replace(self._training, batch=min(batch, self.num_pairs["train"]))
        return self._plan(memory_weights.training_terms(self.model, *self._gated, shape, self._activations))

    def evaluation(self, batch: int, trained_with: int) -> MemoryPlan:
        shape = replace(self._evaluation, batch=min(batch, self.num_pairs["validation"]))
        return self._plan(memory_weights.evaluation_terms(self.model, *self._gated, shape, self._activations))

    def _plan(self, terms: dict[str, int]) -> MemoryPlan:
        if self.device.type == "cpu":
            del terms["gates"]  # in the process already
        return plan_of(self.model, terms, 0, self.device, self.num_processes)


def _most_kept(module: PruningModule, data: Any) -> int:
    """Bytes of reference runs that will be kept in memory, at most."""
    room, needed = int(module.cache_gb * 1e9), 0
    if not room:
        return 0
    for split in ("validation",) if data.stream else ("train", "validation"):
        for pair in data.pairs(split):
            needed += module.runs.bytes_of(len(pair.clean), len(pair.positions))
            if needed >= room:
                return room
    return needed


def _divisors(number: int, most: int) -> list[int]:
    """From the largest that is no more than `most` down to 1."""
    return [size for size in range(min(number, most), 0, -1) if number % size == 0]


def _accumulate(trainer: pl.Trainer, parts: int) -> None:
    trainer.accumulate_grad_batches = parts
    if isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch is None:
        trainer.val_check_interval *= parts


def _remedy(needs: _Needs, data: Any, training: bool) -> str:
    """What a user can change so that the run fits."""
    name = "batch_size" if training else "eval_batch_size"
    size: int = getattr(data, name)

    def plan_with(size: int) -> MemoryPlan:
        return needs.training(size) if training else needs.evaluation(size, data.batch_size)

    smaller = range(1, min(size, needs.num_pairs["train" if training else "validation"]))
    fitting = bisect_left(smaller, True, key=lambda size: not plan_with(size).fits)  # as many, for they come first
    advice = [f"set data.{name} to {fitting} or less (now {size}), or to auto"] if fitting else []
    if fitting and training:
        advice.append("with trainer.accumulate_grad_batches the step keeps its size")
    return "; ".join([*advice, needs.remedy])
