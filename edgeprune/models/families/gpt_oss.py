"""gpt-oss: attention sinks, windows in every second layer, biases throughout, experts with a clamped gate."""

from typing import Any, cast, final

from torch import Tensor, nn
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from edgeprune.graph import KVReaders
from edgeprune.models.families.mixtral import ExpertsDecoder
from edgeprune.models.families.rotary import RotaryBlock
from edgeprune.models.family import require_plain


class GptOssBlock(RotaryBlock):
    """A head may leave part of its attention to a sink, a score of its own that belongs to no token."""

    def kernel_options(self) -> dict[str, Any]:
        return {"sliding_window": self.window, "s_aux": self.attention.sinks}

    def feed_forward(self, normed: Tensor) -> Tensor:
        return super().feed_forward(normed)[0]  # the library's returns the experts' weights too


@final
class GptOss(ExpertsDecoder):
    """References into a `GptOssForCausalLM`."""

    model_types = ("gpt_oss",)
    attention_implementations = ("eager",)  # torch's kernel has no sinks; FlashAttention's are other kernels' names
    block = GptOssBlock

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        for block in self.layers:
            require_plain(block.module.mlp.experts, cast("type[nn.Module]", GptOssExperts), "experts")

    @classmethod
    def tiny(cls) -> list[Any]:
        sizes = {"intermediate_size": 16, "num_local_experts": 5, "num_experts_per_tok": 2, "rms_norm_eps": 1e-3}
        shape: dict[str, Any] = {**cls.shape(), **sizes, "head_dim": 12, "sliding_window": 3}
        default = {"rope_type": "default", "rope_theta": 10000.0}
        yarn: dict[str, Any] = {
            "rope_type": "yarn",
            "rope_theta": 150.0,
            "factor": 4.0,
            "beta_fast": 4.0,
            "truncate": False,
            "original_max_position_embeddings": 16,
        }
        kinds = ["full_attention", "full_attention", "sliding_attention"]
        return [
            GptOssConfig(**shape, num_key_value_heads=2, rope_parameters=yarn),
            GptOssConfig(
                **shape, num_key_value_heads=4, attention_bias=False, rope_parameters=default, layer_types=kinds
            ),
        ]
