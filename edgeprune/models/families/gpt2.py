"""GPT-2: learned positions, LayerNorm, one fused q/k/v projection stored transposed (`Conv1D`)."""

from typing import Any, final

from torch import Tensor
from transformers import GPT2Config
from transformers.pytorch_utils import Conv1D

from edgeprune.graph import KVReaders
from edgeprune.models.block import Projected
from edgeprune.models.families.decoder import DecoderBlock, LearnedPositionsDecoder
from edgeprune.models.family import cached, require


@final
class GPT2Block(DecoderBlock):
    """A `GPT2Block` of the library."""

    attention_name = "attn"
    output_name = "c_proj"
    input_norm_name = "ln_1"
    mlp_norm_name = "ln_2"

    def project(self, normed: Tensor) -> Projected:
        attention = self.attention
        q, k, v = attention.c_attn(normed).split(normed.shape[-1], dim=-1)
        shape = (*normed.shape[:-1], attention.num_heads, attention.head_dim)
        return q.view(shape), k.view(shape), v.view(shape)

    def qkv_weights(self) -> Projected:
        attention, weight = self.attention, self.attention.c_attn.weight
        q, k, v = weight.view(weight.shape[0], 3, attention.num_heads, attention.head_dim).permute(1, 2, 0, 3)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        # flat and back, no copy: an axis of length 1 gets the stride that it has in the model's own
        q, k, v = (part.flatten(2).view(part.shape).transpose(1, 2) for part in (q, k, v))
        k, v = cached(k, self.config), cached(v, self.config)
        return self.kernel(self.attention, q, k, v, context, dropout=0.0, scaling=self.attention.scaling)[0]

    def projection_weight(self) -> Tensor:
        return self.output.weight.view(self.attention.num_heads, self.attention.head_dim, -1)


@final
class GPT2(LearnedPositionsDecoder):
    """References into a `GPT2LMHeadModel`."""

    model_types = ("gpt2",)
    block = GPT2Block
    projections = ("c_attn", "c_proj")
    projection_type = Conv1D

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        require(not hf.config.add_cross_attention, "add_cross_attention")
        require(not hf.config.reorder_and_upcast_attn, "reorder_and_upcast_attn")

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
        }
        return [GPT2Config(**shape), GPT2Config(**shape, scale_attn_by_inverse_layer_idx=True, n_inner=48)]
