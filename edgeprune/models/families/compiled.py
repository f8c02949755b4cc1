"""Compiled transformers: no norm, absolute positions, ReLU, bidirectional or causal (`edgeprune.compiled`)."""

from typing import Any, final

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from edgeprune.compiled.transformer import CompiledConfig, CompiledTransformer
from edgeprune.models.families.decoder import DecoderBlock, LearnedPositionsDecoder
from edgeprune.models.family import dense

AutoConfig.register(CompiledConfig.model_type, CompiledConfig)
AutoModelForCausalLM.register(CompiledConfig, CompiledTransformer)


@final
class CompiledBlock(DecoderBlock):
    """A `CompiledLayer`."""

    attention_name = "attn"
    input_norm_name = None
    mlp_norm_name = None

    @property
    def has_mlp(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] -- a fact of the layer here
        """Whether the layer has an MLP."""
        return self.module.mlp is not None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        q, k, v = (dense(part).transpose(1, 2) for part in (q, k, v))
        return self.kernel(self.attention, q, k, v, context, dropout=0.0, scaling=self.attention.scaling)[0]


@final
class Compiled(LearnedPositionsDecoder):
    """References into a `CompiledTransformer`."""

    model_types = (CompiledConfig.model_type,)
    block = CompiledBlock
    layer_list = "layers"

    @property
    def causal(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] -- as its config says
        return self.hf.config.causal

    @property
    def body(self) -> Any:
        return self.hf

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

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        tokens = self.hf.tok_embed(input_ids)
        return [tokens, self.hf.pos_embed(position_ids).expand_as(tokens)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        return self.hf.make_mask(stream, attention_mask, position_ids)

    @property
    def last_norm(self) -> None:
        return None

    def head(self, normed: Tensor) -> Tensor:
        return self.hf.unembed(normed)
