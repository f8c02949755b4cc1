"""Mixtral, Qwen2-MoE, Qwen3-MoE and OLMoE: the MLP is a router and experts, in all layers or some, and one writer.

A token goes to the experts that its router scores highest, so the MLP jumps where two of them change places, and has no
gradient there.
"""

from typing import Any, final

import torch
from torch import Tensor
from transformers import MixtralConfig, OlmoeConfig, Qwen2MoeConfig, Qwen3MoeConfig

from edgeprune.graph import KVReaders
from edgeprune.models.block import Projected
from edgeprune.models.families.olmo2 import normed_together
from edgeprune.models.families.qwen3 import Qwen3Block
from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder


class ExpertsDecoder(RotaryDecoder):
    """What models with the library's experts have in common."""

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        if hf.config._experts_implementation == "grouped_mm" and hf.dtype == torch.float64:
            hf.set_experts_implementation("eager")  # torch has no grouped products in float64


class Qwen2MoeBlock(RotaryBlock):
    """Its config may name a window that no layer, or only some, have; the kernel is not given it."""

    @property
    def window(self) -> int | None:
        return getattr(self.attention, "sliding_window", None)

    def kernel_options(self) -> dict[str, Any]:
        return {}


class OlmoeBlock(RotaryBlock):
    """Queries and keys of all heads are normed together; then they and the values may be cut off at a bound."""

    qk_norm = "layer"

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        q, k = normed_together(self.attention.q_norm, q), normed_together(self.attention.k_norm, k)
        bound = self.config.clip_qkv
        return (q, k, v) if bound is None else (q.clamp(-bound, bound), k.clamp(-bound, bound), v.clamp(-bound, bound))


@final
class Mixtral(ExpertsDecoder):
    """References into a `MixtralForCausalLM`."""

    model_types = ("mixtral",)

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "intermediate_size": 24, "rms_norm_eps": 1e-3}
        return [
            MixtralConfig(**shape, num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2),
            MixtralConfig(
                **shape,
                num_key_value_heads=4,
                head_dim=12,
                sliding_window=3,
                num_local_experts=3,
                num_experts_per_tok=1,
                tie_word_embeddings=True,
            ),
        ]


@final
class Qwen2Moe(ExpertsDecoder):
    """References into a `Qwen2MoeForCausalLM`: one further expert serves all tokens."""

    model_types = ("qwen2_moe",)
    block = Qwen2MoeBlock

    @classmethod
    def tiny(cls) -> list[Any]:
        sizes = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, "rms_norm_eps": 1e-3}
        shape: dict[str, Any] = {**cls.shape(), **sizes, "num_experts": 5, "num_experts_per_tok": 2}
        return [
            Qwen2MoeConfig(**shape, num_key_value_heads=2, mlp_only_layers=[1]),
            Qwen2MoeConfig(
                **shape,
                num_key_value_heads=4,
                norm_topk_prob=True,
                qkv_bias=False,
                use_sliding_window=True,
                sliding_window=3,
                decoder_sparse_step=2,
            ),
        ]


@final
class Qwen3Moe(ExpertsDecoder):
    """References into a `Qwen3MoeForCausalLM`."""

    model_types = ("qwen3_moe",)
    block = Qwen3Block

    @classmethod
    def tiny(cls) -> list[Any]:
        sizes = {"moe_intermediate_size": 16, "head_dim": 12, "rms_norm_eps": 1e-3}
        shape: dict[str, Any] = {**cls.shape(), **sizes, "num_experts": 5, "num_experts_per_tok": 2}
        return [
            Qwen3MoeConfig(**shape, num_key_value_heads=1, norm_topk_prob=True),
            Qwen3MoeConfig(
                **shape,
                num_key_value_heads=2,
                attention_bias=True,
                use_sliding_window=True,
                sliding_window=3,
                decoder_sparse_step=2,
                mlp_only_layers=[2],
            ),
        ]


@final
class Olmoe(ExpertsDecoder):
    """References into an `OlmoeForCausalLM`."""

    model_types = ("olmoe",)
    block = OlmoeBlock

    @classmethod
    def tiny(cls) -> list[Any]:
        sizes = {"intermediate_size": 16, "rms_norm_eps": 1e-3, "num_experts": 5, "num_experts_per_tok": 2}
        shape: dict[str, Any] = {**cls.shape(), **sizes}
        return [
            OlmoeConfig(**shape, num_key_value_heads=4),
            OlmoeConfig(**shape, num_key_value_heads=2, attention_bias=True, norm_topk_prob=True, clip_qkv=2.5),
        ]
