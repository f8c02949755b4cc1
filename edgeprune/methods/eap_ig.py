"""Edge attribution patching with integrated gradients (Hanna, Pezzelle and Belinkov 2024, arXiv 2403.17806)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final, get_args

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.console import Progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods.attribution import closing_effects, mean_over_examples, open_gates
from edgeprune.methods.discovery import AbstractDiscovery, DiscoveryResult
from edgeprune.methods.problem import Problem
from edgeprune.models.states import FixedOutputs, WriterStates

Variant = Literal["inputs", "activations", "clean_corrupted", "gates", "local"]


@final
@dataclass(frozen=True)
class EAPIG(AbstractDiscovery):
    """EAP with the gradient averaged over runs between the ablated and the clean one.

    In the first three variants the score of an edge is (ablated - own output of its writer in the *clean* run) times
    the average over runs of the gradient at its reader's input, every edge open. The runs:

    - `"inputs"`: embeddings `ablated + k/m (own - ablated)` for k = 0 ... m-1, as published: the ablated end is in, the
      clean end is not. All embedding writers move together.
    - `"activations"`: for each group of writers (embeddings; the heads of a layer; an MLP), runs in which the group's
      output is held at `ablated + k/m (own - ablated)`, k = 1 ... m. Every run counts for every edge, as published, and
      no gradient passes a held output: edges upstream of it miss the paths through it in that group's runs, so even in
      a linear model only the edges into the logits get their exact effect.
    - `"clean_corrupted"`: two runs, clean embeddings and ablated ones.
    - `"gates"`: all gates of the masked model together at (k - 1/2)/m, k = 1 ... m (midpoint rule); the score is minus
      the average gate gradient. As m grows, the scores sum to the loss with every edge closed minus that with every
      edge open.
    - `"local"`: embeddings move as for `"inputs"`, and each step counts with what every writer's output moves by *in
      it*: the sum over k of (output at k-1 - output at k) times the gradient at the reader's input halfway between,
      outputs those of runs from `ablated + k/m (own - ablated)`, k = 0 ... m. Outputs of later writers do not move in a
      straight line, so that `"inputs"`, the whole difference times the average gradient, counts too much or too little.
      As m grows, the scores of all edges that cross a cut between embeddings and logits, such as all edges into the
      logits, sum to the loss from ablated embeddings minus that from clean ones; the error falls with the square of m.
      Source: the authors' code of arXiv 2609.25518, for nodes. Deviations: it takes the gradient at k, with an error
      that falls with m; outputs at k = 0 are those of a run from ablated embeddings, which under `interchange` are what
      closed edges carry.

    "Ablated" is what closed edges carry: the corrupted run's values, or zero. Deviations from the published code:
    scores do not depend on the batch size; the position embedding moves too where the ablated run has another one.

    Attributes:
        variant: Which runs.
        steps: m; `"clean_corrupted"` has no use for it. The published default is 30, its demonstrations take 5.
    """

    name = "eap_ig"

    variant: Variant = "inputs"
    steps: int = 5

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise EdgepruneError(f"variant must be one of {', '.join(get_args(Variant))}, got {self.variant!r}")
        if self.steps < 1:
            raise EdgepruneError(f"steps must be at least 1, got {self.steps}")

    def discover(self, problem: Problem, report: Progress, folder: Path | None = None) -> DiscoveryResult:
        """Score every edge."""
        gates, runs = open_gates(problem.model), self._num_runs(problem)
        total, done = runs * len(problem.batches), 0

        def score(batch: PairBatch, full: Tensor, ablated: WriterStates) -> Tensor:
            nonlocal done
            scores = torch.zeros(problem.model.graph.shape, dtype=torch.float64)
            for effects in self._effects(problem, batch, full, ablated, gates):
                scores += effects.cpu()
                done += 1
                report(f"EAP-IG ({self.variant})", done, total)
            return scores / runs

        scores = mean_over_examples(problem, score)
        return DiscoveryResult(scores, about={"backward_passes": total})

    def _num_runs(self, problem: Problem) -> int:
        """Forward and backward passes per batch."""
        arch = problem.model.graph.arch
        groups = 1 + arch.num_layers * (1 + arch.has_mlp)
        return {"clean_corrupted": 2, "activations": groups * self.steps}.get(self.variant, self.steps)

    def _effects(
        self, problem: Problem, batch: PairBatch, full: Tensor, ablated: WriterStates, gates: Tensor
    ) -> Iterator[Tensor]:
        """Summed scores `[reader, writer]` of each run."""
        if self.variant == "gates":
            for k in range(self.steps):
                share = (k + 0.5) / self.steps
                yield closing_effects(problem, batch, full, ablated, share * gates)
            return
        own = problem.model.record(batch.clean, batch.attention_mask)
        difference = ablated.minus(own)
        if self.variant == "local":
            yield from self._increments(problem, batch, full, own.embeddings, difference.embeddings, gates)
            return
        for fixed in self._runs(own, difference):
            yield closing_effects(problem, batch, full, difference, gates, fixed=fixed, relative=True)

    def _increments(
        self, problem: Problem, batch: PairBatch, full: Tensor, own: Tensor, difference: Tensor, gates: Tensor
    ) -> Iterator[Tensor]:
        """Summed scores of each step, from embeddings `own` and what they lack, `[num_embeddings, batch, seq, d]`."""
        model, before = problem.model, None
        for k in range(self.steps + 1):
            share = 1 - k / self.steps  # 1: ablated, 0: clean
            here = model.record(batch.clean, batch.attention_mask, own + share * difference)
            if before is not None:
                halfway = FixedOutputs(embeddings=own + (share + 0.5 / self.steps) * difference)
                moved = before.minus(here).map(lambda field: field * self.steps)  # scores are means over runs
                yield closing_effects(problem, batch, full, moved, gates, fixed=halfway, relative=True)
            before = here

    def _runs(self, own: WriterStates, difference: WriterStates) -> Iterator[FixedOutputs]:
        """What is given in each run: outputs moved from the clean run's by a share of `difference`."""
        shares = [1 - k / self.steps for k in range(self.steps + 1)]  # 1: ablated, 0: clean
        if self.variant != "activations":
            for share in shares[:-1] if self.variant == "inputs" else (0.0, 1.0):
                yield FixedOutputs(embeddings=own.embeddings + share * difference.embeddings)
            return
        for share in shares[1:]:
            yield FixedOutputs(embeddings=own.embeddings + share * difference.embeddings)
            for layer in range(len(own.heads)):
                yield FixedOutputs(heads={layer: own.heads[layer] + share * difference.heads[layer]})
                if own.mlps is not None and difference.mlps is not None:
                    yield FixedOutputs(mlps={layer: own.mlps[layer] + share * difference.mlps[layer]})
