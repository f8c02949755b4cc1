"""Scores that a method must beat: chance, and the size of what an edge carries."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final, get_args

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.console import Progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods.attribution import mean_over_examples, token_shares
from edgeprune.methods.discovery import AbstractDiscovery, DiscoveryResult
from edgeprune.methods.problem import Problem
from edgeprune.models.outputs import writer_outputs
from edgeprune.models.states import WriterStates

Of = Literal["difference", "own"]


@final
@dataclass(frozen=True)
class RandomScores(AbstractDiscovery):
    """Uniform noise in [0, 1): a circuit of the best `n` edges is `Circuit.random(graph, n, seed)`.

    Attributes:
        seed: Of the noise.
    """

    name = "random"

    seed: int = 0

    def discover(self, problem: Problem, report: Progress, folder: Path | None = None) -> DiscoveryResult:
        """Draw a score for every edge."""
        graph = problem.model.graph
        noise = torch.rand(graph.shape, generator=torch.Generator().manual_seed(self.seed))
        return DiscoveryResult(torch.where(graph.exists, noise, 0.0))


@final
@dataclass(frozen=True)
class ActivationMagnitude(AbstractDiscovery):
    """Score of an edge: L2 norm of a vector of its writer, averaged over an example's tokens, then over examples.

    All edges of a writer score alike; ties are cut in the order of edges. With roles a score is the part that tokens of
    the role have in that mean, and those of all roles add up to it.

    Attributes:
        of: `"difference"`: of ablated - own output, how far closing the edge moves its reader's input. `"own"`: of the
            writer's output in the clean run, whatever the ablation.
    """

    name = "activation_magnitude"

    of: Of = "difference"

    def __post_init__(self) -> None:
        if self.of not in get_args(Of):
            raise EdgepruneError(f"of must be one of {', '.join(get_args(Of))}, got {self.of!r}")

    def discover(self, problem: Problem, report: Progress, folder: Path | None = None) -> DiscoveryResult:
        """Score every edge."""

        def score(batch: PairBatch, full: Tensor, ablated: WriterStates) -> Tensor:
            return self._norms(problem, batch, ablated)

        scores = mean_over_examples(problem, score, report, "activation magnitude")
        return DiscoveryResult(scores, about={"forward_passes": len(problem.batches)})

    @torch.no_grad()
    def _norms(self, problem: Problem, batch: PairBatch, ablated: WriterStates) -> Tensor:
        """Sum over examples of the mean norm over tokens, `[..., reader, writer]`."""
        model = problem.model
        states = model.record(batch.clean, batch.attention_mask)
        if self.of == "difference":
            states = ablated.minus(states)
        norms = torch.stack([output.double().norm(dim=-1) for output in writer_outputs(model, states)])
        means = torch.einsum("...bs,wbs->...w", token_shares(model.graph, batch), norms.expand(-1, *batch.clean.shape))
        return means[..., None, :].cpu() * model.graph.exists
