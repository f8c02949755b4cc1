"""Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini: one fused projection of q, k and v; rotary positions of a part of it."""

from typing import Any, final

import torch
from torch import Tensor
from transformers import Phi3Config

from edgeprune.models.block import Projected
from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder
from edgeprune.models.family import by_head


class Phi3Block(RotaryBlock):
    """A `Phi3DecoderLayer`."""

    @property
    def _counts(self) -> tuple[int, int, int]:
        """Heads of q, k and v, one after the other in the projection."""
        config = self.config
        return config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads

    def project(self, normed: Tensor) -> Projected:
        q, k, v = self.attention.qkv_proj(normed).unflatten(-1, (-1, self.attention.head_dim)).split(self._counts, -2)
        return q, k, v

    def qkv_weights(self) -> Projected:
        q, k, v = by_head(self.attention.qkv_proj.weight, sum(self._counts)).split(self._counts)
        return q, k, v

    def as_projected(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        slices = torch.cat((q, k, v), 2).split((q.shape[2], k.shape[2], v.shape[2]), 2)
        # flat and back, no copy: an axis of length 1 gets the stride that it has in the model's own
        q, k, v = (part.flatten(2).view(part.shape) for part in slices)
        return q, k, v


@final
class Phi3(RotaryDecoder):
    """References into a `Phi3ForCausalLM`.

    The rotary table of `longrope` depends on the longest prompt: past `original_max_position_embeddings` tokens all
    prompts of its batch get the table for long ones, as in the library.
    """

    model_types = ("phi3",)
    block = Phi3Block
    projections = ("qkv_proj", "o_proj")

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "rms_norm_eps": 1e-3}
        long = {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.2, 1.5],
            "long_factor": [1.5, 2.0, 4.0],
            "original_max_position_embeddings": 12,
        }
        return [
            Phi3Config(**shape, num_key_value_heads=4, sliding_window=3),
            Phi3Config(
                **shape,
                num_key_value_heads=2,
                tie_word_embeddings=True,
                rope_parameters=long,
                original_max_position_embeddings=12,
            ),
        ]
