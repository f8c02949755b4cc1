"""Edge attribution patching (Syed, Rager and Conmy 2023, arXiv 2310.10348): one gradient scores every edge."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.methods.attribution import closing_effects, mean_over_examples, open_gates, require_slope
from edgeprune.methods.discovery import AbstractDiscovery, Discovery, Report
from edgeprune.methods.problem import Problem
from edgeprune.models.states import WriterStates


@final
@dataclass(frozen=True)
class EAP(AbstractDiscovery):
    """Score of an edge: (ablated - own output of its writer) times the gradient of the loss at its reader's input.

    That is minus the gradient of the loss with respect to the edge's gate, all gates open. Inner products are summed
    over positions and averaged over examples (deviation: the published code divides by the number of examples after a
    metric that is a mean over the batch, so its scores depend on the batch size). One forward and one backward pass per
    batch, beside the ablated run.

    KL and squared error have no slope at the full model; they are refused.
    """

    def discover(self, problem: Problem, report: Report, folder: Path | None = None) -> Discovery:
        """Score every edge."""
        require_slope(problem, "EAP")
        gates = open_gates(problem.model)

        def score(batch: PairBatch, full: Tensor, ablated: WriterStates) -> Tensor:
            return closing_effects(problem, batch, full, ablated, gates)

        scores = mean_over_examples(problem, score, lambda done, total: report("EAP", done, total))
        return Discovery(scores, about={"backward_passes": len(problem.batches)})

    def describe(self) -> dict[str, Any]:
        """The method; it has no settings."""
        return {"method": "eap"}
