"""OPT and Galactica: learned positions, of which the first is row 2; ReLU; LayerNorm with or without weights."""

from typing import Any, final

from torch import Tensor
from transformers import OPTConfig
from transformers.masking_utils import create_causal_mask

from edgeprune.graph import KVReaders
from edgeprune.models.families.decoder import DecoderBlock, LearnedPositionsDecoder
from edgeprune.models.family import cached, dense, require


@final
class OPTBlock(DecoderBlock):
    """An `OPTDecoderLayer`."""

    output_name = "out_proj"
    input_norm_name = "self_attn_layer_norm"
    mlp_norm_name = "final_layer_norm"
    mlp_output_names = ("fc2",)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        q, k, v = (dense(part).transpose(1, 2) for part in (q * self.attention.scaling, k, v))
        k, v = cached(k, self.config), cached(v, self.config)
        return self.kernel(self.attention, q, k, v, context, dropout=0.0, scaling=1.0)[0]

    def feed_forward(self, normed: Tensor) -> Tensor:
        module, inputs = self.module, normed.reshape(-1, normed.shape[-1])
        return module.fc2(module.activation_fn(module.fc1(inputs))).view(normed.shape)


@final
class OPT(LearnedPositionsDecoder):
    """References into an `OPTForCausalLM`."""

    model_types = ("opt",)
    block = OPTBlock
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    layer_list = "layers"
    final_norm = "final_layer_norm"

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        config = hf.config
        require(config.do_layer_norm_before, "do_layer_norm_before=False: a norm of the whole stream after each layer")
        require(config.word_embed_proj_dim == config.hidden_size, "word_embed_proj_dim other than hidden_size")

    @property
    def body(self) -> Any:
        return self.hf.model.decoder

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

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        tokens = self.body.embed_tokens(input_ids)
        return [tokens, self.body.embed_positions(None, position_ids=position_ids).expand_as(tokens)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        return create_causal_mask(self.hf.config, stream, attention_mask, None)  # without a cache

    def head(self, normed: Tensor) -> Tensor:
        return super().head(normed).contiguous()
