"""Training on pairs that are drawn anew: no run of theirs is kept, a resumed run is the unbroken one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import PairDataModule
from datamodules.tasks import Induction
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.errors import EdgepruneError
from edgeprune.methods import EdgePruning
from edgeprune.objectives.sparsity import GeometricPenalty
from lit_modules.memory import plan_fit
from lit_modules.pruning import PruningModule
from tests.lit_modules.trainers import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
]
NUM_VALIDATION = 6


def pairs(**options: Any) -> PairDataModule:
    task = Induction(
        num_train=20,
        num_validation=NUM_VALIDATION,
        num_test=4,
        length=6,
        vocab_size=65,
        first_token=1,
        bos_token=0,
    )
    return PairDataModule(task, cache=False, **{"batch_size": 4, "stream": True, **options})


def module(**options: Any) -> PruningModule:
    recipe = EdgePruning(GeometricPenalty(start=0.1, end=0.1), init_mean=0.5, learning_rate=0.1)
    return PruningModule("compiled:trained_induction", recipe, seed=3, **options)


def gates(own: PruningModule) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in own.recipe.parameters()]


@pytest.mark.parametrize(("stream", "kept"), [(True, NUM_VALIDATION), (False, NUM_VALIDATION + 20)])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_no_run_of_a_stream_is_kept(stream: bool, kept: int, place: str, tmp_path: Path) -> None:
    """Five steps an epoch, so that all pairs of a finite run have come by."""
    room = {"cache_gb": 0.1} if place == "memory" else {"cache_gb": 0.0, "cache_disk_gb": 0.1, "cache_dir": tmp_path}
    own = module(**room)
    quiet_trainer(15, limit_val_batches=None, check_val_every_n_epoch=1).fit(own, pairs(stream=stream))
    assert len(own.runs.store) == kept


@pytest.mark.parametrize(("stream", "all_kept"), [(True, True), (False, False)])
def test_validation_pairs_get_all_the_room_of_a_stream(stream: bool, all_kept: bool) -> None:
    """Room for half as many again as there are; a quarter of it, all they get beside a list, is too little."""
    own, data = module(), pairs(stream=stream)
    own.configure_model()
    needed = sum(own.runs.bytes_of(len(pair.clean), len(pair.positions)) for pair in data.pairs("validation"))
    runs = ReferenceRuns(own.masked, "interchange", 1.5 * needed / 1e9)
    runs.plan({split: data.fixed_batches(split) for split in ("train", "validation")})
    for batch in data.val_dataloader():
        runs(batch, "validation")
    assert (len(runs.store) >= NUM_VALIDATION) == all_kept


def test_room_for_runs_of_a_stream_is_not_asked_for() -> None:
    def kept(stream: bool) -> int:
        own = module(cache_gb=1.0)
        own.configure_model()
        return plan_fit(own, pairs(stream=stream), quiet_trainer(1)).kept

    assert kept(True) == kept(False) * NUM_VALIDATION // (NUM_VALIDATION + 20)


def test_a_batch_of_a_stream_may_be_larger_than_its_split() -> None:
    """The split has 20 pairs, a step of 24 is drawn all the same, and planned for."""

    def needed(size: int, stream: bool) -> int:
        own = module(cache_gb=0.0)
        own.configure_model()
        return plan_fit(own, pairs(stream=stream, batch_size=size), quiet_trainer(1)).total

    assert needed(2000, True) > needed(20, True)
    own = module()
    quiet_trainer(2).fit(own, pairs(batch_size=24))
    assert own._batch[1].tolist() == list(range(24, 48))


@pytest.mark.parametrize("step", [2, 5, 7])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, step: int) -> None:
    """In the middle of an epoch, after its last step, and in the next one; bit for bit."""
    whole = module(cache_gb=0.1)
    quiet_trainer(9).fit(whole, pairs())
    first = module(cache_gb=0.1)
    trainer = quiet_trainer(step)
    trainer.fit(first, pairs())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    second = module(cache_gb=0.1)
    quiet_trainer(9).fit(second, pairs(), ckpt_path=tmp_path / "saved.ckpt")
    for found, expected, begun in zip(gates(second), gates(whole), gates(first), strict=True):
        assert torch.equal(found, expected)
        assert not torch.equal(begun, expected)


def test_values_of_another_pair_need_pairs_that_stay() -> None:
    with pytest.raises(EdgepruneError, match=r"ablation 'resample' takes values .* stream: true has no such split"):
        quiet_trainer(1).fit(module(ablation="resample"), pairs())


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_means_come_from_the_training_split(ablation: str) -> None:
    """So a stream has the same ones."""
    found: list[Tensor] = []
    for stream in (True, False):
        own = module(ablation=ablation)
        quiet_trainer(1).fit(own, pairs(stream=stream))
        found.append(own.runs.states().heads)
    assert torch.equal(*found)
