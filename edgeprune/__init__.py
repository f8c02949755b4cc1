"""Find circuits in transformers by differentiable edge pruning.

The public names load on first use, so that `import edgeprune` and the light commands stay fast.
"""

from typing import TYPE_CHECKING

from edgeprune.lazy import on_first_use

if TYPE_CHECKING:
    from edgeprune import ablations as ablations
    from edgeprune import canonical as canonical
    from edgeprune import comparison as comparison
    from edgeprune import compiled as compiled
    from edgeprune import drawing as drawing
    from edgeprune import evaluation as evaluation
    from edgeprune import formats as formats
    from edgeprune import gates as gates
    from edgeprune import methods as methods
    from edgeprune import metrics as metrics
    from edgeprune import objectives as objectives
    from edgeprune import patching as patching
    from edgeprune import reading as reading
    from edgeprune import report as report
    from edgeprune import statistics as statistics
    from edgeprune.ablations.runs import ReferenceRuns as ReferenceRuns
    from edgeprune.circuit import Circuit as Circuit
    from edgeprune.errors import EdgepruneError as EdgepruneError
    from edgeprune.evaluation.evaluator import Evaluator as Evaluator
    from edgeprune.graph import EdgeGraph as EdgeGraph
    from edgeprune.graph_arch import ArchSpec as ArchSpec
    from edgeprune.models.loading import load_model as load_model
    from edgeprune.models.loading import load_tokenizer as load_tokenizer
    from edgeprune.models.masked import MaskedModel as MaskedModel
    from edgeprune.models.weight_mask import WeightMask as WeightMask
    from edgeprune.runs import load_run as load_run

__version__ = "0.2.0"

_DEFINED_IN = {
    "ArchSpec": "edgeprune.graph_arch",
    "Circuit": "edgeprune.circuit",
    "EdgeGraph": "edgeprune.graph",
    "EdgepruneError": "edgeprune.errors",
    "Evaluator": "edgeprune.evaluation.evaluator",
    "MaskedModel": "edgeprune.models.masked",
    "ReferenceRuns": "edgeprune.ablations.runs",
    "WeightMask": "edgeprune.models.weight_mask",
    "load_model": "edgeprune.models.loading",
    "load_run": "edgeprune.runs",
    "load_tokenizer": "edgeprune.models.loading",
}
_PACKAGES = (
    "ablations",
    "canonical",
    "comparison",
    "compiled",
    "drawing",
    "evaluation",
    "formats",
    "gates",
    "methods",
    "metrics",
    "objectives",
    "patching",
    "reading",
    "report",
    "statistics",
)
__all__ = ["__version__", *_PACKAGES, *_DEFINED_IN]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = on_first_use(__name__, _DEFINED_IN, _PACKAGES)


def __dir__() -> list[str]:
    return sorted(__all__)
