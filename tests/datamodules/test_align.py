import pytest

from datamodules.align import align_ends, align_prompts, align_roles
from edgeprune.errors import EdgepruneError


@pytest.mark.parametrize(
    ("clean", "corrupted", "expected"),
    [
        ((0, 3), (0, 3), [0, 1, 2]),
        ((0, 3), (0, 2), [0, 0, 1]),  # shorter: its first token is repeated
        ((0, 2), (0, 4), [2, 3]),  # longer: its left part is cut off
        ((2, 4), (5, 6), [5, 5]),
        ((2, 4), (5, 5), [4, 4]),  # nothing to face: the token before
        ((0, 1), (0, 0), [0]),
        ((3, 3), (1, 2), []),
    ],
)
def test_ends_face_each_other(clean: tuple[int, int], corrupted: tuple[int, int], expected: list[int]) -> None:
    assert align_ends(clean, corrupted) == expected


def test_what_opens_both_prompts_faces_itself() -> None:
    assert align_prompts(4, 6, opening=1) == [0, 3, 4, 5]
    assert align_prompts(4, 2, opening=1) == [0, 1, 1, 1]
    assert align_prompts(4, 6) == [2, 3, 4, 5]


def test_roles_face_roles_by_hand() -> None:
    # clean      BOS When | Mary Ann | and | John | met
    # corrupted  BOS When then | Kate | and so | Lee Roy Fox | met now
    roles, others = {"io": (2, 4), "s": (5, 6)}, {"io": (3, 4), "s": (6, 9)}
    assert align_roles(7, 11, roles, others, opening=1) == [0, 2, 3, 3, 5, 8, 10]


def test_roles_may_stand_in_another_order() -> None:
    # clean  io | and | s | met      corrupted  s s | and | io | met
    roles, others = {"io": (0, 1), "s": (2, 3)}, {"s": (0, 2), "io": (3, 4)}
    assert align_roles(4, 5, roles, others, opening=0) == [3, 2, 1, 4]


def test_two_names_for_the_same_tokens() -> None:
    roles, others = {"s": (0, 1), "subject": (0, 1)}, {"s": (1, 2), "subject": (1, 2)}
    assert align_roles(2, 3, roles, others, opening=0) == [1, 2]


def test_a_role_that_ends_both_prompts() -> None:
    assert align_roles(3, 2, {"end": (2, 3)}, {"end": (1, 2)}, opening=0) == [0, 0, 1]


Roles = dict[str, tuple[int, int]]
WRONG: dict[str, tuple[Roles, Roles, str]] = {
    "none": ({}, {}, r"roles \(none\) of the clean prompt and \(none\)"),
    "one is missing": ({"a": (0, 1), "b": (1, 2)}, {"a": (0, 1)}, "roles a, b .* and a of .* must be the same"),
    "overlap": ({"a": (0, 2), "b": (1, 3)}, {"a": (0, 1), "b": (1, 2)}, "overlap in the clean prompt"),
    "overlap there": ({"a": (0, 1), "b": (1, 2)}, {"a": (0, 2), "b": (1, 3)}, "overlap in the corrupted prompt"),
    "same tokens here only": ({"a": (0, 1), "b": (0, 1)}, {"a": (0, 1), "b": (1, 2)}, "share tokens in the clean"),
    "same tokens there only": ({"a": (0, 1), "b": (1, 2)}, {"a": (0, 1), "b": (0, 1)}, "overlap in the corrupted"),
    "ends one prompt": ({"a": (3, 4)}, {"a": (1, 2)}, "ends one of the prompts but not the other"),
}


@pytest.mark.parametrize(("roles", "others", "message"), WRONG.values(), ids=WRONG)
def test_roles_that_cannot_be_aligned(roles: Roles, others: Roles, message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        align_roles(4, 5, roles, others, opening=0)
