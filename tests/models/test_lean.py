"""MLPs whose activation keeps less: the library's numbers, and its modules as they were."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from edgeprune.models.lean import PART, LeanNewGELU, lean

SIZES = [(0,), (1,), (7, 33), (3, 5, 129), (2, PART // 2 + 5)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_are_the_librarys(size: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = (4 * torch.randn(size, generator=torch.Generator().manual_seed(0))).to(dtype)
    for own in (inputs, inputs.T if inputs.ndim == 2 else inputs):
        assert torch.equal(LeanNewGELU()(own), NewGELUActivation()(own))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_gradients_are_those_of_float64(dtype: torch.dtype, tolerance: float) -> None:
    inputs = (3 * torch.randn(200, 30, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    exact = inputs.detach().double().requires_grad_()
    weights = torch.randn(200, 30, dtype=torch.float64)
    (found,) = torch.autograd.grad(LeanNewGELU()(inputs), inputs, weights.to(dtype))
    (right,) = torch.autograd.grad(NewGELUActivation()(exact), exact, weights.to(dtype).double())
    assert (found - right).abs().max() < tolerance * right.abs().max()


def test_one_tensor_is_kept() -> None:
    kept: list[torch.Tensor] = []
    inputs = torch.randn(5, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda own: kept.append(own) or own, lambda own: own):
        LeanNewGELU()(inputs)
    assert len(kept) == 1
    assert kept[0] is inputs


def test_the_librarys_module_stays_as_it_is() -> None:
    mlp = GPT2MLP(32, GPT2Config(n_embd=8, n_head=2)).eval()
    made = lean(mlp)
    assert type(mlp.act) is NewGELUActivation
    assert type(made.act) is LeanNewGELU
    assert made.c_fc is mlp.c_fc
    inputs = torch.randn(2, 3, 8)
    assert torch.equal(made(inputs), mlp(inputs))
    mlp.c_fc.weight.data.mul_(2)
    assert torch.equal(made(inputs), mlp(inputs))


def test_others_are_left_alone() -> None:
    relu = GPT2MLP(32, GPT2Config(n_embd=8, n_head=2, activation_function="relu"))
    assert lean(relu) is relu
    watched = GPT2MLP(32, GPT2Config(n_embd=8, n_head=2))
    seen: list[int] = []

    def note(module: nn.Module, given: object, found: object) -> None:
        seen.append(1)

    watched.act.register_forward_hook(note)
    lean(watched)(torch.randn(2, 3, 8))
    assert seen == [1]
