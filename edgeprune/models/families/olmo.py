"""OLMo: Llama's layer with LayerNorms that have no weights, and projections cut off at a bound."""

from typing import Any, final

from torch import Tensor
from transformers import OlmoConfig

from edgeprune.models.block import NormSpec, Projected
from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder

NORM_EPS = 1e-5  # written out in the library's norm, which has no attribute for it


class OlmoBlock(RotaryBlock):
    """An `OlmoDecoderLayer`."""

    def spec_of(self, norm: Any) -> NormSpec:
        """LayerNorm without gain and bias."""
        return NormSpec(NORM_EPS, centred=True)

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        bound = self.config.clip_qkv
        return (q, k, v) if bound is None else (q.clamp(-bound, bound), k.clamp(-bound, bound), v.clamp(-bound, bound))


@final
class Olmo(RotaryDecoder):
    """References into an `OlmoForCausalLM`."""

    model_types = ("olmo",)
    block = OlmoBlock

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "num_key_value_heads": 2, "tie_word_embeddings": True}
        return [
            OlmoConfig(**cls.shape(), num_key_value_heads=4),
            OlmoConfig(**shape, attention_bias=True, clip_qkv=3.0),  # one value in a hundred is beyond
        ]
