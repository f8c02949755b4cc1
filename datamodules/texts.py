"""What a tokenizer can make of a text at all."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
