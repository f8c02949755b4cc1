"""The LightningModule that trains a recipe's gates on a frozen model. It connects and logs; formulas live elsewhere."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from edgeprune import __version__
from edgeprune.ablations import Ablation
from edgeprune.ablations.runs import CacheDtype, ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import KVReaders
from edgeprune.methods import AbstractRecipe
from edgeprune.metrics.faithfulness import faithfulness
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.loading import fingerprint, load_model
from edgeprune.objectives import OBJECTIVES, Objective, masked_mean
from lit_modules.checkpoints import last_good
from lit_modules.progress import run_progress
from lit_modules.ranks import gathered, own_rows, summed


class NotFiniteError(EdgepruneError):
    """A loss, a gradient or a gate is NaN or infinite; the checkpoints are from before."""


class PruningModule(pl.LightningModule):
    """Learn which edges of a frozen transformer carry a behaviour.

    Each step: the full and the ablated run (kept per example where they fit), one sample of the gates (or one
    for each group of examples), one masked forward, the objective at the scored positions plus the recipe's penalty.

    Args:
        name: Model: hub id, local folder, `smollm2`, `compiled:reverse`, or a ground-truth folder.
        recipe: How gates are learned.
        objective: What faithfulness is while learning: `"kl"`, or `"squared_error"` of the raw outputs for models whose
            outputs are no logits (compiled programs).
        ablation: What closed edges carry: `interchange` (the corrupted prompt's values), `zero`, `resample`, `mean`,
            `mean:corrupted:positional`, `optimal`, ...: see `edgeprune.ablations.Ablation`. Means and constants come
            from the training pairs.
        split_embedding: Token and position embedding are two writers; null: only for compiled models.
        kv_readers: `"group"` or `"head"`, for grouped-query attention.
        dtype: Of the frozen weights; gates stay float32.
        gguf_file: File inside `name` to dequantise.
        revision: Branch, tag or commit on the hub.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`; null for the library's choice.
        cache_gb: Memory for frozen runs that are kept, in 1e9 bytes. What does not fit goes to disk, or is made anew.
        cache_disk_gb: Room on disk for them, in 1e9 bytes.
        cache_dir: Folder for them; null: `frozen` in `$EDGEPRUNE_CACHE` or else `~/.cache/edgeprune`.
        cache_dtype: `"bfloat16"` keeps what closed edges carry rounded, in half the room of float32; null: exactly.
        seed: Of the gate noise; the noise of a step depends on it and the step alone.
    """

    def __init__(
        self,
        name: str,
        recipe: AbstractRecipe,
        *,
        objective: Objective = "kl",
        ablation: str = "interchange",
        split_embedding: bool | None = None,
        kv_readers: KVReaders = "group",
        dtype: str = "float32",
        gguf_file: str | None = None,
        revision: str | None = None,
        attn_implementation: str | None = None,
        cache_gb: float = 2.0,
        cache_disk_gb: float = 0.0,
        cache_dir: str | None = None,
        cache_dtype: CacheDtype | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if objective not in OBJECTIVES:
            raise EdgepruneError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
        self.name = name
        self.objective: Objective = objective
        self.recipe = recipe
        self.ablation = str(Ablation.parse(ablation))
        self.cache_gb = cache_gb
        self._cache_options: dict[str, Any] = {
            "disk_gb": cache_disk_gb,
            "disk_folder": cache_dir,
            "cache_dtype": cache_dtype,
        }
        self.seed = seed
        self._load_options: dict[str, Any] = {
            "split_embedding": split_embedding,
            "kv_readers": kv_readers,
            "dtype": dtype,
            "gguf_file": gguf_file,
            "revision": revision,
            "attn_implementation": attn_implementation,
        }
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
            self.masked = load_model(self.name, **self._load_options)
            self._check_objective()
            self.runs = ReferenceRuns(self.masked, self.ablation, self.cache_gb, **self._cache_options)
            self.recipe.build(self.masked.graph)

    def check_started(self) -> None:
        """Refuse to go on where the recipe's start is missing and no checkpoint was loaded in its place."""
        if not self._restored:
            self.recipe.check_started()

    def on_fit_start(self) -> None:
        """Check that the gates have their start; give the ablation its values."""
        self.check_started()
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
            report = {} if progress is None else {"report": progress.report}
            self.runs.prepare(batches, split, objective=self.objective, **report)

    def configure_optimizers(self) -> Any:
        """AdamW over the recipe's groups (gates descend, multipliers ascend); the recipe's learning-rate schedule."""
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
            schedule.base_lrs = [own["lr"] for own in given]
            factor = self._rate_factor(schedule.last_epoch)
            for group, own in zip(optimizer.param_groups, given, strict=True):
                rate = {"initial_lr": own["lr"], "lr": own["lr"] * factor}
                group.update({**own, **rate, "params": group["params"]})
            schedule._last_lr = [group["lr"] for group in optimizer.param_groups]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gates' gradients only: multipliers must feel the whole constraint."""
        if gradient_clip_val:
            gates = [p for group in optimizer.param_groups if not group["maximize"] for p in group["params"]]
            clip = (
                torch.nn.utils.clip_grad_value_
                if gradient_clip_algorithm == "value"
                else torch.nn.utils.clip_grad_norm_
            )
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
                gates = gates[_groups(len(gates), before, len(batch), share)]
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
            told = " and ".join(f"{self.objective} {error}, penalty {penalty}" for error, penalty in values)
            raise NotFiniteError(f"loss is not finite ({told}) {self._where()}")
        return error if self.trainer.world_size == 1 else error * (len(batch) * self.trainer.world_size / examples)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Refuse gradients that are not finite, before they reach the gates."""
        if not _finite(parameter.grad for parameter in self.recipe.parameters()):
            raise NotFiniteError(f"gradients are not finite {self._where()}")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the step; refuse gates that are not finite, before anything is made of them."""
        super().optimizer_step(*args, **kwargs)
        if not _finite(self.recipe.parameters()):
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
        together = self.trainer.world_size > 1
        self.log_dict(bar, prog_bar=True, batch_size=batch_size, sync_dist=together)
        rest = {"penalty": penalty.detach(), **self.recipe.state(self.progress)}
        self.log_dict(
            {f"train/{name}": value for name, value in rest.items()}, batch_size=batch_size, sync_dist=together
        )

    def on_validation_epoch_start(self) -> None:
        """Fix the circuit that the gates stand for now."""
        self._fix_circuit()
        self._prepare_runs("train", "validation")

    def _fix_circuit(self) -> None:
        self.check_started()
        self._gates = self.recipe.circuit().gates(device=self.device)
        self.measures.reset()

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Judge the current circuit on a batch."""
        self._judge(batch, "validation")

    def on_validation_epoch_end(self) -> None:
        """Log the current circuit's faithfulness."""
        values = {f"val/{name}": value for name, value in self.measures.compute().items()}
        match = values.pop("val/exact_match")
        together = self.trainer.world_size > 1
        self.log_dict({name: value.float() for name, value in values.items()}, sync_dist=together)
        self.log("val/exact_match", match.float(), prog_bar=True, sync_dist=together)

    def on_test_epoch_start(self) -> None:
        """Fix the circuit to test."""
        self._fix_circuit()
        self._prepare_runs("train", "test")

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Judge the circuit on a test batch."""
        self._judge(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the circuit's faithfulness and sparsity."""
        values = {f"test/{name}": value.float() for name, value in self.measures.compute().items()}
        together = self.trainer.world_size > 1
        self.log_dict({**values, "test/sparsity": self.recipe.sparsity}, sync_dist=together)

    def _judge(self, batch: PairBatch, split: str) -> None:
        assert self._gates is not None
        full, ablated = self.runs(batch, split)
        circuit = gated_logits(self.masked, batch, self._gates, ablated)
        own = own_rows(self.trainer, batch.index)
        if own.all():
            self.measures.update(full, circuit, batch)
        elif own.any():
            self.measures.update(full[own], circuit[own], batch.rows(own))

    # ---------------------------------------------------------------- circuits and checkpoints
    def header(self) -> dict[str, Any]:
        """Where a circuit of this run comes from."""
        return {
            "model": self.name,
            "model_fingerprint": fingerprint(self.masked),
            "model_options": {key: value for key, value in self._load_options.items() if value is not None},
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
        self.check_checkpoint(checkpoint)
        self._restored = True

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or recipe; the model must be there.

        Raises:
            EdgepruneError: The graphs, the models' weights or the recipes' parameters differ.
        """
        saved = checkpoint.get("edgeprune")
        if saved is None:
            raise EdgepruneError("this checkpoint is not one of edgeprune: it holds no masks")
        if saved["graph"] != self.recipe.graph.to_dict():
            raise EdgepruneError(
                f"the checkpoint's masks are for a graph of {saved['graph']}, "
                f"this model has {self.recipe.graph.to_dict()}"
            )
        theirs, ours = saved["header"]["model_fingerprint"], fingerprint(self.masked)
        if theirs != ours:
            raise EdgepruneError(
                f"the checkpoint belongs to model {saved['header']['model']!r} (fingerprint {theirs}), not to "
                f"{self.name!r} ({ours}): same shape, other weights"
            )
        want = {f"recipe.{name}" for name in self.recipe.state_dict()}
        have = set(checkpoint["state_dict"])
        if want != have:
            raise EdgepruneError(
                f"the checkpoint does not fit this recipe: missing {sorted(want - have)}, unknown {sorted(have - want)}"
            )

    def check_start(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with gates whose start is not the one that the recipe asks for; the model must be there.

        Raises:
            EdgepruneError: A setting of the start differs; it would have no effect.
        """
        theirs, ours = _start(checkpoint["edgeprune"]["header"]), _start(self.recipe.describe())
        for key in dict.fromkeys([*ours, *theirs]):
            if theirs.get(key) != ours.get(key):
                raise EdgepruneError(
                    f"{key} is {ours.get(key)}, but the run to go on with began with {theirs.get(key)}, and gates that "
                    "are under way do not start again: set it back, or leave --ckpt_path out for a new run"
                )


def _start(about: dict[str, Any]) -> dict[str, Any]:
    """Of a recipe's description, what says where gates begin."""
    warm = {f"warm_start.{key}": value for key, value in about.get("warm_start", {}).items() if key != "sha256"}
    return {key: about[key] for key in ("init", "init_mean", "init_std") if key in about} | warm


def _every_batch(pairs: Sequence[Any], collate: Callable[[Sequence[Any]], PairBatch], size: int) -> Iterator[PairBatch]:
    """All pairs in order. A loader would give each rank its share, and draw from the global seed."""
    for start in range(0, len(pairs), size):
        yield collate([(number, pairs[number]) for number in range(start, min(start + size, len(pairs)))])


def _finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether every number is; one wait for the device, however many tensors there are."""
    given = [tensor.isfinite().all() for tensor in tensors if tensor is not None]
    return not given or bool(torch.stack(given).all())


def _groups(num_samples: int, before: int, size: int, share: int) -> Tensor:
    """Which sample of the gates each group of a batch has, long `[group]`; groups are equal and in order.

    A rank's share of a step falls into as many groups as divide both it and the samples. This batch has `size` pairs of
    it, after `before` others.

    >>> _groups(8, 0, 8, 8).tolist(), _groups(8, 4, 2, 8).tolist(), _groups(4, 2, 4, 6).tolist()
    ([0, 1, 2, 3, 4, 5, 6, 7], [4, 5], [0, 1, 1, 1])
    """
    per_sample = share // math.gcd(num_samples, share)
    per_group = math.gcd(math.gcd(per_sample, before), size)
    return torch.arange(before, before + size, per_group) // per_sample
