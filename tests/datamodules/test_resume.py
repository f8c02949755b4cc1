"""A run that is stopped anywhere and resumed draws the batches that an unbroken run draws."""

from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from datamodules import PairDataModule
from edgeprune.batch import PairBatch
from tests.datamodules.test_pairs import LONG, SHORT, Ready

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*worker processes in total.*"),  # on a single core
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
]
BATCHES, EPOCHS = 4, 3


class Recorder(pl.LightningModule):
    """Learns nothing; notes which examples it was given, and fails before step `fail_at`."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fail_at = fail_at
        self.seen: list[list[int]] = []

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        if self.global_step == self.fail_at:
            raise RuntimeError("interrupted")
        self.seen.append(batch.index.tolist())
        return self.weight.sum()

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, *, fail_at: int = -1, workers: int = 0, resume: str | None = None, **options: Any) -> Recorder:
    checkpoints, windows = options.pop("checkpoints", {"every_n_train_steps": 1}), options.pop("windows", 0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=-1 if "max_steps" in options else EPOCHS,
        callbacks=[ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **checkpoints)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    model = Recorder(fail_at)
    pairs = (SHORT, LONG, SHORT) * BATCHES + (SHORT,)
    data = PairDataModule(
        Ready(pairs, (SHORT,)), batch_size=3, num_workers=workers, cache=False, length_windows=windows
    )
    data.val_dataloader = data.test_dataloader  # `Ready` has no validation pairs
    data.setup = lambda stage=None: None
    trainer.fit(model, data, ckpt_path=resume and str(folder / resume))
    return model


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """Folder of a run with a checkpoint after every step, and the batches of that run."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, fit(folder).seen


def test_epochs_differ_and_none_repeats_an_example(unbroken: tuple[Path, list[list[int]]]) -> None:
    _, seen = unbroken
    epochs = [list(chain(*seen[i : i + BATCHES])) for i in range(0, len(seen), BATCHES)]
    assert len(seen) == BATCHES * EPOCHS
    assert len({tuple(epoch) for epoch in epochs}) == EPOCHS
    assert all(len(set(epoch)) == 3 * BATCHES for epoch in epochs)


@pytest.mark.parametrize("step", range(1, BATCHES * EPOCHS))
def test_resumed_after_any_step(unbroken: tuple[Path, list[list[int]]], step: int) -> None:
    folder, seen = unbroken
    assert fit(folder, resume=f"step={step}.ckpt", checkpoints={}).seen == seen[step:]


def test_workers_that_run_ahead_change_nothing(unbroken: tuple[Path, list[list[int]]]) -> None:
    folder, seen = unbroken
    assert fit(folder, resume="step=6.ckpt", workers=2, checkpoints={}).seen == seen[6:]


@pytest.mark.parametrize("checkpoints", [{"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": False}])
def test_resumed_from_the_end_of_an_epoch(
    unbroken: tuple[Path, list[list[int]]], tmp_path: Path, checkpoints: dict[str, Any]
) -> None:
    _, seen = unbroken
    assert fit(tmp_path, checkpoints=checkpoints).seen == seen
    for step in (BATCHES, 2 * BATCHES):
        assert fit(tmp_path, resume=f"step={step}.ckpt", checkpoints={}).seen == seen[step:]


def test_resumed_after_a_failing_step(unbroken: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    _, seen = unbroken
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(tmp_path, fail_at=6, checkpoints={"save_on_exception": True})
    [path] = (path.name for path in tmp_path.iterdir() if "step=6" in path.name)
    assert fit(tmp_path, resume=path, checkpoints={}).seen == seen[6:]


@pytest.mark.parametrize("checkpoints", [{"every_n_train_steps": 1}, {"save_on_train_epoch_end": True}])
def test_prolonged_run(unbroken: tuple[Path, list[list[int]]], tmp_path: Path, checkpoints: dict[str, Any]) -> None:
    _, seen = unbroken
    assert fit(tmp_path, max_steps=6, checkpoints=checkpoints).seen == seen[:6]
    assert fit(tmp_path, max_steps=11, resume="step=6.ckpt", checkpoints={}).seen == seen[6:11]


def test_shortened_epochs(unbroken: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    _, seen = unbroken
    short = [batch for i, batch in enumerate(seen) if i % BATCHES < 3]
    assert fit(tmp_path, limit_train_batches=3).seen == short
    assert fit(tmp_path, limit_train_batches=3, resume="step=4.ckpt", checkpoints={}).seen == short[4:]


@pytest.mark.parametrize("step", range(1, 6))
def test_steps_of_two_batches_with_windows_of_lengths(tmp_path: Path, step: int) -> None:
    options: dict[str, Any] = {"windows": 2, "accumulate_grad_batches": 2}
    seen = fit(tmp_path, **options).seen
    assert len(seen) == BATCHES * EPOCHS
    short = [{number % 3 == 1 for number in batch} for batch in seen]
    assert sum(len(kinds) == 1 for kinds in short) > BATCHES * EPOCHS / 2  # most batches are of one length
    assert fit(tmp_path, resume=f"step={step}.ckpt", checkpoints={}, **options).seen == seen[2 * step :]
