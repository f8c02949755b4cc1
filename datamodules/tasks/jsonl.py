"""Pairs from a file, one JSON object per line.

    {"clean": "1 + 2 = <predict>3</predict>", "corrupted": "1 + 4 = <predict>5</predict>", "split": "train"}

The answer is what stands between the marks, the prompt what stands before them. `split` is optional.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, final

from datamodules.tasks.base import PromptPair
from datamodules.tasks.files import FileTask, Row, check_split
from edgeprune.errors import EdgepruneError
from edgeprune.parsing import parse_json, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPAN = re.compile(r"(?P<prompt>.*)<predict>(?P<answer>.*)</predict>(?P<rest>.*)", re.DOTALL)


@final
@dataclass(frozen=True)
class JSONLTask(FileTask):
    """Own pairs, one JSON object per line with `clean`, `corrupted` and, if wanted, `split`.

    Attributes:
        use_distractor: The corrupted prompt's answer, which must differ, is the distractor of the clean one. False:
            it is not used, and may be the same.
    """

    use_distractor: bool = True

    def rows(self, tokenizer: "PreTrainedTokenizerBase | None") -> list[Row]:
        """Every pair of the file, in its order; the same text for every model."""
        del tokenizer
        lines = read_text(self.path).split("\n")
        return [self._row(line, f"{self.path}:{i}") for i, line in enumerate(lines, start=1) if line.strip()]

    def _row(self, line: str, source: str) -> Row:
        values = _parse_object(line, source)
        clean, answer = _cut(values, "clean", source)
        corrupted, other = _cut(values, "corrupted", source)
        if self.use_distractor and other == answer:
            raise EdgepruneError(
                f"{source}: both prompts have the answer {answer!r}; make the corrupted one ask for something else, or "
                "set use_distractor to false if the answer need not change"
            )
        distractor = other if self.use_distractor else None
        pair = PromptPair(clean, corrupted, answer, distractor, corrupted_answer=distractor, source=source)
        return Row(check_split(values.get("split"), source), pair)


def _parse_object(line: str, source: str) -> dict[str, Any]:
    values = parse_json(line, source, one_line=True)
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
