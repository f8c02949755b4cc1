"""Values of the JSON as text. What is not a finite number reads as not defined."""

import math
from collections.abc import Mapping
from typing import Any

from edgeprune.comparison.overlap import scientific

UNDEFINED = "\u2013"  # a dash
_LIST_LENGTH = 8  # values of a list that are written out


def finite(value: Any) -> float | None:
    """A finite number, or None.

    >>> finite(2), finite(None), finite(float("nan")), finite("2")
    (2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: Any) -> str:
    """Whole numbers in full; others to four digits or three decimals, whichever is shorter.

    >>> [number(value) for value in (0.21345, 12.3456, 32491, 99999.5, 4.2e-5, -0.0, 0.25, None)]
    ['0.213', '12.35', '32,491', '100,000', '4.2e-05', '0', '0.250', '–']
    """
    known = finite(value)
    if known is None:
        return UNDEFINED
    if isinstance(value, int) or known == 0:
        return f"{int(known):,}"  # never -0
    if abs(known) < 0.001:
        return f"{known:.1e}"
    if abs(known) >= 1000:
        return f"{known:,.0f}"
    decimals = 3 if abs(known) < 10 else 2 if abs(known) < 100 else 1
    return f"{known:.{decimals}f}"


def percent(share: Any) -> str:
    """A share of 1 in per cent.

    >>> percent(0.025), percent(1), percent(0.000061), percent(None)
    ('2.5 %', '100 %', '0.0061 %', '–')
    """
    known = finite(share)
    return UNDEFINED if known is None else f"{100 * known:.4g} %"


def probability(value: Any) -> str:
    """A p-value; a very small one by its power of ten.

    >>> probability(0.0312), probability(0.0), probability(1.5e-7)
    ('0.031', '< 1e-300', '1.5e-07')
    """
    known = finite(value)
    if known is None:
        return UNDEFINED
    if known == 0:
        return "< 1e-300"  # below the smallest float
    return f"{known:.3f}" if known >= 0.001 else f"{known:.1e}"


def chance(log10: Any) -> str:
    """A p-value from its logarithm.

    >>> chance(-1234.0), chance(None)
    ('1.0e-1234', '–')
    """
    known = finite(log10)
    return UNDEFINED if known is None else scientific(known)


def words(name: Any) -> str:
    """A key of the JSON as words.

    >>> words("other_sets")
    'other sets'
    """
    return str(name).replace("_", " ")


def plain(value: Any) -> str:
    """Any value of the JSON on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{words(key)} {plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            return counted(len(value), "entry", "entries")
        shown = ", ".join(plain(item) for item in value[:_LIST_LENGTH])
        more = len(value) - _LIST_LENGTH
        return f"{shown} and {more} more" if more > 0 else shown or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else number(value)


def counted(count: Any, thing: str, things: str | None = None) -> str:
    """A number of things.

    >>> counted(1, "seed"), counted(2000, "example"), counted(2, "entry", "entries")
    ('1 seed', '2,000 examples', '2 entries')
    """
    return f"{number(count)} {thing if count == 1 else things or f'{thing}s'}"
