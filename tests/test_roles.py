"""Roles of a graph from the prompts of a task."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from datamodules.collate import collate
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.roles import REST, observed_roles, role_of
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
