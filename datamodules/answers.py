"""Which tokens are right and wrong answers of a pair."""

import textwrap

from datamodules.tasks.base import PromptPair
from edgeprune.batch import IGNORE
from edgeprune.errors import EdgepruneError

Sets = tuple[tuple[int, ...], ...]


def check_answers(
    pair: PromptPair, answer: list[int], wrong: list[int] | None, other: list[int] | None, *, single: bool
) -> None:
    """Refuse answers that cannot be compared.

    Args:
        pair: The pair as text.
        answer: Tokens of its answer.
        wrong: Those of the distractor, if there is one.
        other: Those of the corrupted prompt's answer, if it is known.
        single: Refuse answers and distractors of several tokens.
    """
    if single:
        for kind, text, ids in (("answer", pair.answer, answer), ("distractor", pair.distractor, wrong)):
            if ids is not None and len(ids) != 1:
                raise EdgepruneError(
                    f"{pair.where}: {kind} {text!r} is {len(ids)} tokens after the prompt, this task needs one; "
                    "choose another word, or use a model with a larger vocabulary"
                )
    if wrong is not None and wrong[0] == answer[0]:
        raise EdgepruneError(
            f"{pair.where}: answer {pair.answer!r} and distractor {pair.distractor!r} start with the same "
            f"token ({answer[0]}), so their logits cannot be compared; choose another distractor or give none"
        )
    if other is not None and other[0] == answer[0]:
        raise EdgepruneError(
            f"{pair.where}: answer {pair.answer!r} and corrupted_answer {pair.corrupted_answer!r} start with the "
            f"same token ({answer[0]}); make the corrupted prompt ask for something else"
        )


def answer_sets(pair: PromptPair, answer: list[int], distractors: list[int], vocabulary: int) -> tuple[Sets, Sets]:
    """All right and all wrong tokens at each position of the answer; empty: the target alone, the distractor alone.

    Args:
        pair: The pair as text.
        answer: Tokens of its answer.
        distractors: For each of them the wrong token, or `IGNORE`.
        vocabulary: Number of token ids.
    """
    if not pair.answer_ids and not pair.wrong_ids:
        return (), ()
    right = _filled(pair, "answer_ids", pair.answer_ids, answer, vocabulary)
    wrong = _filled(pair, "wrong_ids", pair.wrong_ids, distractors, vocabulary)
    for target, ids in zip(answer, right, strict=True):
        if target not in ids:
            raise EdgepruneError(
                f"{pair.where}: answer {pair.answer!r} has the token {target}, which is not among its answer_ids "
                f"{textwrap.shorten(str(ids), 60)}; add it"
            )
    for ids, wrong_ids, distractor in zip(right, wrong, distractors, strict=True):
        both = set(ids) & {*wrong_ids, distractor}
        if both:
            raise EdgepruneError(
                f"{pair.where}: token {min(both)} is both a right and a wrong answer; take it out of one of them"
            )
    return (right if pair.answer_ids else ()), (wrong if pair.wrong_ids else ())


def _filled(pair: PromptPair, kind: str, sets: Sets, alone: list[int], vocabulary: int) -> Sets:
    """`sets` without repeated ids, and with the one of `alone` where there is no set."""
    if sets and len(sets) != len(alone):
        raise EdgepruneError(
            f"{pair.where}: {kind} has {len(sets)} sets for an answer of {len(alone)} tokens; give one for each"
        )
    for ids in sets:
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            raise EdgepruneError(
                f"{pair.where}: {kind} {textwrap.shorten(str(ids), 60)} must lie in 0..{vocabulary - 1}, the "
                "vocabulary of this tokenizer"
            )
    known = [() if token == IGNORE else (token,) for token in alone]
    return tuple(tuple(dict.fromkeys(ids)) or single for ids, single in zip(sets or known, known, strict=True))
