"""GPT-J: attention and MLP side by side behind one LayerNorm, rotary positions in pairs of neighbours, from a table.

Its attention is a method of its own, with scores in float32.
"""

from typing import Any, final

import torch
from torch import Tensor
from transformers import GPTJConfig

from edgeprune.graph import KVReaders
from edgeprune.models.families.rotary import Context, Rotary, RotaryBlock, RotaryDecoder
from edgeprune.models.family import cached, dense, require


@final
class GPTJBlock(RotaryBlock):
    """A `GPTJBlock` of the library."""

    parallel = True
    attention_name = "attn"
    output_name = "out_proj"
    input_norm_name = "ln_1"
    mlp_norm_name = "ln_1"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        q, k = (self._rotated(dense(part), context.rotary[self.layer]) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, dense(v)))
        k, v = cached(k, self.config), cached(v, self.config)
        return self.attention._attn(q, k, v, context.masks[self.layer])[0].transpose(1, 2)

    def _rotated(self, part: Tensor, rotary: Rotary | None) -> Tensor:
        """Queries or keys `[B, S, H, C]` at their positions."""
        assert rotary is not None
        width = self.attention.rotary_dim
        table = (values.to(part.dtype) for values in rotary)
        return torch.cat((self._own("apply_rotary_pos_emb")(part[..., :width], *table), part[..., width:]), -1)

    def join(self, stream: Tensor, attention: Tensor, mlp: Tensor | None) -> Tensor:
        assert mlp is not None
        return attention + mlp + stream


@final
class GPTJ(RotaryDecoder):
    """References into a `GPTJForCausalLM`."""

    model_types = ("gptj",)
    attention_implementations = ("eager",)  # the library's other one, FlashAttention, is not followed
    block = GPTJBlock
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    layer_list = "h"
    final_norm = "ln_f"

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        require(bool(hf.config.rotary_dim), "rotary_dim=0: a table as wide as the model")
        super().__init__(hf, kv_readers)

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {
            "n_layer": 3,
            "n_head": 4,
            "n_embd": 32,
            "n_positions": 32,
            "vocab_size": 61,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "layer_norm_epsilon": 1e-3,
        }
        return [
            GPTJConfig(**shape, rotary_dim=4),
            GPTJConfig(**shape, rotary_dim=8, n_inner=48, tie_word_embeddings=True),
        ]

    @classmethod
    def num_positions(cls, config: Any) -> int | None:
        return config.n_positions

    def rotary(self, stream: Tensor, position_ids: Tensor) -> list[Rotary | None]:
        """Sines and cosines of each layer, in this order, `[B, S, width / 2]` each."""
        return [block.attention.embed_positions[position_ids].chunk(2, -1) for block in self.layers]
