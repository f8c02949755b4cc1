"""Pairs in the CSV forms that attribution-patching repositories (EAP, EAP-IG) use.

clean,corrupted,correct_idx,incorrect_idx        token ids, or lists of them: "[1757, 3700]"
clean,corrupted,label                            greater-than: the two digits after which the year may end
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast, final

from datamodules.tasks.base import PromptPair
from datamodules.tasks.continuations import Continuation, check_ids, single_tokens, texts_of
from datamodules.tasks.files import FileTask, Row, check_split, read_text
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TWO_DIGITS = tuple(f"{number:02d}" for number in range(100))


class _Line(NamedTuple):
    """One row of the table."""

    values: Mapping[str, str]
    source: str


@final
@dataclass(frozen=True)
class EAPCSVTask(FileTask):
    """Pairs from a CSV table with token ids as answers, or with the label of a greater-than prompt.

    With `correct_idx` and `incorrect_idx` the first id of each list is target and distractor, and all of them are
    right and wrong answers. An id that comes first must be what some text becomes after the prompt. With `label`, a
    number YY from 0 to 98, the two-digit numbers above YY are right and those up to YY wrong; the target is YY + 1,
    the distractor YY. A column `split` may name the split of every row.

    Attributes:
        path: The file, with a line of column names.
        validation_fraction: Share of the rows to validate on, if they name no split.
        test_fraction: Share of the rows to test on, if they name no split.
        seed: Fixes which row goes to which split.
        corrupted: Column of the corrupted prompts; some tables have several.
    """

    corrupted: str = "corrupted"

    def rows(self, tokenizer: "PreTrainedTokenizerBase | None") -> list[Row]:
        """Every pair of the file, in its order."""
        if tokenizer is None:
            raise EdgepruneError(f"{self.path} holds token ids: give the data module a tokenizer")
        reader = csv.DictReader(io.StringIO(read_text(self.path), newline=""), strict=True)
        try:
            columns, lines = tuple(reader.fieldnames or ()), list(self._lines(reader))
        except csv.Error as error:
            raise EdgepruneError(f"{self.path}:{reader.line_num}: not CSV ({error}); check its quotes") from None
        by_label = self._check_columns(columns)
        pairs = _by_label(self._bare(lines), lines, tokenizer) if by_label else self._by_id(lines, tokenizer)
        splits = [check_split(line.values.get("split") or None, line.source) for line in lines]
        return [Row(*row) for row in zip(splits, pairs, strict=True)]

    def _lines(self, reader: "csv.DictReader[str]") -> Iterator[_Line]:
        """Rows with the line on which they begin, which may not be the one before the next row."""
        begin = reader.line_num + 1
        for values in reader:
            source = f"{self.path}:{begin}"
            if None in values or None in values.values():
                raise EdgepruneError(
                    f"{source}: the row does not have the {len(reader.fieldnames or ())} fields of the first line; "
                    "put texts with commas in quotes"
                )
            yield _Line(values, source)
            begin = reader.line_num + 1

    def _check_columns(self, columns: Sequence[str]) -> bool:
        """Whether the table is the kind with labels."""
        need = ["clean", self.corrupted]
        by_label = "label" in columns and "correct_idx" not in columns
        need += [] if by_label else ["correct_idx", "incorrect_idx"]
        missing = [name for name in need if name not in columns]
        if not missing:
            return by_label
        if missing == ["incorrect_idx"]:
            raise EdgepruneError(
                f'{self.path}:1: "correct_idx" without "incorrect_idx" may hold token ids or years: rename it to '
                '"label" if it holds the two digits of a year, or add the wrong token ids'
            )
        raise EdgepruneError(
            f"{self.path}:1: column {missing[0]!r} is missing, the table has {', '.join(columns) or 'none'}; "
            "needed are clean, corrupted and either correct_idx and incorrect_idx, or label"
        )

    def _bare(self, lines: Sequence[_Line]) -> list[PromptPair]:
        """Pairs that lack their answers."""
        return [
            PromptPair(line.values["clean"], line.values[self.corrupted], answer="", source=line.source)
            for line in lines
        ]

    def _by_id(self, lines: Sequence[_Line], tokenizer: "PreTrainedTokenizerBase") -> list[PromptPair]:
        right, wrong = ([_ids(line, column) for line in lines] for column in ("correct_idx", "incorrect_idx"))
        for line, good, bad in zip(lines, right, wrong, strict=True):
            check_ids((*good, *bad), line.source, tokenizer)
        answers, distractors = (
            texts_of(
                [(line.values["clean"], own[0], line.source) for line, own in zip(lines, ids, strict=True)], tokenizer
            )
            for ids in (right, wrong)
        )
        columns = zip(self._bare(lines), answers, distractors, right, wrong, strict=True)
        return [
            replace(bare, answer=answer, distractor=distractor, answer_ids=(good,), wrong_ids=(bad,))
            for bare, answer, distractor, good, bad in columns
        ]


def _ids(line: _Line, column: str) -> tuple[int, ...]:
    text = line.values[column]
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    ids = cast("list[object]", value if isinstance(value, list) else [value])
    if not ids or any(type(token) is not int for token in ids):
        raise EdgepruneError(
            f'{line.source}: {column} must be a token id such as 5335, or a list such as "[5335, 1757]", got {text!r}'
        )
    return tuple(dict.fromkeys(cast("list[int]", ids)))


def _by_label(
    pairs: Sequence[PromptPair], lines: Sequence[_Line], tokenizer: "PreTrainedTokenizerBase"
) -> list[PromptPair]:
    """Greater-than pairs: right are the two-digit numbers above the label, wrong those up to it."""
    labels = [_label(line) for line in lines]
    asked = [Continuation(pair.clean, number, pair.source) for pair in pairs for number in TWO_DIGITS]
    ids = single_tokens(asked, tokenizer)
    rows = [tuple(ids[i : i + len(TWO_DIGITS)]) for i in range(0, len(ids), len(TWO_DIGITS))]
    return [
        replace(
            pair,
            answer=TWO_DIGITS[label + 1],
            distractor=TWO_DIGITS[label],
            answer_ids=(row[label + 1 :],),
            wrong_ids=(row[: label + 1],),
            labels={"year": TWO_DIGITS[label]},
        )
        for pair, label, row in zip(pairs, labels, rows, strict=True)
    ]


def _label(line: _Line) -> int:
    text = line.values["label"].strip()
    if not (text.isascii() and text.isdigit() and int(text) < len(TWO_DIGITS) - 1):
        raise EdgepruneError(
            f"{line.source}: label must be the two digits of a year, from 0 to 98 so that a later one exists, "
            f"got {text!r}"
        )
    return int(text)
