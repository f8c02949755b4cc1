"""GPT-2: learned positions, LayerNorm, one fused q/k/v projection stored transposed (`Conv1D`)."""

from typing import Any, final

from torch import Tensor, nn
from transformers import GPT2Config
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward
from transformers.pytorch_utils import Conv1D

from edgeprune.graph import KVReaders
from edgeprune.models.block import Block, NormSpec, Projected
from edgeprune.models.family import AbstractFamily, cached, require, require_plain


@final
class GPT2Block(Block):
    """A `GPT2Block` of the library."""

    @property
    def input_norm(self) -> nn.Module | None:
        return self.module.ln_1

    def spec_of(self, norm: Any) -> NormSpec:
        """LayerNorm."""
        return NormSpec(norm.eps, True, norm.weight, norm.bias)

    def project(self, normed: Tensor) -> Projected:
        attention = self.module.attn
        q, k, v = attention.c_attn(normed).split(normed.shape[-1], dim=-1)
        shape = (*normed.shape[:-1], attention.num_heads, attention.head_dim)
        return q.view(shape), k.view(shape), v.view(shape)

    def qkv_weights(self) -> Projected:
        attention, weight = self.module.attn, self.module.attn.c_attn.weight
        q, k, v = weight.view(weight.shape[0], 3, attention.num_heads, attention.head_dim).permute(1, 2, 0, 3)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        attention = self.module.attn
        # flat and back, no copy: an axis of length 1 gets the stride that it has in the model's own
        q, k, v = (part.flatten(2).view(part.shape).transpose(1, 2) for part in (q, k, v))
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
        k, v = cached(k, attention.config), cached(v, attention.config)
        return kernel(attention, q, k, v, context, dropout=0.0, scaling=attention.scaling)[0]

    def output_projection(self, values: Tensor) -> Tensor:
        return self.module.attn.c_proj(values.flatten(2).contiguous())

    def projection_weight(self) -> Tensor:
        attention = self.module.attn
        return attention.c_proj.weight.view(attention.num_heads, attention.head_dim, -1)

    def mlp(self, stream: Tensor) -> Tensor:
        return self.module.mlp(self.module.ln_2(stream))


@final
class GPT2(AbstractFamily):
    """References into a `GPT2LMHeadModel`."""

    model_types = ("gpt2",)
    has_position_embedding = True

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        require(not hf.config.add_cross_attention, "add_cross_attention")
        require(not hf.config.reorder_and_upcast_attn, "reorder_and_upcast_attn")
        self.body = hf.transformer
        self.blocks = [GPT2Block(module, layer) for layer, module in enumerate(self.body.h)]
        for block in self.blocks:
            require_plain(block.module.attn.c_attn, Conv1D, "c_attn")
            require_plain(block.module.attn.c_proj, Conv1D, "c_proj")

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

    @classmethod
    def num_positions(cls, config: Any) -> int | None:
        return config.n_positions

    @property
    def num_heads(self) -> int:
        return self.hf.config.n_head

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        tokens = self.body.wte(input_ids)
        return [tokens, self.body.wpe(position_ids).expand_as(tokens)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        return create_causal_mask(self.hf.config, stream, attention_mask, None, position_ids)  # without a cache

    def finish(self, stream: Tensor) -> Tensor:
        return self.hf.lm_head(self.body.ln_f(stream))
