"""Evaluation of a circuit by running its model: what it keeps, what it lacks, which edges it could spare.

The names load on first use.
"""

from typing import TYPE_CHECKING

from edgeprune.lazy import on_first_use

if TYPE_CHECKING:
    from edgeprune.evaluation import brute_force as brute_force
    from edgeprune.evaluation.completeness import find_completeness as find_completeness
    from edgeprune.evaluation.controls import run_controls as run_controls
    from edgeprune.evaluation.evaluator import Evaluator as Evaluator
    from edgeprune.evaluation.evaluator import open_edges as open_edges
    from edgeprune.evaluation.hypothesis import HypothesisOptions as HypothesisOptions
    from edgeprune.evaluation.hypothesis import run_hypothesis_tests as run_hypothesis_tests
    from edgeprune.evaluation.mib import mib_curve as mib_curve
    from edgeprune.evaluation.mib import mib_curves as mib_curves
    from edgeprune.evaluation.minimality import marginal_effects as marginal_effects
    from edgeprune.evaluation.size_areas import accuracy_area as accuracy_area
    from edgeprune.evaluation.size_areas import mib_areas as mib_areas
    from edgeprune.evaluation.suffix import ablate_suffix as ablate_suffix

_DEFINED_IN = {
    "Evaluator": "edgeprune.evaluation.evaluator",
    "HypothesisOptions": "edgeprune.evaluation.hypothesis",
    "ablate_suffix": "edgeprune.evaluation.suffix",
    "accuracy_area": "edgeprune.evaluation.size_areas",
    "find_completeness": "edgeprune.evaluation.completeness",
    "marginal_effects": "edgeprune.evaluation.minimality",
    "mib_areas": "edgeprune.evaluation.size_areas",
    "mib_curve": "edgeprune.evaluation.mib",
    "mib_curves": "edgeprune.evaluation.mib",
    "open_edges": "edgeprune.evaluation.evaluator",
    "run_controls": "edgeprune.evaluation.controls",
    "run_hypothesis_tests": "edgeprune.evaluation.hypothesis",
}
_MOVED = {  # names that were offered here before; they still load
    "Candidate": "edgeprune.comparison.across",
    "Resampling": "edgeprune.statistics.uncertainty",
    "against_known": "edgeprune.comparison.known",
    "bootstrap": "edgeprune.statistics.uncertainty",
    "common_core": "edgeprune.comparison.overlap",
    "compare_roles": "edgeprune.comparison.roles",
    "cross_model": "edgeprune.comparison.across",
    "evaluate_circuits": "edgeprune.report.evaluate",
    "paired_difference": "edgeprune.statistics.paired",
    "write_report": "edgeprune.report.page",
}
_MODULES = ("brute_force",)
__all__ = [*_MODULES, *_DEFINED_IN]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = on_first_use(__name__, {**_DEFINED_IN, **_MOVED}, _MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
