"""Tokenizers of GGUF files, where transformers does not read all that the file says, or not in every release."""

from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, pre_tokenizers
from transformers import AutoTokenizer, GemmaTokenizer

Kind = Literal["smollm", "gemma"]
SPACE = "\u2581"  # how a vocabulary of sentencepiece writes it


def read_gguf_tokenizer(file: Path, kind: Kind) -> Any:
    """The tokenizer in a GGUF file.

    Args:
        file: The GGUF file.
        kind: `"smollm"`, with every digit on its own, or `"gemma"`, sentencepiece without merges.
    """
    return _smollm(file) if kind == "smollm" else _gemma(file)


def _smollm(file: Path) -> Any:
    """Split off every digit first: the file asks for it (pre-tokenizer "smollm"), transformers does not look.

    It matters only for runs of white space before a digit, as the vocabulary has no token of several digits.
    """
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def _gemma(file: Path) -> Any:
    """From the vocabulary, whose order is that of the merges; every text begins with `<bos>`.

    Earlier releases of transformers make a unigram model of the file, which cuts text into characters.
    """
    from gguf import GGUFReader, TokenType

    fields = GGUFReader(file).fields
    tokens, kinds = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    ids = {token.replace(" ", SPACE): position for position, token in enumerate(tokens)}
    cuts = ((token[:cut], token[cut:]) for token in ids for cut in range(1, len(token)))
    merges: list[Any] = [(left, right) for left, right in cuts if left in ids and right in ids]
    tokenizer = GemmaTokenizer(vocab=ids, merges=merges, add_bos_token=True)
    whole = {TokenType.CONTROL: True, TokenType.USER_DEFINED: False}  # never cut; whether they are special
    added: list[Any] = [
        AddedToken(token, normalized=False, special=whole[TokenType(kind)])
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in whole and " " not in token  # a run of spaces is spelled as such, and found by merges
    ]
    tokenizer.add_tokens(added)
    return tokenizer
