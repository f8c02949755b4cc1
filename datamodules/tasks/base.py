"""What a task hands over: pairs of prompts, as text or as tokens, with the answer that is asked for."""

import hashlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class PromptPair:
    """One example as text.

    Attributes:
        clean: Prompt, without the answer.
        corrupted: Prompt of the same number of tokens that asks for something else; without an answer.
        answer: Right continuation of `clean`, with its leading space: `" Mary"`.
        distractor: Wrong continuation to compare with, or None.
        source: Where the pair comes from (`"pairs.jsonl:17"`), for error messages.
        labels: What is known about the pair, such as its template.
    """

    clean: str
    corrupted: str
    answer: str
    distractor: str | None = None
    source: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class TokenPair:
    """One example as tokens.

    Attributes:
        clean: Token ids of the clean prompt and of all answer tokens but the last.
        corrupted: As many token ids, aligned with `clean`.
        positions: Indices into the tokens; the logits at position p predict the token after p.
        targets: The right token for each position; `edgeprune.batch.IGNORE` if unknown.
        distractors: The wrong token for each position; `edgeprune.batch.IGNORE` if there is none.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]
    distractors: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupted):
            raise EdgepruneError(
                f"a pair has {len(self.clean)} clean and {len(self.corrupted)} corrupted tokens: give both "
                "the same number"
            )
        if not len(self.positions) == len(self.targets) == len(self.distractors) > 0:
            raise EdgepruneError(
                f"a pair has {len(self.positions)} positions, {len(self.targets)} targets and "
                f"{len(self.distractors)} distractors: give at least one position, and one of each for it"
            )
        if min(self.positions) < 0 or max(self.positions) >= len(self.clean):
            raise EdgepruneError(
                f"positions {self.positions} must lie in 0..{len(self.clean) - 1}, the tokens of the pair"
            )


class AbstractTask(ABC):
    """A source of pairs. A final task is a frozen dataclass whose fields are its settings."""

    @abstractmethod
    def splits(
        self, tokenizer: "PreTrainedTokenizerBase | None"
    ) -> Mapping[str, Sequence[PromptPair] | Sequence[TokenPair]]:
        """Pairs of the splits `train`, `validation` and `test`: a function of settings and tokenizer."""

    def description(self) -> dict[str, Any]:
        """Class name and settings, for the record."""
        settings = {item.name: getattr(self, item.name) for item in fields(self)}  # pyright: ignore[reportArgumentType]
        return {"task": type(self).__name__, **settings}

    def fingerprint(self) -> str | None:
        """Hash of what `splits` depends on beside the settings: here, the code of the task's module.

        None if it is not known (code typed at a prompt): such a task is never cached.
        """
        try:
            code = inspect.getsource(sys.modules[type(self).__module__])
        except (OSError, TypeError):
            return None
        return hashlib.sha256(code.encode()).hexdigest()
