"""Cohere (Command R) and Cohere 2 (Command R7B): parallel blocks with one LayerNorm, interleaved rotary positions."""

from typing import Any, final

from torch import Tensor, nn
from transformers import Cohere2Config, CohereConfig

from edgeprune.models.block import NormSpec, Projected
from edgeprune.models.families.rotary import Rotary, RotaryBlock, RotaryDecoder


class CohereBlock(RotaryBlock):
    """A `CohereDecoderLayer` or `Cohere2DecoderLayer`."""

    parallel = True
    mlp_norm_name = "input_layernorm"

    def __init__(self, module: nn.Module, layer: int, config: Any) -> None:
        super().__init__(module, layer, config)
        self.qk_norm = "head" if getattr(self.attention, "use_qk_norm", False) else None

    def spec_of(self, norm: Any) -> NormSpec:
        """LayerNorm without a bias."""
        return NormSpec(norm.variance_epsilon, centred=True, weight=norm.weight)

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        if self.qk_norm is None:
            return q, k, v
        each = k.unflatten(2, (self.config.num_key_value_heads, -1))  # readers of one head share the head's own weights
        k = self.attention.k_norm(each.transpose(2, 3)).transpose(2, 3).flatten(2, 3)
        return self.attention.q_norm(q), k, v


class CohereDecoder(RotaryDecoder):
    """What both have in common."""

    block = CohereBlock

    def head(self, normed: Tensor) -> Tensor:
        return super().head(normed) * self.hf.logit_scale


@final
class Cohere(CohereDecoder):
    """References into a `CohereForCausalLM`."""

    model_types = ("cohere",)

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "layer_norm_eps": 1e-3}
        return [
            CohereConfig(**shape, num_key_value_heads=4, logit_scale=0.7, attention_bias=True),
            CohereConfig(**shape, num_key_value_heads=2, use_qk_norm=True, tie_word_embeddings=False),
        ]


@final
class Cohere2(CohereDecoder):
    """References into a `Cohere2ForCausalLM`: layers with a window have positions, the others have none."""

    model_types = ("cohere2",)

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "layer_norm_eps": 1e-3, "sliding_window": 3}
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        other: dict[str, Any] = {"attention_bias": True, "logit_scale": 0.7, "tie_word_embeddings": False}
        return [
            Cohere2Config(**shape, num_key_value_heads=2, layer_types=kinds),
            Cohere2Config(**shape, num_key_value_heads=4, layer_types=["full_attention", *kinds[1:]], **other),
        ]

    def rotary(self, stream: Tensor, position_ids: Tensor) -> list[Rotary | None]:
        tables = super().rotary(stream, position_ids)
        return [None if block.window is None else table for table, block in zip(tables, self.layers, strict=True)]
