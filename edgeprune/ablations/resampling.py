"""Values of another example: who gives to whom, and where in the prompt."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError


class _Prompt(NamedTuple):
    tokens: Tensor  # long [length of the clean or corrupted prompt]
    facing: Tensor  # for each token of the example's clean prompt the one of `tokens` that it is compared with, long


@final
class SourceExamples:
    """Another example of the same split for every example, drawn from the seed and the example's number alone.

    It is drawn among the examples whose clean prompts have as many tokens; if there is none, among all others. Prompts
    of unequal length are aligned at their ends, their first tokens facing each other: of a longer source the tokens
    after its first are left out, of a shorter one the second is repeated.

    Args:
        batches: All pairs of the split, in any order.
        source: Which prompt of the source example gives the values.
        seed: Another seed, other examples.

    Raises:
        EdgepruneError: Fewer than two pairs.
    """

    def __init__(
        self, batches: Iterable[PairBatch], source: Literal["clean", "corrupted"] = "clean", seed: int = 0
    ) -> None:
        self.seed = seed
        self._prompts: dict[int, _Prompt] = {}
        for batch in batches:
            self._prompts.update(_prompts(batch.to("cpu"), source))
        if len(self._prompts) < 2:
            raise EdgepruneError(
                f"resample ablation takes values from another pair of the split, which has {len(self._prompts)}; "
                "give at least two, or use another ablation"
            )
        self._all = sorted(self._prompts)
        self._alike: dict[int, list[int]] = {}
        for index in self._all:
            self._alike.setdefault(len(self._prompts[index].facing), []).append(index)

    def source_of(self, index: int) -> int:
        """Number of the example whose values example `index` gets.

        Raises:
            EdgepruneError: The example is not one of these pairs.
        """
        if index not in self._prompts:
            raise EdgepruneError(
                f"example {index} is not among the {len(self._all)} pairs from which resample ablation takes values; "
                "prepare it with all pairs of the split"
            )
        alike = self._alike[len(self._prompts[index].facing)]
        others = alike if len(alike) > 1 else self._all
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
        drawn = int(torch.randint(len(others) - 1, (1,), generator=generator))
        return others[drawn + (drawn >= bisect_left(others, index))]

    def prompts(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The prompts that give the values of a batch, on its device.

        Returns:
            Token ids and mask, long `[batch, source_seq]`, padded on the right, and for each column of `batch.clean`
            the column in them, long `[batch, seq]`; 0 for padding.
        """
        sources = [self._prompts[self.source_of(index)] for index in batch.index.tolist()]
        tokens = pad_sequence([example.tokens for example in sources], batch_first=True)
        lengths = torch.tensor([len(example.tokens) for example in sources])
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        alignment = torch.zeros(batch.clean.shape, dtype=torch.long)
        for row, (example, real) in enumerate(zip(sources, batch.attention_mask.bool().cpu(), strict=True)):
            alignment[row, real] = example.facing[_aligned_at_ends(int(real.sum()), len(example.facing))]
        device = batch.clean.device
        return tokens.to(device), mask.to(device), alignment.to(device)


def _prompts(batch: PairBatch, source: str) -> Iterable[tuple[int, _Prompt]]:
    """Number and prompt of every example of a batch, without its padding."""
    ids, mask = (batch.clean, batch.attention_mask) if source == "clean" else (batch.corrupted, batch.corrupted_mask)
    for row, index in enumerate(batch.index.tolist()):
        real, clean = mask[row].bool(), batch.attention_mask[row].bool()
        facing = torch.arange(int(clean.sum()))
        if source == "corrupted" and batch.alignment is not None:
            facing = batch.alignment[row, clean] - int(real.long().argmax())
        yield index, _Prompt(ids[row, real].clone(), facing)


def _aligned_at_ends(length: int, other: int) -> Tensor:
    """For each of `length` tokens the one of `other` tokens that it faces, long `[length]`.

    >>> _aligned_at_ends(3, 3).tolist(), _aligned_at_ends(4, 3).tolist(), _aligned_at_ends(3, 5).tolist()
    ([0, 1, 2], [0, 1, 1, 2], [0, 3, 4])
    """
    facing = (torch.arange(length) + other - length).clamp(min=min(1, other - 1))
    facing[: min(1, length - 1)] = 0
    return facing
