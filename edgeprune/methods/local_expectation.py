"""Gradient of an expectation over 0/1 gates by flipping gates, for losses that are flat in every single gate."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from edgeprune.methods.flips import Edge, Flips

ASKED_SHARE = 1 / 8  # of the gates that are asked in a step whether their flip needs a run
CURIOSITY = 0.01  # what a decided gate's variance counts as: it is asked about now and then
RATE = 0.3  # of the newest value in a running mean


@final
class MeasuredEffects(nn.Module):
    """For each gate a running mean of the error with it open minus the error with it closed, the others as sampled.

    Attributes:
        effects: The mean, `[num_gates]`.
        waited: Steps since the gate was measured last, `[num_gates]`; infinite: it never was.
    """

    effects: Tensor
    waited: Tensor

    def __init__(self, num_gates: int) -> None:
        super().__init__()
        self.register_buffer("effects", torch.zeros(num_gates))
        self.register_buffer("waited", torch.full((num_gates,), torch.inf))

    @property
    def known(self) -> Tensor:
        """Bool `[num_gates]`: gates that were measured at least once."""
        return self.waited.isfinite()

    def update(self, gates: Tensor, values: Tensor) -> None:
        """Take in new values of some gates, long `[n]`."""
        old, fresh = self.effects[gates], values.to(self.effects)
        self.effects[gates] = torch.where(self.known[gates], old + RATE * (fresh - old), fresh)
        self.waited[gates] = 0

    def order(self, prob_open: Tensor, noise: Tensor) -> Tensor:
        """Gates, long `[num_gates]`, those first that it is most worth to ask about.

        Random without replacement, in proportion to how long they have waited and to their variance p (1 - p); gates
        that were never asked come first.
        """
        weight = self.waited.clamp(max=1e9) * (prob_open * (1 - prob_open) + CURIOSITY)
        return (-noise.log() / weight).argsort()


def local_expectation(
    flips_of: Callable[[Tensor], Flips],
    edges: list[Edge],
    prob_open: Tensor,
    noise: Tensor,
    order_noise: Tensor,
    measured: MeasuredEffects,
    num_flips: int,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        gates = (noise < prob_open).to(prob_open.dtype)
        flips = flips_of(gates)
        measured.waited += 1
        asked = measured.order(prob_open, order_noise)[: max(num_flips, round(ASKED_SHARE * len(gates)))]
        idle = flips.idle([edges[index] for index in asked.tolist()])
        run = asked[~idle][:num_flips]
        errors = flips.errors([edges[index] for index in run.tolist()])
        measured.update(asked[idle], torch.zeros(int(idle.sum())))
        measured.update(run, (flips.error - errors) * (2 * gates[run] - 1))
    slope = (measured.effects * prob_open)[measured.known].sum()
    return flips.error + slope - slope.detach(), gates
