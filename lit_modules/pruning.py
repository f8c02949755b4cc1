"""The LightningModule that trains a recipe's gates on a frozen model. It connects and logs; formulas live elsewhere."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from edgeprune import __version__
from edgeprune.ablations import Ablation
from edgeprune.ablations.runs import CacheDtype, ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import RoleSpec
from edgeprune.methods import AbstractRecipe
from edgeprune.metrics.faithfulness import faithfulness
from edgeprune.metrics.losses import TRAINING_OBJECTIVES, TrainingObjective
from edgeprune.metrics.measure import CircuitGates, gated_logits, gates_of
from edgeprune.metrics.registry import MEASURES
from edgeprune.model_options import ModelOptions
from edgeprune.models.loading import fingerprint
from edgeprune.models.weight_mask import mask_header
from edgeprune.objectives import Objective, error_measure
from lit_modules.batch_losses import BatchLosses, check_pairs
from lit_modules.checkpoint_checks import check_checkpoint
from lit_modules.checkpoints import last_good
from lit_modules.finite import NotFiniteError, all_finite
from lit_modules.optimizer import clip_gates, keep_given_settings
from lit_modules.progress import run_progress
from lit_modules.ranks import average_gradients, every_batch, gathered, place_in_step, rows_of_rank, summed
from lit_modules.roles import check_attention, roles_of_data, sparsities_at_roles


class PruningModule(pl.LightningModule):
    """Learn which edges of a frozen transformer carry a behaviour.

    Each step: the full and the ablated run (kept per example where they fit), one sample of the gates (or one
    for each group of examples), one masked forward, the objective at the scored positions plus the recipe's penalty.

    Args:
        name: Model: hub id, local folder, `smollm2`, `compiled:reverse`, or a ground-truth folder.
        recipe: How gates are learned.
        objective: What faithfulness is while learning: against the full model `"kl"`, `"squared_error"` of the raw
            outputs (for models whose outputs are no logits, as compiled programs), or `"cmd"`, by how much the logit
            difference is off; or of the circuit alone a metric of `edgeprune discover`, as `"logit_difference"`.
        complement_weight: Of the loss of the model without the circuit, whose right and wrong answers shall be equally
            likely (DiscoGP): the circuit then holds all that does the task. It takes a second run; 0: no such term.
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
        objective: TrainingObjective = "kl",
        complement_weight: float = 0.0,
        cache_disk_gb: float = 0.0,
        cache_dir: str | None = None,
        cache_dtype: CacheDtype | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if objective not in TRAINING_OBJECTIVES:
            raise EdgepruneError(f"objective must be one of {', '.join(TRAINING_OBJECTIVES)}, got {objective!r}")
        if not 0 <= complement_weight < float("inf"):
            raise EdgepruneError(f"complement_weight must be a number >= 0, got {complement_weight}")
        self.objective: TrainingObjective = objective
        self.error: Objective = error_measure(objective)  # of the measures, what tables and plots show
        self.complement_weight = complement_weight
        self.name, self.recipe = name, recipe
        self.options = ModelOptions(name=name, device="cpu", **options)
        check_attention(recipe, self.options.roles, complement_weight)
        self.ablation = str(Ablation.parse(self.options.ablation))
        self.cache_gb = self.options.cache_gb
        disk: dict[str, Any] = {"disk_gb": cache_disk_gb, "disk_folder": cache_dir, "cache_dtype": cache_dtype}
        self._cache_options = disk
        self.seed = seed
        self.strict_loading = False  # checkpoints hold no backbone; `on_load_checkpoint` checks the keys instead
        self.masked: Any = None
        self.runs: Any = None
        self.measures = faithfulness()
        self._gates: CircuitGates | None = None
        self._restored = False
        self._roles: RoleSpec | None = None
        self._batch: tuple[int, Tensor] = (0, torch.empty(0))  # number and examples of the last one

    # ---------------------------------------------------------------- set-up
    def find_roles(self, data: Any) -> None:
        """Find the roles that the options ask for in a data module's pairs, before the model is loaded."""
        self._roles = roles_of_data(self.options.roles, data)

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
            if self.options.roles and self._roles is None:
                self.find_roles(getattr(self.trainer, "datamodule", None))
            self.masked = self.options.load(mesh)
            self.masked.use_roles(self._roles)
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
        self.recipe.aim([each for item in callbacks for each in getattr(item, "sparsities", None) or []])

    def on_fit_start(self) -> None:
        """Check that gates have their start and an end, and pairs their answers; give the ablation its values."""
        self.check_started()
        self.aim(self.trainer)
        data: Any = getattr(self.trainer, "datamodule", None)
        check_pairs(self, data)
        self._prepare_runs("train", "validation")
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
            batches = every_batch(data.pairs(split), collate, data.eval_batch_size)
            progress = run_progress(self.trainer)
            report = no_progress if progress is None else progress.report
            self.runs.prepare(batches, split, report, self.error)

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer and learning-rate schedule."""
        self.recipe.plan(self.total_steps)
        optimizer = self.recipe.make_optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        return self.recipe.learning_rate_factor(min(1.0, step / self.total_steps))

    def on_train_start(self) -> None:
        """Let the config's settings of the optimizer hold in a run that goes on, not the checkpoint's."""
        if self._restored:
            keep_given_settings(self.trainer, self.recipe.make_optimizer(), self._rate_factor)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gates' gradients only."""
        if gradient_clip_val:
            clip_gates(optimizer, gradient_clip_val, gradient_clip_algorithm)

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
        place = place_in_step(self.trainer, len(batch), batch_idx)
        losses = BatchLosses(self.masked, self.objective, batch, self.runs(batch, "train"), place)
        rest, values = self._complement(losses)  # first: its run is differentiated, and gone before the other begins
        error, gates = self.recipe.expected_error(losses.flippable(), self.seed, self.global_step)
        penalty = self.recipe.penalty(gates, self.progress)
        weight = self._weight(error + rest, penalty, len(batch), place[1])
        self._log_training(error * weight, {"penalty": penalty.detach(), **values}, len(batch))
        return (error + rest) * weight + penalty

    def _complement(self, losses: BatchLosses) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The complement's term of the loss, and what to log of it."""
        if not self.complement_weight:
            return 0.0, {}
        value, _ = self.recipe.expected_error(losses.complement, self.seed, self.global_step, "complement")
        return self.complement_weight * value, {"complement": value.detach()}

    def _weight(self, error: Tensor, penalty: Tensor, size: int, share: int) -> float:
        """Of the error of `size` pairs, such that the mean over ranks and batches of a step counts all pairs alike.

        Raises:
            NotFiniteError: Some rank's loss is not finite; all ranks raise.
        """
        wrong = ~torch.isfinite(error + penalty)
        counts = torch.stack([wrong.long(), torch.full_like(wrong, size, dtype=torch.long)])
        num_wrong, examples = summed(self.trainer, counts).tolist()
        if num_wrong:
            values = gathered(self.trainer, (error.item(), penalty.item()))
            values_by_rank = " and ".join(f"{self.objective} {error}, penalty {penalty}" for error, penalty in values)
            raise NotFiniteError(f"loss is not finite ({values_by_rank}) {self._where()}")
        weight = 1.0 if self.trainer.world_size == 1 else size * self.trainer.world_size / examples
        return weight * (size * self.trainer.accumulate_grad_batches / share if share != size else 1.0)

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

    def _log_training(self, error: Tensor, terms: Mapping[str, Tensor], batch_size: int) -> None:
        measure = MEASURES.get(self.objective)
        sign = -1 if measure is not None and measure.higher_is_better else 1  # shown is the measure, not its negative
        bar = {self.objective: sign * error.detach(), "sparsity": self.recipe.sparsity}
        target = self.recipe.target(self.progress)
        if target is not None:
            bar["target"] = target
        self._log(bar, prog_bar=True, batch_size=batch_size)
        rest = {**terms, **self.recipe.state(self.progress)}
        self._log({f"train/{name}": value for name, value in rest.items()}, batch_size=batch_size)

    def _log(self, values: Mapping[str, Any], **options: Any) -> None:
        self.log_dict(values, sync_dist=self.trainer.world_size > 1, **options)

    def on_validation_epoch_start(self) -> None:
        """Fix the circuit that the gates stand for now."""
        self._begin_evaluation("validation")

    def _begin_evaluation(self, split: str) -> None:
        self.check_started()
        circuit = self.recipe.circuit()
        self._gates = gates_of(circuit, self.device)
        self._log(sparsities_at_roles(circuit, split))
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
            **mask_header(self.masked),
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
        about = {**self.recipe.describe(), **self.header()}
        checkpoint["edgeprune"] = {**self.recipe.saved(), "header": about}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or recipe: half of it would be loaded silently otherwise."""
        self.configure_model()
        check_checkpoint(checkpoint, self.recipe, self.masked, self.name)
        self._restored = True
