"""What a task gives: pairs of prompts, as text or as tokens, with their answers."""

import hashlib
import inspect
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation", "test")
Pairs = Sequence["PromptPair"] | Sequence["TokenPair"]
Draw = Callable[[int, str], Pairs]  # so many different pairs, a function of a text


@dataclass(frozen=True)
class PromptPair:
    """One example as text.

    Attributes:
        clean: Prompt, without the answer.
        corrupted: Prompt of the same number of tokens that asks for something else; without an answer.
        answer: Right continuation of `clean`, with its leading space: `" Mary"`.
        distractor: Wrong continuation to compare with, or None.
        corrupted_answer: Right continuation of `corrupted`, where it is known; must differ from `answer`.
        answer_ids: For each token of the answer, all token ids that are right there, where there are several; its own
            must be among them. An empty entry stands for that one alone.
        wrong_ids: Likewise all wrong token ids to compare with. An empty entry stands for the distractor alone.
        roles: Named parts of `clean`: name to first character and the one after the last. A role lies on every token
            that holds one of its characters.
        corrupted_roles: The same parts of `corrupted`; needed only to align prompts of different length by roles.
        source: Where the pair comes from (`"pairs.jsonl:17"`), for error messages.
        labels: What is known about the pair, such as its template.
    """

    clean: str
    corrupted: str
    answer: str
    distractor: str | None = None
    corrupted_answer: str | None = None
    answer_ids: tuple[tuple[int, ...], ...] = ()
    wrong_ids: tuple[tuple[int, ...], ...] = ()
    roles: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    corrupted_roles: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    source: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def where(self) -> str:
        """Where the pair comes from, or its prompt where that is not known."""
        return self.source or f"pair {textwrap.shorten(self.clean, 60)!r}"


@dataclass(frozen=True)
class TokenPair:
    """One example as tokens.

    Attributes:
        clean: Token ids of the clean prompt and of all answer tokens but the last.
        corrupted: Token ids aligned with `clean`: as many, unless there is an `alignment`.
        positions: Indices into the tokens; the logits at position p predict the token after p.
        targets: The right token for each position; `edgeprune.batch.IGNORE` if unknown.
        distractors: The wrong token for each position; `edgeprune.batch.IGNORE` if there is none.
        answers: For each position all right tokens; empty: the target alone.
        wrong_answers: For each position all wrong tokens to compare with; empty: the distractor alone.
        roles: Named parts of `clean`: name to first token and the one after the last.
        alignment: For each token of `clean` the index into `corrupted` that it is compared with; empty: the same index.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]
    distractors: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...] = ()
    wrong_answers: tuple[tuple[int, ...], ...] = ()
    roles: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    alignment: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.alignment:
            if len(self.alignment) != len(self.clean) or not 0 <= min(self.alignment) <= max(self.alignment) < len(
                self.corrupted
            ):
                raise EdgepruneError(
                    f"alignment {self.alignment} must give each of the {len(self.clean)} clean tokens one of the "
                    f"{len(self.corrupted)} corrupted ones"
                )
        elif len(self.clean) != len(self.corrupted):
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
        for name, sets in (("answers", self.answers), ("wrong_answers", self.wrong_answers)):
            if sets and len(sets) != len(self.positions):
                raise EdgepruneError(
                    f"a pair has {len(self.positions)} positions and {len(sets)} sets of {name}: give one for each, "
                    "or none"
                )
        for name, (start, end) in self.roles.items():
            if not 0 <= start < end <= len(self.clean):
                raise EdgepruneError(
                    f"role {name!r} covers tokens {start} to {end} of a pair of {len(self.clean)}: give the first "
                    "token and the one after the last"
                )


class AbstractTask(ABC):
    """A source of pairs. A final task is a frozen dataclass whose fields are its settings.

    Attributes:
        single_token_answers: Every answer and distractor must be one token; anything else is refused.
        sources: Modules that the pairs depend on, beside those of the class and its bases.
    """

    single_token_answers: ClassVar[bool] = False
    sources: ClassVar[tuple[ModuleType, ...]] = ()

    @abstractmethod
    def splits(
        self, tokenizer: "PreTrainedTokenizerBase | None"
    ) -> Mapping[str, Sequence[PromptPair] | Sequence[TokenPair]]:
        """Pairs of the splits `train`, `validation` and `test`: a function of settings and tokenizer."""

    def stream(self, tokenizer: "PreTrainedTokenizerBase | None") -> Draw:
        """What draws new training pairs, none of them a validation or test pair; it can go to other processes.

        Raises:
            EdgepruneError: The task has no other pairs than those of its splits.
        """
        raise EdgepruneError(
            f"stream: true draws new pairs of generated tasks, and {type(self).__name__} has only those of its "
            "splits: leave stream out"
        )

    @property
    def needs_tokenizer(self) -> bool:
        """Whether the pairs depend on a tokenizer: they are text, or made of its tokens."""
        return True

    def description(self) -> dict[str, Any]:
        """Class name and settings, for the record."""
        settings = {item.name: getattr(self, item.name) for item in fields(self)}  # pyright: ignore[reportArgumentType]
        return {"task": type(self).__name__, **settings}

    def input_files(self) -> Iterable[Path]:
        """Files that the pairs are read from."""
        return ()

    def fingerprint(self) -> str | None:
        """Hash of what `splits` depends on beside the settings: the code, and the files that it reads.

        None if it is not known (code typed at a prompt): such a task is never cached.
        """
        modules = [sys.modules[cls.__module__] for cls in type(self).__mro__ if issubclass(cls, AbstractTask)]
        digest = hashlib.sha256()
        try:
            for module in (*modules, *self.sources):
                digest.update(inspect.getsource(module).encode())
        except (OSError, TypeError):
            return None
        for file in self.input_files():
            digest.update(str(file).encode() + file.read_bytes())
        return digest.hexdigest()
