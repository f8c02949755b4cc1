"""StableLM: LayerNorm, positions in a part of each head, norms of queries and keys, optionally parallel blocks."""

from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import StableLmConfig

from edgeprune.models.block import Projected
from edgeprune.models.families.rotary import Rotary, RotaryBlock, RotaryDecoder


@final
class StableLMBlock(RotaryBlock):
    """A `StableLmDecoderLayer`."""

    def __init__(self, module: nn.Module, layer: int, config: Any) -> None:
        super().__init__(module, layer, config)
        self.parallel = config.use_parallel_residual
        self.mlp_norm_name = "input_layernorm" if self.parallel else "post_attention_layernorm"
        self.qk_norm = "head" if config.qk_layernorm else None

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        if self.qk_norm is None:
            return q, k, v
        return self._normed(self.attention.q_layernorm, q), self._normed(self.attention.k_layernorm, k), v

    @staticmethod
    def _normed(norm: Any, states: Tensor) -> Tensor:
        """Each head by its own norm; readers `[B, S, n, C]` of one key/value head are more tokens to its norm."""
        by_head = states.unflatten(2, (norm.num_heads, -1)).movedim(2, 1)  # [B, K, S, readers of each, C]
        return norm(by_head.flatten(2, 3)).view_as(by_head).movedim(1, 2).flatten(2, 3)

    def rotate(self, q: Tensor, k: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        width = self.attention.rotary_ndims
        turned_q, turned_k = super().rotate(q[..., :width], k[..., :width], rotary)
        return torch.cat((turned_q, q[..., width:]), -1), torch.cat((turned_k, k[..., width:]), -1)


@final
class StableLM(RotaryDecoder):
    """References into a `StableLmForCausalLM`."""

    model_types = ("stablelm",)
    block = StableLMBlock

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "layer_norm_eps": 1e-3}
        other: dict[str, Any] = {"qk_layernorm": True, "use_parallel_residual": True, "partial_rotary_factor": 0.5}
        return [
            StableLmConfig(**shape, num_key_value_heads=4, use_qkv_bias=True),  # positions in a quarter of each head
            StableLmConfig(**shape, **other, num_key_value_heads=2, tie_word_embeddings=True),
        ]
