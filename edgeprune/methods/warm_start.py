"""Start gates from what another method found, and close for good what it found worthless.

Freezing is the hybrid HAP: a cheap method keeps its best edges with a generous share, gates are trained on those alone.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.gates import top_k
from edgeprune.graph import EdgeGraph
from edgeprune.reference import read_reference


@final
@dataclass(frozen=True)
class WarmStart:
    """Where gates start.

    Attributes:
        path: A circuit or score file for the same graph, or a list of edges in one of the forms of `read_reference`,
            ACDC's among them. With scores, edges are ranked by them; without, kept edges come first and all are tied.
        spread: Log-alpha of the best edge above `init_mean`, and of the worst below it; linear in rank between, tied
            edges alike.
        keep_below: Train only this best share of all edges, in (0, 1], and close the others for good; null: train all.
        magnitude: True: rank by the absolute value of the scores, as circuits of attribution patching are often cut.
            False: by the scores. Null: as the file was made, kept edges before the others, both by `Circuit.ranking`.
    """

    path: str
    spread: float = 1.0
    keep_below: float | None = None
    magnitude: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.spread < math.inf:
            raise EdgepruneError(f"warm_start.spread must be a finite number >= 0, got {self.spread}")
        if self.keep_below is not None and not 0 < self.keep_below <= 1:
            raise EdgepruneError(
                f"warm_start.keep_below must lie in (0, 1], got {self.keep_below}; 0.2 trains the best 20 % of edges"
            )


@final
class Start(nn.Module):
    """What a warm start does to the gates of a graph's edges; part of the checkpoint, which needs no file then.

    Args:
        settings: Where gates start, and which are frozen.
        graph: The graph.

    Attributes:
        frozen: Bool `[num_edges]`, True for edges that are closed for good; None if none is.
        offsets: Float `[num_edges]` to add to the initial log-alphas; None where the file is missing.
    """

    frozen: Tensor | None
    sha256: Tensor

    def __init__(self, settings: WarmStart, graph: EdgeGraph) -> None:
        super().__init__()
        self.settings = settings
        size = graph.num_edges
        freezes = settings.keep_below is not None
        self.register_buffer("frozen", torch.zeros(size, dtype=torch.bool) if freezes else None)
        self.register_buffer("sha256", torch.zeros(32, dtype=torch.uint8))
        self.offsets: Tensor | None = None
        if Path(settings.path).is_file():
            self._read(graph)

    def _read(self, graph: EdgeGraph) -> None:
        path = Path(self.settings.path)
        circuit = read_reference(path, graph, holds="scores")  # edges rank alike in an empty circuit with scores
        self.sha256.copy_(torch.tensor(list(hashlib.sha256(path.read_bytes()).digest()), dtype=torch.uint8))
        values = _values(circuit, self.settings.magnitude)
        self.offsets = self.settings.spread * (_binary(values) if circuit.scores is None else ranks(values))
        if self.frozen is not None and self.settings.keep_below is not None:
            self.frozen.copy_(~top_k(values, num_trained(graph, self.settings.keep_below)))

    def check_started(self) -> None:
        """Refuse a missing file; a run that goes on from a checkpoint does not ask."""
        if self.offsets is None:
            raise EdgepruneError(
                f"no circuit or score file at {self.settings.path} to start from; write it first with "
                "`edgeprune discover`, or resume from a checkpoint, which needs no file"
            )

    def describe(self) -> dict[str, Any]:
        """Settings, and the SHA-256 of the file's bytes."""
        return {**asdict(self.settings), "sha256": bytes(self.sha256.tolist()).hex()}


def num_trained(graph: EdgeGraph, share: float) -> int:
    """Edges that are not frozen, at least one."""
    return max(1, round(share * graph.num_edges))


def ranks(values: Tensor) -> Tensor:
    """Ranks of `[n]` values, linear from -1 (lowest) to 1 (highest); ties share their mean, all equal values 0."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0) - 1  # rank of the last of each group of ties
    mean = last - (counts - 1) / 2
    low, high = mean[0], mean[-1]
    return (2 * (mean - low) / (high - low) - 1 if high > low else torch.zeros_like(mean))[inverse].float()


def _binary(keep: Tensor) -> Tensor:
    return 2 * keep.float() - 1


def _values(circuit: Circuit, magnitude: bool | None) -> Tensor:
    """What ranks the edges of a file, `[num_edges]`."""
    keep, ranking = circuit.graph.to_vector(circuit.keep), circuit.ranking
    if circuit.scores is None or ranking is None:
        return keep.float()
    scores = circuit.graph.to_vector(ranking if magnitude is None else circuit.scores)
    if not scores.isfinite().all():
        raise EdgepruneError("scores to start from must be finite: NaN or infinity cannot be ranked")
    if magnitude is None:
        places = scores.unique(return_inverse=True)[1]  # equal scores have one place
        return (places + keep * len(places)).double()
    return scores.abs() if magnitude else scores
