"""Qwen3: Llama's layer with norms of queries and keys, head by head, and windows in some layers."""

from typing import Any, final

from transformers import Qwen3Config

from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder


class Qwen3Block(RotaryBlock):
    """A `Qwen3DecoderLayer`."""

    qk_norm = "head"


@final
class Qwen3(RotaryDecoder):
    """References into a `Qwen3ForCausalLM`."""

    model_types = ("qwen3",)
    block = Qwen3Block

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "rms_norm_eps": 1e-3}
        windows: dict[str, Any] = {**shape, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
        return [
            Qwen3Config(**shape, head_dim=12, num_key_value_heads=2, tie_word_embeddings=True),
            Qwen3Config(**windows, head_dim=8, num_key_value_heads=1, attention_bias=True),
        ]
