"""Prompts as a reading shows them: a label for each token, and which position belongs to which role."""

from dataclasses import dataclass
from typing import Any, final

from edgeprune.batch import PairBatch

_ESCAPES = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t", " ": "\u00b7"})


@final
@dataclass(frozen=True)
class Prompt:
    """One clean prompt without padding.

    Attributes:
        index: Its number in the split.
        tokens: A label for each token: its text with spaces as `·`, or its number where there is no tokenizer.
        roles: Named parts: name to first token and the one after the last; those that the prompt lacks are left out.
        scored: Positions at which the answer is read.
    """

    index: int
    tokens: tuple[str, ...]
    roles: dict[str, tuple[int, int]]
    scored: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The tokens, each with the roles that lie on it: `·Mary (IO)`."""
        found = [[name for name, (start, end) in self.roles.items() if start <= at < end] for at in range(len(self))]
        return tuple(
            f"{token} ({', '.join(names)})" if names else token for token, names in zip(self.tokens, found, strict=True)
        )

    def __len__(self) -> int:
        return len(self.tokens)


def prompts_of(batch: PairBatch, tokenizer: Any = None) -> list[Prompt]:
    """The clean prompts of a batch.

    Args:
        batch: Pairs.
        tokenizer: Has `decode`, as those of transformers; None: tokens are shown as numbers.
    """
    found: list[Prompt] = []
    for row in range(len(batch)):
        span = real_tokens(batch, row)
        ids: list[int] = batch.clean[row, span].tolist()
        spans = {name: tuple(place[row].tolist()) for name, place in batch.roles.items()}
        scored = batch.positions[row, batch.position_mask[row]].tolist()
        found.append(
            Prompt(
                index=int(batch.index[row]),
                tokens=tuple(token_label(tokenizer, token) for token in ids),
                roles={name: (a - span.start, b - span.start) for name, (a, b) in spans.items() if a >= 0},
                scored=tuple(place - span.start for place in scored),
            )
        )
    return found


def real_tokens(batch: PairBatch, row: int) -> slice:
    """Where an example's tokens lie, without padding on either side."""
    places = batch.attention_mask[row].nonzero().flatten()
    return slice(int(places[0]), int(places[-1]) + 1)


def token_label(tokenizer: Any, token: int) -> str:
    """The text of a token with spaces and line ends made visible; its number without a tokenizer."""
    if tokenizer is None:
        return str(token)
    return str(tokenizer.decode([token])).translate(_ESCAPES) or str(token)
