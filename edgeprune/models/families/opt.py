"""OPT and Galactica: learned positions, of which the first is row 2; ReLU; LayerNorm with or without weights."""

from typing import Any, final

from torch import Tensor, nn
from transformers import OPTConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.opt.modeling_opt import eager_attention_forward

from edgeprune.graph import KVReaders
from edgeprune.models.block import Block, NormSpec, Projected
from edgeprune.models.family import AbstractFamily, by_head, cached, dense, require, require_plain


@final
class OPTBlock(Block):
    """An `OPTDecoderLayer`."""

    @property
    def input_norm(self) -> nn.Module | None:
        return self.module.self_attn_layer_norm

    def spec_of(self, norm: Any) -> NormSpec:
        """LayerNorm."""
        return NormSpec(norm.eps, True, norm.weight, norm.bias)

    def project(self, normed: Tensor) -> Projected:
        attention = self.module.self_attn
        q, k, v = (project(normed) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
        shape = (*normed.shape[:-1], attention.num_heads, attention.head_dim)
        return q.view(shape), k.view(shape), v.view(shape)

    def qkv_weights(self) -> Projected:
        attention, heads = self.module.self_attn, self.module.self_attn.num_heads
        return (
            by_head(attention.q_proj.weight, heads),
            by_head(attention.k_proj.weight, heads),
            by_head(attention.v_proj.weight, heads),
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        attention = self.module.self_attn
        q, k, v = (dense(part).transpose(1, 2) for part in (q * attention.scaling, k, v))
        k, v = cached(k, attention.config), cached(v, attention.config)
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
        return kernel(attention, q, k, v, context, dropout=0.0, scaling=1.0)[0]

    def output_projection(self, values: Tensor) -> Tensor:
        return self.module.self_attn.out_proj(values.flatten(2).contiguous())

    def projection_weight(self) -> Tensor:
        attention = self.module.self_attn
        return attention.out_proj.weight.view(-1, attention.num_heads, attention.head_dim).permute(1, 2, 0)

    def mlp(self, stream: Tensor) -> Tensor:
        module = self.module
        inputs = module.final_layer_norm(stream.reshape(-1, stream.shape[-1]))
        return module.fc2(module.activation_fn(module.fc1(inputs))).view(stream.shape)


@final
class OPT(AbstractFamily):
    """References into an `OPTForCausalLM`."""

    model_types = ("opt",)
    has_position_embedding = True

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        config = hf.config
        require(config.do_layer_norm_before, "do_layer_norm_before=False: a norm of the whole stream after each layer")
        require(config.word_embed_proj_dim == config.hidden_size, "word_embed_proj_dim other than hidden_size")
        self.body = hf.model.decoder
        self.blocks = [OPTBlock(module, layer) for layer, module in enumerate(self.body.layers)]
        for block in self.blocks:
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                require_plain(getattr(block.module.self_attn, name), nn.Linear, name)

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "hidden_size": 32,
            "ffn_dim": 48,
            "max_position_embeddings": 32,
            "vocab_size": 61,
            "pad_token_id": 1,
        }
        bare: dict[str, Any] = {
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "_remove_final_layer_norm": True,
        }
        return [OPTConfig(**shape), OPTConfig(**shape, **bare, activation_function="gelu", tie_word_embeddings=False)]

    @classmethod
    def num_positions(cls, config: Any) -> int | None:
        return config.max_position_embeddings

    @property
    def num_heads(self) -> int:
        return self.hf.config.num_attention_heads

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        tokens = self.body.embed_tokens(input_ids)
        return [tokens, self.body.embed_positions(None, position_ids=position_ids).expand_as(tokens)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        return create_causal_mask(self.hf.config, stream, attention_mask, None)  # without a cache

    def finish(self, stream: Tensor) -> Tensor:
        norm = self.body.final_layer_norm
        return self.hf.lm_head(stream if norm is None else norm(stream)).contiguous()
