"""The LightningModule that trains a recipe's gates on a frozen model. It connects and logs; formulas live elsewhere."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from edgeprune import __version__
from edgeprune.ablations import Ablation
from edgeprune.ablations.runs import CacheDtype, ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods import AbstractRecipe
from edgeprune.metrics.faithfulness import faithfulness
from edgeprune.metrics.measure import gated_logits
from edgeprune.model_options import ModelOptions
from edgeprune.models.loading import fingerprint
from edgeprune.objectives import OBJECTIVES, Objective, masked_mean
from lit_modules.checkpoint_checks import check_checkpoint
from lit_modules.checkpoints import last_good
from lit_modules.finite import NotFiniteError, all_finite
from lit_modules.progress import run_progress
from lit_modules.ranks import average_gradients, gathered, rows_of_rank, sample_of_groups, summed


class PruningModule(pl.LightningModule):
    """Learn which edges of a frozen transformer carry a behaviour.

    Each step: the full and the ablated run (kept per example where they fit), one sample of the gates (or one
    for each group of examples), one masked forward, the objective at the scored positions plus the recipe's penalty.

    Args:
        name: Model: hub id, local folder, `smollm2`, `compiled:reverse`, or a ground-truth folder.
        recipe: How gates are learned.
        objective: What faithfulness is while learning: `"kl"`, or `"squared_error"` of the raw outputs for models whose
            outputs are no logits (compiled programs).
        cache_disk_gb: Room on disk for runs that `cache_gb` has no room for, in 1e9 bytes.
        cache_dir: Folder for those; null: `frozen` in `$EDGEPRUNE_CACHE` or else `~/.cache/edgeprune`.
        cache_dtype: `"bfloat16"` keeps what closed edges carry rounded, in half the room of float32; null: exactly.
        seed: Of the gate noise; the noise of a step depends on it and the step alone.
        options: The other options of the model, those of `ModelOptions` but for its device, which the Trainer chooses.
    """

    def __init__(
        self,
        name: str,
        recipe: AbstractRecipe,
        *,
        objective: Objective = "kl",
        cache_disk_gb: float = 0.0,
        cache_dir: str | None = None,
        cache_dtype: CacheDtype | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if objective not in OBJECTIVES:
            raise EdgepruneError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
        self.name = name
        self.objective: Objective = objective
        self.recipe = recipe
        self.options = ModelOptions(name=name, device="cpu", **options)
        self.ablation = str(Ablation.parse(self.options.ablation))
        self.cache_gb = self.options.cache_gb
        disk: dict[str, Any] = {"disk_gb": cache_disk_gb, "disk_folder": cache_dir, "cache_dtype": cache_dtype}
        self._cache_options = disk
        self.seed = seed
        self.strict_loading = False  # checkpoints hold no backbone; `on_load_checkpoint` checks the keys instead
        self.masked: Any = None
        self.runs: Any = None
        self.measures = faithfulness()
        self._gates: Tensor | None = None
        self._restored = False
        self._batch: tuple[int, Tensor] = (0, torch.empty(0))  # number and examples of the last one

    # ---------------------------------------------------------------- set-up
    def configure_model(self) -> None:
        """Load the model and make the gates, once."""
        if self.masked is None:
            mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
            if mesh is not None:
                self.cache_gb = 0.0
                if disk_gb := self._cache_options["disk_gb"]:
                    raise EdgepruneError(
                        f"a sharded model keeps no reference runs, got cache_disk_gb {disk_gb}; leave it out"
                    )
            self.masked = self.options.load(mesh)
            self._check_objective()
            self.runs = ReferenceRuns(self.masked, self.ablation, self.cache_gb, **self._cache_options)
            self.recipe.build(self.masked.graph)

    def check_started(self) -> None:
        """Refuse to go on where the recipe's start is missing and no checkpoint was loaded in its place."""
        if not self._restored:
            self.recipe.check_started()

    def aim(self, trainer: pl.Trainer) -> None:
        """Tell `Pace`, if the recipe has it, which sparsities the callbacks ask for."""
        callbacks: Any = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        if self.recipe.pace is not None:
            self.recipe.pace.aim([value for callback in callbacks for value in getattr(callback, "sparsities", [])])

    def on_fit_start(self) -> None:
        """Check that the gates have their start and an end; give the ablation its values."""
        self.check_started()
        self.aim(self.trainer)
        self._prepare_runs("train", "validation")
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "fixed_batches"):  # without fixed batches, what is kept depends on where a resumed run began
            self.runs.plan({split: data.fixed_batches(split) for split in ("train", "validation")})

    def _prepare_runs(self, *splits: str) -> None:
        """Give the ablation the pairs that it takes its values from, all of them on every rank."""
        data: Any = getattr(self.trainer, "datamodule", None)
        for split in splits:
            if not self.runs.wants(split):
                continue
            if data is None:
                raise EdgepruneError(
                    f"ablation {self.ablation!r} takes values from the {split} pairs: give the trainer a data module"
                )
            collate = data.ordered_dataloader(split).collate_fn
            batches = _every_batch(data.pairs(split), collate, data.eval_batch_size)
            progress = run_progress(self.trainer)
            report = no_progress if progress is None else progress.report
            self.runs.prepare(batches, split, report, self.objective)

    def configure_optimizers(self) -> Any:
        """AdamW over the recipe's groups (gates descend, multipliers ascend); the recipe's learning-rate schedule."""
        self.recipe.plan(self.total_steps)
        optimizer = torch.optim.AdamW(self.recipe.parameter_groups())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        return self.recipe.learning_rate_factor(min(1.0, step / self.total_steps))

    def on_train_start(self) -> None:
        """Let the config's settings of the optimizer hold in a run that goes on, not the checkpoint's."""
        if not self._restored:
            return
        given = torch.optim.AdamW(self.recipe.parameter_groups()).param_groups
        for optimizer, place in zip(self.trainer.optimizers, self.trainer.lr_scheduler_configs, strict=True):
            schedule: Any = place.scheduler
            schedule.base_lrs = [new["lr"] for new in given]
            factor = self._rate_factor(schedule.last_epoch)
            for group, new in zip(optimizer.param_groups, given, strict=True):
                rate = {"initial_lr": new["lr"], "lr": new["lr"] * factor}
                group.update({**new, **rate, "params": group["params"]})
            schedule._last_lr = [group["lr"] for group in optimizer.param_groups]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gates' gradients only: multipliers must feel the whole constraint."""
        if gradient_clip_val:
            gates = [p for group in optimizer.param_groups if not group["maximize"] for p in group["params"]]
            clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
            clip(gates, gradient_clip_val)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return max(1, int(self.trainer.estimated_stepping_batches))

    @property
    def progress(self) -> float:
        """Steps done / steps of the run, in [0, 1]: 0 in the first step, 1 in the last."""
        return min(1.0, self.global_step / max(1, self.total_steps - 1))

    # ---------------------------------------------------------------- steps
    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """The objective at the scored positions plus the penalty, for one sample of the gates."""
        self._batch = batch_idx, batch.index
        full, ablated = self.runs(batch, "train")

        before, share = self._place_in_step(batch, batch_idx)

        def error_of(gates: Tensor) -> Tensor:
            if gates.ndim == 3:
                gates = gates[sample_of_groups(len(gates), before, len(batch), share)]
            circuit = gated_logits(self.masked, batch, gates, ablated)
            return masked_mean(OBJECTIVES[self.objective](full, circuit), batch.position_mask)

        error, gates = self.recipe.expected_error(error_of, self.seed, self.global_step)
        penalty = self.recipe.penalty(gates, self.progress)
        error = self._share(error, penalty, batch)
        if share != len(batch):  # the Trainer takes the mean over the batches of a step, which may differ in size
            error = error * (len(batch) * self.trainer.accumulate_grad_batches / share)
        self._log_training(error, penalty, len(batch))
        return error + penalty

    def _place_in_step(self, batch: PairBatch, batch_idx: int) -> tuple[int, int]:
        """Pairs of this rank's share of the step that come before the batch, and pairs of the share."""
        parts, data = self.trainer.accumulate_grad_batches, getattr(self.trainer, "datamodule", None)
        if parts == 1:
            return 0, len(batch)
        if hasattr(data, "place_in_step"):
            return data.place_in_step(batch_idx)  # pyright: ignore[reportOptionalMemberAccess]
        return batch_idx % parts * len(batch), parts * len(batch)

    def _share(self, error: Tensor, penalty: Tensor, batch: PairBatch) -> Tensor:
        """This rank's error, such that the mean over ranks is that of the global batch, with each example alike.

        Raises:
            NotFiniteError: Some rank's loss is not finite; all ranks raise.
        """
        wrong = ~torch.isfinite(error + penalty)
        counts = torch.stack([wrong.long(), torch.full_like(wrong, len(batch), dtype=torch.long)])
        num_wrong, examples = summed(self.trainer, counts).tolist()
        if num_wrong:
            values = gathered(self.trainer, (error.item(), penalty.item()))
            values_by_rank = " and ".join(f"{self.objective} {error}, penalty {penalty}" for error, penalty in values)
            raise NotFiniteError(f"loss is not finite ({values_by_rank}) {self._where()}")
        return error if self.trainer.world_size == 1 else error * (len(batch) * self.trainer.world_size / examples)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Refuse gradients that are not finite, before they reach the gates."""
        average_gradients(self.trainer, self.recipe.parameters())
        if not all_finite(parameter.grad for parameter in self.recipe.parameters()):
            raise NotFiniteError(f"gradients are not finite {self._where()}")
        self.recipe.after_backward(self.progress)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the step; refuse gates that are not finite, before anything is made of them."""
        super().optimizer_step(*args, **kwargs)
        if not all_finite(self.recipe.parameters()):
            raise NotFiniteError(f"gates or multipliers are not finite after the update {self._where()}")

    def _where(self) -> str:
        """The step, its batch, and what is still good; ends the sentence. All ranks must call it."""
        number, index = self._batch
        examples = sorted(example for part in gathered(self.trainer, index.tolist()) for example in part)
        good = last_good(self.trainer)
        known = "no checkpoint was written yet" if good is None else f"the last good checkpoint is {good}"
        return (
            f"at step {self.global_step} (batch {number} of the epoch, examples {examples}): lower the learning rate, "
            f"or use dtype float32; {known}"
        )

    def _check_objective(self) -> None:
        if self.objective == "kl" and getattr(self.masked.hf.config, "d_out", None) == 1:
            raise EdgepruneError(
                f"{self.name!r} has a single output, whose softmax is constant: set model.objective to squared_error"
            )

    def _log_training(self, error: Tensor, penalty: Tensor, batch_size: int) -> None:
        bar = {self.objective: error.detach(), "sparsity": self.recipe.sparsity}
        target = self.recipe.target(self.progress)
        if target is not None:
            bar["target"] = target
        self._log(bar, prog_bar=True, batch_size=batch_size)
        rest = {"penalty": penalty.detach(), **self.recipe.state(self.progress)}
        self._log({f"train/{name}": value for name, value in rest.items()}, batch_size=batch_size)

    def _log(self, values: Mapping[str, Any], **options: Any) -> None:
        self.log_dict(values, sync_dist=self.trainer.world_size > 1, **options)

    def on_validation_epoch_start(self) -> None:
        """Fix the circuit that the gates stand for now."""
        self._begin_evaluation("validation")

    def _begin_evaluation(self, split: str) -> None:
        self.check_started()
        self._gates = self.recipe.circuit().gates(device=self.device)
        self.measures.reset()
        self._prepare_runs("train", split)

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Measure the current circuit on a batch."""
        self._evaluate(batch, "validation")

    def on_validation_epoch_end(self) -> None:
        """Log the current circuit's faithfulness."""
        values = {f"val/{name}": value.float() for name, value in self.measures.compute().items()}
        match = values.pop("val/exact_match")
        self._log(values)
        self._log({"val/exact_match": match}, prog_bar=True)

    def on_test_epoch_start(self) -> None:
        """Fix the circuit to test."""
        self._begin_evaluation("test")

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Measure the circuit on a test batch."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the circuit's faithfulness and sparsity."""
        values = {f"test/{name}": value.float() for name, value in self.measures.compute().items()}
        self._log({**values, "test/sparsity": self.recipe.sparsity})

    def _evaluate(self, batch: PairBatch, split: str) -> None:
        assert self._gates is not None
        full, ablated = self.runs(batch, split)
        circuit = gated_logits(self.masked, batch, self._gates, ablated)
        mine = rows_of_rank(self.trainer, batch.index)
        if mine.all():
            self.measures.update(full, circuit, batch)
        elif mine.any():
            self.measures.update(full[mine], circuit[mine], batch.rows(mine))

    # ---------------------------------------------------------------- circuits and checkpoints
    def header(self) -> dict[str, Any]:
        """Where a circuit of this run comes from."""
        return {
            "model": self.name,
            "model_fingerprint": fingerprint(self.masked),
            "model_options": self.options.loading,
            "objective": self.objective,
            "ablation": self.ablation,
            "direction": "clean run, closed edges carry ablated values (noising)",
            "seed": self.seed,
            "step": self.global_step,
            "edgeprune": __version__,
            "torch": str(torch.__version__),  # a plain string: checkpoints load with weights_only
        }

    def circuit(self, sparsity: float | None = None) -> Circuit:
        """The circuit that the gates stand for now, or their best edges at `sparsity`."""
        return self.recipe.circuit(sparsity, self.header())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the recipe's gates, multipliers and buffers only, and what `Circuit.from_checkpoint` needs."""
        names = {f"recipe.{name}" for name in self.recipe.state_dict()}
        checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key in names}
        graph = self.recipe.graph
        checkpoint["edgeprune"] = {
            "graph": graph.to_dict(),
            "scores": graph.to_vector(self.recipe.scores()).cpu(),
            "num_open": self.recipe.num_open(),
            "header": {**self.recipe.describe(), **self.header()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or recipe: half of it would be loaded silently otherwise."""
        self.configure_model()
        check_checkpoint(checkpoint, self.recipe, self.masked, self.name)
        self._restored = True


def _every_batch(pairs: Sequence[Any], collate: Callable[[Sequence[Any]], PairBatch], size: int) -> Iterator[PairBatch]:
    """All pairs in order. A loader would give each rank its share, and draw from the global seed."""
    for start in range(0, len(pairs), size):
        yield collate([(number, pairs[number]) for number in range(start, min(start + size, len(pairs)))])
