"""Models that differ from Llama in modules and functions of their own alone: MLP, activation, norm, rotary pairs."""

from typing import Any, final

from transformers import (
    CONFIG_MAPPING,
    ArceeConfig,
    CwmConfig,
    Ernie4_5Config,
    GlmConfig,
    HeliumConfig,
    Jais2Config,
    MinistralConfig,
    SeedOssConfig,
)

from edgeprune.models.families.rotary import RotaryDecoder

LATER = ("internlm3", "iquestcoder")  # older releases of the library lack them


@final
class LlamaLike(RotaryDecoder):
    """References into an `ArceeForCausalLM` (AFM), `CwmForCausalLM`, `Ernie4_5ForCausalLM`, `GlmForCausalLM`, ..."""

    model_types = (
        *("arcee", "cwm", "ernie4_5", "glm", "helium", "jais2", "ministral", "seed_oss"),
        *LATER,
    )

    @classmethod
    def tiny(cls) -> list[Any]:
        plain: dict[str, Any] = cls.shape()
        shape: dict[str, Any] = {**plain, "rms_norm_eps": 1e-3}
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        windows: dict[str, Any] = {"sliding_window": 3, "layer_types": kinds, "num_key_value_heads": 2}
        partial: dict[str, Any] = {"partial_rotary_factor": 0.5}
        later: list[Any] = [CONFIG_MAPPING[name] for name in LATER if name in CONFIG_MAPPING]
        return [
            ArceeConfig(**shape, num_key_value_heads=2, attention_bias=True, mlp_bias=True),
            CwmConfig(**shape, **windows, head_dim=12, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
            Ernie4_5Config(**shape, num_key_value_heads=2, head_dim=12, use_bias=True),
            GlmConfig(**shape, **partial, num_key_value_heads=2, head_dim=12, attention_bias=True),
            HeliumConfig(**shape, num_key_value_heads=2, head_dim=8, attention_bias=True),
            Jais2Config(**plain, layer_norm_eps=1e-3, num_key_value_heads=2, head_dim=12),
            MinistralConfig(**shape, **windows, head_dim=12),
            SeedOssConfig(**shape, num_key_value_heads=2, head_dim=12, attention_bias=True, attention_out_bias=False),
            *(config(**shape, num_key_value_heads=2) for config in later),
        ]
