"""Phi-3 with `longrope`: which of its two rotary tables a prompt gets."""

import pytest
import torch

from edgeprune.models.families.phi3 import Phi3
from tests.models.test_conformance import build, prompts

SWITCH = 12  # tokens that the short table is for


@pytest.mark.parametrize("seq", [SWITCH, SWITCH + 1])
def test_the_table_is_that_of_the_longest_prompt(seq: int) -> None:
    model = build(Phi3, 1, torch.float32)
    ids, _ = prompts(2, seq)
    alone = model.full(ids[1:, :5])
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    beside = model.full(ids, mask)[1:, :5]
    assert ((alone - beside).abs().max() < 1e-5) == (seq == SWITCH)
    assert torch.equal(model.full(ids), model.hf(ids).logits)
    assert torch.equal(model.full(ids[:, :5]), model.hf(ids[:, :5]).logits)  # and back: the module keeps the table
