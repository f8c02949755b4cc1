"""Pairs in the CSV forms that attribution-patching repositories (EAP, EAP-IG) use.

clean,corrupted,correct_idx,incorrect_idx        token ids, or lists of them: "[1757, 3700]"
clean,corrupted,label                            greater-than: the two digits after which the year may end
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast, final

from datamodules.tasks.base import PromptPair
from datamodules.tasks.continuations import Continuation, added_tokens, check_ids, texts_of
from datamodules.tasks.files import FileTask, Row, check_split
from datamodules.texts import has_unknown
from edgeprune.errors import EdgepruneError, NoTokenizerError
from edgeprune.parsing import parse_json, read_text

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
    number YY from 0 to 98, the two-digit numbers above YY are right and those up to YY wrong; the target is YY + 1
    and the distractor YY, or the next that the tokenizer cuts off from the century. A column `split` may name the split
    of every row.

    Attributes:
        corrupted: Column of the corrupted prompts; some tables have several.
    """

    corrupted: str = "corrupted"

    def rows(self, tokenizer: "PreTrainedTokenizerBase | None") -> list[Row]:
        """Every pair of the file, in its order."""
        if tokenizer is None:
            raise NoTokenizerError(f"{self.path} holds token ids: give the data module a tokenizer")
        reader = csv.DictReader(io.StringIO(read_text(self.path), newline=""), strict=True)
        try:
            columns, lines = tuple(reader.fieldnames or ()), list(self._lines(reader))
        except csv.Error as error:
            raise EdgepruneError(f"{self.path}:{reader.reader.line_num}: not CSV ({error}); check its quotes") from None
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
        prompts = [(line.values["clean"], line.source) for line in lines]
        answers, distractors = (
            texts_of(
                [(prompt, first, source) for (prompt, source), (first, *_) in zip(prompts, ids, strict=True)], tokenizer
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
        value = parse_json(text, line.source, one_line=True)
    except EdgepruneError:
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
    ids = _numerals(lines[0].source, tokenizer) if lines else ()
    labels = [_label(line) for line in lines]
    written = _written([f"year {_last_word(pair.clean)}" for pair in pairs], ids, tokenizer)
    return [
        replace(
            pair,
            answer=_nearest(pair, range(label + 1, len(ids)), numbers),
            distractor=_nearest(pair, range(label, -1, -1), numbers),
            answer_ids=(ids[label + 1 :],),
            wrong_ids=(ids[: label + 1],),
            labels={"year": TWO_DIGITS[label]},
        )
        for pair, label, numbers in zip(pairs, labels, written, strict=True)
    ]


def _numerals(source: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The tokens of 00 to 99, each by itself."""
    rows: list[list[int]] = tokenizer(list(TWO_DIGITS), add_special_tokens=False)["input_ids"]
    if any(len(row) != 1 or has_unknown(row, tokenizer) for row in rows):
        raise EdgepruneError(
            f"{source}: a label needs 00 to 99 to be one token each, and they are not for this tokenizer; "
            "use the task GreaterThan, or give correct_idx and incorrect_idx"
        )
    return tuple(row[0] for row in rows)


def _last_word(prompt: str) -> str:
    return prompt.rsplit(maxsplit=1)[-1] if prompt.strip() else ""


def _written(prompts: Sequence[str], ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> list[frozenset[int]]:
    """For each prompt the numbers that the tokenizer cuts off from the century before them.

    It may join others: GPT-2 has a token for all of 1865.
    """
    known = list(dict.fromkeys(prompts))
    tries = [Continuation(prompt, number, "") for prompt in known for number in TWO_DIGITS]
    added = iter(added_tokens(tries, tokenizer))
    found = {prompt: frozenset(i for i in range(len(ids)) if next(added) == (ids[i],)) for prompt in known}
    return [found[prompt] for prompt in prompts]


def _nearest(pair: PromptPair, numbers: Iterable[int], written: frozenset[int]) -> str:
    for number in numbers:
        if number in written:
            return TWO_DIGITS[number]
    raise EdgepruneError(
        f"{pair.source}: after this prompt no year above the label, or none up to it, is one token; leave the row out"
    )


def _label(line: _Line) -> int:
    text = line.values["label"].strip()
    if not (text.isascii() and text.isdigit() and int(text) < len(TWO_DIGITS) - 1):
        raise EdgepruneError(
            f"{line.source}: label must be the two digits of a year, from 0 to 98 so that a later one exists, "
            f"got {text!r}"
        )
    return int(text)
