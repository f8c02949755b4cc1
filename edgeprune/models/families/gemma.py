"""Gemma: gains of 1 + w, scaled embedding; since the second, norms before and after, and windows in some layers."""

from typing import Any, final

from torch import Tensor
from transformers import Gemma2Config, Gemma3TextConfig, GemmaConfig, VaultGemmaConfig

from edgeprune.graph import KVReaders
from edgeprune.models.block import NormSpec
from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder
from edgeprune.models.family import require


class Gemma1Block(RotaryBlock):
    """A `GemmaDecoderLayer`."""

    def spec_of(self, norm: Any) -> NormSpec:
        """RMSNorm with the gain 1 + w."""
        return NormSpec(norm.eps, weight=norm.weight, unit_offset=True)


class CappedBlock(Gemma1Block):
    """Attention scores are capped."""

    def kernel_options(self) -> dict[str, Any]:
        return {"sliding_window": self.window, "softcap": self.attention.attn_logit_softcapping}


@final
class VaultGemmaBlock(CappedBlock):
    """A `VaultGemmaDecoderLayer`."""

    mlp_norm_name = "pre_feedforward_layernorm"


class PostNormBlock(Gemma1Block):
    """A `Gemma2DecoderLayer` or `Gemma3DecoderLayer`."""

    post_norm_name = "post_attention_layernorm"
    mlp_norm_name = "pre_feedforward_layernorm"
    mlp_post_norm_name = "post_feedforward_layernorm"


class Gemma2Block(PostNormBlock, CappedBlock):
    """A `Gemma2DecoderLayer`."""


class Gemma3Block(PostNormBlock):
    """Queries and keys of each head are normed."""

    qk_norm = "head"


class GemmaDecoder(RotaryDecoder):
    """What all have in common."""

    @classmethod
    def shape(cls) -> dict[str, Any]:
        return {**super().shape(), "head_dim": 12, "rms_norm_eps": 1e-3}


class CappedDecoder(GemmaDecoder):
    """Logits are capped."""

    def head(self, normed: Tensor) -> Tensor:
        logits, cap = super().head(normed), self.hf.config.final_logit_softcapping
        return logits if cap is None else (logits / cap).tanh() * cap


class PostNormDecoder(CappedDecoder):
    """What Gemma 2 and Gemma 3 have in common."""

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        require(not hf.config.attention_bias, "attention_bias: a bias under the norm behind the attention")
        require(not hf.config.use_bidirectional_attention, "use_bidirectional_attention")


@final
class Gemma1(GemmaDecoder):
    """References into a `GemmaForCausalLM`."""

    model_types = ("gemma",)
    block = Gemma1Block

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        require(not hf.config.use_bidirectional_attention, "use_bidirectional_attention")

    @classmethod
    def tiny(cls) -> list[Any]:
        shape = cls.shape()
        return [
            GemmaConfig(**shape, num_key_value_heads=1),
            GemmaConfig(**shape, num_key_value_heads=4, attention_bias=True, tie_word_embeddings=False),
        ]


@final
class VaultGemma(CappedDecoder):
    """References into a `VaultGemmaForCausalLM`."""

    model_types = ("vaultgemma",)
    attention_implementations = ("eager", "flash_attention_2", "flash_attention_3")  # the others cannot cap scores
    block = VaultGemmaBlock

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "query_pre_attn_scalar": 9, "sliding_window": 3}
        caps: dict[str, Any] = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
        return [
            VaultGemmaConfig(**shape, num_key_value_heads=2, **caps),
            VaultGemmaConfig(**shape, num_key_value_heads=4, attn_logit_softcapping=None, attention_bias=True),
        ]


@final
class Gemma2(PostNormDecoder):
    """References into a `Gemma2ForCausalLM`."""

    model_types = ("gemma2",)
    attention_implementations = ("eager", "flash_attention_2", "flash_attention_3")  # the others cannot cap scores
    block = Gemma2Block

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "query_pre_attn_scalar": 9, "sliding_window": 3}
        caps: dict[str, Any] = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
        return [
            Gemma2Config(**shape, num_key_value_heads=2, **caps),
            Gemma2Config(**shape, num_key_value_heads=4, attn_logit_softcapping=None, final_logit_softcapping=None),
        ]


@final
class Gemma3(PostNormDecoder):
    """References into a `Gemma3ForCausalLM`."""

    model_types = ("gemma3_text",)
    block = Gemma3Block
    rotary_by_kind = True

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "query_pre_attn_scalar": 9, "sliding_window": 3}
        kinds = ["sliding_attention", "sliding_attention", "full_attention"]
        return [
            Gemma3TextConfig(**shape, num_key_value_heads=1, layer_types=kinds),
            Gemma3TextConfig(**shape, num_key_value_heads=2, layer_types=kinds[::-1], final_logit_softcapping=3.0),
        ]
