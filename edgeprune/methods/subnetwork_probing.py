"""Subnetwork probing (Cao, Sanh and Rush 2021, arXiv 2104.03514) as Conmy et al. 2023 (arXiv 2304.14997) adapted it.

Hard concrete gates on nodes (q, k and v of each head, each MLP), trained by the metric plus a fixed price for open
gates. With `granularity="edges"` the gates stand on edges, as auto-circuit has it.
"""

from typing import Any, Literal, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.gates import HardConcrete, uniform_noise
from edgeprune.gates.hard_concrete import STRETCH, TEMPERATURE
from edgeprune.graph import EdgeGraph
from edgeprune.methods.base import AbstractRecipe, sample_stream
from edgeprune.methods.node_gates import NodeMap

Granularity = Literal["nodes", "edges"]
Final = Literal["deterministic", "sample"]

INIT = 1.6094379  # logit((.9 + .1) / 1.2): the gate without noise is .9, as in the published code
FINAL_STREAM = 3  # of the noise that draws the last sample


@final
class SubnetworkProbing(AbstractRecipe):
    """Gates on nodes or on edges, at a fixed price.

    An edge is in the circuit unless it touches a masked node; a head's output touches its q, k and v together, so it
    goes with the last of them (published rule). Edges that touch no node (embedding to logits) stay.

    Deviations from the code of Conmy et al.: a q, k or v gate mixes what the node reads instead of what its projection
    gives, which is the same at 0 and 1 under interchange; the ablation is the problem's; and `final`. Deviations of
    `granularity="edges"` from auto-circuit: the price is on the expected number of open edges instead of on a second
    sample, and closed edges carry what the problem's ablation says instead of a mean of corrupted prompts.

    Args:
        granularity: `"nodes"` (published) or `"edges"`.
        penalty_weight: Of R, the expected share of open gates (published: 50, swept from .01 to 250). With nodes R is
            the mean over gate tensors (one each for q, k, v and MLP of a layer) of their means; with edges their mean.
        learning_rate: Of Adam (published: 0.001 for 3000 to 10,000 full batches).
        init: Initial log-alpha (published: 1.609).
        final: How gates become a circuit. `"deterministic"`: those that are above one half without noise (deviation).
            `"sample"` (published): those that are above one half in one sample; every circuit of a run is cut from the
            same sample, whose noise is a function of `final_seed` alone.
        final_seed: Of that noise.
        samples_per_step: Samples of the gates that each step's error is averaged over (published: 1).
        temperature: Of the hard concrete distribution (published: 2/3).
        stretch: Of the hard concrete distribution (published: -0.1, 1.1).
    """

    def __init__(
        self,
        *,
        granularity: Granularity = "nodes",
        penalty_weight: float = 50.0,
        learning_rate: float = 0.001,
        init: float = INIT,
        final: Final = "deterministic",
        final_seed: int = 0,
        samples_per_step: int = 1,
        temperature: float = TEMPERATURE,
        stretch: tuple[float, float] = STRETCH,
    ) -> None:
        super().__init__()
        if granularity not in ("nodes", "edges"):
            raise EdgepruneError(f"granularity must be 'nodes' or 'edges', got {granularity!r}")
        if final not in ("deterministic", "sample"):
            raise EdgepruneError(f"final must be 'deterministic' or 'sample', got {final!r}")
        if learning_rate <= 0 or penalty_weight < 0 or samples_per_step < 1:
            raise EdgepruneError(
                "need learning_rate > 0, penalty_weight >= 0 and samples_per_step >= 1, got "
                f"{learning_rate}, {penalty_weight} and {samples_per_step}"
            )
        self.granularity: Granularity = granularity
        self.penalty_weight, self.learning_rate = penalty_weight, learning_rate
        self.final: Final = final
        self.final_seed, self.samples_per_step = final_seed, samples_per_step
        self._gate_options: dict[str, Any] = {"init_mean": init, "temperature": temperature, "stretch": stretch}

    def build(self, graph: EdgeGraph) -> None:
        """Make one gate per node, or per existing edge.

        Raises:
            EdgepruneError: Gates on nodes, in a graph with roles: a head's output at a role has no node of its own.
        """
        if graph.roles is not None and self.granularity == "nodes":
            raise EdgepruneError("granularity 'nodes' masks a node at all tokens, so it has no roles: choose 'edges'")
        self.graph = graph
        self.nodes = NodeMap(graph)
        size = graph.num_edges if self.granularity == "edges" else self.nodes.num_nodes
        self.gates = HardConcrete(size, **self._gate_options)

    def sample(self, seed: int, step: int, number: int = 0) -> Tensor:
        """Gates `[reader, writer]`: one of the samples of a step."""
        noise = uniform_noise(seed, step, self.gates.num_gates, stream=sample_stream(number))
        return self._matrix(self.gates.sample(noise))

    def _matrix(self, gates: Tensor) -> Tensor:
        return self.graph.to_matrix(gates) if self.granularity == "edges" else self.nodes.gates(gates)

    def penalty(self, gates: Tensor, progress: float) -> Tensor:
        """`penalty_weight * R`, the same all through the run."""
        return self.penalty_weight * self._open_share()

    def _open_share(self) -> Tensor:
        """R: expected share of open gates, every gate tensor of the published code counting alike."""
        prob = self.gates.prob_open()
        if self.granularity == "edges":
            return prob.mean()
        return torch.stack([part.mean() for part in prob.split(self.nodes.sizes)]).mean()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group, without weight decay: AdamW is Adam then."""
        return [
            {"params": [self.gates.log_alpha], "lr": self.learning_rate, "weight_decay": 0.0, "maximize": False},
        ]

    def scores(self) -> Tensor:
        """Log-alpha, with the noise of the last sample if `final` says so, `[reader, writer]`; above 0 is kept.

        With nodes an edge has the smaller value of the nodes it touches, and of q, k, v the largest; edges that touch
        no node rank one above all others.
        """
        values = self._locations()
        if self.granularity == "edges":
            return self.graph.to_matrix(values)
        return self.nodes.edge_values(values, max(0.0, values.max().item()) + 1)

    def _locations(self) -> Tensor:
        """Above 0 where a gate is above one half."""
        values = self.gates.scores()
        if self.final == "deterministic":
            return values
        noise = uniform_noise(self.final_seed, 0, self.gates.num_gates, stream=FINAL_STREAM)
        return values + torch.logit(noise).to(values)

    def num_open(self) -> int:
        """Edges in the circuit that the gates stand for now."""
        return int((self.graph.to_vector(self.scores()) > 0).sum())

    def state(self, progress: float) -> dict[str, float]:
        """The price, and the share of gates expected to be open."""
        with torch.no_grad():
            return {"penalty_weight": self.penalty_weight, "expected_open": self._open_share().item()}

    def describe(self) -> dict[str, Any]:
        """Method and settings."""
        return {
            "method": "subnetwork_probing",
            **self._settings("granularity", "penalty_weight", "learning_rate", "final", "final_seed"),
            **self._settings("samples_per_step"),
            **self._gate_options,
        }
