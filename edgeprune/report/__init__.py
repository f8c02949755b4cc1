"""How figures are shown: the result of an evaluation as one value, as tables in a terminal, and as a page.

The names load on first use.
"""

from typing import TYPE_CHECKING

from edgeprune.lazy import on_first_use

if TYPE_CHECKING:
    from edgeprune.report.evaluate import EvaluationOptions as EvaluationOptions
    from edgeprune.report.evaluate import evaluate_circuits as evaluate_circuits
    from edgeprune.report.page import report_html as report_html
    from edgeprune.report.page import write_report as write_report

_DEFINED_IN = {
    "EvaluationOptions": "edgeprune.report.evaluate",
    "evaluate_circuits": "edgeprune.report.evaluate",
    "report_html": "edgeprune.report.page",
    "write_report": "edgeprune.report.page",
}
__all__ = [*_DEFINED_IN]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = on_first_use(__name__, _DEFINED_IN)


def __dir__() -> list[str]:
    return sorted(__all__)
