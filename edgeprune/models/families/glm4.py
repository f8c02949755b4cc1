"""GLM 4: norms before and behind attention and MLP, interleaved rotary positions in a part of each head."""

from typing import Any, final

from transformers import Glm4Config

from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder


@final
class Glm4Block(RotaryBlock):
    """A `Glm4DecoderLayer`."""

    post_norm_name = "post_self_attn_layernorm"
    mlp_post_norm_name = "post_mlp_layernorm"


@final
class Glm4(RotaryDecoder):
    """References into a `Glm4ForCausalLM`."""

    model_types = ("glm4",)
    block = Glm4Block

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "rms_norm_eps": 1e-3, "head_dim": 12, "partial_rotary_factor": 0.5}
        return [
            Glm4Config(**shape, num_key_value_heads=2, attention_bias=True),
            Glm4Config(**shape, num_key_value_heads=4, tie_word_embeddings=True),
        ]
