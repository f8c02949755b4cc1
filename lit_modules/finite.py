"""Numbers that are not finite end a run before they spoil its gates."""

from collections.abc import Iterable

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError


class NotFiniteError(EdgepruneError):
    """A loss, a gradient or a gate is NaN or infinite; the checkpoints are from before."""


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether every number is; one wait for the device, however many tensors there are."""
    given = [tensor.isfinite().all() for tensor in tensors if tensor is not None]
    return not given or bool(torch.stack(given).all())
