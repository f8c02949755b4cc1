"""The one form in which prompt pairs reach a model: a batch of aligned clean and corrupted token rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor

IGNORE = -100  # target or distractor that is not known; the index that torch's own losses ignore


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Aligned clean/corrupted prompts and the positions at which the model is evaluated.

    Attributes:
        clean: Token ids of the clean prompts, long `[batch, seq]`.
        corrupted: Token ids of the corrupted prompts, long `[batch, corrupted_seq]`; token for token aligned with
            `clean` unless `alignment` says otherwise.
        attention_mask: 1 for a token, 0 for padding, long `[batch, seq]`.
        positions: Indices into `seq` whose logits are scored, long `[batch, num_positions]`. Logits at position p
            predict the token after p. Rows with fewer positions repeat their last one.
        position_mask: True where `positions` is a real scored position, bool `[batch, num_positions]`.
        targets: The right token at each scored position, long `[batch, num_positions]`; `IGNORE` if unknown.
        distractors: The wrong answer to compare with, long `[batch, num_positions]`; `IGNORE` if there is none.
        index: Number of each example in its split, long `[batch]`: the key under which caches keep it.
        answers: All right tokens at each scored position, long `[batch, num_positions, num_answers]`, filled up with
            `IGNORE`. By default the target alone.
        wrong_answers: All wrong tokens to compare with, likewise. By default the distractor alone.
        corrupted_mask: `attention_mask` of the corrupted prompts, long `[batch, corrupted_seq]`. By default shared.
        alignment: For each clean position the position of the corrupted prompt whose values a closed edge carries
            there, long `[batch, seq]`; None: the same position.
        roles: Where named parts of the clean prompt lie: name to long `[batch, 2]`, first token and the one after the
            last; -1 where an example lacks the part.
    """

    clean: Tensor
    corrupted: Tensor
    attention_mask: Tensor
    positions: Tensor
    position_mask: Tensor
    targets: Tensor
    distractors: Tensor
    index: Tensor
    answers: Tensor = None  # pyright: ignore[reportAssignmentType] (filled in below)
    wrong_answers: Tensor = None  # pyright: ignore[reportAssignmentType]
    corrupted_mask: Tensor = None  # pyright: ignore[reportAssignmentType]
    alignment: Tensor | None = None
    roles: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        defaults = {
            "answers": self.targets[..., None],
            "wrong_answers": self.distractors[..., None],
            "corrupted_mask": self.attention_mask,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply `function` to every tensor; all have one row per example."""

        def apply(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: function(tensor) for key, tensor in value.items()}  # pyright: ignore
            return None if value is None else function(value)

        return type(self)(**{item.name: apply(getattr(self, item.name)) for item in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with every tensor on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    def rows(self, chosen: slice | Tensor) -> Self:
        """Some of the examples: a slice, or their places, long `[n]`."""
        return self.map(lambda tensor: tensor[chosen])

    def parts(self, size: int) -> list[Self]:
        """The batch in parts of at most `size` examples."""
        return [self.rows(slice(start, start + size)) for start in range(0, len(self), size)]

    def aligned(self, values: Tensor) -> Tensor:
        """Values of the corrupted prompts `[batch, corrupted_seq, ...]` at the clean positions, `[batch, seq, ...]`."""
        return values if self.alignment is None else at_positions(values, self.alignment)

    def __len__(self) -> int:
        return self.clean.shape[0]


def at_positions(values: Tensor, positions: Tensor) -> Tensor:
    """Values `[batch, seq, ...]` at other positions for each example, long `[batch, n]`; returns `[batch, n, ...]`."""
    return values[torch.arange(len(positions), device=positions.device)[:, None], positions]
