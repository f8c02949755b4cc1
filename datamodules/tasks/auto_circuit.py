"""Pairs in the JSON form of the library auto-circuit (its `data.py`): one object per file.

    {"word_idxs": {"IO": 2, "end": 14},
     "prompts": [{"clean": "...", "corrupt": "...", "answers": [" Mary"], "wrong_answers": [" John"]}]}

`word_idxs` counts the tokens of the prompts from 0, without BOS. `seq_labels`, a caption for each token, is not used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

from datamodules.tasks.base import PromptPair
from datamodules.tasks.continuations import Continuation, single_tokens
from datamodules.tasks.files import FileTask, Row
from datamodules.texts import check_characters
from edgeprune.errors import EdgepruneError, NoTokenizerError
from edgeprune.parsing import parse_json, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


class _Entry(NamedTuple):
    """One prompt of the file."""

    clean: str
    corrupted: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    source: str


@final
@dataclass(frozen=True)
class AutoCircuitTask(FileTask):
    """Pairs of auto-circuit's JSON format, with all right and all wrong answers, each one token.

    The first answer is the target, the first wrong one the distractor. Every entry of `word_idxs` becomes a role: the
    text that these tokens cover, so that it is found again whether or not a BOS comes first.
    """

    def rows(self, tokenizer: "PreTrainedTokenizerBase | None") -> list[Row]:
        """Every pair of the file, in its order."""
        if tokenizer is None:
            raise NoTokenizerError(f"{self.path} counts in tokens: give the data module a tokenizer")
        content = self._content()
        prompts = _list(content.get("prompts"), f'{self.path}: "prompts"')
        entries = [_entry(prompt, f"{self.path}: prompts[{i}]") for i, prompt in enumerate(prompts)]
        places = _places(content.get("word_idxs", {}), self.path)
        right = _token_sets(entries, [entry.answers for entry in entries], tokenizer)
        wrong = _token_sets(entries, [entry.wrong for entry in entries], tokenizer)
        spans = _spans([(entry.clean, entry.source) for entry in entries], places, tokenizer)
        others = _spans([(entry.corrupted, entry.source) for entry in entries], places, tokenizer)
        columns = zip(entries, right, wrong, spans, others, strict=True)
        return [Row(None, _pair(*column)) for column in columns]

    def _content(self) -> dict[str, Any]:
        content = parse_json(read_text(self.path), self.path)
        if not isinstance(content, dict) or "prompts" not in content:
            raise EdgepruneError(f'{self.path}: expected one JSON object with "prompts", a list of prompt pairs')
        return cast("dict[str, Any]", content)


def _pair(
    entry: _Entry, right: tuple[int, ...], wrong: tuple[int, ...], roles: dict[str, Span], others: dict[str, Span]
) -> PromptPair:
    return PromptPair(
        clean=entry.clean,
        corrupted=entry.corrupted,
        answer=entry.answers[0],
        distractor=entry.wrong[0] if entry.wrong else None,
        answer_ids=(right,),
        wrong_ids=(wrong,) if wrong else (),
        roles=roles,
        corrupted_roles=others,
        source=entry.source,
    )


# -------------------------------------------------------------------- reading
def _entry(prompt: object, source: str) -> _Entry:
    if not isinstance(prompt, dict):
        raise EdgepruneError(f"{source}: expected an object with clean, corrupt and answers, got {prompt!r}")
    values = cast("dict[str, Any]", prompt)
    for key in ("clean", "corrupt", "answers"):
        if key not in values:
            raise EdgepruneError(f'{source}: "{key}" is missing; a prompt needs clean, corrupt and answers')
    for key in ("clean", "corrupt"):
        if not isinstance(values[key], str):
            raise EdgepruneError(f'{source}: "{key}" must be text, got {values[key]!r}; decode token ids first')
    answers, wrong = (tuple(_list(values.get(key, []), f'{source}: "{key}"')) for key in ("answers", "wrong_answers"))
    for text in (*answers, *wrong):
        if not isinstance(text, str) or not text:
            raise EdgepruneError(f"{source}: answers must be texts such as ' Mary', got {text!r}")
    check_characters((values["clean"], values["corrupt"], *answers, *wrong), source)
    if not answers:
        raise EdgepruneError(f'{source}: "answers" is empty; give at least one')
    return _Entry(values["clean"], values["corrupt"], answers, wrong, source)


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise EdgepruneError(f"{what} must be a list, got {value!r}")
    return cast("list[Any]", value)


def _places(word_idxs: object, path: str) -> dict[str, range]:
    """For each role the tokens it covers, which must follow one another."""
    if not isinstance(word_idxs, dict):
        raise EdgepruneError(f'{path}: "word_idxs" must be an object of token indices, got {word_idxs!r}')
    places: dict[str, range] = {}
    for name, value in cast("dict[str, Any]", word_idxs).items():
        indices = cast("list[Any]", value if isinstance(value, list) else [value])
        if not indices or any(type(index) is not int or index < 0 for index in indices):
            raise EdgepruneError(
                f'{path}: word_idxs["{name}"] must be a token index from 0, or a list of them, got {value!r}'
            )
        place = range(indices[0], indices[-1] + 1)
        if list(place) != indices:
            raise EdgepruneError(
                f'{path}: word_idxs["{name}"] = {value} must be tokens that follow one another; name the parts apart'
            )
        places[name] = place
    return places


# -------------------------------------------------------------------- tokens
def _token_sets(
    entries: Sequence[_Entry], texts: Sequence[tuple[str, ...]], tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[int, ...]]:
    """Token ids of each entry's texts, every id once."""
    flat = [
        Continuation(entry.clean, text, entry.source)
        for entry, answers in zip(entries, texts, strict=True)
        for text in answers
    ]
    ids = iter(single_tokens(flat, tokenizer))
    return [tuple(dict.fromkeys(next(ids) for _ in answers)) for answers in texts]


def _spans(
    prompts: Sequence[tuple[str, str]], places: Mapping[str, range], tokenizer: "PreTrainedTokenizerBase"
) -> list[dict[str, Span]]:
    """Characters that the tokens of each role cover, without the space before them."""
    if not places or not prompts:
        return [{} for _ in prompts]
    if not tokenizer.is_fast:
        raise EdgepruneError(
            f"word_idxs count tokens, and {type(tokenizer).__name__} does not say which characters those are: "
            "use a fast tokenizer, or take word_idxs out of the file"
        )
    texts = [text for text, _ in prompts]
    found = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        {name: _span(text, offsets, place, f'{source}: word_idxs["{name}"]') for name, place in places.items()}
        for (text, source), offsets in zip(prompts, cast("list[list[Span]]", found), strict=True)
    ]


def _span(text: str, offsets: Sequence[Span], place: range, what: str) -> Span:
    if place[-1] >= len(offsets):
        raise EdgepruneError(
            f"{what} = {place[-1]}, but the prompt has {len(offsets)} tokens (BOS not counted); "
            "use the tokenizer that the file was made with"
        )
    start, end = offsets[place[0]][0], offsets[place[-1]][1]
    part = text[start:end]
    return start + len(part) - len(part.lstrip()) if part.strip() else start, end
