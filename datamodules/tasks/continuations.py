"""From answers as text to token ids and back, judged by what the tokenizer does after the prompt itself.

`" Mary"` is one token after `"... gave the book to"`, whatever it is on its own; and `"3"` after `"1 + 2 = "` is the
token `" 3"` where the tokenizer joins a space with what follows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from datamodules.texts import has_unknown
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Continuation(NamedTuple):
    """A text that follows a prompt, and where both come from."""

    prompt: str
    text: str
    source: str


def added_tokens(
    continuations: Sequence[Continuation], tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[int, ...] | None]:
    """The tokens that each text adds to its prompt; None where it changes the tokens of the prompt."""
    if not continuations:
        return []
    columns = (
        [item.prompt for item in continuations],
        [item.prompt.rstrip() for item in continuations],
        [item.prompt + item.text for item in continuations],
    )
    texts = list(dict.fromkeys(text for column in columns for text in column))
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    known = dict(zip(texts, ids, strict=True))
    return [
        _rest(known[whole], (known[prompt], known[stripped])) for prompt, stripped, whole in zip(*columns, strict=True)
    ]


def single_tokens(continuations: Sequence[Continuation], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The one token that each text adds to its prompt.

    Raises:
        EdgepruneError: A text is no token, several, or unknown to the tokenizer.
    """
    found: list[int] = []
    for item, ids in zip(continuations, added_tokens(continuations, tokenizer), strict=True):
        if ids is None or len(ids) != 1:
            count = "changes the tokens of the prompt" if ids is None else f"is {len(ids)} tokens"
            raise EdgepruneError(
                f"{item.source}: answer {item.text!r} {count} after its prompt, one is needed; "
                "check its leading space, or choose another word"
            )
        if has_unknown(ids, tokenizer):
            raise EdgepruneError(
                f"{item.source}: the tokenizer does not know the answer {item.text!r}; choose another word"
            )
        found.append(ids[0])
    return found


def check_ids(ids: Sequence[int], source: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse token ids that are not in the vocabulary."""
    outside = [token for token in ids if not 0 <= token < len(tokenizer)]
    if outside:
        raise EdgepruneError(
            f"{source}: token id {outside[0]} is outside 0..{len(tokenizer) - 1}, this tokenizer's vocabulary; "
            "use the tokenizer that the file was made with"
        )


def texts_of(ids: Sequence[tuple[str, int, str]], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The text that the tokenizer turns into a given token id after a prompt.

    Args:
        ids: Prompt, token id and source, for error messages.
        tokenizer: Any Hugging Face tokenizer.

    Raises:
        EdgepruneError: No text becomes this token there.
    """
    decoded = {token: str(tokenizer.decode([token])) for _, token, _ in ids}
    forms = [_forms(decoded[token], prompt) for prompt, token, _ in ids]
    tries = [
        Continuation(prompt, text, source)
        for (prompt, _, source), texts in zip(ids, forms, strict=True)
        for text in texts
    ]
    added = added_tokens(tries, tokenizer)
    found: list[str] = []
    for i, (_, token, source) in enumerate(ids):
        fitting = [j for j in range(3 * i, 3 * i + 3) if tries[j].text and added[j] == (token,)]
        if not fitting:
            raise EdgepruneError(
                f"{source}: token id {token} ({decoded[token]!r}) is not what any text becomes after this prompt; "
                "check that the ids belong to this model's tokenizer"
            )
        found.append(tries[fitting[0]].text)
    return found


def _forms(text: str, prompt: str) -> list[str]:
    """What to try: a tokenizer may drop a word's leading space in decoding, and the prompt may end with that space."""
    forms = [text, f" {text}", text.removeprefix(" ")]
    return forms[::-1] if prompt[-1:].isspace() else forms


def _rest(whole: list[int], starts: tuple[list[int], ...]) -> tuple[int, ...] | None:
    """What follows the first of `starts` that `whole` begins with."""
    for start in starts:
        if whole[: len(start)] == start:
            return tuple(whole[len(start) :])
    return None
