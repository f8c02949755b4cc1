"""Which pairs a method was run on: what a saved state must agree with."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields

from torch import Tensor

from edgeprune.batch import PairBatch


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
