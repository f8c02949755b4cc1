"""Gradient of an expectation over 0/1 gates by flipping gates, for losses that are flat in every single gate."""

from collections.abc import Callable
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.methods.flips import Flips

ASKED_SHARE = 1 / 16  # of the gates that are asked about in a step; a flip that changes nothing needs no run
CURIOSITY = 0.01  # added to the variance of a gate, so that decided ones are asked again now and then
SURE = 0.9995  # a gate is pushed no further: it can come back within a hundred steps or so
RECENT = 4  # measurements of a gate that are remembered: an effect that has gone is forgotten, however large it was


@final
class MeasuredEffects(nn.Module):
    """For each gate the last few values of the error with it open minus the error with it closed, others as sampled.

    Attributes:
        recent: The values, newest first, `[num_gates, RECENT]`; NaN where there is none yet.
        waited: Steps since the gate was measured last, `[num_gates]`; infinite: it never was.
    """

    recent: Tensor
    waited: Tensor

    def __init__(self, num_gates: int) -> None:
        super().__init__()
        self.register_buffer("recent", torch.full((num_gates, RECENT), torch.nan))
        self.register_buffer("waited", torch.full((num_gates,), torch.inf))

    @property
    def known(self) -> Tensor:
        """Bool `[num_gates]`: gates that were measured at least once."""
        return self.waited.isfinite()

    @property
    def effects(self) -> Tensor:
        """Mean of each gate's values, `[num_gates]`; 0 without any."""
        return torch.where(self.known, self.recent.nanmean(1), 0.0)

    def update(self, gates: Tensor, values: Tensor) -> None:
        """Take in new values of some gates, long `[n]`.

        Raises:
            EdgepruneError: A value is not finite.
        """
        if not values.isfinite().all():
            raise EdgepruneError("the effect of a flipped gate is not finite: use dtype float32, or squared_error")
        self.recent[gates] = torch.cat([values.to(self.recent)[:, None], self.recent[gates, :-1]], 1)
        self.waited[gates] = 0

    def order(self, prob_open: Tensor, noise: Tensor) -> Tensor:
        """Gates that may be open, long `[n]`, those first that it is most worth to ask about.

        Random without replacement, in proportion to how long they have waited and to their variance p (1 - p); gates
        that were never measured come first.

        Args:
            prob_open: P(gate = 1), `[num_gates]`; 0: the gate is closed for good.
            noise: Uniform in (0, 1), `[num_gates]`.
        """
        weight = self.waited.clamp(max=1e9) * (prob_open * (1 - prob_open) + CURIOSITY)
        return (-noise.log() / weight).masked_fill(prob_open == 0, torch.inf).argsort()[: int((prob_open > 0).sum())]

    def priced(self, prob_open: Tensor) -> Tensor:
        """`prob_open`, such that a penalty on it pushes only gates that were measured, and none beyond `SURE`."""
        return torch.where(self.known & (prob_open > 1 - SURE), prob_open, prob_open.detach())


def local_expectation(
    flips_of: Callable[[Tensor], Flips],
    prob_open: Tensor,
    noise: Tensor,
    order_noise: Tensor,
    measured: MeasuredEffects,
    num_flips: int,
) -> tuple[Tensor, Tensor]:
    """One sample of `E[error(z)]`, z_i ~ Bernoulli(prob_open_i), with an estimate of its local expectation gradient.

    dE/dp_i = E[error(z, z_i = 1) - error(z, z_i = 0)] exactly (the local expectation gradient of Titsias and
    Lazaro-Gredilla 2015, arXiv 1503.01494, for a factorised Bernoulli). Each step measures the difference for some
    gates, with the others as sampled. The estimate of every gate is the mean of its last few values, so that the many
    gates of a large graph that are not measured now are not taken for idle (deviation: the paper measures all). A gate
    on which nothing depends gets a gradient of exactly 0, whatever the other gates do.

    Args:
        flips_of: Makes of 0/1 gates `[num_gates]` what they give and what their flips do.
        prob_open: P(z_i = 1), `[num_gates]`, differentiable; 0: the gate is closed for good.
        noise: Uniform noise in (0, 1), `[num_gates]`: the sample.
        order_noise: More of it: which gates are asked about.
        measured: What was measured so far; takes the new values in.
        num_flips: Flips to run. Those of the gates asked about that are known to change nothing come free.

    Returns:
        The error of the sample (scalar), whose gradient is the estimate; the sample.
    """
    with torch.no_grad():
        gates = (noise < prob_open).to(prob_open.dtype)
        flips = flips_of(gates)
        measured.waited += 1
        asked = measured.order(prob_open, order_noise)[: max(num_flips, round(ASKED_SHARE * len(gates)))]
        idle = flips.idle(asked)
        run = asked[~idle][:num_flips]
        measured.update(asked[idle], torch.zeros_like(prob_open[: int(idle.sum())]))
        measured.update(run, (flips.error - flips.errors(run)) * (2 * gates[run] - 1))
    slope = (measured.effects * prob_open.clamp(1 - SURE, SURE)).sum()
    return flips.error + slope - slope.detach(), gates


def check_estimator(
    estimator: str, num_flips: int, penalty_on: str, node_gates: bool, masks_per_batch: int, antithetic: bool
) -> None:
    """Refuse an estimator that is none, or that the other settings do not go with, and samples that cannot be."""
    if estimator not in ("pathwise", "local"):
        raise EdgepruneError(f"estimator must be 'pathwise' or 'local', got {estimator!r}")
    if estimator == "local" and (penalty_on == "sample" or node_gates):
        raise EdgepruneError(
            "estimator 'local' rounds the gates of edges, so it needs penalty_on 'expected' and no node_gates; "
            f"got penalty_on={penalty_on!r}, node_gates={node_gates}"
        )
    if num_flips < 1:
        raise EdgepruneError(f"num_flips must be at least 1, got {num_flips}")
    if masks_per_batch < 1 or (estimator == "local" and masks_per_batch > 1):
        raise EdgepruneError(f"masks_per_batch must be at least 1, and 1 with estimator 'local', got {masks_per_batch}")
    if antithetic and masks_per_batch % 2:
        raise EdgepruneError(
            f"antithetic samples come in pairs, got masks_per_batch={masks_per_batch}: make it even, such as 8"
        )


def check_one_process() -> None:
    """Refuse several processes, each of which would remember the effects on its own pairs."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise EdgepruneError(
            f"estimator 'local' works in one process, not in {dist.get_world_size()}: set trainer.devices to 1"
        )
