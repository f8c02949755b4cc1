"""What a tokenizer can make of a text at all, and whether it opens it with two BOS."""

import re
import warnings
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from datamodules.tasks.base import TokenPair

LOOKED_AT = 100  # pairs of a split, where all would be read from a file only for that
_HALF = re.compile("[\ud800-\udfff]")


def check_characters(texts: Sequence[str], source: str) -> None:
    """Refuse what is no text to a tokenizer: half of a surrogate pair, which a JSON escape can write.

    Raises:
        EdgepruneError: One of `texts` holds such a half; the message begins with `source`.
    """
    for text in texts:
        if not text.isascii() and _HALF.search(text):
            raise EdgepruneError(f"{source}: {text!a} holds half of a character; write the whole of it")


def has_unknown(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether `ids` holds the unknown token.

    Tokenizers that spell everything in bytes never need one and often name BOS or EOS as a stand-in, which is
    not counted.
    """
    return unknown_token(tokenizer) in ids


def unknown_token(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Id of the token for words that the tokenizer does not know; None if it needs none."""
    unknown: Any = tokenizer.unk_token_id
    return None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unknown


def warn_of_two_bos(
    splits: Iterable[Sequence["TokenPair"]], tokenizer: "PreTrainedTokenizerBase", add_special_tokens: bool | None
) -> None:
    """Warn where prompts begin with the BOS that the tokenizer adds, and once more with that which the text holds.

    The first pairs of each split are looked at.
    """
    bos: Any = tokenizer.bos_token_id
    options: dict[str, Any] = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
    opening: list[int] = tokenizer("", **options)["input_ids"][:1]
    if bos is None or opening != [bos]:
        return
    looked_at = [pair for pairs in splits for pair in islice(pairs, LOOKED_AT)]
    twice = sum((bos, bos) in (pair.clean[:2], pair.corrupted[:2]) for pair in looked_at)
    if twice:
        warnings.warn(
            f"{twice} of {len(looked_at)} pairs begin with {tokenizer.bos_token!r} twice: the text holds it and the "
            "tokenizer adds one; take it out of the text, or set add_special_tokens to false",
            stacklevel=2,
        )
