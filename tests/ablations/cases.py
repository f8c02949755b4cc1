"""Pairs and padding that the tests of ablations share."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules.collate import collate
from datamodules.tasks.base import TokenPair
from edgeprune.ablations import mean_of_pairs, save_states
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from tests.methods.small_problems import random_pairs
from tests.models.test_conformance import VOCAB
from tests.models.test_unequal_lengths import unequal_pair

PAIRS = random_pairs(6)  # of 4, 5, 6, 4, 5, 6 tokens
UNEQUAL = [unequal_pair(number) for number in range(4)]  # corrupted prompts of other lengths
KINDS = [
    "interchange",
    "zero",
    "resample",
    "resample:corrupted:seed=2",
    "mean",
    "mean:corrupted",
    "mean:both",
    "mean:positional",
    "mean:corrupted:positional",
    "mean:both:positional",
    "optimal:FILE",
]


def batch_of(pairs: Sequence[TokenPair], numbers: Sequence[int] | None = None) -> PairBatch:
    """Some of the pairs (all by default) as one batch, with their numbers in the split."""
    return collate([(number, pairs[number]) for number in (range(len(pairs)) if numbers is None else numbers)])


def fields(states: WriterStates) -> list[Tensor]:
    """All fields that there are."""
    return [field for field in (states.embeddings, states.heads, states.mlps) if field is not None]


def padded(batch: PairBatch, left: int, right: int) -> PairBatch:
    """The same pairs with columns of random tokens, masked out, on either side; also where they were padded before."""
    generator = torch.Generator().manual_seed(left + 10 * right)

    def junk(ids: Tensor, mask: Tensor) -> Tensor:
        wide = torch.randint(0, VOCAB, (len(ids), left + ids.shape[1] + right), generator=generator)
        return torch.where(extended(mask).bool(), extended(ids), wide)

    def extended(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (left, right))

    return dataclasses.replace(
        batch,
        clean=junk(batch.clean, batch.attention_mask),
        corrupted=junk(batch.corrupted, batch.corrupted_mask),
        attention_mask=extended(batch.attention_mask),
        corrupted_mask=extended(batch.corrupted_mask),
        positions=batch.positions + left,
        alignment=None if batch.alignment is None else extended(batch.alignment + left),
    )


def against_the_right_edge(batch: PairBatch) -> PairBatch:
    """The same pairs, of unequal length and token for token, with all their padding on the left."""
    shift = batch.clean.shape[1] - batch.attention_mask.sum(1)

    def roll(values: Tensor) -> Tensor:
        return torch.stack([row.roll(int(by)) for row, by in zip(values, shift, strict=True)])

    mask = roll(batch.attention_mask)
    return dataclasses.replace(
        batch,
        clean=roll(batch.clean),
        corrupted=roll(batch.corrupted),
        attention_mask=mask,
        corrupted_mask=mask,
        positions=batch.positions + shift[:, None],
    )


def runs_of(
    model: MaskedModel, ablation: str, batches: Sequence[PairBatch], folder: Path, budget_gb: float = 0.0
) -> ReferenceRuns:
    """Reference runs whose ablation has its values; `optimal:FILE` gets a file of arbitrary constants."""
    if ablation == "optimal:FILE":
        states = mean_of_pairs(model, batches, source="both").map(lambda field: 1.5 * field + 0.1)
        ablation = f"optimal:{save_states(folder / 'constants.safetensors', model, states, {})}"
    runs = ReferenceRuns(model, ablation, budget_gb)
    runs.prepare(batches)
    return runs
