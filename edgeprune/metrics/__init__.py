"""Measures of a circuit: faithfulness to the full model, overlap with another circuit.

The names load on first use.
"""

from typing import TYPE_CHECKING

from edgeprune.lazy import on_first_use

if TYPE_CHECKING:
    from edgeprune.metrics import brute_force as brute_force
    from edgeprune.metrics import correlation as correlation
    from edgeprune.metrics import faithfulness as faithfulness
    from edgeprune.metrics import functional as functional
    from edgeprune.metrics import greater_than as greater_than
    from edgeprune.metrics import roc as roc
    from edgeprune.metrics import role_recall as role_recall
    from edgeprune.metrics.correlation import kendall as kendall
    from edgeprune.metrics.correlation import pearson as pearson
    from edgeprune.metrics.correlation import spearman as spearman
    from edgeprune.metrics.evaluate import evaluate_gates as evaluate_gates
    from edgeprune.metrics.evaluate import gated_logits as gated_logits
    from edgeprune.metrics.evaluate import measure_examples as measure_examples
    from edgeprune.metrics.examples import ExampleValues as ExampleValues
    from edgeprune.metrics.faithfulness import Faithfulness as Faithfulness
    from edgeprune.metrics.overlap import compare_circuits as compare_circuits
    from edgeprune.metrics.overlap import cut_to as cut_to
    from edgeprune.metrics.overlap import edge_overlap as edge_overlap
    from edgeprune.metrics.registry import MEASURES as MEASURES
    from edgeprune.metrics.registry import Measure as Measure
    from edgeprune.metrics.registry import measure_named as measure_named
    from edgeprune.metrics.registry import measures_for as measures_for
    from edgeprune.metrics.roc import rocs as rocs

_HOMES = {
    "ExampleValues": "edgeprune.metrics.examples",
    "Faithfulness": "edgeprune.metrics.faithfulness",
    "MEASURES": "edgeprune.metrics.registry",
    "Measure": "edgeprune.metrics.registry",
    "compare_circuits": "edgeprune.metrics.overlap",
    "cut_to": "edgeprune.metrics.overlap",
    "edge_overlap": "edgeprune.metrics.overlap",
    "evaluate_gates": "edgeprune.metrics.evaluate",
    "gated_logits": "edgeprune.metrics.evaluate",
    "kendall": "edgeprune.metrics.correlation",
    "measure_examples": "edgeprune.metrics.evaluate",
    "measure_named": "edgeprune.metrics.registry",
    "measures_for": "edgeprune.metrics.registry",
    "pearson": "edgeprune.metrics.correlation",
    "rocs": "edgeprune.metrics.roc",
    "spearman": "edgeprune.metrics.correlation",
}
_MODULES = ("brute_force", "correlation", "faithfulness", "functional", "greater_than", "role_recall", "roc")
__all__ = [*_MODULES, *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = on_first_use(__name__, _HOMES, _MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
