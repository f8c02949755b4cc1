"""A price of open edges that is steered so that the number of open gates keeps to a schedule: no price to choose.

A gate closes when its location has travelled to 0, which takes many steps, so a price that answers to the count of the
moment comes too late and overshoots. This one looks ahead. Adam moves a location by its rate times the mean over the
root mean square of its gradient; with running moments of the error's slopes the count some steps ahead can be foretold
for any price, and the price is the one for which the forecast meets the schedule. Nothing is summed up over the run
that could wind up.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.objectives.sparsity import AbstractSparsityTerm

MEMORY = 1 / 30  # of the moments, as a share of the run
HORIZON = 1 / 6  # of the forecast, likewise
LEAD = 1.5  # the horizon is at least that many times the steps that a gate takes to close
SWING = 30.0  # logarithms that the price may move by in a whole run, evenly: 5 % a step in 600 steps
CATCH_UP = 2.0  # what the count is ahead or behind by is made up for, up to this factor
LATE = 4  # power of that where it is behind: early does no harm
MARGIN = 0.03  # aims at that share fewer edges than asked for, and half an edge, so that a count that wavers gets there
FULL_SPEED = 3.0  # a price that outweighs the slopes of open gates so many times closes them as fast as any higher one
SOONER = 0.6  # power of time by which the logarithm of the open share falls: fast while edges are worth nothing
HALVINGS = 12  # of the search for a price
STARTS_THERE = 1.05  # a share of open edges that is not above this of the last one is there already
TINY = 1e-30


class Motion(NamedTuple):
    """Gates just before a step, with the gradients of the whole step, the same on all ranks.

    Attributes:
        slopes: Of the error in the locations, `[num_gates]`.
        units: Of the number of open edges that is paid for in the locations, `[num_gates]`.
        locations: Of the gates, `[num_gates]`; above 0 a gate is open.
        rate: Learning rate.
        num_open: Open edges (scalar) of given locations `[num_gates]`.
    """

    slopes: Tensor
    units: Tensor
    locations: Tensor
    rate: float
    num_open: Callable[[Tensor], Tensor]


@final
class Pace(AbstractSparsityTerm):
    """`price * open_fraction` with a price such that the number of open edges keeps to a schedule.

    The logarithm of the open share falls as a power of time, 0.6: from the edges that are open at first to the last
    sparsity, faster at first. The price is found from the error's own slopes, in whatever unit (slopes should be well
    above Adam's eps, 1e-8); it is logged, not set. It moves by a bounded factor in a step, as long as it stays between
    that of the mean slope, at which worthless edges close, and that at which all gates close as fast as the learning
    rate lets them.

    Args:
        end: Sparsity to arrive at; null: the highest that `SnapshotCircuits` asks for.
        hold: Share of the run, at its end, that stays there.
        worth: No edge is closed that is worth more than this share of the empty circuit's error, so that the run ends
            early where all that is left is needed, as in programs; null: the number asked for is arrived at.
        power: Of time, by which the logarithm of the open share falls; 1: geometrically, for programs.

    Attributes:
        last: The sparsity to arrive at; None until it is known.
        steps: Of the run; 0 until they are known.
    """

    price: Tensor
    begin: Tensor
    seen: Tensor
    mean: Tensor
    square: Tensor

    def __init__(
        self, end: float | None = None, *, hold: float = 0.05, worth: float | None = None, power: float = SOONER
    ) -> None:
        super().__init__()
        if end is not None and not 0 < end < 1:
            raise EdgepruneError(f"Pace ends at a sparsity in (0, 1), got end={end}; 0.99 keeps 1 % of the edges")
        if not 0 <= hold < 1:
            raise EdgepruneError(f"hold is the share of the run that stays at the end, in [0, 1), got {hold}")
        if worth is not None and not worth > 0:
            raise EdgepruneError(f"worth is a share of the empty circuit's error above 0, got {worth}")
        if not power > 0:
            raise EdgepruneError(f"power of time must be above 0, got {power}")
        self.end, self.hold, self.worth, self.power = end, hold, worth, power
        self.register_buffer("begin", torch.ones(()))  # share of the edges that is open before the first step
        self.empty_error: float | None = None
        self.last = end
        self.steps = 0
        self._closing = 0.0

    # ---------------------------------------------------------------- before the run
    def build(self, num_gates: int, num_edges: int) -> None:
        """Make room for what is known of each gate."""
        self.num_edges = num_edges
        self.register_buffer("price", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(num_gates))
        self.register_buffer("square", torch.zeros(num_gates))

    def aim(self, sparsities: Sequence[float]) -> None:
        """Arrive at the highest of the sparsities asked for, unless an end was named.

        Raises:
            EdgepruneError: None is asked for either.
        """
        if self.end is None and not sparsities:
            raise EdgepruneError(
                "Pace knows no sparsity to arrive at: name those that you want in the callback SnapshotCircuits "
                "(sparsities: [0.9, 0.95, 0.99]), or the last one in Pace (end: 0.99)"
            )
        self.last = max(sparsities) if self.end is None else self.end

    def plan(self, steps: int, closing: float) -> None:
        """Be told how many steps the run has, and how many of them a gate takes to close."""
        self.steps, self._closing = steps, closing

    def calibrate(self, empty_error: float) -> None:
        """Be told the error of the circuit without edges."""
        self.empty_error = empty_error

    # ---------------------------------------------------------------- schedule
    def target(self, progress: float) -> float | None:
        """Sparsity that the schedule has at `progress`.

        >>> term = Pace(0.99, hold=0.0)
        >>> [round(term.target(progress), 3) for progress in (0, 0.5, 1)]
        [0.0, 0.952, 0.99]
        """
        return None if self.last is None else 1 - self._open_share(progress)

    def _open_share(self, progress: float) -> float:
        """Share of the edges that should be open."""
        if self.last is None:
            raise EdgepruneError("Pace was not told where to arrive: name its end, or call aim() before the run")
        begin = max(float(self.begin), 1 - self.last)
        return begin * ((1 - self.last) / begin) ** (min(1.0, progress / (1 - self.hold)) ** self.power)

    @property
    def stays(self) -> float:
        """Share of the run, at its end, that stays at the last sparsity: all of it where gates start there."""
        there = float(self.begin) <= STARTS_THERE * (1 - (self.last or 0))
        return 1.0 if there else self.hold

    def stay(self, progress: float) -> float | None:
        """Share of the stay that is over, in [0, 1]; None before it."""
        begin = 1 - self.stays
        return None if progress < begin or begin == 1 else (progress - begin) / (1 - begin)

    def num_wanted(self, progress: float) -> int:
        """Edges that should be open."""
        return round(self._open_share(progress) * self.num_edges)

    # ---------------------------------------------------------------- price
    def forward(self, open_fraction: Tensor, progress: float) -> Tensor:
        """`price * open_fraction`."""
        return self.price * open_fraction

    @torch.no_grad()
    def steer(self, motion: Motion, progress: float) -> None:
        """Set the price of the next step."""
        if not self.steps:
            raise EdgepruneError("Pace was not told how long the run is: call plan() before it")
        first = bool(self.seen == 0)
        if first:
            self.begin.copy_(motion.num_open(motion.locations) / self.num_edges)
        mean, variance = self._observe(motion.slopes)
        units = motion.units / self.num_edges
        horizon = max(HORIZON * self.steps, LEAD * self._closing)
        aim = self._aim(motion, progress, horizon)
        floor, ceiling = self._bounds(motion, mean, variance)

        def too_low(price: Tensor) -> Tensor:
            """Whether more edges than aimed at would be open at the horizon."""
            slope = mean + price.exp() * units
            speed = motion.rate * slope * (variance + slope.square()).clamp(min=TINY).rsqrt()
            return motion.num_open(motion.locations - horizon * speed) > aim

        step = SWING / self.steps
        low, high = (floor, floor) if first else (self.price.log() - step, self.price.log() + step)
        low, high = (bound.clamp(min=floor).clamp(max=ceiling) for bound in (low, high))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            closer = too_low(middle)
            low, high = torch.where(closer, middle, low), torch.where(closer, high, middle)
        self.price.copy_(((low + high) / 2).exp())

    @property
    def newest(self) -> float:
        """Weight of a step's value in running moments."""
        return 1 / max(2.0, MEMORY * self.steps)

    def _observe(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Running mean and variance of each gate's slope, `[num_gates]`, with the newest."""
        new = self.newest
        self.seen.lerp_(torch.ones_like(self.seen), new)
        self.mean.lerp_(slopes, new)
        self.square.lerp_(slopes.square(), new)
        mean, square = self.mean / self.seen, self.square / self.seen
        return mean, (square - (1 - new / self.seen) * mean.square()).clamp(min=0)

    def _aim(self, motion: Motion, progress: float, horizon: float) -> Tensor:
        """Open edges (scalar) to have at the horizon."""
        then = progress + horizon / max(1, self.steps - 1)
        scheduled, now = self._open_share(progress) * self.num_edges, motion.num_open(motion.locations)
        behind = (scheduled / now.clamp(min=1)).clamp(1 / CATCH_UP, CATCH_UP)
        behind = torch.minimum(behind, behind**LATE)
        behind = torch.where(now < self.begin * self.num_edges, behind, 1.0)  # the first gates are on their way as yet
        return (self._open_share(then) * self.num_edges * (1 - MARGIN) - 0.5) * behind

    def _bounds(self, motion: Motion, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the lowest and the highest price (scalars)."""
        floor = self.num_edges * mean.abs().sum() / motion.units.sum().clamp(min=TINY)
        opened = (motion.locations > 0).float()
        slope = (((variance + mean.square()) * opened).sum() / opened.sum().clamp(min=1)).sqrt()
        unit = (motion.units * opened).sum() / opened.sum().clamp(min=1)
        ceiling = torch.maximum(floor, FULL_SPEED * self.num_edges * slope / unit.clamp(min=TINY))
        if self.worth is not None:
            if self.empty_error is None:
                raise EdgepruneError(
                    "worth is a share of the empty circuit's error, which SnapshotCircuits measures: add it"
                )
            ceiling = ceiling.clamp(max=self.worth * self.empty_error * self.num_edges)
            floor = torch.minimum(floor, ceiling)
        return floor.clamp(min=TINY).log(), ceiling.clamp(min=TINY).log()

    def state(self, progress: float) -> dict[str, float]:
        """The price."""
        return {"price": self.price.item()}
