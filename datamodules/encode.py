"""From text to tokens: `PromptPair` to `TokenPair`, refusing whatever would make the comparison meaningless.

The answer may be several tokens. They are teacher-forced: all but the last follow both prompts, and the
logits are scored at the last prompt token and at each of them.

    clean      When Mary and John ... to | An na     scored: "to" -> "An", "An" -> "na", "na" -> "belle"
    corrupted  When Kate and Paul ... to | An na     (answer " Annabelle" = An na belle)
"""

import gc
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

from datamodules.align import Span, align_prompts, align_roles
from datamodules.answers import answer_sets, check_answers
from datamodules.tasks.base import PromptPair, TokenPair
from datamodules.texts import check_characters, unknown_token
from edgeprune.batch import IGNORE
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

UnequalLengths = Literal["error", "end", "roles"]
CHUNK = 4096  # pairs tokenised in one call: what a tokenizer returns takes some 2 kB per text


@contextmanager
def gc_paused() -> Generator[None]:
    """Pause the garbage collector, which takes a third of the time where a million objects are made."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def encode_pairs(
    pairs: Sequence[PromptPair],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    add_special_tokens: bool | None = None,
    single_token_answers: bool = False,
    unequal_lengths: UnequalLengths = "error",
) -> list[TokenPair]:
    """Tokenise pairs, each different text once.

    A space that ends the prompt goes over to the answer where the tokenizer would join them (`"= "` and
    `"3"`): the whole text stays what it was.

    `answers` and `wrong_answers` stay empty (the target alone, the distractor alone) for a pair without `answer_ids`
    and `wrong_ids`; an empty entry of these stands for the target alone and the distractor alone, too. A tokenizer
    that does not say where its tokens lie in the text (a slow one) gives no roles.

    Args:
        pairs: Pairs as text.
        tokenizer: Any Hugging Face tokenizer.
        add_special_tokens: Add what the tokenizer puts around a text, such as BOS; None for its own default.
        single_token_answers: Refuse answers and distractors of several tokens.
        unequal_lengths: What to do with prompts of different length, which the corrupted run keeps. `"error"`: refuse
            them. `"end"`: compare positions counted from the end. `"roles"`: compare roles with roles, and the
            segments between them counted from their ends; a pair of equal length that does not mark
            `corrupted_roles` stays aligned token for token.

    Raises:
        EdgepruneError: A pair is not usable; the message says which, where it comes from and why.
    """
    rules = _Rules(tokenizer, add_special_tokens, single_token_answers, unequal_lengths)
    return [
        pair for start in range(0, len(pairs), CHUNK) for pair in _encode_chunk(pairs[start : start + CHUNK], rules)
    ]


@final
@dataclass(frozen=True)
class _Rules:
    """Settings of one encoding, with what is asked of the tokenizer only once."""

    tokenizer: "PreTrainedTokenizerBase"
    add_special_tokens: bool | None
    single_token_answers: bool
    unequal_lengths: UnequalLengths

    @cached_property
    def unknown(self) -> int | None:
        """Token of words that the tokenizer does not know."""
        return unknown_token(self.tokenizer)

    @cached_property
    def special(self) -> frozenset[int]:
        """Tokens such as BOS."""
        return frozenset(self.tokenizer.all_special_ids)

    @cached_property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return len(self.tokenizer)


class _Continuation(NamedTuple):
    """A text that follows a prompt."""

    kind: str  # the field of the pair
    prompt: str
    text: str

    @property
    def whole(self) -> str:
        return self.prompt + self.text


def _continuations(pair: PromptPair) -> Iterator[_Continuation]:
    yield _Continuation("answer", pair.clean, pair.answer)
    if pair.distractor is not None:
        yield _Continuation("distractor", pair.clean, pair.distractor)
    if pair.corrupted_answer is not None:
        yield _Continuation("corrupted_answer", pair.corrupted, pair.corrupted_answer)


@final
class _Texts:
    """Texts and their tokens, each different text once."""

    def __init__(self, texts: Iterator[str], rules: _Rules) -> None:
        self.rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        options: dict[str, Any] = {"return_attention_mask": False}
        if rules.add_special_tokens is not None:
            options["add_special_tokens"] = rules.add_special_tokens
        self.batch: BatchEncoding = rules.tokenizer(list(self.rows), **options)
        self._ids: list[list[int]] = self.batch["input_ids"]

    def ids(self, text: str) -> list[int]:
        return self._ids[self.rows[text]]

    def spans(self, text: str, roles: Mapping[str, Span]) -> dict[str, Span]:
        """Tokens that hold a character of each role; an empty span where there are none."""
        encodings = self.batch.encodings
        if not roles or not encodings:
            return {}
        offsets: list[Span] = encodings[self.rows[text]].offsets
        return {name: _covering(offsets, *span) for name, span in roles.items()}


def _covering(offsets: Sequence[Span], start: int, end: int) -> Span:
    # Offsets and not `char_to_token`: of a character that is several tokens (bytes) that gives only the first.
    tokens = [i for i, (first, last) in enumerate(offsets) if first < end and last > start and first < last]
    return (tokens[0], tokens[-1] + 1) if tokens else (0, 0)


# -------------------------------------------------------------------- texts
def _encode_chunk(pairs: Sequence[PromptPair], rules: _Rules) -> list[TokenPair]:
    for pair in pairs:
        _check_text(pair)
    texts = _tokenise(pairs, rules)
    moved = {
        i: _move_space(pair)
        for i, pair in enumerate(pairs)
        if pair.clean[-1].isspace() and not _continues(texts.ids(pair.clean), texts.ids(pair.clean + pair.answer))
    }
    moved_texts = _tokenise(list(moved.values()), rules) if moved else texts
    return [
        _encode(moved[i], moved_texts, rules) if i in moved else _encode(pair, texts, rules)
        for i, pair in enumerate(pairs)
    ]


def _check_text(pair: PromptPair) -> None:
    texts = pair.clean, pair.corrupted, pair.answer, pair.distractor or "", pair.corrupted_answer or ""
    check_characters(texts, pair.where)
    for kind, text, roles in (
        ("clean", pair.clean, pair.roles),
        ("corrupted", pair.corrupted, pair.corrupted_roles),
    ):
        if not text.strip():
            raise EdgepruneError(f"{pair.where}: the {kind} prompt is empty; put some text before the answer")
        for name, (start, end) in roles.items():
            if not 0 <= start < end <= len(text):
                raise EdgepruneError(
                    f"{pair.where}: role {name!r} covers characters {start} to {end} of the {kind} prompt, which has "
                    f"{len(text)}; give the first character and the one after the last"
                )


def _tokenise(pairs: Sequence[PromptPair], rules: _Rules) -> _Texts:
    def needed() -> Iterator[str]:
        for pair in pairs:
            yield from (pair.clean, pair.corrupted, *(item.whole for item in _continuations(pair)))

    return _Texts(needed(), rules)


def _continues(start: list[int], whole: list[int]) -> bool:
    return whole[: len(start)] == start


def _move_space(pair: PromptPair) -> PromptPair:
    """Move the white space that ends the prompts to the start of the answers."""
    prompt = pair.clean.rstrip()
    space = pair.clean[len(prompt) :]
    corrupted = pair.corrupted.removesuffix(space)
    other = pair.corrupted_answer
    return replace(
        pair,
        clean=prompt,
        corrupted=corrupted,
        answer=space + pair.answer,
        distractor=None if pair.distractor is None else space + pair.distractor,
        corrupted_answer=None if other is None else pair.corrupted[len(corrupted) :] + other,
        roles={name: (start, min(end, len(prompt))) for name, (start, end) in pair.roles.items()},
        corrupted_roles={
            name: (start, min(end, len(corrupted))) for name, (start, end) in pair.corrupted_roles.items()
        },
    )


# -------------------------------------------------------------------- one pair
def _encode(pair: PromptPair, texts: _Texts, rules: _Rules) -> TokenPair:
    clean, corrupted = texts.ids(pair.clean), texts.ids(pair.corrupted)
    added = {item.kind: _added_tokens(pair, item, texts) for item in _continuations(pair)}
    answer, wrong = added["answer"], added.get("distractor")
    _check_known(pair, texts, rules)
    check_answers(pair, answer, wrong, added.get("corrupted_answer"), single=rules.single_token_answers)
    alignment = _alignment(pair, texts, rules)
    distractors = [IGNORE] * len(answer)
    if wrong is not None:
        distractors[0] = wrong[0]
    answers, wrong_answers = answer_sets(pair, answer, distractors, rules.vocabulary)
    last_of_prompt = len(clean) - 1
    return TokenPair(
        clean=(*clean, *answer[:-1]),
        corrupted=(*corrupted, *answer[:-1]),
        positions=tuple(range(last_of_prompt, last_of_prompt + len(answer))),
        targets=tuple(answer),
        distractors=tuple(distractors),
        answers=answers,
        wrong_answers=wrong_answers,
        roles=_role_tokens(pair, "clean", texts),
        alignment=(*alignment, *range(len(corrupted), len(corrupted) + len(answer) - 1)) if alignment else (),
    )


def _added_tokens(pair: PromptPair, item: _Continuation, texts: _Texts) -> list[int]:
    """Tokens that a text adds to its prompt."""
    start, whole = texts.ids(item.prompt), texts.ids(item.whole)
    if not _continues(start, whole):
        raise EdgepruneError(
            f"{pair.where}: {item.kind} {item.text!r} changes the tokens of the prompt before it; end the prompt at "
            "the end of a word and start the continuation with its space, or set add_special_tokens to false "
            "if the tokenizer closes every text"
        )
    if len(whole) == len(start):
        raise EdgepruneError(f"{pair.where}: {item.kind} {item.text!r} has no tokens; give at least one")
    return whole[len(start) :]


def _check_known(pair: PromptPair, texts: _Texts, rules: _Rules) -> None:
    if rules.unknown is None:
        return
    shown = [(pair.clean, pair.clean), (pair.corrupted, pair.corrupted)]
    for text, whole in (*shown, *((item.text, item.whole) for item in _continuations(pair))):
        if rules.unknown in texts.ids(whole):
            raise EdgepruneError(
                f"{pair.where}: {text!r} holds a word unknown to the tokenizer (it becomes "
                f"{rules.tokenizer.unk_token!r}); reword it"
            )


# -------------------------------------------------------------------- roles and lengths
def _role_tokens(pair: PromptPair, kind: Literal["clean", "corrupted"], texts: _Texts) -> dict[str, Span]:
    text, roles = (pair.clean, pair.roles) if kind == "clean" else (pair.corrupted, pair.corrupted_roles)
    spans = texts.spans(text, roles) if roles else {}
    for name, (start, end) in spans.items():
        if start == end:
            first, last = roles[name]
            raise EdgepruneError(
                f"{pair.where}: role {name!r} covers no token of the {kind} prompt, only {text[first:last]!r}; "
                "mark some text"
            )
    return spans


def _alignment(pair: PromptPair, texts: _Texts, rules: _Rules) -> tuple[int, ...]:
    """For each clean prompt token the corrupted one that it is compared with; empty for the same index."""
    clean, corrupted = texts.ids(pair.clean), texts.ids(pair.corrupted)
    if clean == corrupted:
        raise EdgepruneError(
            f"{pair.where}: the clean and the corrupted prompt are identical; change what is asked for"
        )
    equal = len(clean) == len(corrupted)
    if not equal and rules.unequal_lengths == "error":
        raise EdgepruneError(
            f"{pair.where}: the clean prompt has {len(clean)} tokens and the corrupted one "
            f"{len(corrupted)}; reword one so that the numbers agree, or set unequal_lengths to 'end' or 'roles'"
        )
    if equal and (rules.unequal_lengths != "roles" or not pair.corrupted_roles):
        return ()
    opening = _shared_opening(clean, corrupted, rules.special)
    if rules.unequal_lengths == "end":
        return tuple(align_prompts(len(clean), len(corrupted), opening=opening))
    found = _align_by_roles(pair, texts, opening)
    return () if equal and found == list(range(len(clean))) else tuple(found)


def _align_by_roles(pair: PromptPair, texts: _Texts, opening: int) -> list[int]:
    if not texts.batch.encodings:
        raise EdgepruneError(
            "unequal_lengths is 'roles', but this tokenizer does not say where its tokens lie in the text: use a fast "
            "tokenizer, or set it to 'end'"
        )
    roles, others = _role_tokens(pair, "clean", texts), _role_tokens(pair, "corrupted", texts)
    sizes = len(texts.ids(pair.clean)), len(texts.ids(pair.corrupted))
    opening = min([opening, *(start for start, _ in (*roles.values(), *others.values()))])
    try:
        return align_roles(*sizes, roles, others, opening=opening)
    except EdgepruneError as error:
        raise EdgepruneError(f"{pair.where}: {error}") from None


def _shared_opening(clean: Sequence[int], corrupted: Sequence[int], special: frozenset[int]) -> int:
    """How many special tokens, such as BOS, open both prompts; the last token of a prompt is never counted."""
    count = 0
    while count < min(len(clean), len(corrupted)) - 1 and clean[count] == corrupted[count] and clean[count] in special:
        count += 1
    return count
