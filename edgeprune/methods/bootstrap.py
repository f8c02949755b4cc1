"""How sure scores are: bootstrap intervals over examples, and scores in which what may be chance ranks last."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.methods.discovery import AbstractDiscovery, DiscoveryResult
from edgeprune.methods.problem import Problem

AT_ONCE = 2**22  # resampled scores


class Samples(NamedTuple):
    """Scores of batches by themselves.

    Attributes:
        scores: Mean over the examples of each batch, float64 `[batch, ..., reader, writer]`.
        sizes: Examples of each batch, float64 `[batch]`.
    """

    scores: Tensor
    sizes: Tensor


def discover_by_batch(
    method: AbstractDiscovery, problem: Problem, report: Progress = no_progress
) -> tuple[DiscoveryResult, Samples]:
    """What a method finds on each batch alone, and the mean over examples, which is what it finds on all of them.

    That is so for methods whose scores are means over examples; for others, the mean is taken for their scores.

    Raises:
        EdgepruneError: There is a single batch, or the method gives no scores.
    """
    found: list[DiscoveryResult] = []
    if len(problem.batches) < 2:
        raise EdgepruneError(
            f"bootstrap resamples batches, and {problem.num_examples} pairs in batches of that size are one; lower "
            "data.batch_size, to 1 for single examples"
        )
    for done, batch in enumerate(problem.batches, start=1):
        found.append(method.discover(replace(problem, batches=[batch]), no_progress))
        report("scores by batch", done, len(problem.batches))
    scores = [one.scores for one in found if one.scores is not None]
    if len(scores) < len(found):
        raise EdgepruneError(f"bootstrap needs scores, and method {type(method).__name__} makes circuits; leave it out")
    samples = Samples(
        torch.stack(scores).double().cpu(),
        torch.tensor([len(batch) for batch in problem.batches], dtype=torch.float64),
    )
    mean = torch.einsum("b,b...->...", samples.sizes / samples.sizes.sum(), samples.scores)
    return DiscoveryResult(mean, about=_about([one.about for one in found])), samples


def _about(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of the first batch, with the passes of all."""
    passes = {key: sum(part[key] for part in parts) for key in parts[0] if key.endswith("_passes")}
    return {**parts[0], **passes}


@final
@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals of scores over resampled batches (Efron and Tibshirani 1993, chapter 13).

    Batches are drawn with replacement, as many as there are, and weigh by their examples. With `data.batch_size: 1`
    these are examples; larger batches make intervals coarser, not wrong. (Published for circuits in arXiv 2510.25786,
    with mean +- 1.96 sd / sqrt(resamples): sd over resamples is the standard error already, so that those intervals
    shrink as resamples are added.)

    Attributes:
        resamples: How many sets are drawn.
        confidence: Share of the resampled scores inside an interval, in (0, 1).
        seed: Of the draws.
    """

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 2:
            raise EdgepruneError(f"resamples must be at least 2, got {self.resamples}; 1000 is usual")
        if not 0 < self.confidence < 1:
            raise EdgepruneError(f"confidence must lie in (0, 1), got {self.confidence}; 0.95 is usual")

    def intervals(self, graph: EdgeGraph, samples: Samples) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, float64 `[reader, writer]` each, 0 where there is no edge."""
        number = len(samples.sizes)
        draws = torch.randint(0, number, (self.resamples, number), generator=torch.Generator().manual_seed(self.seed))
        counts = torch.zeros(self.resamples, number, dtype=torch.float64)
        counts.scatter_add_(1, draws, torch.ones(draws.shape, dtype=torch.float64))
        weights = counts * samples.sizes
        weights /= weights.sum(1, keepdim=True)
        edges = torch.stack([graph.to_vector(scores) for scores in samples.scores])
        tail = (1 - self.confidence) / 2
        levels = torch.tensor([tail, 1 - tail], dtype=torch.float64)
        parts = [(weights @ part).quantile(levels, 0) for part in edges.split(max(1, AT_ONCE // self.resamples), 1)]
        low, high = torch.cat(parts, 1)
        return graph.to_matrix(low), graph.to_matrix(high)

    def cautious(self, graph: EdgeGraph, samples: Samples) -> Tensor:
        """Scores `[reader, writer]` to rank by: the end of the interval that is nearer to 0, or 0 where 0 is inside."""
        low, high = self.intervals(graph, samples)
        return low.clamp(min=0) + high.clamp(max=0)


def filled(cautious: Tensor, scores: Tensor) -> Tensor:
    """Cautious scores `[reader, writer]`, and where they are 0 `scores`, scaled to lie nearer to 0 than all others."""
    sure = cautious != 0
    if not sure.any() or not (unsure := scores.masked_fill(sure, 0).abs().max()):
        return torch.where(sure, cautious, scores)
    return torch.where(sure, cautious, scores * (cautious[sure].abs().min() / unsure / 2))
