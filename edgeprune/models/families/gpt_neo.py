"""GPT-Neo: learned positions, layers that see everything or a window in turn, attention of its own without a scale."""

from typing import Any, final

from torch import Tensor, nn
from transformers import GPTNeoConfig
from transformers.masking_utils import create_causal_mask

from edgeprune.errors import EdgepruneError
from edgeprune.graph import KVReaders
from edgeprune.models.block import Block, NormSpec, Projected
from edgeprune.models.family import AbstractFamily, by_head, cached, dense, require_plain


@final
class GPTNeoBlock(Block):
    """A `GPTNeoBlock` of the library."""

    @property
    def attention(self) -> Any:
        """The attention module."""
        return self.module.attn.attention

    @property
    def input_norm(self) -> nn.Module | None:
        return self.module.ln_1

    def spec_of(self, norm: Any) -> NormSpec:
        """LayerNorm."""
        return NormSpec(norm.eps, True, norm.weight, norm.bias)

    def project(self, normed: Tensor) -> Projected:
        attention = self.attention
        q, k, v = (project(normed) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
        shape = (*normed.shape[:-1], attention.num_heads, attention.head_dim)
        return q.view(shape), k.view(shape), v.view(shape)

    def qkv_weights(self) -> Projected:
        attention, heads = self.attention, self.attention.num_heads
        return (
            by_head(attention.q_proj.weight, heads),
            by_head(attention.k_proj.weight, heads),
            by_head(attention.v_proj.weight, heads),
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        q, k, v = (dense(part).transpose(1, 2) for part in (q, k, v))
        k, v = cached(k, self.attention.config), cached(v, self.attention.config)
        return self.attention._attn(q, k, v, context)[0].transpose(1, 2)

    def output_projection(self, values: Tensor) -> Tensor:
        return self.attention.out_proj(values.flatten(2).contiguous())

    def projection_weight(self) -> Tensor:
        attention = self.attention
        return attention.out_proj.weight.view(-1, attention.num_heads, attention.head_dim).permute(1, 2, 0)

    def mlp(self, stream: Tensor) -> Tensor:
        return self.module.mlp(self.module.ln_2(stream))


@final
class GPTNeo(AbstractFamily):
    """References into a `GPTNeoForCausalLM`."""

    model_types = ("gpt_neo",)
    attention_implementations = ("eager",)  # of the others the library's model has flash attention, without windows
    has_position_embedding = True
    positions_bound_padding = True  # each layer has a table of which positions see which

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        self.body = hf.transformer
        blocks = [GPTNeoBlock(module, layer) for layer, module in enumerate(self.body.h)]
        for block in blocks:
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                require_plain(getattr(block.attention, name), nn.Linear, name)
        self.blocks = blocks

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {
            "num_layers": 3,
            "num_heads": 4,
            "hidden_size": 32,
            "max_position_embeddings": 32,
            "window_size": 3,
            "vocab_size": 61,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        kinds = [[["global", "local"], 1], [["global"], 1]]
        return [
            GPTNeoConfig(**shape, attention_types=kinds),
            GPTNeoConfig(**shape, attention_types=[[["local"], 3]], intermediate_size=48, tie_word_embeddings=False),
        ]

    @classmethod
    def num_positions(cls, config: Any) -> int | None:
        return config.max_position_embeddings

    @property
    def num_heads(self) -> int:
        return self.hf.config.num_heads

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        tokens = self.body.wte(input_ids)
        return [tokens, self.body.wpe(position_ids).expand_as(tokens)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        config, length = self.hf.config, stream.shape[1]
        if length > config.max_position_embeddings:
            raise EdgepruneError(
                f"prompts padded to {length} tokens: {config.name_or_path or config.model_type!r} takes "
                f"{config.max_position_embeddings}, padding included; pad less"
            )
        return create_causal_mask(config, stream, attention_mask, None, position_ids)  # without a cache

    def finish(self, stream: Tensor) -> Tensor:
        return self.hf.lm_head(self.body.ln_f(stream))
