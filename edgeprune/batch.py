"""The one form in which prompt pairs reach a model: a batch of aligned clean and corrupted token rows."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

IGNORE = -100  # target or distractor that is not known; the index that torch's own losses ignore


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Aligned clean/corrupted prompts and the positions at which the model is judged.

    Attributes:
        clean: Token ids of the clean prompts, long `[batch, seq]`.
        corrupted: Token ids of the corrupted prompts, long `[batch, seq]`; token for token aligned with `clean`.
        attention_mask: 1 for a token, 0 for padding, long `[batch, seq]`; shared by both prompts.
        positions: Indices into `seq` whose logits are scored, long `[batch, num_positions]`. Logits at position p
            predict the token after p. Rows with fewer positions repeat their last one.
        position_mask: True where `positions` is a real scored position, bool `[batch, num_positions]`.
        targets: The right token at each scored position, long `[batch, num_positions]`; `IGNORE` if unknown.
        distractors: The wrong answer to compare with, long `[batch, num_positions]`; `IGNORE` if there is none.
        index: Number of each example in its split, long `[batch]`: the key under which caches keep it.
    """

    clean: Tensor
    corrupted: Tensor
    attention_mask: Tensor
    positions: Tensor
    position_mask: Tensor
    targets: Tensor
    distractors: Tensor
    index: Tensor

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with every tensor on `device`."""
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def __len__(self) -> int:
        return self.clean.shape[0]
