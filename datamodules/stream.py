"""Training pairs without end: each is a function of settings, seeds and its own number, made when it is asked for."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, final

from datamodules.encode import UnequalLengths, encode_pairs
from datamodules.sampler import in_windows
from datamodules.tasks.base import AbstractTask, Draw, Pairs, PromptPair, TokenPair
from edgeprune.errors import NoTokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK = 1024  # pairs made at once at most: sentence forms come in turn, and few pairs would not hold all of them


@final
@dataclass(frozen=True)
class Encoder:
    """Makes tokens of a task's pairs; what is tokens already stays.

    Attributes:
        task: Whose pairs they are.
        tokenizer: Of the model.
        add_special_tokens: See `encode_pairs`.
        unequal_lengths: See `encode_pairs`.
    """

    task: AbstractTask
    tokenizer: "PreTrainedTokenizerBase | None"
    add_special_tokens: bool | None
    unequal_lengths: UnequalLengths

    def __call__(self, pairs: Pairs) -> Sequence[TokenPair]:
        """The pairs as tokens.

        Raises:
            EdgepruneError: They are text, and there is no tokenizer, or one of them is not usable.
        """
        if not pairs or isinstance(pairs[0], TokenPair):
            return cast("Sequence[TokenPair]", pairs)
        if self.tokenizer is None:
            raise NoTokenizerError(
                f"{type(self.task).__name__} gives text, but there is no tokenizer; set `tokenizer` to a "
                "model name or folder"
            )
        return encode_pairs(
            cast("Sequence[PromptPair]", pairs),
            self.tokenizer,
            add_special_tokens=self.add_special_tokens,
            single_token_answers=self.task.single_token_answers,
            unequal_lengths=self.unequal_lengths,
        )


@final
class PairStream:
    """Training pairs by number, without end. They are made in blocks of whole steps, of which the latest is held.

    Args:
        draw: Draws new pairs.
        encoder: Makes tokens of them.
        seed: Of this order; another seed, other pairs.
        step_size: Pairs of a step, of all processes together.
        at_once: Steps of a block at most, for a task may not have more different pairs than its training split holds.
        window: Steps whose pairs are shared out by length; 0: they are not. See `in_windows`.
    """

    def __init__(self, draw: Draw, encoder: Encoder, seed: int, step_size: int, at_once: int, window: int = 0) -> None:
        self.draw, self.encoder, self.seed = draw, encoder, seed
        self.step_size, self.window = step_size, min(window, at_once)
        steps = min(at_once, max(1, BLOCK // step_size))
        if self.window:  # blocks of whole windows
            steps = max(1, steps // self.window) * self.window
        self.block_size = steps * step_size
        self._held: tuple[int, Sequence[TokenPair]] = (-1, ())

    def __getitem__(self, number: int) -> TokenPair:
        block, place = divmod(number, self.block_size)
        if block != self._held[0]:
            self._held = block, self._made(block)
        return self._held[1][place]

    def _made(self, block: int) -> Sequence[TokenPair]:
        name = f"{self.seed} {block}"
        pairs, rng = self.encoder(self.draw(self.block_size, name)), random.Random(name)
        if not self.window:
            return pairs

        def permuted(size: int) -> list[int]:
            return rng.sample(range(size), size)

        return in_windows(pairs, self.step_size, self.window, lambda pair: len(pair.clean), permuted)
