"""Phi-1, Phi-1.5 and Phi-2: attention and MLP side by side behind one LayerNorm, rotary positions in a part of a head.

All linear layers have biases, the head too.
"""

from typing import Any, Literal, final

import torch
from torch import Tensor
from transformers import PhiConfig

from edgeprune.models.block import Projected
from edgeprune.models.families.rotary import Rotary, RotaryBlock, RotaryDecoder


@final
class PhiBlock(RotaryBlock):
    """A `PhiDecoderLayer`."""

    parallel = True
    output_name = "dense"
    mlp_norm_name = "input_layernorm"

    @property
    def qk_norm(self) -> Literal["head"] | None:  # pyright: ignore[reportIncompatibleVariableOverride] -- a flag of the config here
        """Whether queries and keys of each head are normed."""
        return "head" if self.attention.qk_layernorm else None

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        if self.qk_norm is None:
            return q, k, v
        return self.attention.q_layernorm(q), self.attention.k_layernorm(k), v

    def rotate(self, q: Tensor, k: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        width = self.attention.rotary_ndims
        first = super().rotate(q[..., :width], k[..., :width], rotary)
        q, k = (torch.cat((own, part[..., width:]), -1) for own, part in zip(first, (q, k), strict=True))
        return q, k

    def join(self, stream: Tensor, attention: Tensor, mlp: Tensor | None) -> Tensor:
        assert mlp is not None
        return attention + mlp + stream


@final
class Phi(RotaryDecoder):
    """References into a `PhiForCausalLM`."""

    model_types = ("phi",)
    block = PhiBlock
    projections = ("q_proj", "k_proj", "v_proj", "dense")
    final_norm = "final_layernorm"

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "layer_norm_eps": 1e-3}
        scaled = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 0.25}
        return [
            PhiConfig(**shape),
            PhiConfig(**shape, num_key_value_heads=2, qk_layernorm=True, rope_parameters=scaled),
            PhiConfig(**shape, num_key_value_heads=1, tie_word_embeddings=True),
        ]
