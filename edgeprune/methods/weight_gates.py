"""What recipes of gates on weights have in common: the plain model runs with gated parameters, and a mask remains."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.batch import PairBatch
from edgeprune.graph import EdgeGraph
from edgeprune.methods.base import TrainedGates
from edgeprune.models.masked import MaskedModel

Weights = dict[str, Tensor]  # by name of the parameter


class WeightGates(TrainedGates):
    """Gates whose samples multiply parameters of the model.

    `build` makes the gates once the model is known; everything else may be called only after it.

    Attributes:
        graph: The model's graph.
        names: Of the gated parameters.
        num_gates: Trainable gates.
        masks_per_batch: Samples of the gates in one batch, each for a group of it.
    """

    graph: EdgeGraph
    names: list[str]
    num_gates: int
    masks_per_batch: int = 1

    @abstractmethod
    def build(self, model: MaskedModel) -> None:
        """Make the gates for a model."""

    @abstractmethod
    def trained(self) -> list[nn.Parameter]:
        """What the gates are made of, each `[...]`."""

    @abstractmethod
    def sample(self, weights: Weights, seed: int, step: int, number: int = 0, *, reverse: bool = False) -> Weights:
        """The gated parameters with one sample of the gates on them, each `[...]`; differentiable in `trained()`.

        Args:
            weights: The model's own parameters by name, each `[...]`.
            seed: Of the noise.
            step: Of the run.
            number: Which of the samples of the step.
            reverse: Keep what the sample closes, and close what it keeps.
        """

    def expected_loss(
        self,
        weights: Weights,
        loss_of: Callable[[Weights, PairBatch], Tensor],
        batch: PairBatch,
        seed: int,
        step: int,
        *,
        first: int = 0,
        reverse: bool = False,
    ) -> Tensor:
        """Mean loss (scalar) over a batch, each group of which has a sample of its own; differentiable in `trained()`.

        Each group's backward is done at once, so that the memory is that of one sample.

        Args:
            weights: The model's own parameters by name, each `[...]`.
            loss_of: Mean loss (scalar) of some examples with given parameters in the place of the model's.
            batch: The examples.
            seed: Of the noise.
            step: Of the run.
            first: Number of the first sample.
            reverse: Of the complements of the samples.
        """
        trained = self.trained()
        total, slopes = torch.zeros((), device=trained[0].device), [torch.zeros_like(part) for part in trained]
        for number, group in enumerate(batch.parts(-(-len(batch) // self.masks_per_batch)), start=first):
            gated = self.sample(weights, seed, step, number, reverse=reverse)
            loss = loss_of(gated, group) * (len(group) / len(batch))
            del gated
            for slope, own in zip(slopes, torch.autograd.grad(loss, trained, materialize_grads=True), strict=True):
                slope += own
            total = total + loss.detach()
        pull = torch.stack([(slope * part).sum() for slope, part in zip(slopes, trained, strict=True)]).sum()
        return total + (pull - pull.detach())

    @abstractmethod
    def penalty(self, progress: float) -> Tensor:
        """Loss term (scalar) that pushes gates shut, at `progress` in [0, 1] of the run."""

    @abstractmethod
    def kept(self) -> Weights:
        """Weights that the gates keep without noise: by name of the parameter, bool `[...]`."""

    def about_kept(self) -> dict[str, Any]:
        """Plain values for the header of the mask that the gates stand for now."""
        return {}

    @property
    def sparsity(self) -> float:
        """Closed weights / gated weights, without noise."""
        kept = self.kept().values()
        return 1 - sum(int(part.sum()) for part in kept) / sum(part.numel() for part in kept)
