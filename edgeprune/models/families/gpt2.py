"""GPT-2: learned positions, LayerNorm, one fused q/k/v projection stored transposed (`Conv1D`)."""

from collections.abc import Callable
from typing import Any, final

from torch import Tensor
from transformers import GPT2Config
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward
from transformers.pytorch_utils import Conv1D

from edgeprune.graph import ArchSpec, KVReaders
from edgeprune.models.family import AbstractFamily, ReadNorm, require, require_plain


@final
class GPT2(AbstractFamily):
    """References into a `GPT2LMHeadModel`."""

    model_types = ("gpt2",)

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        config = hf.config
        require(not config.add_cross_attention, "add_cross_attention")
        require(not config.reorder_and_upcast_attn, "reorder_and_upcast_attn")
        self.body, self.blocks = hf.transformer, hf.transformer.h
        for block in self.blocks:
            require_plain(block.attn.c_attn, Conv1D, "c_attn")
            require_plain(block.attn.c_proj, Conv1D, "c_proj")

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

    def arch(self, split_embedding: bool) -> ArchSpec:
        heads = self.hf.config.n_head
        return ArchSpec(
            num_layers=len(self.blocks),
            num_heads=heads,
            num_kv_heads=heads,
            split_embedding=split_embedding,
            kv_readers=self.kv_readers,
        )

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        tokens = self.body.wte(input_ids)
        return [tokens, self.body.wpe(position_ids).expand_as(tokens)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        return create_causal_mask(self.hf.config, stream, attention_mask, None, position_ids)  # without a cache

    def attention_norm(self, layer: int) -> Callable[[Tensor], Tensor]:
        return self.blocks[layer].ln_1

    def read_norm(self, layer: int) -> ReadNorm:
        norm = self.blocks[layer].ln_1
        return ReadNorm(norm.eps, True, norm.weight, norm.bias)

    def qkv(self, layer: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.blocks[layer].attn.c_attn(normed).split(normed.shape[-1], dim=-1)

    def qkv_weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.blocks[layer].attn
        weight = attn.c_attn.weight
        q, k, v = weight.view(weight.shape[0], 3, attn.num_heads, attn.head_dim).permute(1, 2, 0, 3)
        return q, k, v

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        attn = self.blocks[layer].attn
        q, k, v = (part.view(*part.shape[:2], -1, attn.head_dim).transpose(1, 2) for part in (q, k, v))
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self.hf.config._attn_implementation, eager_attention_forward)
        k, v = self.cached(k), self.cached(v)
        return kernel(attn, q, k, v, context, dropout=0.0, scaling=attn.scaling)[0]

    def attention_output(self, layer: int, values: Tensor) -> Tensor:
        return self.blocks[layer].attn.c_proj(values.flatten(2).contiguous())

    def output_weight(self, layer: int) -> Tensor:
        attn = self.blocks[layer].attn
        return attn.c_proj.weight.view(attn.num_heads, attn.head_dim, -1)

    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        block = self.blocks[layer]
        return block.mlp(block.ln_2(stream))

    def finish(self, stream: Tensor) -> Tensor:
        return self.hf.lm_head(self.body.ln_f(stream))
