"""Apertus: Llama with norms of queries and keys, head by head, and an MLP without a gate (xIELU)."""

from typing import Any, final

from transformers import ApertusConfig

from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder


@final
class ApertusBlock(RotaryBlock):
    """An `ApertusDecoderLayer`."""

    qk_norm = "head"
    input_norm_name = "attention_layernorm"
    mlp_norm_name = "feedforward_layernorm"


@final
class Apertus(RotaryDecoder):
    """References into an `ApertusForCausalLM`."""

    model_types = ("apertus",)
    block = ApertusBlock

    @classmethod
    def tiny(cls) -> list[Any]:
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 500.0}
        shape: dict[str, Any] = {**cls.shape(), "rms_norm_eps": 1e-3, "rope_parameters": rope}
        return [  # xIELU jumps by 1e-6 at 0, which only a bias keeps an MLP without open edges away from
            ApertusConfig(**shape, num_key_value_heads=2, attention_bias=True),
            ApertusConfig(**shape, num_key_value_heads=4, hidden_act="silu", tie_word_embeddings=True),
        ]
