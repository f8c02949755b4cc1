"""How sure a figure is: intervals, paired differences, tests, correlations.

The names load on first use.
"""

from typing import TYPE_CHECKING

from edgeprune.lazy import on_first_use

if TYPE_CHECKING:
    from edgeprune.statistics.correlation import kendall as kendall
    from edgeprune.statistics.correlation import pearson as pearson
    from edgeprune.statistics.correlation import spearman as spearman
    from edgeprune.statistics.paired import paired_difference as paired_difference
    from edgeprune.statistics.uncertainty import Resampling as Resampling
    from edgeprune.statistics.uncertainty import bootstrap as bootstrap

_DEFINED_IN = {
    "Resampling": "edgeprune.statistics.uncertainty",
    "bootstrap": "edgeprune.statistics.uncertainty",
    "kendall": "edgeprune.statistics.correlation",
    "paired_difference": "edgeprune.statistics.paired",
    "pearson": "edgeprune.statistics.correlation",
    "spearman": "edgeprune.statistics.correlation",
}
__all__ = [*_DEFINED_IN]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = on_first_use(__name__, _DEFINED_IN)


def __dir__() -> list[str]:
    return sorted(__all__)
