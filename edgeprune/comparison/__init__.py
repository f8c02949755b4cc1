"""A circuit against another circuit: overlap, curves, known circuits, other models and tasks.

The names load on first use.
"""

from typing import TYPE_CHECKING

from edgeprune.lazy import on_first_use

if TYPE_CHECKING:
    from edgeprune.comparison import conventions as conventions
    from edgeprune.comparison import mib_roc as mib_roc
    from edgeprune.comparison import roc as roc
    from edgeprune.comparison.across import Candidate as Candidate
    from edgeprune.comparison.across import cross_model as cross_model
    from edgeprune.comparison.across import transfer_circuits as transfer_circuits
    from edgeprune.comparison.known import against_known as against_known
    from edgeprune.comparison.known import role_recall as role_recall
    from edgeprune.comparison.overlap import common_core as common_core
    from edgeprune.comparison.overlap import compare_circuits as compare_circuits
    from edgeprune.comparison.overlap import cut_to as cut_to
    from edgeprune.comparison.overlap import edge_overlap as edge_overlap
    from edgeprune.comparison.roles import compare_roles as compare_roles

_DEFINED_IN = {
    "Candidate": "edgeprune.comparison.across",
    "against_known": "edgeprune.comparison.known",
    "common_core": "edgeprune.comparison.overlap",
    "compare_circuits": "edgeprune.comparison.overlap",
    "compare_roles": "edgeprune.comparison.roles",
    "cross_model": "edgeprune.comparison.across",
    "cut_to": "edgeprune.comparison.overlap",
    "edge_overlap": "edgeprune.comparison.overlap",
    "role_recall": "edgeprune.comparison.known",
    "transfer_circuits": "edgeprune.comparison.across",
}
_MODULES = ("conventions", "mib_roc", "roc")
__all__ = [*_MODULES, *_DEFINED_IN]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = on_first_use(__name__, _DEFINED_IN, _MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
