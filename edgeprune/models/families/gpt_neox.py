"""GPT-NeoX and Pythia: attention and MLP side by side or one after the other, LayerNorm, rotary positions in a part.

Queries, keys and values come from one projection that holds those of a head one behind the other: `[H, 3, C]`.
"""

from typing import Any, final

import torch
from torch import Tensor
from transformers import GPTNeoXConfig

from edgeprune.models.block import Projected
from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder


@final
class GPTNeoXBlock(RotaryBlock):
    """A `GPTNeoXLayer`."""

    attention_name = "attention"
    output_name = "dense"

    @property
    def parallel(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] -- a flag of the config here
        """Whether attention and MLP read the same stream."""
        return self.module.use_parallel_residual

    def project(self, normed: Tensor) -> Projected:
        heads = (self.config.num_attention_heads, 3, self.attention.head_size)
        q, k, v = self.attention.query_key_value(normed).unflatten(-1, heads).unbind(-2)
        return q, k, v

    def qkv_weights(self) -> Projected:
        weight = self.attention.query_key_value.weight
        q, k, v = weight.view(self.config.num_attention_heads, 3, -1, weight.shape[-1]).transpose(2, 3).unbind(1)
        return q, k, v

    def as_projected(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        q, k, v = torch.stack([q, k, v], -2).unbind(-2)
        return q, k, v

    def join(self, stream: Tensor, attention: Tensor, mlp: Tensor | None) -> Tensor:
        assert mlp is not None
        return mlp + attention + stream if self.parallel else super().join(stream, attention, mlp)


@final
class GPTNeoX(RotaryDecoder):
    """References into a `GPTNeoXForCausalLM`."""

    model_types = ("gpt_neox",)
    block = GPTNeoXBlock
    projections = ("query_key_value", "dense")
    final_norm = "final_layer_norm"

    @classmethod
    def tiny(cls) -> list[Any]:
        shape = cls.shape()
        whole = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 1.0}
        return [
            GPTNeoXConfig(**shape),
            GPTNeoXConfig(**shape, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True),
            GPTNeoXConfig(**shape, rope_parameters=whole),
        ]
