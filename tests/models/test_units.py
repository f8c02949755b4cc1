"""Heads, head dimensions and neurons as columns of output matrices: closed ones against a loop over the values."""

from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.collate import collate
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.models.block import walk
from edgeprune.models.gated_weights import logits_with
from edgeprune.models.masked import MaskedModel
from edgeprune.models.units import KINDS, Matrix, output_matrices
from tests.methods.small_problems import random_pairs, tiny
from tests.models.test_conformance import CASES, build

FIRST = [case for case in CASES if case.values[1] == 0]  # the others of a family have the same modules
ATTENTION: Any = ["attention_blocks", "heads", "head_dimensions"]


def batch_of(number: int = 3) -> PairBatch:
    return collate(list(enumerate(random_pairs(number))))


def kinds_of(model: MaskedModel) -> Any:
    """All, or those of attention where no layer has an MLP with neurons."""
    whole = all(not block.has_mlp or block.mlp_output() is not None for block in model.blocks)
    return list(KINDS) if whole and any(block.has_mlp for block in model.blocks) else ATTENTION


def column(matrix: Matrix, weight: Tensor, place: int) -> Tensor:
    """A view of the weights behind one head dimension or neuron."""
    return weight[place] if matrix.inputs[1] == 1 else weight[:, place]


def with_factors(model: MaskedModel, factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose columns are multiplied one by one."""
    named = {name: weight.detach() for name, weight in model.hf.named_parameters()}
    changed: dict[str, Tensor] = {}
    for matrix in output_matrices(model, kinds_of(model)):
        changed[matrix.name] = named[matrix.name].clone()
        for place, factor in enumerate(factors[matrix.name].tolist()):
            column(matrix, changed[matrix.name], place).mul_(factor)
    return changed


def multiplied_by(values: Tensor) -> Any:
    """A hook in front of a module that multiplies what it takes in."""

    def hook(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0] * values,)

    return hook


@pytest.mark.parametrize(("family", "index"), FIRST)
def test_a_number_for_each_column_is_one_for_each_value_of_the_run(family: Any, index: int) -> None:
    """Of heads in a walk over the layers, of neurons in front of the layer that the library runs."""
    model, batch = build(family, index), batch_of()
    generator = torch.Generator().manual_seed(0)
    matrices = output_matrices(model, kinds_of(model))
    named = {name: weight.detach() for name, weight in model.hf.named_parameters()}
    factors = {part.name: torch.rand(part.width, generator=generator, dtype=torch.float64) for part in matrices}
    gated = {part.name: named[part.name] * factors[part.name].view(part.inputs) for part in matrices}
    by_column = with_factors(model, factors)
    assert all(torch.equal(gated[name], by_column[name]) for name in gated)

    of_heads = {part.layer: factors[part.name] for part in matrices if "heads" in part.sizes}
    of_neurons = {part.name: factors[part.name] for part in matrices if "neurons" in part.sizes}
    handles: list[Any] = []
    for name, values in of_neurons.items():
        module = model.hf.get_submodule(name.removesuffix(".weight"))
        handles.append(module.register_forward_pre_hook(multiplied_by(values)))

    def scaled(layer: int, z: Tensor) -> Tensor:
        return z * of_heads[layer].view(z.shape[2:])

    _, stream, context = model.start(batch.clean, batch.attention_mask)
    with torch.no_grad():
        end = walk(model.blocks, stream, context, {"z": scaled})
        expected = model.logits(end, batch.positions)
        for handle in handles:
            handle.remove()
        found = logits_with(model, gated, batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, logits_with(model, {}, batch))


def test_units_stand_one_after_the_other() -> None:
    model = tiny("llama", 1)
    attention, mlp = output_matrices(model, KINDS)[:2]
    assert attention.sizes == {"attention_blocks": 1, "heads": 4, "head_dimensions": 32}
    assert mlp.sizes == {"mlp_blocks": 1, "neurons": 48}
    assert (attention.bias, mlp.bias) == ("model.layers.0.self_attn.o_proj.bias", "model.layers.0.mlp.down_proj.bias")
    assert attention.columns(torch.arange(4)).tolist() == sorted([0, 1, 2, 3] * 8)
    assert {part.layer for part in output_matrices(model, ["neurons"])} == {0, 1, 2}
    assert all(part.name.endswith("o_proj.weight") for part in output_matrices(model, ["heads"]))


def test_experts_and_missing_mlps_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="MLP of layer 0 consists of experts"):
        output_matrices(tiny("mixtral", 0), ["heads", "neurons"])
    assert output_matrices(tiny("mixtral", 0), ["heads"])
    with pytest.raises(EdgepruneError, match="the model has no neurons"):
        output_matrices(tiny("edgeprune_compiled", 2), ["heads", "neurons"])
