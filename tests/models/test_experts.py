"""Mixtures of experts: whatever way the library multiplies, in the dtypes that it leaves weights in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeprune.models.families.gpt_oss import GptOss
from edgeprune.models.families.mixtral import Mixtral, Olmoe, Qwen2Moe, Qwen3Moe
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from tests.models.test_conformance import build, prompts, random_gates

FAMILIES = [Mixtral, Qwen2Moe, Qwen3Moe, Olmoe, GptOss]


def is_exact(model: MaskedModel) -> bool:
    clean, corrupted = prompts()
    expected = model.hf(clean).logits
    opened = model(clean, model.graph.all_open(), model.record(corrupted))
    return torch.equal(opened, expected) and torch.equal(model.full(clean), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_open_gates_are_exact_however_experts_are_multiplied(
    family: Any, implementation: str, dtype: torch.dtype
) -> None:
    model = build(family, 0, dtype)
    model.hf.set_experts_implementation(implementation)
    assert is_exact(model)
    clean, corrupted = prompts()
    gates = random_gates(model, fractional=True).float().requires_grad_()
    (gradient,) = torch.autograd.grad(model(clean, gates, model.record(corrupted)).float().sum(), gates)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_takes_experts_one_by_one(family: Any, tmp_path: Path) -> None:
    """For torch has no grouped products in float64, which is what the library takes unless told otherwise."""
    AutoModelForCausalLM.from_config(family.tiny()[0]).save_pretrained(tmp_path)
    assert load_model(tmp_path).hf.config._experts_implementation == "grouped_mm"
    assert is_exact(load_model(tmp_path, dtype="float64"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("index", [0, 1])
def test_norms_that_the_library_keeps_in_float32_stay_exact(index: int, dtype: str, tmp_path: Path) -> None:
    hf = build(GptOss, index, torch.float32).hf
    hf.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=dtype)
    norms = {weight.dtype for name, weight in model.hf.named_parameters() if "norm" in name}
    assert norms == {torch.float32 if dtype == "float16" else torch.bfloat16}
    assert is_exact(model)
    clean, corrupted = prompts()
    closed = model(clean, model.graph.all_closed(), model.record(corrupted))
    expected = model.full(corrupted)
    near = (closed - expected).abs() < 0.05 * expected.abs().max()
    assert near.float().mean() > 0.9  # a token may be rounded to another expert
