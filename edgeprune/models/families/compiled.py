"""Compiled transformers: no norm, absolute positions, ReLU, bidirectional or causal (`edgeprune.compiled`)."""

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgeprune.compiled.transformer import CompiledConfig, CompiledTransformer, eager_attention_forward
from edgeprune.graph import ArchSpec, KVReaders
from edgeprune.models.family import AbstractFamily, ReadNorm, by_head, dense

AutoConfig.register(CompiledConfig.model_type, CompiledConfig)
AutoModelForCausalLM.register(CompiledConfig, CompiledTransformer)


@final
class Compiled(AbstractFamily):
    """References into a `CompiledTransformer`."""

    model_types = (CompiledConfig.model_type,)

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        self.layers = hf.layers

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {"vocab_size": 61, "d_out": 29, "hidden_size": 24, "n_ctx": 20}
        return [
            CompiledConfig(**shape),
            CompiledConfig(**shape, num_hidden_layers=3, causal=True, attn_scale=0.4),
            CompiledConfig(**shape, num_attention_heads=3, intermediate_size=0, causal=True),
        ]

    @classmethod
    def num_positions(cls, config: Any) -> int | None:
        return config.n_ctx

    def arch(self, split_embedding: bool) -> ArchSpec:
        config = self.hf.config
        return ArchSpec(
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_attention_heads,
            split_embedding=split_embedding,
            kv_readers=self.kv_readers,
            has_mlp=config.intermediate_size > 0,
        )

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        tokens = self.hf.tok_embed(input_ids)
        return [tokens, self.hf.pos_embed(position_ids).expand_as(tokens)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        return self.hf.make_mask(stream, attention_mask, position_ids)

    def attention_norm(self, layer: int) -> Callable[[Tensor], Tensor]:
        return nn.Identity()

    def read_norm(self, layer: int) -> ReadNorm:
        return ReadNorm(None)

    def qkv(self, layer: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.layers[layer].attn
        return attn.q_proj(normed), attn.k_proj(normed), attn.v_proj(normed)

    def qkv_weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        attn, heads = self.layers[layer].attn, self.hf.config.num_attention_heads
        return (
            by_head(attn.q_proj.weight, heads),
            by_head(attn.k_proj.weight, heads),
            by_head(attn.v_proj.weight, heads),
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        attn = self.layers[layer].attn
        q, k, v = (dense(part).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2) for part in (q, k, v))
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self.hf.config._attn_implementation, eager_attention_forward)
        return kernel(attn, q, k, v, context, dropout=0.0, scaling=attn.scaling)[0]

    def attention_output(self, layer: int, values: Tensor) -> Tensor:
        return self.layers[layer].attn.o_proj(values.flatten(2).contiguous())

    def output_weight(self, layer: int) -> Tensor:
        weight = self.layers[layer].attn.o_proj.weight
        return weight.view(weight.shape[0], self.hf.config.num_attention_heads, -1).permute(1, 2, 0)

    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        return self.layers[layer].mlp(stream)

    def finish(self, stream: Tensor) -> Tensor:
        return self.hf.unembed(stream)
