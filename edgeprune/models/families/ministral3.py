"""Ministral 3: Mistral with queries that grow with the logarithm of their position."""

from typing import Any, final

from torch import Tensor
from transformers import Ministral3Config
from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

from edgeprune.models.families.rotary import Rotary, RotaryBlock, RotaryDecoder


@final
class Ministral3Block(RotaryBlock):
    """A `Ministral3DecoderLayer`. Its third rotary table holds what queries are multiplied by, `[B, 1, S, 1]`."""

    def rotate(self, q: Tensor, k: Tensor, rotary: Any) -> tuple[Tensor, Tensor]:
        cosines, sines, growth = rotary
        q, k = super().rotate(q, k, (cosines, sines))
        return q * growth.to(q.dtype), k


@final
class Ministral3(RotaryDecoder):
    """References into a `Ministral3ForCausalLM`."""

    model_types = ("ministral3",)
    block = Ministral3Block

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "rms_norm_eps": 1e-3, "head_dim": 12}
        yarn = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 16.0, "original_max_position_embeddings": 4}
        grows: dict[str, Any] = {"rope_parameters": {**yarn, "llama_4_scaling_beta": 0.5}}
        return [
            Ministral3Config(**shape, **grows, num_key_value_heads=2),
            Ministral3Config(**shape, **grows, num_key_value_heads=4, sliding_window=3, tie_word_embeddings=True),
        ]

    def rotary(self, stream: Tensor, position_ids: Tensor) -> list[Rotary | None]:
        known = self.hf.config.rope_parameters
        growth = get_llama_4_attn_scale(
            position_ids, known["llama_4_scaling_beta"], known["original_max_position_embeddings"]
        )
        tables: Any = super().rotary(stream, position_ids)
        return [(*both, growth) for both in tables]
