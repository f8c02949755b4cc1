"""OLMo (the first): Llama with LayerNorm that has no weights."""

from typing import Any, final

from transformers import OlmoConfig

from edgeprune.graph import KVReaders
from edgeprune.models.block import NormSpec
from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder
from edgeprune.models.family import require


@final
class OlmoBlock(RotaryBlock):
    """An `OlmoDecoderLayer`."""

    def spec_of(self, norm: Any) -> NormSpec:
        """LayerNorm without weights; the library writes its eps into the code."""
        return NormSpec(1e-5, centred=True)


@final
class Olmo(RotaryDecoder):
    """References into an `OlmoForCausalLM`."""

    model_types = ("olmo",)
    block = OlmoBlock

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        require(hf.config.clip_qkv is None, "clip_qkv: queries, keys and values that are cut off")

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = cls.shape()
        return [
            OlmoConfig(**shape, num_key_value_heads=4),
            OlmoConfig(**shape, num_key_value_heads=2, attention_bias=True, tie_word_embeddings=True),
        ]
