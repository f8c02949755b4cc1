"""Numbers as JSON has them: None instead of NaN and infinity."""

import math
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, cast

from torch import Tensor


def json_number(value: float) -> float | None:
    """One number."""
    return float(value) if math.isfinite(value) else None


def json_numbers(names: Sequence[str], figures: Tensor) -> dict[str, float | None]:
    """Figures `[name]` by name."""
    return {name: json_number(value) for name, value in zip(names, figures.tolist(), strict=True)}


def json_values(value: Any) -> Any:
    """A dataclass by the names of its attributes, sequences as lists, and in them numbers as `json_number`."""
    if is_dataclass(value):
        return {name: json_values(item) for name, item in vars(value).items()}
    if isinstance(value, (list, tuple)):
        return [json_values(item) for item in cast("Sequence[Any]", value)]
    return json_number(value) if isinstance(value, float) else value
