"""Pairs from a file, one JSON object per line.

    {"clean": "1 + 2 = <predict>3</predict>", "corrupted": "1 + 4 = <predict>5</predict>", "split": "train"}

The answer is what stands between the marks, the prompt what stands before them. `split` is optional.
"""

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

from datamodules.tasks.base import SPLITS, AbstractTask, PromptPair
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPAN = re.compile(r"(?P<prompt>.*)<predict>(?P<answer>.*)</predict>(?P<rest>.*)", re.DOTALL)


@final
@dataclass(frozen=True)
class JSONLTask(AbstractTask):
    """Own pairs, one JSON object per line with `clean`, `corrupted` and, if wanted, `split`.

    Attributes:
        path: The file.
        validation_fraction: Share of the lines to validate on, if they name no split.
        test_fraction: Share of the lines to test on, if they name no split.
        use_distractor: The corrupted prompt's answer, where it differs, is the distractor of the clean one.
        seed: Fixes which line goes to which split.
    """

    path: str
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    use_distractor: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise EdgepruneError(f"no pair file at {self.path!r}; give the path of a JSONL file")
        fractions = self.validation_fraction, self.test_fraction
        if min(fractions) < 0 or sum(fractions) >= 1:
            raise EdgepruneError(
                f"validation_fraction and test_fraction = {fractions} must not be negative and must leave "
                "something to train on"
            )

    def splits(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, list[PromptPair]]:
        """Pairs of each split, in the order of the file where it names the splits."""
        del tokenizer  # the same text for every model
        rows = self._rows()
        if not rows:
            raise EdgepruneError(f"{self.path} holds no pairs; write one JSON object per line")
        named = [name for name, _ in rows if name is not None]
        if not named:
            return self._draw([pair for _, pair in rows])
        if len(named) < len(rows):
            first = next(pair for name, pair in rows if name is None)
            raise EdgepruneError(
                f'{first.source}: "split" is missing, but other lines have it; give it to all lines or none'
            )
        return {split: [pair for name, pair in rows if name == split] for split in SPLITS}

    def fingerprint(self) -> str | None:
        """Hash of the code and of the file's content."""
        code = super().fingerprint()
        return code and hashlib.sha256(code.encode() + Path(self.path).read_bytes()).hexdigest()

    def _draw(self, pairs: list[PromptPair]) -> dict[str, list[PromptPair]]:
        """Spread the pairs over the splits; a fraction above zero gives at least one pair."""
        random.Random(self.seed).shuffle(pairs)
        test, validation = (
            max(1, round(len(pairs) * fraction)) if fraction else 0
            for fraction in (self.test_fraction, self.validation_fraction)
        )
        return {
            "train": pairs[test + validation :],
            "validation": pairs[test : test + validation],
            "test": pairs[:test],
        }

    def _rows(self) -> list[tuple[str | None, PromptPair]]:
        try:
            lines = Path(self.path).read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise EdgepruneError(f"{self.path} is not UTF-8 text ({error}); save it as UTF-8") from None
        return [self._row(line, f"{self.path}:{i}") for i, line in enumerate(lines, start=1) if line.strip()]

    def _row(self, line: str, source: str) -> tuple[str | None, PromptPair]:
        values = _parse_object(line, source)
        clean, answer = _cut(values, "clean", source)
        corrupted, other = _cut(values, "corrupted", source)
        split = values.get("split")
        if split is not None and split not in SPLITS:
            raise EdgepruneError(f'{source}: "split" must be one of {", ".join(SPLITS)}, got {split!r}')
        distractor = other if self.use_distractor and other != answer else None
        return split, PromptPair(clean, corrupted, answer, distractor, source)


def _parse_object(line: str, source: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise EdgepruneError(f"{source}: not JSON ({error}); write one whole object per line") from None
    if not isinstance(values, dict):
        raise EdgepruneError(f'{source}: expected an object with "clean" and "corrupted", got {type(values).__name__}')
    return cast("dict[str, Any]", values)


def _cut(values: dict[str, Any], key: str, source: str) -> tuple[str, str]:
    """Prompt and answer of `values[key]`."""
    if key not in values:
        raise EdgepruneError(f'{source}: "{key}" is missing; an object needs "clean" and "corrupted"')
    text = values[key]
    if not isinstance(text, str):
        raise EdgepruneError(f'{source}: "{key}" must be a string, got {text!r}')
    marks = Counter(re.findall("</?predict>", text))
    found = _SPAN.fullmatch(text)
    if found is None or set(marks.values()) != {1}:
        raise EdgepruneError(f'{source}: "{key}" must have exactly one <predict>...</predict>, got {text!r}')
    if found["rest"].strip():
        raise EdgepruneError(f'{source}: "{key}" goes on after </predict> ({found["rest"]!r}); end it with the answer')
    return found["prompt"], found["answer"]
