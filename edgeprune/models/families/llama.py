"""Llama and the models built like it: Llama, CodeLlama, SmolLM2, Mistral, Qwen2. Rotary, RMSNorm, gated MLP."""

from typing import Any, final

from transformers import LlamaConfig, MistralConfig, Qwen2Config

from edgeprune.models.families.rotary import RotaryDecoder


@final
class Llama(RotaryDecoder):
    """References into a `LlamaForCausalLM`, `MistralForCausalLM` or `Qwen2ForCausalLM`."""

    model_types = ("llama", "mistral", "qwen2")

    @classmethod
    def tiny(cls) -> list[Any]:
        shape = cls.shape()
        unheeded: dict[str, Any] = {"sliding_window": 3}
        return [
            LlamaConfig(**shape, **unheeded, num_key_value_heads=4),
            LlamaConfig(**shape, num_key_value_heads=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
            MistralConfig(**shape, num_key_value_heads=2, head_dim=12, sliding_window=4),
            Qwen2Config(**shape, num_key_value_heads=1),
            Qwen2Config(**shape, num_key_value_heads=2, use_sliding_window=True, sliding_window=3, max_window_layers=1),
        ]
