"""Starcoder 2: Llama with LayerNorm and biases, a window in all layers, and an MLP without a gate."""

from typing import Any, final

from transformers import Starcoder2Config

from edgeprune.models.families.rotary import RotaryDecoder


@final
class Starcoder2(RotaryDecoder):
    """References into a `Starcoder2ForCausalLM`."""

    model_types = ("starcoder2",)

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "norm_epsilon": 1e-3}
        return [
            Starcoder2Config(**shape, num_key_value_heads=2, sliding_window=3),
            Starcoder2Config(**shape, num_key_value_heads=4, use_bias=False, tie_word_embeddings=False),
        ]
