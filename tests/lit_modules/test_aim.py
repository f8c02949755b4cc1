"""Where a steered run ends: at the highest sparsity that a callback asks for."""

from types import SimpleNamespace
from typing import Any

import pytest

from edgeprune.errors import EdgepruneError
from edgeprune.methods import EdgePruning
from edgeprune.objectives import GeometricPenalty
from lit_modules import PruningModule, SnapshotCircuits


def trainer(*callbacks: Any) -> Any:
    return SimpleNamespace(callbacks=list(callbacks))


def test_the_callbacks_say_where_a_steered_run_ends() -> None:
    recipe = EdgePruning()
    module = PruningModule("compiled:reverse", recipe)
    silent, other = SimpleNamespace(), SimpleNamespace(sparsities=None)  # such as a callback that polishes all
    module.aim(trainer(silent, other, SnapshotCircuits([0.9, 0.97, 0.5])))
    assert recipe.pace is not None
    assert recipe.pace.target(1.0) == pytest.approx(0.97)
    with pytest.raises(EdgepruneError, match=r"^Pace knows no sparsity to arrive at"):
        module.aim(trainer(silent, other))


def test_other_terms_need_no_end() -> None:
    PruningModule("compiled:reverse", EdgePruning(GeometricPenalty())).aim(trainer())
