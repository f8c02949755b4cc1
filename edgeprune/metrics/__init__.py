"""What is measured: measures of a circuit as functions and as torchmetrics, and one registry of all.

The names load on first use.
"""

from typing import TYPE_CHECKING

from edgeprune.lazy import on_first_use

if TYPE_CHECKING:
    from edgeprune.metrics import faithfulness as faithfulness
    from edgeprune.metrics import functional as functional
    from edgeprune.metrics import greater_than as greater_than
    from edgeprune.metrics.examples import ExampleValues as ExampleValues
    from edgeprune.metrics.faithfulness import Faithfulness as Faithfulness
    from edgeprune.metrics.measure import gated_logits as gated_logits
    from edgeprune.metrics.measure import measure_examples as measure_examples
    from edgeprune.metrics.registry import MEASURES as MEASURES
    from edgeprune.metrics.registry import Measure as Measure
    from edgeprune.metrics.registry import measure_named as measure_named
    from edgeprune.metrics.registry import measures_for as measures_for

_DEFINED_IN = {
    "ExampleValues": "edgeprune.metrics.examples",
    "Faithfulness": "edgeprune.metrics.faithfulness",
    "MEASURES": "edgeprune.metrics.registry",
    "Measure": "edgeprune.metrics.registry",
    "gated_logits": "edgeprune.metrics.measure",
    "measure_examples": "edgeprune.metrics.measure",
    "measure_named": "edgeprune.metrics.registry",
    "measures_for": "edgeprune.metrics.registry",
}
_MOVED = {  # names that were offered here before; they still load
    "compare_circuits": "edgeprune.comparison.overlap",
    "cut_to": "edgeprune.comparison.overlap",
    "edge_overlap": "edgeprune.comparison.overlap",
    "kendall": "edgeprune.statistics.correlation",
    "pearson": "edgeprune.statistics.correlation",
    "spearman": "edgeprune.statistics.correlation",
}
_MODULES = ("faithfulness", "functional", "greater_than")
__all__ = [*_MODULES, *_DEFINED_IN]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = on_first_use(__name__, {**_DEFINED_IN, **_MOVED}, _MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
