"""Start gates from what another method found, and close for good what it found worthless.

Freezing is the hybrid HAP: a cheap method keeps its best edges with a generous share, gates are trained on those alone.

A start that is calibrated in each layer is that of S-Ens (arXiv 2510.06811, cisnlp/MIB-circuit-track): q is the rank of
an edge among those that its layer reads, from 0 (worst) to 1 (best), and at the middle of its noise its gate is

    g = sigmoid((q - b) / softness)                                                                                 (1)

with b such that the layer has the sparsity asked for; log-alpha follows from g.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats import is_native
from edgeprune.gates import top_k
from edgeprune.gates.hard_concrete import STRETCH, TEMPERATURE
from edgeprune.graph import EdgeGraph
from edgeprune.reference import read_reference

Calibration = Literal["open", "mean"]
HALVINGS = 60  # of the search for b


@final
@dataclass(frozen=True)
class WarmStart:
    """Where gates start.

    Attributes:
        path: A circuit or score file for the same graph, or a list of edges in one of the forms of `read_reference`,
            ACDC's among them. With scores, edges are ranked by them; without, kept edges come first and all are tied.
            In a graph with roles an edge of a file without them starts alike at all roles.
        spread: Log-alpha of the best edge above `init_mean`, and of the worst below it; linear in rank between, tied
            edges alike.
        keep_below: Train only this best share of all edges, in (0, 1], and close the others for good; null: train all.
        magnitude: True: rank by the absolute value of the scores, as circuits of attribution patching are often cut.
            False: by the scores. Null: as the file was made, kept edges before the others, both by `Circuit.ranking`.
        closed_at: Start as the circuit is: edges that it leaves out have this log-alpha, below 0, and `spread` is among
            those that it keeps. Null: all edges start around `init_mean`.
        layer_sparsity: Share of the edges of each layer that starts closed, in (0, 1), so that no layer starts empty
            because another one has larger scores. Gates then start as (1) says, near one half, and neither `spread`
            nor the recipe's `init_mean` and `init_std` count; of tied edges the earlier one is the better. Null: ranks
            are those over all edges. (S-Ens: .8 to .95.)
        softness: Of (1): 0 would be a step (S-Ens: .2 to .5).
        calibrated: What `layer_sparsity` is of. `"open"`: of the number of gates above one half, as sparsity is
            elsewhere here. `"mean"`: 1 - mean of the gates (S-Ens, whose search for b ends at 1, where the mean of .1
            is not reached with a softness of .25; ours goes on).
    """

    path: str
    spread: float = 1.0
    keep_below: float | None = None
    magnitude: bool | None = None
    closed_at: float | None = None
    layer_sparsity: float | None = None
    softness: float = 0.25
    calibrated: Calibration = "open"

    def __post_init__(self) -> None:
        if not 0 <= self.spread < math.inf:
            raise EdgepruneError(f"warm_start.spread must be a finite number >= 0, got {self.spread}")
        if self.keep_below is not None and not 0 < self.keep_below <= 1:
            raise EdgepruneError(
                f"warm_start.keep_below must lie in (0, 1], got {self.keep_below}; 0.2 trains the best 20 % of edges"
            )
        if self.closed_at is not None and not -math.inf < self.closed_at < 0:
            raise EdgepruneError(
                f"warm_start.closed_at must be a log-alpha below 0, where gates are closed, got {self.closed_at}"
            )
        if self.closed_at is not None and self.layer_sparsity is not None:
            raise EdgepruneError(
                "warm_start.closed_at starts as the circuit is, layer_sparsity does not: leave one of them out"
            )
        if self.layer_sparsity is not None and not 0 < self.layer_sparsity < 1:
            raise EdgepruneError(
                f"warm_start.layer_sparsity must lie in (0, 1), got {self.layer_sparsity}; 0.9 opens 10 % of each layer"
            )
        if not 0 < self.softness < math.inf:
            raise EdgepruneError(f"warm_start.softness must be a finite number > 0, got {self.softness}")
        if self.calibrated not in get_args(Calibration):
            raise EdgepruneError(f"warm_start.calibrated must be 'open' or 'mean', got {self.calibrated!r}")

    def levels(self, number: int, temperature: float, stretch: tuple[float, float]) -> Tensor:
        """Log-alphas of a layer with so many edges, float `[number]` from the best edge to the worst."""
        assert self.layer_sparsity is not None
        share, last = 1 - self.layer_sparsity, max(1, number - 1)
        ranks = 1 - torch.arange(number, dtype=torch.float64) / last

        def gates(middle: float) -> Tensor:
            return torch.sigmoid((ranks - middle) / self.softness)

        middle = 1 - (round(share * number) - 0.5) / last  # between the last open one and the first closed one
        if self.calibrated == "mean":
            reach = self.softness * (abs(math.log(share)) + abs(math.log1p(-share)))
            low, high = -reach, 1 + reach  # the mean lies above and below the share there
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                low, high = (middle, high) if gates(middle).mean() > share else (low, middle)
        below, above = stretch
        return (temperature * torch.logit((gates(middle) - below) / (above - below))).float()


@final
class Start(nn.Module):
    """What a warm start does to the gates of a graph's edges; part of the checkpoint, which needs no file then.

    Args:
        settings: Where gates start, and which are frozen.
        graph: The graph.
        temperature: Of the gates.
        stretch: Of the gates.

    Attributes:
        frozen: Bool `[num_edges]`, True for edges that are closed for good; None if none is.
        offsets: Float `[num_edges]` to add to the initial log-alphas; None where the file is missing, or the start is
            calibrated in each layer.
        locations: Float `[num_edges]`, the log-alphas of a start that is; None likewise.
        closed: Bool `[num_edges]`, True for edges that start closed at `closed_at`; None likewise, and without it.
        highest: The highest of these, whatever the file says; None for other starts.

    Raises:
        EdgepruneError: The file is of another graph or cannot be ranked, or no gate would start above one half.
    """

    frozen: Tensor | None
    sha256: Tensor

    def __init__(
        self,
        settings: WarmStart,
        graph: EdgeGraph,
        temperature: float = TEMPERATURE,
        stretch: tuple[float, float] = STRETCH,
    ) -> None:
        super().__init__()
        self.settings = settings
        size = graph.num_edges
        freezes = settings.keep_below is not None
        self.register_buffer("frozen", torch.zeros(size, dtype=torch.bool) if freezes else None)
        self.register_buffer("sha256", torch.zeros(32, dtype=torch.uint8))
        self.offsets: Tensor | None = None
        self.locations: Tensor | None = None
        self.highest: float | None = None
        self.closed: Tensor | None = None
        self._levels: list[tuple[Tensor, Tensor]] = []  # places of each layer's edges; log-alphas from the best
        if settings.layer_sparsity is not None:
            self._levels = [(edges, settings.levels(len(edges), temperature, stretch)) for edges in layers(graph)]
            self.highest = max(float(levels[0]) for _, levels in self._levels)
            if self.highest <= 0:
                raise EdgepruneError(
                    f"warm_start.layer_sparsity {settings.layer_sparsity} starts with no gate open (calibrated: "
                    f"{settings.calibrated}, softness {settings.softness}): lower it, or leave calibrated out"
                )
        if Path(settings.path).is_file():
            self._read(graph)

    def _read(self, graph: EdgeGraph) -> None:
        path = Path(self.settings.path)
        circuit = _on_graph(path, graph)
        self.sha256.copy_(torch.tensor(list(hashlib.sha256(path.read_bytes()).digest()), dtype=torch.uint8))
        values = _values(circuit, self.settings.magnitude)
        if self._levels:
            self.locations = torch.zeros(graph.num_edges)
            for edges, levels in self._levels:
                self.locations[edges[values[edges].argsort(descending=True, stable=True)]] = levels
        elif self.settings.closed_at is not None:
            keep = graph.to_vector(circuit.keep)
            if not 0 < int(keep.sum()) < graph.num_edges:
                raise EdgepruneError(
                    f"warm_start.closed_at starts as the circuit is, and that of {path} has {int(keep.sum()):,} of "
                    f"{graph.num_edges:,} edges; give one with some edges open and some closed"
                )
            self.closed = ~keep
            self.offsets = torch.zeros(graph.num_edges)
            self.offsets[keep] = self.settings.spread * ranks(values[keep])
        else:
            self.offsets = self.settings.spread * (_binary(values) if circuit.scores is None else ranks(values))
        if self.frozen is not None and self.settings.keep_below is not None:
            self.frozen.copy_(~top_k(values, num_trained(graph, self.settings.keep_below)))

    def move(self, log_alpha: Tensor) -> None:
        """Put initial log-alphas `[num_edges]` where the start has them."""
        if self.locations is not None:
            log_alpha.copy_(self.locations)
        elif self.offsets is not None:
            log_alpha += self.offsets
        if self.closed is not None and self.settings.closed_at is not None:
            log_alpha[self.closed] = self.settings.closed_at

    def ranked_last(self, scores: Tensor, own: Tensor) -> Tensor:
        """Scores `[num_edges]`, of frozen edges below 0 and all others', in the order of their `own` `[num_edges]`."""
        if self.frozen is None or not self.frozen.any():
            return scores
        below = scores[~self.frozen].min().clamp(max=0) - 1
        return torch.where(self.frozen, below + (own - own[self.frozen].max()), scores)

    def check_started(self) -> None:
        """Refuse a missing file; a run that goes on from a checkpoint does not ask."""
        if self.offsets is None and self.locations is None:
            raise EdgepruneError(
                f"no circuit or score file at {self.settings.path} to start from; write it first with "
                "`edgeprune discover`, or resume from a checkpoint, which needs no file"
            )

    def describe(self) -> dict[str, Any]:
        """Settings, and the SHA-256 of the file's bytes."""
        unused = () if self.settings.layer_sparsity is not None else ("layer_sparsity", "softness", "calibrated")
        unused += () if self.settings.closed_at is not None else ("closed_at",)
        settings = {name: value for name, value in asdict(self.settings).items() if name not in unused}
        return {**settings, "sha256": bytes(self.sha256.tolist()).hex()}


def layers(graph: EdgeGraph) -> list[Tensor]:
    """Places among the graph's edges of those that each layer reads, and of those that the logits read, long `[n]`."""
    layer_of = graph.exists.nonzero()[:, -2] // graph.arch.readers_per_layer
    return [(layer_of == layer).nonzero()[:, 0] for layer in range(graph.arch.num_layers + 1)]


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


def _on_graph(path: Path, graph: EdgeGraph) -> Circuit:
    """A file's circuit on the graph; one without roles has the same scores at every role of the graph."""
    roles = None if is_native(path) and Circuit.load(path).roles else graph.roles
    own = graph if roles is None else graph.without_roles
    # edges rank alike in an empty circuit with scores
    circuit = read_reference(path, own, holds="scores", what="a warm start")
    return circuit if roles is None else circuit.with_roles(roles)


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
