"""From examples to a batch: rows of different length are padded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.answers import Sets
from datamodules.tasks.base import TokenPair
from edgeprune.batch import IGNORE, PairBatch

Example = tuple[int, TokenPair]  # number in the split, tokens


def collate(examples: Sequence[Example], pad_id: int = 0) -> PairBatch:
    """Stack examples of different length: tokens padded on the right, positions by repeating the last one."""
    pairs = [pair for _, pair in examples]
    seq = max(len(pair.clean) for pair in pairs)
    num = max(len(pair.positions) for pair in pairs)
    aligned = any(pair.alignment for pair in pairs)
    corrupted_seq = max(len(pair.corrupted) for pair in pairs)
    roles = dict.fromkeys(name for pair in pairs for name in pair.roles)
    mask = _mask([pair.clean for pair in pairs], seq)
    return PairBatch(
        clean=_stack([pair.clean for pair in pairs], seq, pad_id),
        corrupted=_stack([pair.corrupted for pair in pairs], corrupted_seq, pad_id),
        attention_mask=mask,
        positions=torch.cat([_stack([pair.positions], num, pair.positions[-1]) for pair in pairs]),
        position_mask=_mask([pair.positions for pair in pairs], num).bool(),
        targets=_stack([pair.targets for pair in pairs], num, IGNORE),
        distractors=_stack([pair.distractors for pair in pairs], num, IGNORE),
        index=torch.tensor([number for number, _ in examples]),
        answers=_stack_sets([pair.answers or _alone(pair.targets) for pair in pairs], num),
        wrong_answers=_stack_sets([pair.wrong_answers or _alone(pair.distractors) for pair in pairs], num),
        corrupted_mask=_mask([pair.corrupted for pair in pairs], corrupted_seq) if aligned else mask,
        alignment=_stack([pair.alignment or tuple(range(len(pair.clean))) for pair in pairs], seq, 0)
        if aligned
        else None,
        roles={name: torch.tensor([pair.roles.get(name, (-1, -1)) for pair in pairs]) for name in roles},
    )


def _stack(rows: Sequence[tuple[int, ...]], length: int, fill: int) -> Tensor:
    """Long `[row, length]`."""
    return torch.tensor([row + (fill,) * (length - len(row)) for row in rows])


def _mask(rows: Sequence[tuple[int, ...]], length: int) -> Tensor:
    return _stack([(1,) * len(row) for row in rows], length, 0)


def _alone(ids: Sequence[int]) -> Sets:
    return tuple((token,) for token in ids)


def _stack_sets(rows: Sequence[Sets], num: int) -> Tensor:
    """Long `[row, num, largest set]`, filled up with `IGNORE`."""
    size = max(1, max(len(ids) for sets in rows for ids in sets))
    sets = [ids for row in rows for ids in row + ((),) * (num - len(row))]
    return _stack(sets, size, IGNORE).view(len(rows), num, size)
