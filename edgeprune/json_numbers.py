"""Numbers as JSON has them: None instead of NaN and infinity."""

import math
from collections.abc import Sequence

from torch import Tensor


def json_number(value: float) -> float | None:
    """One number."""
    return float(value) if math.isfinite(value) else None


def json_numbers(names: Sequence[str], figures: Tensor) -> dict[str, float | None]:
    """Figures `[name]` by name."""
    return {name: json_number(value) for name, value in zip(names, figures.tolist(), strict=True)}
