"""Rotary positions that are stretched for long prompts: as the library has them, at every length, in any order."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from edgeprune.errors import EdgepruneError
from edgeprune.models.families.llama import Llama
from edgeprune.models.masked import MaskedModel
from edgeprune.models.places import position_ids
from tests.models.reference import in_float64, slow_logits
from tests.models.test_conformance import prompts, random_gates

TRAINED = {"factor": 4.0, "original_max_position_embeddings": 8}
STRETCHED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": TRAINED,
    "llama3": {**TRAINED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {**TRAINED, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]},
}
POSITIONS = 16


def stretched(kind: str, dtype: torch.dtype = torch.float32, implementation: str = "sdpa") -> Any:
    """A tiny random model of 16 positions; some kinds were trained with 8."""
    torch.manual_seed(0)
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 100.0, **STRETCHED[kind]}
    shape: dict[str, Any] = {**Llama.shape(), "max_position_embeddings": POSITIONS, "num_key_value_heads": 2}
    hf = AutoModelForCausalLM.from_config(
        LlamaConfig(**shape, rope_parameters=rope), attn_implementation=implementation
    )
    for parameter in hf.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return (in_float64(hf) if dtype == torch.float64 else hf.to(dtype)).eval()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", STRETCHED)
def test_open_gates_leave_logits_untouched_whatever_came_before(
    kind: str, dtype: torch.dtype, implementation: str
) -> None:
    fresh = stretched(kind, dtype, implementation)
    model = MaskedModel(copy.deepcopy(fresh))
    for seq in (5, POSITIONS, 7, 8, 9, 5):
        clean, corrupted = prompts(3, seq)
        mask = torch.ones_like(clean)
        mask[1, : seq // 2] = 0
        options = {"attention_mask": mask, "position_ids": position_ids(clean, mask)}
        expected = copy.deepcopy(fresh)(clean, **options).logits
        opened = model(clean, model.graph.all_open(), model.record(corrupted, mask), mask)
        assert torch.equal(opened, expected)
        assert torch.equal(model.full(clean, mask), expected)


@pytest.mark.parametrize("seq", [5, 12])
@pytest.mark.parametrize("kind", STRETCHED)
def test_equals_the_sum_over_edges(kind: str, seq: int) -> None:
    model = MaskedModel(stretched(kind, torch.float64))
    clean, corrupted = prompts(3, seq)
    gates, ablated = random_gates(model, fractional=True), model.record(corrupted)
    expected = slow_logits(model, clean, gates, ablated)
    torch.testing.assert_close(model(clean, gates, ablated), expected, atol=1e-10, rtol=0)


def test_a_dynamic_table_is_not_outgrown() -> None:
    """The library's then holds other numbers, for later prompts too."""
    hf = stretched("dynamic")
    model = MaskedModel(copy.deepcopy(hf))
    clean, _ = prompts(3, POSITIONS)
    longer, _ = prompts(3, POSITIONS + 1)
    before = hf(clean).logits
    hf(longer)
    assert not torch.equal(hf(clean).logits, before)
    with pytest.raises(EdgepruneError, match=f"has {POSITIONS + 1} tokens, model .* has {POSITIONS} positions"):
        model.full(longer)
    assert torch.equal(model.full(clean), before)
