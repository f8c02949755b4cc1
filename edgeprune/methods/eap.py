"""Edge attribution patching (Syed, Rager and Conmy 2023, arXiv 2310.10348): gradients at the full model score edges."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.console import Progress
from edgeprune.errors import EdgepruneError
from edgeprune.gates import uniform_noise
from edgeprune.methods.attribution import closing_curvatures, closing_effects, mean_over_examples, open_gates
from edgeprune.methods.backward_rules import BackwardRules
from edgeprune.methods.discovery import AbstractDiscovery, DiscoveryResult
from edgeprune.methods.problem import FLAT, Problem
from edgeprune.models.states import WriterStates


@final
@dataclass(frozen=True)
class EAP(AbstractDiscovery):
    """Lowest-order term of what closing an edge does to the loss, at the full model.

    Under a metric with a slope there, such as `logit_difference`, that is the published score: (ablated - own output of
    the edge's writer) times the gradient of the loss at its reader's input, which is minus the gradient of the loss
    with respect to the edge's gate, all gates open. Inner products are summed over positions and averaged over examples
    (deviation: the published code divides by the number of examples after a metric that is a mean over the batch, so
    its scores depend on the batch size). One forward and one backward pass per batch, beside the ablated run.

    Under `kl` and `squared_error` every such gradient is zero, since the full model is their minimum. The score is then
    half the second derivative of the loss in the edge's gate (deviation: the published method stops at the first). It
    takes first derivatives of the logits only, is never negative, and is estimated: for each example, `samples` random
    functions of the logits, see `curvature_probe`; the square of each one's slope in the gate is the score, on average.
    The relative standard error of a score from n examples is at most sqrt(2 / (samples * n)) where they score alike;
    an edge that does nothing to first order in the logits scores exactly 0. One forward pass per example and `samples`
    backward passes.

    With `rules`, every gradient is one by backward rules (deviation: RelP's demonstration takes it at the corrupted
    run, and none of the sources has them for losses without a slope).

    Attributes:
        samples: Random functions per example; of use under `kl` and `squared_error` alone.
        seed: Of those functions, which depend on it and on the number of the example in its split alone.
        rules: Of norms, activations, products and attention; None: gradients are the model's.
    """

    name = "eap"

    samples: int = 4
    seed: int = 0
    rules: BackwardRules | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise EdgepruneError(f"samples must be at least 1, got {self.samples}")

    def discover(self, problem: Problem, report: Progress, folder: Path | None = None) -> DiscoveryResult:
        """Score every edge."""
        gates = open_gates(problem.model)
        first_order = problem.metric not in FLAT

        def score(batch: PairBatch, full: Tensor, ablated: WriterStates) -> Tensor:
            with nullcontext() if self.rules is None else self.rules.on(problem.model):
                if first_order:
                    return closing_effects(problem, batch, full, ablated, gates)
                return closing_curvatures(problem, batch, full, ablated, gates, self._signs) / self.samples

        scores = mean_over_examples(problem, score, report, "EAP")
        passes = len(problem.batches) if first_order else self.samples * problem.num_examples
        return DiscoveryResult(scores, about={"order": 1 if first_order else 2, "backward_passes": passes})

    def _signs(self, index: int, shape: tuple[int, int]) -> Iterator[Tensor]:
        """Random signs for one example."""
        for sample in range(self.samples):
            noise = uniform_noise(self.seed, index, shape[0] * shape[1], stream=sample)
            yield (noise > 0.5).float().mul(2).sub(1).view(shape)
