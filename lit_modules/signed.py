"""At the end of a run: its circuit with signed scores."""

from typing import Any, cast, final, get_args

import lightning.pytorch as pl
import torch

from edgeprune.errors import EdgepruneError
from edgeprune.methods import EdgePruning
from edgeprune.methods.problem import Problem
from edgeprune.methods.signed_scores import Towards, signed
from lit_modules.progress import show
from lit_modules.pruning import PruningModule
from lit_modules.ranks import every_batch
from lit_modules.roles import refuse_attention
from lit_modules.snapshots import run_folder

FILE = "signed.safetensors"  # in `circuits` in the run's folder


@final
class SignedScores(pl.Callback):
    """Write the final gates' circuit with scores that have a sign, as MIB's CPR ranks by (S-Ens).

    A score is the size of an edge's soft gate, times the sign of the loss's slope in it on training pairs; see
    `edgeprune.methods.signed_scores`. The loss is KL, or squared error where the objective is. It takes a forward and a
    backward pass over the pairs. File: `circuits/signed.safetensors` in the run's folder.

    Args:
        limit: The first so many training pairs; None: all (published).
        towards: `"rise"`: positive where opening an edge further raises the loss (published). `"fall"`: where it lowers
            the loss, as in the scores of attribution methods.
    """

    def __init__(self, limit: int | None = 512, towards: Towards = "rise") -> None:
        super().__init__()
        if limit is not None and limit < 1:
            raise EdgepruneError(f"limit must be at least 1, got {limit}: slopes are found on training pairs")
        if towards not in get_args(Towards):
            raise EdgepruneError(f"towards must be 'rise' or 'fall', got {towards!r}")
        self.limit = limit
        self.towards: Towards = towards

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse, before anything is trained, gates without log-alphas and several processes."""
        if stage != "fit":
            return
        recipe = cast("PruningModule", pl_module).recipe
        if not isinstance(recipe, EdgePruning) or recipe.node_gates:
            raise EdgepruneError(
                f"SignedScores reads the hard concrete gates of EdgePruning without node_gates, got "
                f"{type(recipe).__name__}: leave it out"
            )
        refuse_attention(recipe, "SignedScores")
        if trainer.world_size > 1:
            raise EdgepruneError(f"SignedScores works in one process, not in {trainer.world_size}: leave it out")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the signs and write the circuit."""
        module, data = cast("PruningModule", pl_module), cast("Any", trainer).datamodule
        recipe = cast("EdgePruning", module.recipe)
        module.to(trainer.strategy.root_device)  # Lightning has put it away
        collate = data.ordered_dataloader("train").collate_fn
        batches = list(every_batch(data.pairs("train")[: self.limit], collate, data.batch_size))
        problem = Problem(module.masked, batches, module.runs, module.error, "train")
        frozen = None if recipe.start is None else recipe.start.frozen
        closed = None if frozen is None else recipe.graph.to_matrix(frozen.float()).cpu() > 0
        options: dict[str, Any] = {"temperature": recipe.edges.temperature, "towards": self.towards}
        found = signed(problem, module.circuit(), closed=closed, **options)
        path = run_folder(trainer) / "circuits" / FILE
        found.save(path)
        assert found.scores is not None
        negative = int(torch.signbit(found.scores[found.graph.exists]).sum())
        show(trainer, f"{path}: {negative:,} of {found.graph.num_edges:,} edges have a negative score")
