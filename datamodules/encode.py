"""From text to tokens: `PromptPair` to `TokenPair`, refusing whatever would make the comparison meaningless.

The answer may be several tokens. They are teacher-forced: all but the last follow both prompts, and the
logits are scored at the last prompt token and at each of them.

    clean      When Mary and John ... to | An na     scored: "to" -> "An", "An" -> "na", "na" -> "belle"
    corrupted  When Kate and Paul ... to | An na     (answer " Annabelle" = An na belle)
"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from datamodules.tasks.base import PromptPair, TokenPair
from edgeprune.batch import IGNORE
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Ids(NamedTuple):
    """Token ids of the texts that one pair needs."""

    clean: list[int]
    corrupted: list[int]
    answered: list[int]  # clean + answer
    distracted: list[int]  # clean + distractor; the clean prompt alone if there is no distractor


def encode_pairs(
    pairs: Sequence[PromptPair],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    add_special_tokens: bool | None = None,
) -> list[TokenPair]:
    """Tokenise pairs, all in one call of the tokenizer.

    A space that ends the prompt goes over to the answer where the tokenizer would join them (`"= "` and
    `"3"`): the whole text stays what it was.

    Args:
        pairs: Pairs as text.
        tokenizer: Any Hugging Face tokenizer.
        add_special_tokens: Add what the tokenizer puts around a text, such as BOS; None for its own default.

    Raises:
        EdgepruneError: A pair is not usable; the message says which, where it comes from and why.
    """
    for pair in pairs:
        _check_text(pair)
    extra = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
    pairs, rows = list(pairs), _tokenise(pairs, tokenizer, extra)
    joined = [
        i
        for i, (pair, ids) in enumerate(zip(pairs, rows, strict=True))
        if pair.clean[-1].isspace() and not _continues(ids.clean, ids.answered)
    ]
    moved = [_move_space(pairs[i]) for i in joined]
    for i, pair, row in zip(joined, moved, _tokenise(moved, tokenizer, extra), strict=True):
        pairs[i], rows[i] = pair, row
    return [_encode(pair, ids, tokenizer) for pair, ids in zip(pairs, rows, strict=True)]


def has_unknown(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether `ids` holds the unknown token.

    Tokenizers that spell everything in bytes never need one and often name BOS or EOS as a stand-in, which is
    not counted.
    """
    unknown = tokenizer.unk_token_id
    stand_in = unknown in (None, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return not stand_in and unknown in ids


def _check_text(pair: PromptPair) -> None:
    for kind, text in (("clean", pair.clean), ("corrupted", pair.corrupted)):
        if not text.strip():
            raise EdgepruneError(f"{_where(pair)}: the {kind} prompt is empty; put some text before the answer")


def _tokenise(pairs: Sequence[PromptPair], tokenizer: "PreTrainedTokenizerBase", extra: dict[str, Any]) -> list[_Ids]:
    if not pairs:
        return []
    columns = (
        [pair.clean for pair in pairs],
        [pair.corrupted for pair in pairs],
        [pair.clean + pair.answer for pair in pairs],
        [pair.clean + (pair.distractor or "") for pair in pairs],
    )
    ids: list[list[int]] = tokenizer([text for column in columns for text in column], **extra)["input_ids"]
    size = len(pairs)
    return [_Ids(*(ids[column * size + i] for column in range(len(columns)))) for i in range(size)]


def _continues(start: list[int], whole: list[int]) -> bool:
    return whole[: len(start)] == start


def _move_space(pair: PromptPair) -> PromptPair:
    """Move the white space that ends the prompts to the start of the answers."""
    prompt = pair.clean.rstrip()
    space = pair.clean[len(prompt) :]
    return replace(
        pair,
        clean=prompt,
        corrupted=pair.corrupted.removesuffix(space),
        answer=space + pair.answer,
        distractor=None if pair.distractor is None else space + pair.distractor,
    )


def _encode(pair: PromptPair, ids: _Ids, tokenizer: "PreTrainedTokenizerBase") -> TokenPair:
    answer = _continuation(pair, "answer", pair.answer, ids.clean, ids.answered)
    _check_tokens(pair, ids, tokenizer)
    distractors = [IGNORE] * len(answer)
    if pair.distractor is not None:
        distractors[0] = _continuation(pair, "distractor", pair.distractor, ids.clean, ids.distracted)[0]
    if distractors[0] == answer[0]:
        raise EdgepruneError(
            f"{_where(pair)}: answer {pair.answer!r} and distractor {pair.distractor!r} start with the same "
            f"token ({answer[0]}), so their logits cannot be compared; choose another distractor or give none"
        )
    last_of_prompt = len(ids.clean) - 1
    return TokenPair(
        clean=(*ids.clean, *answer[:-1]),
        corrupted=(*ids.corrupted, *answer[:-1]),
        positions=tuple(range(last_of_prompt, last_of_prompt + len(answer))),
        targets=tuple(answer),
        distractors=tuple(distractors),
    )


def _continuation(pair: PromptPair, kind: str, text: str, prompt: list[int], whole: list[int]) -> list[int]:
    """Tokens that `text` adds to the prompt."""
    if not _continues(prompt, whole):
        raise EdgepruneError(
            f"{_where(pair)}: {kind} {text!r} changes the tokens of the prompt before it; end the prompt at "
            "the end of a word and start the continuation with its space, or set add_special_tokens to false "
            "if the tokenizer closes every text"
        )
    if len(whole) == len(prompt):
        raise EdgepruneError(f"{_where(pair)}: {kind} {text!r} has no tokens; give at least one")
    return whole[len(prompt) :]


def _check_tokens(pair: PromptPair, ids: _Ids, tokenizer: "PreTrainedTokenizerBase") -> None:
    texts = (pair.clean, pair.corrupted, pair.answer, pair.distractor)
    for text, row in zip(texts, ids, strict=True):
        if has_unknown(row, tokenizer):
            raise EdgepruneError(
                f"{_where(pair)}: {text!r} holds a word unknown to the tokenizer (it becomes "
                f"{tokenizer.unk_token!r}); reword it"
            )
    if len(ids.clean) != len(ids.corrupted):
        raise EdgepruneError(
            f"{_where(pair)}: the clean prompt has {len(ids.clean)} tokens and the corrupted one "
            f"{len(ids.corrupted)}; reword one so that the numbers agree"
        )
    if ids.clean == ids.corrupted:
        raise EdgepruneError(
            f"{_where(pair)}: the clean and the corrupted prompt are identical; change what is asked for"
        )


def _where(pair: PromptPair) -> str:
    return pair.source or f"pair {textwrap.shorten(pair.clean, 60)!r}"
