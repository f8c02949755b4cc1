"""What is kept of a model's runs is of the weights that it had then."""

from typing import final

from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from edgeprune.models.weight_mask import WeightMask, applied_mask


@final
class SameWeights:
    """Notices that a weight mask was put on a model, taken off, or exchanged for another one.

    Args:
        model: The model.
    """

    def __init__(self, model: MaskedModel) -> None:
        self._model = model
        self._then: WeightMask | None = None
        self.check(kept=False)

    def check(self, *, kept: bool) -> None:
        """Note which mask there is now, if nothing is kept yet; else refuse another one than was noted.

        Raises:
            EdgepruneError: Another mask, or none any more, or one where there was none.
        """
        applied = applied_mask(self._model)
        now = None if applied is None else applied.mask
        if kept and _digest(now) != _digest(self._then):
            raise EdgepruneError(
                f"reference runs were kept with weight mask {_digest(self._then)}, on the model is now {_digest(now)}: "
                "make new ReferenceRuns after a mask is put on or taken off"
            )
        self._then = now


def _digest(mask: WeightMask | None) -> str | None:
    return None if mask is None else mask.digest
