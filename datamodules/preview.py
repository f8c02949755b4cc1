"""Pairs for people: what the model is shown, where the roles lie, what differs and which answers count.

With colours a role is coloured text and a differing token is underlined; without, they are `[role:text]` and
`{text}`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, final

from rich.text import Text

from datamodules.tasks.base import TokenPair
from edgeprune.batch import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta", "bright_green")
MODIFIERS = ("", " reverse", " italic")  # of the colours' second and third round
DIFFERS = "underline bold"
SHOWN_ANSWERS = 5
Mark = tuple[str, ...] | None  # names of the roles that a token has; empty for a token that differs; None for neither
_ESCAPES = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def plain_preview(pairs: Sequence[TokenPair], tokenizer: "PreTrainedTokenizerBase | None", split: str) -> str:
    """Each pair in six lines: prompts, scored positions, answer and distractor."""
    show = _TokenPrinter(tokenizer)
    return "\n\n".join(
        f"{split} {number}\n"
        f"  clean       {show.text(pair.clean)}\n"
        f"  corrupted   {show.text(pair.corrupted)}\n"
        f"  scored at   {', '.join(map(str, pair.positions))}\n"
        f"  answer      {show.text(pair.targets)}\n"
        f"  distractor  {show.text(pair.distractors)}"
        for number, pair in enumerate(pairs)
    )


def overview(pairs: Sequence[TokenPair], sizes: Mapping[str, int], split: str, roles: Sequence[str]) -> str:
    """Number of pairs of each split, and the lengths and roles of one of them, whose pairs are `pairs`."""
    lengths = {len(pair.clean) for pair in pairs}
    spread = f"{min(lengths)} to {max(lengths)} tokens, {len(lengths)} different lengths" if lengths else "no pairs"
    return (
        f"pairs  {', '.join(f'{size} {name}' for name, size in sizes.items())}\n"
        f"{split}  {spread}; roles: {', '.join(roles) or 'none'}"
    )


def role_names(pairs: Sequence[TokenPair]) -> list[str]:
    """Names of all roles, in the order of the prompts where they are first seen."""
    found: dict[str, None] = {}
    for pair in pairs:
        if not pair.roles.keys() <= found.keys():
            found |= dict.fromkeys(sorted(pair.roles, key=lambda name: pair.roles[name]))
    return list(found)


def rich_preview(
    pairs: Sequence[TokenPair],
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    split: str,
    roles: Sequence[str],
    colour: bool,
) -> list[Text]:
    """A legend and then each pair, as texts to print one below the other.

    Args:
        pairs: What to show.
        tokenizer: Turns tokens into text; None shows their numbers.
        split: Name of the split.
        roles: All role names, in the order of the legend.
        colour: Mark roles and differing tokens by colours and lines, not by brackets.
    """
    styles = {name: _style(i) for i, name in enumerate(roles)} if colour else None
    show = _TokenPrinter(tokenizer, styles)
    return [show.legend(roles), *(show.pair(pair, f"{split} {number}") for number, pair in enumerate(pairs))]


def _style(number: int) -> str:
    again, colour = divmod(number, len(COLOURS))
    return COLOURS[colour] + MODIFIERS[again % len(MODIFIERS)]


@final
@dataclass(frozen=True)
class _TokenPrinter:
    """How tokens are shown: as text or, without a tokenizer, as numbers; with `styles` of roles or else brackets."""

    tokenizer: "PreTrainedTokenizerBase | None"
    styles: Mapping[str, str] | None = None

    def text(self, ids: Sequence[int]) -> str:
        """Known tokens of `ids`, in quotes; `-` for none."""
        known = [token for token in ids if token != IGNORE]
        if not known:
            return "-"
        return " ".join(map(str, known)) if self.tokenizer is None else repr(self.tokenizer.decode(known))

    def legend(self, roles: Sequence[str]) -> Text:
        """Which colours or brackets mean what."""
        if self.styles is None:
            marked = f"[role:text] marks a role ({', '.join(roles)}), " if roles else ""
            return Text(f"legend  {marked}{{text}} a corrupted token that differs from the clean one")
        parts = [(name, self.styles[name]) for name in roles] + [("differs from the clean token", DIFFERS)]
        return Text.assemble("legend", *(part for shown in parts for part in ("  ", shown)))

    def pair(self, pair: TokenPair, title: str) -> Text:
        """Title, both prompts and the answers, a line each."""
        spans = sorted(pair.roles.items(), key=lambda role: role[1][1] - role[1][0])  # the shortest names a token first
        names = [tuple(name for name, (start, end) in spans if start <= i < end) for i in range(len(pair.clean))]
        differs = [() if other else None for other in _differs(pair)]
        lines = [
            ("clean", self._marked(pair.clean, [roles or None for roles in names])),
            ("corrupted", self._marked(pair.corrupted, differs)),
            ("scored at", Text(", ".join(map(str, pair.positions)))),
            *((name, Text(value)) for name, value in self._answers(pair)),
        ]
        return Text("\n").join(
            [Text(f"\n{title}", style="bold"), *(Text(f"  {name:<11} ") + line for name, line in lines)]
        )

    def _answers(self, pair: TokenPair) -> Iterator[tuple[str, str]]:
        for name, sets, alone in (
            ("answer", pair.answers, pair.targets),
            ("wrong", pair.wrong_answers, pair.distractors),
        ):
            yield name, self.text(alone)
            for position, ids in zip(pair.positions, sets, strict=bool(sets)):
                shown = ", ".join(self.text([token]) for token in ids[:SHOWN_ANSWERS])
                more = f", ... ({len(ids)} in all)" if len(ids) > SHOWN_ANSWERS else ""
                yield f"  all at {position}", (shown or "-") + more

    def _marked(self, ids: Sequence[int], marks: Sequence[Mark]) -> Text:
        """`ids` as text; each run of tokens with the same mark is marked as one."""
        line, start = Text(), 0
        for mark, run in groupby(marks):
            end = start + len(list(run))
            whole = self._part(ids, start, end)
            text = whole.lstrip(" ") or whole
            line.append(whole[: len(whole) - len(text)])
            line.append(*self._mark(text, mark))
            start = end
        return line

    def _mark(self, text: str, mark: Mark) -> tuple[str, str]:
        """Text with brackets, and its style."""
        if mark is None:
            return text, ""
        if self.styles is None:
            return (f"[{'/'.join(mark)}:{text}]" if mark else f"{{{text}}}"), ""
        return text, self.styles[mark[0]] if mark else DIFFERS

    def _part(self, ids: Sequence[int], start: int, end: int) -> str:
        """What the tokens from `start` to `end` add to the text."""
        if self.tokenizer is None:
            return " " * (start > 0) + " ".join(map(str, ids[start:end]))
        before, whole = (str(self.tokenizer.decode(list(ids[:stop]))) for stop in (start, end))
        part = (
            whole.removeprefix(before) if whole.startswith(before) else str(self.tokenizer.decode(list(ids[start:end])))
        )
        return part.translate(_ESCAPES)


def _differs(pair: TokenPair) -> list[bool]:
    """For each corrupted token whether all clean tokens that are compared with it are others."""
    facing: list[set[int]] = [set() for _ in pair.corrupted]
    for token, other in zip(pair.clean, pair.alignment or range(len(pair.clean)), strict=True):
        facing[other].add(token)
    return [token not in faced for token, faced in zip(pair.corrupted, facing, strict=True)]
