"""Roles of a graph from the prompts of a task."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from datamodules.collate import collate
from datamodules.tasks.base import TokenPair
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph, RoleSpec
from edgeprune.roles import REST, observed_roles, role_of, roles_in, roles_of_option
from tests.reading.small import SPANS, pairs


def batches(roles: dict[str, tuple[int, int]] | None = None) -> list[PairBatch]:
    numbered = list(enumerate(pairs(roles=roles)))
    return [collate(numbered[:3]), collate(numbered[3:])]


def test_every_token_has_the_first_of_its_roles() -> None:
    for batch in batches():
        found = role_of(batch, (*SPANS, REST))
        assert found.dtype == torch.long
        for row, real in zip(found.tolist(), batch.attention_mask.bool().tolist(), strict=True):
            start = real.index(True)  # padding may be on the left
            assert row[start : start + 6] == [3, 0, 1, 1, 2, 3]
            assert {role for role, is_real in zip(row, real, strict=True) if not is_real} <= {3}


def test_prompts_say_what_sees_what_and_what_is_scored() -> None:
    found = observed_roles(batches())
    assert found.names == (*SPANS, REST)
    assert found.sees == (("IO", REST), ("IO", "S1", REST), ("IO", "S1", "S2", REST), (*SPANS, REST))
    assert found.scored == ("S2", REST)  # token 4 is one of the last two of a prompt of 6, and of S2
    some = observed_roles(batches(), ["S2"])
    assert some.names == ("S2", REST)
    assert some.sees == (("S2", REST), ("S2", REST))
    only_last = [batch.rows(slice(1, 2)) for batch in batches()]
    assert observed_roles(only_last).scored == (REST,)


def test_orders_of_all_batches_count() -> None:
    batch = batches({"A": (1, 2), "B": (2, 3)})[0]
    other = replace(batch, roles={"A": batch.roles["B"], "B": batch.roles["A"]})
    apart, both = observed_roles([batch]), observed_roles([batch, other])
    assert apart.sees[0] == ("A", REST)
    assert both.sees[0] == both.sees[1] == ("A", "B", REST)


@pytest.mark.parametrize(
    ("roles", "names", "message"),
    [
        ({}, None, "the task marks no position roles"),
        ({}, ["S1"], "no prompt has a role 'S1'; this task's are none"),
        (None, ["S1", "S3"], "no prompt has a role 'S3'; this task's are IO, S1, S2"),
        ({"rest": (0, 1)}, None, "a role of the task is called 'rest'"),
    ],
)
def test_roles_that_are_not_there_are_refused(roles: Any, names: list[str] | None, message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        observed_roles(batches(roles), names)


# ---------------------------------------------------------------- the option
def of_length(*lengths: int) -> PairBatch:
    """Prompts of these lengths, scored at the last token; the pad id is on the right."""
    pairs = [TokenPair((5,) * size, (6,) * size, (size - 1,), (1,), (2,)) for size in lengths]
    return collate(list(enumerate(pairs)))


def test_the_option_says_which_roles() -> None:
    prompts = batches()
    assert roles_of_option(None, prompts) is None
    assert roles_of_option(False, prompts) is None
    for option, names in ((True, None), (["S2", "IO"], ("S2", "IO"))):
        found, expected = roles_of_option(option, prompts), observed_roles(prompts, names)
        assert found is not None
        assert found.to_dict() == expected.to_dict()


def test_every_position_is_a_role() -> None:
    spec = roles_of_option("positions", [of_length(4, 4), of_length(4)])
    assert spec is not None
    assert spec.names == ("p0", "p1", "p2", "p3")  # and no `rest`: all tokens have a position
    assert spec.sees == (("p0",), ("p0", "p1"), ("p0", "p1", "p2"), spec.names)
    assert spec.scored == ("p3",)
    assert RoleSpec.from_dict(spec.to_dict()) == spec
    assert role_of(of_length(4, 4), spec.names).tolist() == [[0, 1, 2, 3]] * 2
    graph = EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1), spec)
    found = roles_in(graph, of_length(4))
    assert found is not None
    assert found.tolist() == [[0, 1, 2, 3]]
    assert graph.edge_name(3, *graph.without_roles.index("embed->logits")) == "embed->logits@p3"


@pytest.mark.parametrize("side", [0, 2])
def test_positions_begin_at_the_first_token(side: int) -> None:
    """Padding is on either side, and has some role that is there."""
    batch = of_length(4)
    wide = torch.nn.functional.pad
    padding = (side, 2 - side)
    padded = replace(batch, clean=wide(batch.clean, padding), attention_mask=wide(batch.attention_mask, padding))
    found = role_of(padded, ("p0", "p1", "p2", "p3"))
    assert found[0, side : side + 4].tolist() == [0, 1, 2, 3]
    assert found.min() >= 0
    assert found.max() <= 3


def test_positions_need_one_length() -> None:
    message = "need prompts of one length, got 4 and 6 tokens"
    for prompts in ([of_length(4, 6)], [of_length(4), of_length(6)]):
        with pytest.raises(EdgepruneError, match=message):
            roles_of_option("positions", prompts)
    with pytest.raises(EdgepruneError, match=message):
        role_of(of_length(6), ("p0", "p1", "p2", "p3"))
    with pytest.raises(EdgepruneError, match="there are none"):
        roles_of_option("positions", [])


@pytest.mark.parametrize("option", ["S2", [], 3, [1]])
def test_what_says_no_roles_is_refused(option: Any) -> None:
    with pytest.raises(EdgepruneError, match="roles must be true, a list of the task's roles, or 'positions'"):
        roles_of_option(option, batches())
