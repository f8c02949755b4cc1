"""Activation and path patching against TransformerLens."""

from typing import Literal

import pytest
import torch

import edgeprune as ep
from edgeprune.patching.run import Kind
from tests.references.tiny_models import MODELS, close, model, numbers, problem

SWEEPS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "resid_pre": ("residual", ("layer", "position")),
    "attn_out": ("attention_out", ("layer", "position")),
    "mlp_out": ("mlp_out", ("layer", "position")),
    "z": ("z", ("layer", "head")),
    "z_pos": ("z", ("layer", "head", "position")),
    "q": ("q", ("layer", "head")),
    "k": ("k", ("layer", "head")),
    "v": ("v", ("layer", "head")),
}
TOLERANCE = {"gpt2": 5e-7, "llama": 2e-6}  # float32 remains in losses and in Llama's norms


def expected(key: str) -> torch.Tensor:
    """Values of the file; NaN for null."""
    return torch.tensor(with_nan(numbers("transformer_lens_patching")["values"][key]), dtype=torch.float64)


def with_nan(value: object) -> object:
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return float("nan") if value is None else value


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("name", MODELS)
def test_activations(name: str, sweep: str) -> None:
    what, by = SWEEPS[sweep]
    found = ep.patching.activation(problem(model(name)), what, by, direction="denoising").values
    theirs = expected(f"{name}/{sweep}")
    if sweep == "resid_pre":
        found = found[:-1]  # ours has the end of the stream too
    elif sweep == "z_pos":
        found = found.transpose(1, 2)
    close(found[:, : theirs.shape[1]], theirs, TOLERANCE[name])  # theirs has two of Llama's four keys and values
    assert found.shape[1] == theirs.shape[1] or (name == "llama" and sweep in "kv")


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
@pytest.mark.parametrize("receiver", ["logits", "a2.h1.q", "m2"])
@pytest.mark.parametrize("name", MODELS)
def test_paths(name: str, receiver: str, mlps: Literal["recompute", "freeze"]) -> None:
    found = ep.patching.path(problem(model(name)), "heads", receiver, mlps).values.flatten()
    theirs = expected(f"{name}/path/{receiver}/{mlps}")
    assert torch.equal(found.isnan(), theirs.isnan())
    close(found.nan_to_num(), theirs.nan_to_num(), TOLERANCE[name])
