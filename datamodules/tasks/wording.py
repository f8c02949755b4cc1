"""What tasks made of sentences share: slots filled in, words of one token, sentence forms used in turn."""

import random
from collections.abc import Mapping, Sequence, Sized
from functools import cache
from string import Formatter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from datamodules.tasks.continuations import Continuation, added_tokens
from datamodules.texts import has_unknown
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
T = TypeVar("T")
END = "END"


class Filled(NamedTuple):
    """A sentence form with its slots filled."""

    text: str
    spans: dict[str, Span]  # slot to first character and the one after the last; END: the last character


def fill(template: str, words: Mapping[str, str]) -> Filled:
    """Put `words` into the slots of `template`; every slot occurs once.

    Example:
        >>> fill("Later {name} left", {"name": "Ada"})
        Filled(text='Later Ada left', spans={'name': (6, 9), 'END': (13, 14)})
    """
    text, spans = "", dict[str, Span]()
    for literal, slot in _pieces(template):
        text += literal
        if slot is not None:
            spans[slot] = (len(text), len(text) + len(words[slot]))
            text += words[slot]
    spans[END] = (len(text) - 1, len(text))
    return Filled(text, spans)


@cache
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, slot) for literal, slot, _, _ in Formatter().parse(template))


def words_of(text: str) -> tuple[str, ...]:
    """Words that spaces separate."""
    return tuple(text.split())


def pairs_of(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs such as `"singer/singers, son/sons"`."""
    halves = (pair.strip().partition("/") for pair in text.split(","))
    return tuple((first, second) for first, _, second in halves)


def token_after(filled: Filled, slot: str) -> Span:
    """Where the token after `slot` begins: the next character that is no space.

    One character, so that the role holds one token however the tokenizer cuts the word.
    """
    start = filled.spans[slot][1]
    start += filled.text[start] == " "
    return start, start + 1


def single_token_words(words: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Those `words` that add exactly one known token when they follow another word."""
    return tuple(word for word, ids in zip(words, tokens_after_word(words, tokenizer), strict=True) if len(ids) == 1)


def tokens_after_word(words: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[int, ...]]:
    """Token ids that each of `words` adds after another word and a space; none if one of them is unknown."""
    added = added_tokens([Continuation("When", f" {word}", source="") for word in words], tokenizer)
    return [() if ids is None or has_unknown(ids, tokenizer) else ids for ids in added]


def rounds(cells: Sequence[T], num_fillings: int, count: int, rng: random.Random, what: str) -> list[tuple[T, int]]:
    """`count` different pairs of cell and filling, the cells in turn.

    Args:
        cells: Sentence forms, each of which can be filled in `num_fillings` ways.
        num_fillings: Fillings are numbered from 0 to `num_fillings - 1`; each cell gets random ones.
        count: How many to draw.
        rng: Source of randomness.
        what: Task, for the error message.

    Raises:
        EdgepruneError: There are fewer than `count`.
    """
    each = -(-count // len(cells))
    if each > num_fillings:
        raise EdgepruneError(
            f"{count} different {what} prompts were asked for, but {len(cells)} sentence forms x {num_fillings} "
            f"fillings give {len(cells) * num_fillings}: ask for fewer, allow more forms, or set entities to 'shared'"
        )
    drawn = [rng.sample(range(num_fillings), each) for _ in cells]
    return [(cells[i % len(cells)], drawn[i % len(cells)][i // len(cells)]) for i in range(count)]


def combination(number: int, *lists: Sequence[str]) -> list[str]:
    """One word of each list; `number` runs from 0 to the product of their lengths less one."""
    chosen: list[str] = []
    for words in reversed(lists):
        number, place = divmod(number, len(words))
        chosen.append(words[place])
    return chosen[::-1]


def check_templates(templates: int | None, available: int) -> None:
    """Refuse a number of sentence forms that is not there.

    Raises:
        EdgepruneError: `templates` is neither None nor one of 1 to `available`.
    """
    if templates is not None and not 1 <= templates <= available:
        raise EdgepruneError(f"templates must be 1..{available}, or null for all, got {templates}")


def check_enough(task: str, *kinds: tuple[str, Sized, int]) -> None:
    """Refuse a tokenizer for which too few words of a list are single tokens.

    Args:
        task: For the message.
        kinds: What words they are, those that are single tokens, and how many of them the task needs.

    Raises:
        EdgepruneError: There are fewer.
    """
    if any(len(words) < needed for _, words, needed in kinds):
        found = ", ".join(f"{len(words)} of {needed} {what}" for what, words, needed in kinds)
        raise EdgepruneError(
            f"{task} needs words that are single tokens, and this tokenizer has {found}: choose a model with a larger "
            "vocabulary, or give your own pairs as JSONL"
        )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a setting that is none of its choices.

    Raises:
        EdgepruneError: `value` is none of `choices`.
    """
    if value not in choices:
        raise EdgepruneError(f"{name} must be one of {tuple(choices)}, got {value!r}")
