"""Matryoshka Attribution (arXiv 2609.25518): soft top-k masks of random size teach scores that rank all edges."""

import math
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.gates import sigmoid_top_k, uniform_noise
from edgeprune.graph import EdgeGraph
from edgeprune.methods.base import AbstractRecipe, sample_stream

Draw = Literal["uniform", "log"]
OptimizerName = Literal["adam", "sgd"]


@final
class Matryoshka(AbstractRecipe):
    """One score per existing edge, 0 at first. Each step keeps a random number k of edges, softly, without any penalty.

    The mask of a sample is `sigmoid((score - tau) / temperature)` with tau such that it sums to k (`sigmoid_top_k`).
    Circuits of every size are cut from the scores of the end: nothing is closed on the way, and there is no price.

    Published settings are the defaults: for edges 5000 steps, Adam at .05 to .1, or `optimizer="sgd"` at 3, one k per
    step, the objective `logit_difference`.

    Args:
        draw: How k is drawn between the ends of `shares`: `"uniform"`, or `"log"`: its logarithm is uniform.
        shares: The least and the largest share of all edges that k may be (published: 0 and 1, from one edge to all).
            Edges are told apart best at the sizes that are drawn most.
        temperature: T (published: 0.5).
        optimizer: `"adam"` or `"sgd"`, without momentum and decay.
        learning_rate: Of it.
        betas: Of Adam (published: 0.9, 0.999).
        eps: Of Adam (published: 1e-8). Where most gradients are smaller, steps count signs.
        masks_per_batch: Groups of equal size that the batch falls into, each with a k of its own (published: 1). It
            costs nothing.
        stratified: Draw the numbers k of a step from as many equal parts of the range, one from each (deviation: each
            from the whole range).
        validated_sparsity: Sparsity of the circuit that is validated on the way and written as the final one, for the
            scores stand for no size. Snapshots have the sizes that are asked for.
    """

    ranks_every_size = True

    def __init__(
        self,
        *,
        draw: Draw = "uniform",
        shares: tuple[float, float] = (0.0, 1.0),
        temperature: float = 0.5,
        optimizer: OptimizerName = "adam",
        learning_rate: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        masks_per_batch: int = 1,
        stratified: bool = False,
        validated_sparsity: float = 0.95,
    ) -> None:
        super().__init__()
        if draw not in ("uniform", "log"):
            raise EdgepruneError(f"draw must be 'uniform' or 'log', got {draw!r}")
        if optimizer not in ("adam", "sgd"):
            raise EdgepruneError(f"optimizer must be 'adam' or 'sgd', got {optimizer!r}")
        if not 0 <= shares[0] < shares[1] <= 1:
            raise EdgepruneError(f"shares must rise within [0, 1], got {tuple(shares)}; [0, 1] draws any size")
        if not (temperature > 0 and learning_rate > 0 and eps > 0):
            raise EdgepruneError(
                f"temperature, learning_rate and eps must be above 0, got {temperature}, {learning_rate} and {eps}"
            )
        if not all(0 <= beta < 1 for beta in betas):
            raise EdgepruneError(f"both betas must lie in [0, 1), got {tuple(betas)}")
        if masks_per_batch < 1:
            raise EdgepruneError(f"masks_per_batch must be at least 1, got {masks_per_batch}")
        if not 0 < validated_sparsity < 1:
            raise EdgepruneError(
                f"validated_sparsity must lie in (0, 1), got {validated_sparsity}; 0.95 keeps 5 % of the edges"
            )
        self.draw: Draw = draw
        self.shares = (float(shares[0]), float(shares[1]))
        self.temperature = temperature
        self.optimizer: OptimizerName = optimizer
        self.learning_rate, self.eps = learning_rate, eps
        self.betas = (float(betas[0]), float(betas[1]))
        self.masks_per_batch, self.stratified = masks_per_batch, stratified
        self.validated_sparsity = validated_sparsity

    def build(self, graph: EdgeGraph) -> None:
        """Make one score per existing edge."""
        self.graph = graph
        self.values = nn.Parameter(torch.zeros(graph.num_edges))

    def num_kept(self, seed: int, step: int, number: int) -> float:
        """How many edges a sample of a step keeps: k, not a whole number."""
        uniform = uniform_noise(seed, step, 1, stream=sample_stream(number)).double().item()
        if self.stratified:
            uniform = ((number + step) % self.masks_per_batch + uniform) / self.masks_per_batch
        low, high = max(1.0, self.shares[0] * self.graph.num_edges), self.shares[1] * self.graph.num_edges
        if self.draw == "uniform":
            return low + (high - low) * uniform
        return low * math.exp(uniform * math.log(high / low))

    def sample(self, seed: int, step: int, number: int = 0) -> Tensor:
        """Gates `[reader, writer]`: one of the samples of a step."""
        return self._samples(seed, step, [number])

    def _samples(self, seed: int, step: int, numbers: Sequence[int]) -> Tensor:
        """One sample `[reader, writer]`, or several `[group, reader, writer]`; their thresholds are found together."""
        kept = torch.tensor([self.num_kept(seed, step, number) for number in numbers], dtype=torch.float64)
        masks = sigmoid_top_k(self.values, kept, self.temperature)
        matrices = [self.graph.to_matrix(mask) for mask in masks]
        return matrices[0] if len(matrices) == 1 else torch.stack(matrices)

    def penalty(self, gates: Tensor, progress: float) -> Tensor:
        """None: 0 (scalar)."""
        return gates.new_zeros(())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group, without weight decay."""
        group = {"params": [self.values], "lr": self.learning_rate, "weight_decay": 0.0, "maximize": False}
        return [group if self.optimizer == "sgd" else {**group, "betas": self.betas, "eps": self.eps}]

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Adam, or plain gradient descent."""
        return torch.optim.SGD(self.parameter_groups()) if self.optimizer == "sgd" else super().make_optimizer()

    def scores(self) -> Tensor:
        """The score of each edge, `[reader, writer]`; only their order and their distances mean something."""
        return self.graph.to_matrix(self.values.detach())

    def num_open(self) -> int:
        """Edges of the circuit that is validated: a choice, not a finding."""
        return max(1, round((1 - self.validated_sparsity) * self.graph.num_edges))

    def state(self, progress: float) -> dict[str, float]:
        """Spread of the scores, in temperatures: far above 1, masks are nearly 0 or 1."""
        return {"spread": (self.values.detach().std(correction=0) / self.temperature).item()}

    def describe(self) -> dict[str, Any]:
        """Method and settings."""
        return {
            "method": "matryoshka",
            **self._settings("draw", "shares", "temperature", "optimizer", "learning_rate", "betas", "eps"),
            **self._settings("masks_per_batch", "stratified"),
        }
