"""What a method was run on: what a saved state must agree with."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.methods.problem import Problem
from edgeprune.models.loading import fingerprint


def identity_of(problem: Problem) -> dict[str, Any]:
    """Plain values by what they say of a problem: its metric, ablation, model, dtype and pairs."""
    return {
        "metric": problem.metric,
        "ablation": problem.runs.ablation,
        "model": fingerprint(problem.model),
        "dtype": str(problem.model.dtype),
        "data": data_hash(problem.batches),
    }


def data_hash(batches: Sequence[PairBatch]) -> str:
    """SHA-256 of every tensor of the pairs: tokens, masks, alignment, answers, and the cut into batches."""
    digest = hashlib.sha256()
    for batch in batches:
        for item in fields(batch):
            value = getattr(batch, item.name)
            if isinstance(value, Tensor):
                digest.update(f"{item.name} {tuple(value.shape)}".encode())
                digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
