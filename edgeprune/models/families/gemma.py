"""Gemma 2 and Gemma 3 (text): norms before and after, gains of 1 + w, scaled embedding, windows in some layers."""

from typing import Any, final

from torch import Tensor, nn
from transformers import Gemma2Config, Gemma3TextConfig

from edgeprune.graph import KVReaders
from edgeprune.models.block import NormSpec, Projected
from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder
from edgeprune.models.family import require


class GemmaBlock(RotaryBlock):
    """A `Gemma2DecoderLayer` or `Gemma3DecoderLayer`."""

    @property
    def post_norm(self) -> nn.Module | None:
        return self.module.post_attention_layernorm

    def spec_of(self, norm: Any) -> NormSpec:
        """RMSNorm with the gain 1 + w."""
        return NormSpec(norm.eps, weight=norm.weight, unit_offset=True)

    def mlp(self, stream: Tensor) -> Tensor:
        module = self.module
        return module.post_feedforward_layernorm(module.mlp(module.pre_feedforward_layernorm(stream)))


class Gemma2Block(GemmaBlock):
    """Attention scores are capped."""

    def kernel_options(self) -> dict[str, Any]:
        return {"sliding_window": self.window, "softcap": self.attention.attn_logit_softcapping}


class Gemma3Block(GemmaBlock):
    """Queries and keys of each head are normed."""

    qk_norm = "head"

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        return self.attention.q_norm(q), self.attention.k_norm(k), v


class GemmaDecoder(RotaryDecoder):
    """What both have in common."""

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        require(not hf.config.attention_bias, "attention_bias: a bias under the norm behind the attention")
        require(not hf.config.use_bidirectional_attention, "use_bidirectional_attention")

    def finish(self, stream: Tensor) -> Tensor:
        logits, cap = super().finish(stream), self.hf.config.final_logit_softcapping
        return logits if cap is None else (logits / cap).tanh() * cap


@final
class Gemma2(GemmaDecoder):
    """References into a `Gemma2ForCausalLM`."""

    model_types = ("gemma2",)
    attention_implementations = ("eager", "flash_attention_2", "flash_attention_3")  # the others cannot cap scores
    block = Gemma2Block

    @classmethod
    def tiny(cls) -> list[Any]:
        shape = {**cls.shape(), "head_dim": 12, "query_pre_attn_scalar": 9, "sliding_window": 3, "rms_norm_eps": 1e-3}
        caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
        return [
            Gemma2Config(**shape, num_key_value_heads=2, **caps),
            Gemma2Config(**shape, num_key_value_heads=4, attn_logit_softcapping=None, final_logit_softcapping=None),
        ]


@final
class Gemma3(GemmaDecoder):
    """References into a `Gemma3ForCausalLM`."""

    model_types = ("gemma3_text",)
    block = Gemma3Block
    rotary_by_kind = True

    @classmethod
    def tiny(cls) -> list[Any]:
        shape = {**cls.shape(), "head_dim": 12, "query_pre_attn_scalar": 9, "sliding_window": 3, "rms_norm_eps": 1e-3}
        kinds = ["sliding_attention", "sliding_attention", "full_attention"]
        return [
            Gemma3TextConfig(**shape, num_key_value_heads=1, layer_types=kinds),
            Gemma3TextConfig(**shape, num_key_value_heads=2, layer_types=kinds[::-1], final_logit_softcapping=3.0),
        ]
