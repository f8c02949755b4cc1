"""The LightningModule that trains gates on the weights of a frozen model: DiscoGP's first phase, node pruning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.methods.weight_gates import WeightGates
from edgeprune.metrics.functional import uniform_cross_entropy
from edgeprune.metrics.losses import TrainingObjective, losses
from edgeprune.models.gated_weights import logits_with
from edgeprune.models.weight_mask import WeightMask
from edgeprune.objectives import OBJECTIVES
from edgeprune.report.weights import density_tables
from lit_modules.batch_losses import check_pairs
from lit_modules.progress import show
from lit_modules.pruning import PruningModule
from lit_modules.ranks import place_in_step, rows_of_rank
from lit_modules.snapshots import run_folder

MASK = "weight_mask.safetensors"  # in the folder of the run
ComplementStep = Literal["own", "joint"]


class WeightPruningModule(PruningModule):
    """Learn which weights of a frozen transformer carry a behaviour; the others are 0.

    The plain model runs with gated parameters; no edge is closed. The mask of the final gates is written to
    `weight_mask.safetensors` in the run's folder.

    Deviation from the published code, whose every batch has two steps of the optimizer, the second for the complement:
    here steps take turns, each with a batch of its own, so `max_steps` counts both.

    Args:
        name: Model: hub id, local folder, `smollm2`, `compiled:reverse`, or a ground-truth folder.
        recipe: Which gates, and how they are learned: `DiscoGPWeights` on weights, `NodePruning` on heads and neurons.
        objective: Of the model with the kept weights: `"nll_answers"` (published), the right answer among the right and
            wrong ones; `"kl"` or `"squared_error"` against the full model; or another metric of `edgeprune discover`.
        complement_weight: Of the loss of the model with the other weights alone, whose right and wrong answers shall be
            equally likely (published: 1); 0: no such term.
        complement_step: `"own"` (published): the complement's loss has every second step to itself. `"joint"`: it is
            added to the others in every step, at twice the cost.
        dtype: Of the frozen weights, float16 excepted; gates stay float32.
        gguf_file: File inside `name` to dequantise.
        revision: Branch, tag or commit on the hub.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`; null for the library's choice.
        seed: Of the gate noise; the noise of a step depends on it and the step alone.
    """

    def __init__(
        self,
        name: str,
        recipe: WeightGates,
        *,
        objective: TrainingObjective = "nll_answers",
        complement_weight: float = 1.0,
        complement_step: ComplementStep = "own",
        dtype: str = "float32",
        gguf_file: str | None = None,
        revision: str | None = None,
        attn_implementation: str | None = None,
        seed: int = 0,
    ) -> None:
        if objective == "cmd":
            raise EdgepruneError("objective 'cmd' compares with closed edges, and no edge is closed here: choose kl")
        if dtype == "float16":
            raise EdgepruneError("gradients of single weights are rounded to 0 in float16: choose bfloat16 or float32")
        if complement_step not in (steps := get_args(ComplementStep)):
            raise EdgepruneError(f"complement_step must be one of {', '.join(steps)}, got {complement_step!r}")
        options: dict[str, Any] = {"dtype": dtype, "gguf_file": gguf_file, "revision": revision}
        super().__init__(
            name,
            cast("Any", recipe),
            objective=objective,
            complement_weight=complement_weight,
            seed=seed,
            ablation="zero",
            cache_gb=0.0,
            attn_implementation=attn_implementation,
            **options,
        )
        self.complement_step: ComplementStep = complement_step
        self._weights: dict[str, Tensor] = {}
        self._written = False

    @property
    def gates(self) -> WeightGates:
        """The recipe."""
        return cast("Any", self.recipe)

    # ---------------------------------------------------------------- set-up
    def configure_model(self) -> None:
        """Load the model and make the gates, once."""
        if self.masked is None:
            if self.device_mesh is not None:
                raise EdgepruneError("gates on weights need the whole model: set trainer.strategy to auto or ddp")
            self.masked = self.options.load()
            self._check_objective()
            self.gates.build(self.masked)

    def on_fit_start(self) -> None:
        """Check that pairs have their answers."""
        check_pairs(self, getattr(self.trainer, "datamodule", None))

    # ---------------------------------------------------------------- steps
    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """The objective plus the penalty, for one sample of the gates; or the complement's loss; or all of them."""
        self._batch = batch_idx, batch.index
        _, share = place_in_step(self.trainer, len(batch), batch_idx)
        first = batch_idx % self.trainer.accumulate_grad_batches * self.gates.masks_per_batch
        turn = self.global_step % 2 if self.complement_weight and self.complement_step == "own" else None
        zero = torch.zeros((), device=self.device)
        error, rest, penalty = zero, zero, zero
        if turn != 1:
            error = self._loss(self._error, batch, first, reverse=False)
            penalty = self.gates.penalty(self.progress)
        if self.complement_weight and turn != 0:
            first += self.trainer.accumulate_grad_batches * self.gates.masks_per_batch  # a sample of its own
            rest = self.complement_weight * self._loss(self._complement_loss, batch, first, reverse=True)
        weight = self._weight(error + rest, penalty, len(batch), share)
        if turn != 1:
            self._log_training(error * weight, {"penalty": penalty.detach()}, len(batch))
        if self.complement_weight and turn != 0:
            self._log({"train/complement": rest.detach() / self.complement_weight}, batch_size=len(batch))
        return (error + rest) * weight + penalty

    def _loss(
        self, loss_of: Callable[[dict[str, Tensor], PairBatch], Tensor], batch: PairBatch, first: int, *, reverse: bool
    ) -> Tensor:
        """Mean loss (scalar) over a batch, for samples of the gates from number `first` on."""
        own = dict(self.masked.hf.named_parameters())
        return self.gates.expected_loss(own, loss_of, batch, self.seed, self.global_step, first=first, reverse=reverse)

    def _error(self, weights: dict[str, Tensor], batch: PairBatch) -> Tensor:
        """The objective (scalar)."""
        circuit = logits_with(self.masked, weights, batch)
        full = circuit  # not looked at
        if self.objective in OBJECTIVES:
            with torch.no_grad():
                full = logits_with(self.masked, {}, batch)
        return losses(cast("Any", self.objective), full, circuit, batch).mean()

    def _complement_loss(self, weights: dict[str, Tensor], batch: PairBatch) -> Tensor:
        """How much the answers of the model with these weights say (scalar)."""
        return uniform_cross_entropy(logits_with(self.masked, weights, batch), batch).mean()

    # ---------------------------------------------------------------- evaluation
    def _begin_evaluation(self, split: str) -> None:
        """Fix the weights that the gates keep now; the model's own stay as they are."""
        own = dict(self.masked.hf.named_parameters())
        kept = self.gates.kept()
        self._weights = {name: own[name].detach().masked_fill(~part, 0) for name, part in kept.items()}
        self.measures.reset()

    @torch.no_grad()
    def _evaluate(self, batch: PairBatch, split: str) -> None:
        full, circuit = (logits_with(self.masked, weights, batch) for weights in ({}, self._weights))
        mine = rows_of_rank(self.trainer, batch.index)
        if mine.any():
            self.measures.update(full[mine], circuit[mine], batch if mine.all() else batch.rows(mine))

    def on_validation_epoch_end(self) -> None:
        """Log faithfulness, and let go of the masked copy of the weights."""
        super().on_validation_epoch_end()
        self._weights = {}

    # ---------------------------------------------------------------- masks and checkpoints
    def header(self) -> dict[str, Any]:
        """Where a mask of this run comes from."""
        found = super().header()
        for name in ("ablation", "direction"):
            del found[name]
        about = {"complement_weight": self.complement_weight, "complement_step": self.complement_step}
        return {**self.gates.describe(), **found, **about}

    def mask(self) -> WeightMask:
        """The mask that the gates stand for now."""
        about = {"graph": self.gates.graph.to_dict(), **self.gates.about_kept(), **self.header()}
        return WeightMask.of(self.masked, self.gates.kept(), about)

    def on_train_end(self) -> None:
        """Write the mask, and show how dense it is where."""
        path = Path(run_folder(self.trainer)) / MASK  # asks all ranks
        if self._written or not self.trainer.is_global_zero:
            return
        mask, data = self.mask(), getattr(self.trainer, "datamodule", None)
        if data is not None:
            mask.header["task"] = data.describe()
        mask.save(path)
        self._written = True
        show(self.trainer, *density_tables(mask), f"the weight mask is {path}")

    def on_fit_end(self) -> None:
        """The same for a run that was stopped after its last step: no step is left, so training does not begin."""
        self.on_train_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep gates and multipliers only."""
        names = {f"recipe.{name}" for name in self.recipe.state_dict()}
        checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key in names}
        checkpoint["edgeprune"] = {"graph": self.gates.graph.to_dict(), "tensors": self.gates.names}
        checkpoint["edgeprune"]["header"] = self.header()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, or with gates on other weights."""
        super().on_load_checkpoint(checkpoint)
        theirs = checkpoint["edgeprune"].get("tensors")
        if theirs != self.gates.names:
            raise EdgepruneError(
                f"the checkpoint has gates on {theirs}, this run on {self.gates.names}: set the recipe back"
            )
