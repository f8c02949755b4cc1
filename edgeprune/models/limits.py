"""What a model takes: token ids that it has embeddings and outputs for, and as many tokens as it has positions.

An index out of bounds says less than this does, and on a GPU it ends the process.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any, Self, final

from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from torch import Tensor

    from edgeprune.batch import PairBatch

Sets = Sequence[Sequence[int]]


@final
@dataclass(frozen=True)
class Limits:
    """Those of one model.

    Attributes:
        model: Its name, for messages.
        num_inputs: Rows of the token embedding.
        num_outputs: Outputs per position.
        num_positions: Rows of the position table; None: there is none.
    """

    model: str
    num_inputs: int
    num_outputs: int
    num_positions: int | None

    @classmethod
    def of(cls, model: Any) -> Self:
        """Those of a `MaskedModel`."""
        config, embedding = model.hf.config, model.hf.get_input_embeddings()
        name = config.name_or_path or config.model_type
        return cls(name, embedding.num_embeddings, model.num_outputs, model.family.num_positions(config))

    # ---------------------------------------------------------------- pairs
    def fault(
        self, clean: Sequence[int], corrupted: Sequence[int], targets: Sequence[int], distractors: Sequence[int],
        answers: Sets = (), wrong_answers: Sets = (),
    ) -> str | None:  # fmt: skip
        """Why the model cannot take a pair, such as "has 40 tokens, ..."; None: it can. Negative answers are none."""
        for what, ids, size in (
            ("input", clean, self.num_inputs),
            ("corrupted input", corrupted, self.num_inputs),
            ("target", targets, self.num_outputs),
            ("distractor", distractors, self.num_outputs),
            *(("answer", ids, self.num_outputs) for ids in answers),
            *(("wrong answer", ids, self.num_outputs) for ids in wrong_answers),
        ):
            if max(ids, default=0) >= size:
                return self._unknown(what, max(ids), size)
        return self._too_long(max(len(clean), len(corrupted)))

    def check_batch(self, batch: "PairBatch") -> None:
        """Refuse a batch with a pair that the model cannot take, whatever is in its padding.

        Raises:
            EdgepruneError: It gives the number of the pair.
        """
        tensors = (
            *(batch.clean, batch.attention_mask, batch.corrupted, batch.corrupted_mask),
            *(batch.targets, batch.distractors, batch.answers, batch.wrong_answers),
        )
        rows = zip(batch.index.tolist(), *(tensor.tolist() for tensor in tensors), strict=True)
        for number, clean, mask, corrupted, other_mask, *answers in rows:
            fault = self.fault(list(compress(clean, mask)), list(compress(corrupted, other_mask)), *answers)
            if fault is not None:
                raise EdgepruneError(f"pair {number} {fault}")

    # ---------------------------------------------------------------- prompts
    def fitted(
        self, input_ids: "Tensor", positions: "Tensor", attention_mask: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """Token ids and positions `[batch or 1, seq]` that there are rows for: those of padding may be any, and change.

        Raises:
            EdgepruneError: A token has none.
        """
        unknown, input_ids = _outside(input_ids, attention_mask, self.num_inputs)
        for row, value in unknown:
            raise EdgepruneError(f"prompt {row} of the batch {self._unknown('input', value, self.num_inputs)}")
        if self.num_positions is not None and positions.shape[-1] > self.num_positions:
            beyond, positions = _outside(positions, attention_mask, self.num_positions)
            for row, value in sorted(beyond, key=lambda found: -found[1]):
                raise EdgepruneError(f"prompt {row} of the batch {self._too_long(value + 1)}")
        return input_ids, positions

    # ---------------------------------------------------------------- words
    def _unknown(self, what: str, value: int, size: int) -> str:
        return (
            f"has {what} id {value}, model {self.model!r} knows 0 to {size - 1}: they are made for another model; "
            "change the model or the task"
        )

    def _too_long(self, length: int) -> str | None:
        if self.num_positions is None or length <= self.num_positions:
            return None
        return (
            f"has {length} tokens, model {self.model!r} has {self.num_positions} positions: shorten the prompt, or use "
            "a model with more"
        )


def _outside(values: "Tensor", mask: "Tensor | None", size: int) -> "tuple[Iterable[tuple[int, int]], Tensor]":
    """Which of `values` `[batch or 1, seq]` are no rows of a table of `size`, and the values with 0 for them.

    Returns:
        Row and value of those that are no padding; the values.
    """
    wrong = (values < 0) | (values >= size)
    if not bool(wrong.any()):
        return (), values
    real = wrong if mask is None else wrong & mask.bool()
    places = real.nonzero()[:, 0].tolist()
    return zip(places, values.expand_as(real)[real].tolist(), strict=True), values.masked_fill(wrong, 0)
