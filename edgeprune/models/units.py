"""Heads, head dimensions, neurons and whole blocks as columns of the matrices with which they write.

A unit writes nothing where its columns are 0; what stands before them (queries, keys, gates of the MLP) then has no
effect. So a set of units is a set of weights, and a fraction of a unit is its columns times a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.models.block import OutputWeight
from edgeprune.models.masked import MaskedModel

Kind = Literal["attention_blocks", "heads", "head_dimensions", "mlp_blocks", "neurons"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OF_ATTENTION: tuple[Kind, ...] = ("attention_blocks", "heads", "head_dimensions")


@dataclass(frozen=True)
class Matrix:
    """The matrix with which the attention or the MLP of one layer writes.

    Attributes:
        name: Of the parameter.
        inputs: Shape of one number per column, which broadcasts over the parameter.
        bias: Name of what is added to its products; None if there is nothing.
        layer: Its layer.
        sizes: Units of each kind that it holds; each has equally many columns, one after the other.
    """

    name: str
    inputs: tuple[int, ...]
    bias: str | None
    layer: int
    sizes: dict[Kind, int]

    @property
    def width(self) -> int:
        """Columns: head dimensions, or neurons."""
        return max(self.sizes.values())

    def columns(self, units: Tensor) -> Tensor:
        """One value per column `[width]` from one per unit `[units]` of any kind that it holds."""
        return units.repeat_interleave(self.width // len(units))


def output_matrices(model: MaskedModel, kinds: Sequence[Kind]) -> list[Matrix]:
    """The matrices that hold units of some kinds, layer by layer.

    Args:
        model: The model.
        kinds: Of the units.

    Raises:
        EdgepruneError: There is none of a kind, or a layer's MLP consists of experts.
    """
    names = {id(weight): name for name, weight in model.hf.named_parameters()}
    of_attention = any(kind in OF_ATTENTION for kind in kinds)
    of_mlps = any(kind not in OF_ATTENTION for kind in kinds)
    found: list[Matrix] = []

    def add(layer: int, output: OutputWeight, *others: tuple[Kind, int], column: Kind) -> None:
        bias = None if output.bias is None else names[id(output.bias)]
        sizes: dict[Kind, int] = {**dict(others), column: torch.Size(output.inputs).numel()}
        found.append(Matrix(names[id(output.weight)], output.inputs, bias, layer, sizes))

    for block in model.blocks:
        if of_attention:
            heads = ("heads", model.graph.arch.num_heads)
            add(block.layer, block.attention_output(), ("attention_blocks", 1), heads, column="head_dimensions")
        if of_mlps and block.has_mlp:
            output = block.mlp_output()
            if output is None:
                raise EdgepruneError(
                    f"the MLP of layer {block.layer} consists of experts, which cannot be gated: leave out neurons and "
                    "mlp_blocks, or gate its weights with DiscoGPWeights"
                )
            add(block.layer, output, ("mlp_blocks", 1), column="neurons")
    for kind in kinds:
        if not any(kind in matrix.sizes for matrix in found):
            raise EdgepruneError(f"the model has no {kind}: leave them out")
    return found
