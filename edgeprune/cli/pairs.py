"""Pairs of a data module for the commands that need no Trainer, and what an ablation takes from them."""

from datamodules import PairDataModule
from datamodules.collate import collate
from edgeprune.ablations.runs import TRAIN, ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.objectives import Objective


def pair_batches(
    data: PairDataModule, split: str, limit: int | None = None, batch_size: int | None = None
) -> list[PairBatch]:
    """The first `limit` pairs of a split in order, in batches (of the data's `batch_size` by default)."""
    examples = list(enumerate(data.pairs(split)))[:limit]
    if not examples:
        raise EdgepruneError(f"{type(data.task).__name__} gives no {split} pairs; raise their number or fraction")
    size = batch_size or data.batch_size
    return [collate(examples[start : start + size]) for start in range(0, len(examples), size)]


def prepare_runs(
    runs: ReferenceRuns,
    data: PairDataModule,
    *splits: str,
    report: Progress = no_progress,
    objective: Objective | None = None,
) -> None:
    """Give the ablation the pairs that it takes its values from: training pairs, and those of the splits to be run."""
    for split in dict.fromkeys((TRAIN, *splits)):
        if runs.wants(split):
            runs.prepare(pair_batches(data, split, None, data.eval_batch_size), split, report, objective)
