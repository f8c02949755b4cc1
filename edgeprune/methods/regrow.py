"""Opening closed gates again: where a run stays at a sparsity, those whose opening promises most.

A hard concrete gate that is closed is 0 whatever its noise, so that it passes no slope on, and what the penalty does
to it is a way down only: edges that closed too early stay closed. The slope of the error in the gate itself is there
in every backward pass, though. Its running mean over the steps since a gate closed says what opening it would gain, to
first order, and the run's own standard error how sure that is. So gates are opened in rounds, the most promising
first, as sparse training grows weights where gradients are largest (RigL, Evci et al. 2020, arXiv 1911.11134;
deviation: means over many steps less their standard error, instead of one batch's), and `Pace` closes as many of all
open gates.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.objectives.pace import Pace

ROUNDS = 30  # while the run stays at its sparsity
LEAST_STEPS = 10  # between rounds: a mean of fewer slopes says little
SETTLED = 0.9  # share of the stay after which no more is opened, so that the last ones can be told apart
SURE = 2.0  # standard errors by which a slope must promise a gain


@final
@dataclass(frozen=True)
class Regrow:
    """How gates are opened again while `Pace` stays at its last sparsity (`Pace.hold`).

    Attributes:
        share: Of the number of open edges: the most that a round opens beyond those that are missing; falls to 0 in the
            course of the stay.
        location: Log-alpha of a gate that is opened.
    """

    share: float = 0.03
    location: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise EdgepruneError(f"regrow.share must lie in [0, 1], got {self.share}; 0.03 opens 3 % in a round")
        if not 0 < self.location < float("inf"):
            raise EdgepruneError(f"regrow.location must be a number above 0, where gates are open, got {self.location}")


@final
class Regrowth(nn.Module):
    """What is known of each gate's slope, and the rounds. Part of the checkpoint.

    Args:
        settings: How.
        num_gates: Of the graph's edges.

    Attributes:
        probe: Zeros `[num_gates]` that are added to every sample of the gates: after the backward pass its gradient is
            the error's in the gates themselves, averaged over ranks as that of any parameter. No optimizer has it.
        opened: Number (scalar) of gates that were opened again so far.
    """

    mean: Tensor
    square: Tensor
    seen: Tensor
    since: Tensor
    was_open: Tensor
    opened: Tensor

    def __init__(self, settings: Regrow, num_gates: int) -> None:
        super().__init__()
        self.settings = settings
        self.probe = nn.Parameter(torch.zeros(num_gates))
        for name in ("mean", "square", "seen", "since"):  # moments with their weights, steps; since the gate turned
            self.register_buffer(name, torch.zeros(num_gates))
        self.register_buffer("was_open", torch.ones(num_gates, dtype=torch.bool))
        self.register_buffer("opened", torch.zeros((), dtype=torch.long))

    def probed(self, error_of: Callable[..., Tensor], graph: EdgeGraph) -> Callable[..., Tensor]:
        """The error as a function of gates, whose slopes in these reach `probe` too."""
        probe = graph.to_matrix(self.probe)

        def of_gates(gates: Tensor, **inside: Tensor) -> Tensor:
            return error_of(gates + probe, **inside)

        return of_gates

    @torch.no_grad()
    def step(self, locations: Tensor, pace: Pace, progress: float, frozen: Tensor | None) -> None:
        """Take in the step's slopes; in a round, move `locations` `[num_gates]` of the gates that open.

        Args:
            locations: Log-alphas.
            pace: Says where the run stays and how many gates should be open.
            progress: Steps done / all steps.
            frozen: Bool `[num_gates]`: closed for good.
        """
        slopes, self.probe.grad = self.probe.grad, None
        is_open = locations > 0
        if slopes is None:
            return
        self._observe(slopes, is_open, pace.newest)
        place = pace.stay(progress)
        if place is None or place > SETTLED or not self._is_round(pace, progress):
            return
        missing = max(0, pace.num_wanted(progress) - int(is_open.sum()))
        most = missing + round(self.settings.share * (1 - place / SETTLED) * int(is_open.sum()))
        gains = self._gains(pace.newest).masked_fill(is_open if frozen is None else is_open | frozen, 0)
        best = gains.topk(min(most, len(gains)))
        chosen = best.indices[best.values > 0]
        locations[chosen] = self.settings.location
        self._forget(chosen)
        self.was_open[chosen] = True
        self.opened += len(chosen)

    def _is_round(self, pace: Pace, progress: float) -> bool:
        """Whether gates are opened in this step."""
        every = max(LEAST_STEPS, round(pace.stays * pace.steps / ROUNDS))
        return round(progress * (pace.steps - 1)) % every == 0

    def _observe(self, slopes: Tensor, is_open: Tensor, newest: float) -> None:
        """Running moments of each gate's slopes since it opened or closed; the newest have the weight `newest`."""
        self._forget((is_open != self.was_open).nonzero()[:, 0])
        self.was_open.copy_(is_open)
        self.since += 1
        self.seen.lerp_(torch.ones_like(self.seen), newest)
        self.mean.lerp_(slopes, newest)
        self.square.lerp_(slopes.square(), newest)

    def _forget(self, gates: Tensor) -> None:
        for known in (self.mean, self.square, self.seen, self.since):
            known[gates] = 0

    def _gains(self, newest: float) -> Tensor:
        """What opening each gate promises for certain, `[num_gates]`; 0 of those that turned a moment ago."""
        mean = self.mean / self.seen
        variance = (self.square / self.seen - mean.square()).clamp(min=0)
        steps = self.since.clamp(max=2 / newest)  # a running mean is of about that many
        return torch.where(self.since < LEAST_STEPS, 0, -mean - SURE * (variance / steps).sqrt())

    def describe(self) -> dict[str, Any]:
        """The settings."""
        return asdict(self.settings)


def check_regrow(settings: Regrow | None, term: object, estimator: str, edges_open: bool) -> None:
    """Refuse what gates cannot be opened again with; without settings they are not.

    Raises:
        EdgepruneError: The term does not stay at a sparsity, gates are flipped, or none is trained.
    """
    if settings is None:
        return
    if not isinstance(term, Pace):
        raise EdgepruneError("regrow opens gates where Pace stays at a sparsity: set sparsity_term to Pace with a hold")
    if estimator != "pathwise":
        raise EdgepruneError(f"regrow reads the slopes of sampled gates: set estimator to pathwise, not {estimator!r}")
    if edges_open:
        raise EdgepruneError("attention_edges 'alone' leaves edges open, so that none can regrow: leave regrow out")
