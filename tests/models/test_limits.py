"""Prompts that a model cannot take are refused in a sentence; padding may hold anything, and go on for ever."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.collate import collate
from datamodules.tasks.base import TokenPair
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import IGNORE
from edgeprune.errors import EdgepruneError
from edgeprune.models.family import registry
from edgeprune.models.masked import MaskedModel
from edgeprune.models.places import position_ids
from tests.models.test_conformance import CASES, build, prompts

CALLS: dict[str, Callable[[MaskedModel, Tensor, Tensor | None], Any]] = {
    "record": lambda model, ids, mask: model.record(ids, mask),
    "full": lambda model, ids, mask: model.full(ids, mask),
    "embeddings": lambda model, ids, mask: model.embeddings(ids, mask),
}


def with_table() -> list[Any]:
    return [case for case in CASES if case.values[0].num_positions(case.values[0].tiny()[case.values[1]]) is not None]


@pytest.mark.parametrize("call", ["record", "full", "embeddings"])
@pytest.mark.parametrize(("family", "index"), with_table())
def test_a_prompt_longer_than_the_table_is_named(family: Any, index: int, call: str) -> None:
    model = build(family, index)
    limit = model.family.num_positions(model.hf.config)
    ids, _ = prompts(3, limit + 2)
    said = f"prompt 0 of the batch has {limit + 2} tokens, model .* has {limit} positions: shorten the prompt"
    with pytest.raises(EdgepruneError, match=said):
        CALLS[call](model, ids, None)
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[2, :2] = 0  # only prompt 1 is too long
    with pytest.raises(EdgepruneError, match=f"prompt 1 of the batch has {limit + 2} tokens"):
        CALLS[call](model, ids, mask)


@pytest.mark.parametrize("value", [-1, 61])
@pytest.mark.parametrize("call", ["record", "full", "embeddings"])
@pytest.mark.parametrize(("family", "index"), CASES)
def test_a_token_without_an_embedding_is_named(family: Any, index: int, call: str, value: int) -> None:
    model = build(family, index)
    ids, _ = prompts(3, 5)
    ids[1, 2] = value
    with pytest.raises(EdgepruneError, match=f"prompt 1 of the batch has input id {value}, model .* knows 0 to 60"):
        CALLS[call](model, ids, None)


@pytest.mark.parametrize(("family", "index"), CASES)
def test_a_run_with_gates_refuses_both(family: Any, index: int) -> None:
    model = build(family, index)
    ids, other = prompts(3, 5)
    ablated = model.record(other)
    ids[2, 4] = 61
    with pytest.raises(EdgepruneError, match="prompt 2 of the batch has input id 61"):
        model(ids, model.graph.all_open(), ablated)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "index"), CASES)
def test_padding_may_be_long_and_hold_anything(family: Any, index: int, side: str) -> None:
    model = build(family, index)
    ids, _ = prompts(2, 5)
    padding = torch.full((2, 40), 1000)
    parts = [padding, ids] if side == "left" else [ids, padding]
    mask = torch.cat([torch.full_like(part, part is ids) for part in parts], 1)
    if family.positions_bound_padding:
        with pytest.raises(EdgepruneError, match=r"^prompts padded to 45 tokens: .* takes 32, padding included"):
            model.full(torch.cat(parts, 1), mask)
        return
    padded = model.full(torch.cat(parts, 1), mask)
    real = padded[:, 40:] if side == "left" else padded[:, :5]
    torch.testing.assert_close(real, model.full(ids), atol=1e-10, rtol=0)


def test_padding_has_the_positions_of_the_ends() -> None:
    """Where a rotary table depends on the last position, padding must not be the last."""
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 0, 1, 1]])
    expected = [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 2, 3]]
    assert position_ids(mask, mask).tolist() == expected
    assert position_ids(mask, None).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (TokenPair((3,) * 33, (4,) * 33, (1,), (2,), (3,)), "pair 1 has 33 tokens, model 'gpt2' has 32 positions"),
        (TokenPair((3, 61), (4, 5), (1,), (2,), (3,)), "pair 1 has input id 61, model 'gpt2' knows 0 to 60"),
        (TokenPair((3, 6), (4, 61), (1,), (2,), (3,)), "pair 1 has corrupted input id 61"),
        (TokenPair((3, 6), (4, 6), (1,), (61,), (3,)), "pair 1 has target id 61"),
        (TokenPair((3, 6), (4, 6), (1,), (IGNORE,), (61,)), "pair 1 has distractor id 61"),
        (TokenPair((3, 6), (4, 6), (1,), (2,), (3,), ((2, 61),)), "pair 1 has answer id 61"),
        (TokenPair((3, 6), (4, 6), (1,), (2,), (3,), (), ((3, 61),)), "pair 1 has wrong answer id 61"),
    ],
)
def test_runs_name_the_pair(pair: TokenPair, said: str) -> None:
    model = build(registry()["gpt2"], 0)
    good = TokenPair((3, 4, 5), (4, 4, 5), (2,), (2,), (3,))
    runs = ReferenceRuns(model, "interchange")
    with pytest.raises(EdgepruneError, match=said):
        runs(collate([(0, good), (1, pair)]), "train")


def test_a_padding_id_that_the_model_lacks_changes_nothing() -> None:
    model = build(registry()["gpt2"], 0)
    pairs = [TokenPair((3,) * n, (4,) * n, (1,), (2,), (3,)) for n in (3, 6)]
    found = [ReferenceRuns(model, "interchange")(collate(list(enumerate(pairs)), pad), "train")[0] for pad in (0, 1000)]
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)
