"""Compiled transformers: no norm, absolute positions, ReLU, bidirectional or causal (`edgeprune.compiled`)."""

from typing import Any, final

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgeprune.compiled.transformer import CompiledConfig, CompiledTransformer, eager_attention_forward
from edgeprune.graph import KVReaders
from edgeprune.models.block import Block, Projected
from edgeprune.models.family import AbstractFamily, by_head, dense

AutoConfig.register(CompiledConfig.model_type, CompiledConfig)
AutoModelForCausalLM.register(CompiledConfig, CompiledTransformer)


@final
class CompiledBlock(Block):
    """A `CompiledLayer`."""

    @property
    def has_mlp(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] -- a fact of the layer here
        """Whether the layer has an MLP."""
        return self.module.mlp is not None

    def project(self, normed: Tensor) -> Projected:
        attention, heads = self.module.attn, (-1, self.module.attn.head_dim)
        q, k, v = (project(normed) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
        return q.unflatten(-1, heads), k.unflatten(-1, heads), v.unflatten(-1, heads)

    def qkv_weights(self) -> Projected:
        attention, heads = self.module.attn, self.module.attn.config.num_attention_heads
        return (
            by_head(attention.q_proj.weight, heads),
            by_head(attention.k_proj.weight, heads),
            by_head(attention.v_proj.weight, heads),
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        attention = self.module.attn
        q, k, v = (dense(part).transpose(1, 2) for part in (q, k, v))
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
        return kernel(attention, q, k, v, context, dropout=0.0, scaling=attention.scaling)[0]

    def output_projection(self, values: Tensor) -> Tensor:
        return self.module.attn.o_proj(values.flatten(2).contiguous())

    def projection_weight(self) -> Tensor:
        weight = self.module.attn.o_proj.weight
        return weight.view(weight.shape[0], self.module.attn.config.num_attention_heads, -1).permute(1, 2, 0)

    def mlp(self, stream: Tensor) -> Tensor:
        return self.module.mlp(stream)


@final
class Compiled(AbstractFamily):
    """References into a `CompiledTransformer`."""

    model_types = (CompiledConfig.model_type,)
    has_position_embedding = True

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        self.blocks = [CompiledBlock(module, layer) for layer, module in enumerate(hf.layers)]

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

    @property
    def num_heads(self) -> int:
        return self.hf.config.num_attention_heads

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        tokens = self.hf.tok_embed(input_ids)
        return [tokens, self.hf.pos_embed(position_ids).expand_as(tokens)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        return self.hf.make_mask(stream, attention_mask, position_ids)

    def finish(self, stream: Tensor) -> Tensor:
        return self.hf.unembed(stream)
