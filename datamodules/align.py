"""Which corrupted token each clean token is compared with, where the two prompts of a pair differ in length.

Both prompts are cut into segments, and segments that face each other are laid end to end:

    clean      Mary  Ann  Lee  met        segments of 3 and 1 tokens
    corrupted        Kate Doe  met        ... face segments of 2 and 1
    alignment   0    0    1    2          the first corrupted position is repeated; of a longer one the left is cut off
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise

from edgeprune.errors import EdgepruneError

Span = tuple[int, int]  # first token and the one after the last


def align_ends(clean: Span, corrupted: Span) -> list[int]:
    """For each token of the segment `clean` the one of `corrupted` that it faces, counted from the end.

    Where `corrupted` is empty, that is the token before it.

    >>> align_ends((0, 3), (0, 2)), align_ends((0, 2), (0, 3)), align_ends((4, 5), (3, 3))
    ([0, 0, 1], [1, 2], [2])
    """
    first, end = corrupted
    lowest = first if first < end else max(0, first - 1)
    return [max(lowest, end - (clean[1] - i)) for i in range(*clean)]


def align_prompts(num_clean: int, num_corrupted: int, *, opening: int = 0) -> list[int]:
    """Align two prompts at their ends; the first `opening` tokens, such as BOS, face themselves."""
    return [*range(opening), *align_ends((opening, num_clean), (opening, num_corrupted))]


def align_roles(
    num_clean: int, num_corrupted: int, roles: Mapping[str, Span], corrupted_roles: Mapping[str, Span], *, opening: int
) -> list[int]:
    """Tokens of a role face tokens of that role; the segments before, between and after face each other in order.

    Args:
        num_clean: Tokens of the clean prompt.
        num_corrupted: Tokens of the corrupted prompt.
        roles: Where the roles lie in the clean prompt.
        corrupted_roles: Where they lie in the corrupted one, in any order.
        opening: So many first tokens, such as BOS, face themselves.

    Raises:
        EdgepruneError: Roles are missing or overlap, or the last tokens would not face each other.
    """
    if not roles or roles.keys() != corrupted_roles.keys():
        raise EdgepruneError(
            f"roles {_names(roles)} of the clean prompt and {_names(corrupted_roles)} of the corrupted one must be the "
            "same, at least one, to align the prompts by them; mark them in both, or set unequal_lengths to 'end'"
        )
    facing = {roles[name]: corrupted_roles[name] for name in roles}
    if any(facing[roles[name]] != corrupted_roles[name] for name in roles):
        raise EdgepruneError(f"roles {_names(roles)} share tokens in the clean prompt only; mark them apart")
    segments = _between(facing, opening, num_clean, "clean")
    others = _between(facing.values(), opening, num_corrupted, "corrupted")
    parts = sorted([*facing.items(), *zip(segments, others, strict=True)])
    alignment = [*range(opening), *(i for ours, theirs in parts for i in align_ends(ours, theirs))]
    if alignment[-1] != num_corrupted - 1:
        raise EdgepruneError(
            "a role ends one of the prompts but not the other, so their last tokens would not face each other; "
            "end both prompts with it or neither"
        )
    return alignment


def _between(spans: Iterable[Span], opening: int, end: int, kind: str) -> list[Span]:
    """The segments, maybe empty, before, between and after `spans`."""
    segments = [(a, b) for (_, a), (b, _) in pairwise([(0, opening), *sorted(spans), (end, end)])]
    if any(a > b for a, b in segments):
        raise EdgepruneError(f"roles overlap in the {kind} prompt, which cannot be aligned by them; mark them apart")
    return segments


def _names(roles: Mapping[str, Span]) -> str:
    return ", ".join(roles) or "(none)"
