"""Information flow routes (Ferrando and Voita 2024, arXiv 2403.00824), in the edge-by-edge form of EAP-IG and MIB."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.console import Progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods.attribution import mean_over_examples, token_shares
from edgeprune.methods.discovery import AbstractDiscovery, DiscoveryResult
from edgeprune.methods.problem import Problem
from edgeprune.models.outputs import reader_inputs, writer_outputs
from edgeprune.models.states import WriterStates


def proximity(part: Tensor, whole: Tensor, norm: int = 1) -> Tensor:
    """How much of the way to the whole a part goes: max(0, |whole| - |whole - part|), `[..., d]` to `[...]`."""
    return (whole.norm(norm, -1) - (whole - part).norm(norm, -1)).clamp(min=0)


def shares(proximities: Tensor, threshold: float = 0.0) -> Tensor:
    """Proximities `[part, ...]` divided by their sum over parts; all 0 where no part is near (published: NaN).

    Shares that are not above the threshold become 0, and the others are divided by their own sum.

    >>> shares(torch.tensor([1.0, 3.0, 16.0]), 0.1)
    tensor([0.0000, 0.1579, 0.8421])
    """
    found = _over_sum(proximities)
    return _over_sum(torch.where(found > threshold, found, 0.0)) if threshold else found


def _over_sum(parts: Tensor) -> Tensor:
    total = parts.sum(0)
    return torch.where(total > 0, parts / total.where(total > 0, 1.0), 0.0)


@final
@dataclass(frozen=True)
class InformationFlowRoutes(AbstractDiscovery):
    """Score of an edge: its writer's share in its reader's input, in the clean run alone.

    Shares of a reader sum to 1 at every position; they are averaged over the tokens of an example, then over examples.
    With roles a score is the part that tokens of the role have in that mean, and those of all roles add up to it.
    No metric and no ablation enter. Parts are the graph's writers: the position embedding too (deviation: published,
    it is none); biases are none. Circuits are commonly cut with selection rule `greedy`.

    Attributes:
        norm: 1: L1, as published. 2: L2.
        threshold: At each token, shares up to this count as none, and the others sum to 1 (published: an option of the
            authors' tool; EAP-IG and MIB have none). In [0, 1).
    """

    name = "information_flow_routes"

    norm: int = 1
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise EdgepruneError(f"norm must be 1 or 2, got {self.norm}")
        if not 0 <= self.threshold < 1:
            raise EdgepruneError(
                f"threshold must lie in [0, 1), got {self.threshold}: it is a share of what a reader takes in"
            )

    def discover(self, problem: Problem, report: Progress, folder: Path | None = None) -> DiscoveryResult:
        """Score every edge."""

        def score(batch: PairBatch, full: Tensor, ablated: WriterStates) -> Tensor:
            return self._shares(problem, batch)

        scores = mean_over_examples(problem, score, report, "information flow routes")
        return DiscoveryResult(scores, about={"forward_passes": len(problem.batches)})

    @torch.no_grad()
    def _shares(self, problem: Problem, batch: PairBatch) -> Tensor:
        """Sum over examples of the mean share over tokens, `[..., reader, writer]`."""
        graph, states = problem.model.graph, problem.model.record(batch.clean, batch.attention_mask)
        inputs = list(reader_inputs(problem.model, states))
        near = states.embeddings.new_zeros(len(inputs), len(graph.writers), *batch.clean.shape, dtype=torch.float64)
        for writer, output in enumerate(writer_outputs(problem.model, states)):
            for number, item in enumerate(inputs):
                if writer < item.num_visible:
                    near[number, writer] = proximity(output.double(), item.stream.double(), self.norm)
        tokens = token_shares(graph, batch)
        scores = torch.zeros(graph.shape, dtype=torch.float64)
        for number, item in enumerate(inputs):
            found = torch.einsum("...bs,wbs->...w", tokens, shares(near[number], self.threshold))
            scores[..., item.rows, :] = found[..., None, :].cpu()
        return scores
