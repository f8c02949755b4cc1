"""Uniform gradient sampling (Li and Janson 2024, arXiv 2409.09951), with the settings of MIB (arXiv 2504.13151)."""

from typing import Any, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.gates import UniformWindow, uniform_noise
from edgeprune.graph import EdgeGraph
from edgeprune.methods.base import AbstractRecipe, sample_stream
from edgeprune.methods.node_gates import NodeMap

MAX_NODE_WEIGHT = 2e-4  # MIB: nu = min(lambda / 2, 2e-4)
RATES = ((1e-4, 0.15), (5e-4, 0.10))  # MIB: learning rate for lambda up to this
HIGH_PRICE_RATE = 0.05  # and beyond


@final
class UGS(AbstractRecipe):
    """One gate per existing edge, uniform on [0, 1] where it is undecided; its score is theta.

    Loss: error + `edge_weight` * sum of theta + `node_weight` * sum over heads and MLPs of
    `tanh(2 in / (L H)) + tanh(2 out / (L H))`, where `in` and `out` sum theta over the edges into and out of the node,
    and L and H are layers and heads.

    Deviations from MIB: unless `masks_per_batch` is the batch size, examples share samples; dangling edges of a sample
    are left in it, because nothing flows through them. Clipping of the gradient's norm (MIB: 5) is the Trainer's
    `gradient_clip_val`.

    Args:
        edge_weight: Price of an open edge, in units of the error (MIB: 0.001).
        node_weight: Of the node term; null: `min(edge_weight / 2, 2e-4)` (MIB).
        learning_rate: Of AdamW; null: 0.15, 0.1 or 0.05 for `edge_weight` up to 1e-4, 5e-4 or more, divided by
            `rate_divisor` (MIB).
        rate_divisor: 5 where closed edges carry the corrupted prompt (MIB), 2 where they carry another example's
            values, 1 otherwise.
        betas: Of AdamW (MIB: 0.9, 0.995, no decay).
        samples_per_step: Samples of the gates that each example's error is averaged over (MIB: 12). Each costs a run.
        masks_per_batch: Groups of equal size that the batch falls into, each with samples of its own (MIB: one group
            per example). It costs nothing.
        init: Initial alpha; theta is its sigmoid (MIB: 1).
        scaled_gradient: Multiply each gate's gradient by theta (1 - theta) once more, see `UniformWindow`.
    """

    def __init__(
        self,
        *,
        edge_weight: float = 1e-3,
        node_weight: float | None = None,
        learning_rate: float | None = None,
        rate_divisor: float = 5.0,
        betas: tuple[float, float] = (0.9, 0.995),
        samples_per_step: int = 12,
        masks_per_batch: int = 1,
        init: float = 1.0,
        scaled_gradient: bool = False,
    ) -> None:
        super().__init__()
        if edge_weight < 0 or (node_weight is not None and node_weight < 0):
            raise EdgepruneError(f"edge_weight and node_weight are prices >= 0, got {edge_weight} and {node_weight}")
        if rate_divisor <= 0 or (learning_rate is not None and learning_rate <= 0) or samples_per_step < 1:
            raise EdgepruneError(
                "need learning_rate > 0, rate_divisor > 0 and samples_per_step >= 1, got "
                f"{learning_rate}, {rate_divisor} and {samples_per_step}"
            )
        if masks_per_batch < 1:
            raise EdgepruneError(f"masks_per_batch must be at least 1, got {masks_per_batch}")
        if not all(0 <= beta < 1 for beta in betas):
            raise EdgepruneError(f"both betas must lie in [0, 1), got {tuple(betas)}")
        self.edge_weight = edge_weight
        self.node_weight = min(edge_weight / 2, MAX_NODE_WEIGHT) if node_weight is None else node_weight
        self.learning_rate = published_rate(edge_weight) / rate_divisor if learning_rate is None else learning_rate
        self.betas = (float(betas[0]), float(betas[1]))
        self.samples_per_step = samples_per_step
        self.masks_per_batch = masks_per_batch
        self._gate_options: dict[str, Any] = {"init": init, "scaled_gradient": scaled_gradient}

    def build(self, graph: EdgeGraph) -> None:
        """Make one gate per existing edge."""
        self.graph = graph
        self.nodes = NodeMap(graph)
        self.edges = UniformWindow(graph.num_edges, **self._gate_options)

    def sample(self, seed: int, step: int, number: int = 0) -> Tensor:
        """Gates `[reader, writer]`: one of the samples of a step."""
        return self.graph.to_matrix(
            self.edges.sample(uniform_noise(seed, step, self.edges.num_gates, stream=sample_stream(number)))
        )

    def penalty(self, gates: Tensor, progress: float) -> Tensor:
        """Price of edges and of nodes, the same all through the run; it sees theta, not the sample."""
        theta = self.edges.theta()
        return self.edge_weight * theta.sum() + self.node_weight * self._busy_nodes(self.graph.to_matrix(theta))

    def _busy_nodes(self, theta: Tensor) -> Tensor:
        """Heads and MLPs with edges in, plus those with edges out, each softly counted once (scalar), or per role."""
        arch, behind = self.graph.arch, self.nodes.behind.to(theta.device)
        first, scale = arch.num_embeddings, 2 / (arch.num_layers * arch.num_heads)
        by_reader, by_writer = theta.sum(-1), theta.sum(-2)
        mlp = self.nodes.is_mlp.to(theta.device)[first:]
        into = by_reader[..., behind[first:]]
        into = torch.where(mlp, into[..., 0], into.sum(-1))
        return (scale * into).tanh().sum() + (scale * by_writer[..., first:]).tanh().sum()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group, without weight decay."""
        group = {"params": [self.edges.alpha], "lr": self.learning_rate, "betas": self.betas}
        return [group | {"weight_decay": 0.0, "maximize": False}]

    def scores(self) -> Tensor:
        """Theta of each edge, `[reader, writer]`."""
        return self.graph.to_matrix(self.edges.scores())

    def num_open(self) -> int:
        """Edges whose theta is above one half."""
        return int((self.edges.scores() > 0.5).sum())

    def state(self, progress: float) -> dict[str, float]:
        """Mean theta, and the share of edges that are undecided: the mean width of their windows."""
        theta = self.edges.scores()
        return {"mean_theta": theta.mean().item(), "undecided": (theta * (1 - theta)).mean().item()}

    def describe(self) -> dict[str, Any]:
        """Method and settings."""
        return {
            "method": "ugs",
            **self._settings("edge_weight", "node_weight", "learning_rate", "betas"),
            **self._settings("samples_per_step", "masks_per_batch"),
            **self._gate_options,
        }


def published_rate(edge_weight: float) -> float:
    """MIB's learning rate for a price, before it is divided for the ablation.

    >>> published_rate(1e-4), published_rate(1e-3)
    (0.15, 0.05)
    """
    return next((rate for price, rate in RATES if edge_weight <= price), HIGH_PRICE_RATE)
