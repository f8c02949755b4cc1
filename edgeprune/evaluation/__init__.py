"""How good is a circuit, and how sure are we: everything that runs a model to judge circuits that are there already.

The names load on first use.
"""

from typing import TYPE_CHECKING

from edgeprune.lazy import on_first_use

if TYPE_CHECKING:
    from edgeprune.evaluation import mib_roc as mib_roc
    from edgeprune.evaluation import report as report
    from edgeprune.evaluation.across import Candidate as Candidate
    from edgeprune.evaluation.across import cross_model as cross_model
    from edgeprune.evaluation.across import cross_task as cross_task
    from edgeprune.evaluation.completeness import find_completeness as find_completeness
    from edgeprune.evaluation.controls import run_controls as run_controls
    from edgeprune.evaluation.evaluator import Evaluator as Evaluator
    from edgeprune.evaluation.evaluator import open_edges as open_edges
    from edgeprune.evaluation.hypothesis import HypothesisOptions as HypothesisOptions
    from edgeprune.evaluation.hypothesis import run_tests as run_tests
    from edgeprune.evaluation.known import against_known as against_known
    from edgeprune.evaluation.mib import mib_areas as mib_areas
    from edgeprune.evaluation.mib import mib_curve as mib_curve
    from edgeprune.evaluation.mib import mib_curves as mib_curves
    from edgeprune.evaluation.minimality import marginal_effects as marginal_effects
    from edgeprune.evaluation.overlaps import common_core as common_core
    from edgeprune.evaluation.overlaps import overlap_matrix as overlap_matrix
    from edgeprune.evaluation.paired import paired_difference as paired_difference
    from edgeprune.evaluation.reduction import reduce_circuit as reduce_circuit
    from edgeprune.evaluation.report import write_report as write_report
    from edgeprune.evaluation.role_comparison import compare_roles as compare_roles
    from edgeprune.evaluation.suffix import ablate_suffix as ablate_suffix
    from edgeprune.evaluation.summary import Questions as Questions
    from edgeprune.evaluation.summary import evaluate_circuits as evaluate_circuits
    from edgeprune.evaluation.uncertainty import Resampling as Resampling
    from edgeprune.evaluation.uncertainty import bootstrap as bootstrap

_HOMES = {
    "Candidate": "edgeprune.evaluation.across",
    "Evaluator": "edgeprune.evaluation.evaluator",
    "HypothesisOptions": "edgeprune.evaluation.hypothesis",
    "Questions": "edgeprune.evaluation.summary",
    "Resampling": "edgeprune.evaluation.uncertainty",
    "ablate_suffix": "edgeprune.evaluation.suffix",
    "against_known": "edgeprune.evaluation.known",
    "bootstrap": "edgeprune.evaluation.uncertainty",
    "common_core": "edgeprune.evaluation.overlaps",
    "compare_roles": "edgeprune.evaluation.role_comparison",
    "cross_model": "edgeprune.evaluation.across",
    "cross_task": "edgeprune.evaluation.across",
    "evaluate_circuits": "edgeprune.evaluation.summary",
    "find_completeness": "edgeprune.evaluation.completeness",
    "marginal_effects": "edgeprune.evaluation.minimality",
    "mib_areas": "edgeprune.evaluation.mib",
    "mib_curve": "edgeprune.evaluation.mib",
    "mib_curves": "edgeprune.evaluation.mib",
    "open_edges": "edgeprune.evaluation.evaluator",
    "overlap_matrix": "edgeprune.evaluation.overlaps",
    "paired_difference": "edgeprune.evaluation.paired",
    "reduce_circuit": "edgeprune.evaluation.reduction",
    "run_controls": "edgeprune.evaluation.controls",
    "run_tests": "edgeprune.evaluation.hypothesis",
    "write_report": "edgeprune.evaluation.report",
}
_MODULES = ("mib_roc", "report")
__all__ = [*_MODULES, *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = on_first_use(__name__, _HOMES, _MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
