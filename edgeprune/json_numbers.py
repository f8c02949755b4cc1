"""Values as JSON has them: None instead of NaN and infinity, lists instead of tensors, fields by name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def json_number(value: float) -> float | None:
    """One number."""
    return float(value) if math.isfinite(value) else None


def json_numbers(names: Sequence[str], figures: Tensor) -> dict[str, float | None]:
    """Figures `[name]` by name."""
    return {name: json_number(value) for name, value in zip(names, figures.tolist(), strict=True)}


def json_value(value: Any) -> Any:
    """Anything made of numbers, strings, tensors, lists, mappings, and objects with a `to_dict` or with fields.

    >>> json_value({"loss": float("nan"), "sizes": (1, 2)})
    {'loss': None, 'sizes': [1, 2]}
    """
    if isinstance(value, Tensor):
        return json_value(value.tolist())
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, Mapping):
        return {name: json_value(part) for name, part in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value) or hasattr(value, "_fields"):
        return json_fields(value)
    return [json_value(part) for part in value] if isinstance(value, list | tuple) else value


def json_fields(item: Any, *without: str, **more: Any) -> dict[str, Any]:
    """The fields of a dataclass or named tuple by name.

    Args:
        item: The object.
        without: Names of fields that are left out.
        more: Values beside the fields, or in place of those of the same name.
    """
    names = item._fields if hasattr(item, "_fields") else [field.name for field in fields(item)]
    values = {name: getattr(item, name) for name in names if name not in without}
    return {name: json_value(value) for name, value in {**values, **more}.items()}
