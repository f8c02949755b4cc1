"""A step in several batches is the step in one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import PairDataModule
from datamodules.tasks.compiled import CompiledTask
from edgeprune.methods import UGS, EdgePruning
from edgeprune.objectives.sparsity import GeometricPenalty
from lit_modules.pruning import PruningModule
from tests.lit_modules.trainers import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
]
STEPS = 4


def edge_pruning(masks: int) -> EdgePruning:
    return EdgePruning(
        GeometricPenalty(start=1.0, end=5.0),
        masks_per_batch=masks,
        penalty_on="sample",
        init_mean=1.0,
        betas=(0.5, 0.5),
    )


def learned(recipe: Any, batch_size: int, parts: int, num_train: int = 28) -> list[Tensor]:
    """The recipe's parameters after some steps; 28 pairs are three of eight, so that the last step begins an epoch."""
    data = PairDataModule(
        CompiledTask("reverse", num_train=num_train, num_validation=4, num_test=4), batch_size=batch_size, cache=False
    )
    module = PruningModule("compiled:reverse", recipe, objective="squared_error", seed=3)
    quiet_trainer(STEPS, accumulate_grad_batches=parts).fit(module, data)
    assert module.global_step == STEPS
    assert module.progress == 1
    return [parameter.detach().clone() for parameter in recipe.parameters()]


@pytest.mark.parametrize("masks", [1, 2, 8])
@pytest.mark.parametrize(("batch_size", "parts"), [(4, 2), (1, 8)])
def test_accumulated_steps_learn_what_whole_ones_do(masks: int, batch_size: int, parts: int) -> None:
    whole = learned(edge_pruning(masks), 8, 1)
    cut = learned(edge_pruning(masks), batch_size, parts)
    for found, expected in zip(cut, whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)  # float32: sums in another order, four steps
    assert whole[0].std() > 1e-3  # they did learn something


def test_samples_differ_between_the_batches_of_a_step() -> None:
    """With one sample each, a step of eight batches is another than one in which all share the first sample."""
    first, eight = (learned(edge_pruning(masks), 1, 8) for masks in (1, 8))
    assert not torch.allclose(first[0], eight[0], atol=1e-2)


def test_an_epoch_that_is_shorter_than_a_step_is_cut_evenly() -> None:
    whole, cut = (learned(edge_pruning(1), size, parts, num_train=7) for size, parts in ((8, 1), (2, 4)))
    torch.testing.assert_close(cut[0], whole[0], atol=1e-4, rtol=1e-4)


def test_samples_of_ugs_go_with_their_pairs() -> None:
    options: dict[str, Any] = {"edge_weight": 1e-3, "samples_per_step": 2, "masks_per_batch": 4}
    whole, cut = (learned(UGS(**options), size, parts) for size, parts in ((8, 1), (2, 4)))
    torch.testing.assert_close(cut[0], whole[0], atol=1e-4, rtol=1e-4)
