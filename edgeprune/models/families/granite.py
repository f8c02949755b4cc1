"""Granite, HyperCLOVA X: Llama with multipliers of the embedding, of what heads and MLP write, of scores and logits."""

from typing import Any, ClassVar, final

from torch import Tensor, nn
from transformers import GraniteConfig, HyperCLOVAXConfig

from edgeprune.graph import KVReaders
from edgeprune.models.block import NormSpec
from edgeprune.models.families.decoder import DecoderBlock
from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder
from edgeprune.models.family import require


class GraniteBlock(RotaryBlock):
    """A `GraniteDecoderLayer`. The multiplier of the stream's summands is part of what heads and MLP write."""

    def output_projection(self, values: Tensor) -> Tensor:
        return super().output_projection(values) * self.module.residual_multiplier

    def projection_weight(self) -> Tensor:
        return super().projection_weight() * self.module.residual_multiplier

    def feed_forward(self, normed: Tensor) -> Tensor:
        return super().feed_forward(normed) * self.module.residual_multiplier


@final
class ScaledNorm(nn.Module):
    """A norm and the multiplier behind it."""

    def __init__(self, norm: nn.Module, multiplier: float) -> None:
        super().__init__()
        self.norm, self.multiplier = norm, multiplier

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., D]` to `[..., D]`."""
        return self.norm(inputs) * self.multiplier


@final
class HyperCLOVAXBlock(GraniteBlock):
    """A `HyperCLOVAXDecoderLayer` with norms behind attention and MLP, before the multiplier."""

    @property
    def post_norm(self) -> nn.Module | None:
        return ScaledNorm(self.module.post_norm1, self.module.residual_multiplier)

    @property
    def mlp_post_norm(self) -> nn.Module | None:
        return ScaledNorm(self.module.post_norm2, self.module.residual_multiplier)

    def spec_of(self, norm: Any) -> NormSpec:
        """RMSNorm, times the multiplier if there is one."""
        if not isinstance(norm, ScaledNorm):
            return super().spec_of(norm)
        spec = super().spec_of(norm.norm)
        assert spec.weight is not None
        return spec._replace(weight=spec.weight * norm.multiplier)

    def output_projection(self, values: Tensor) -> Tensor:
        return RotaryBlock.output_projection(self, values)

    def projection_weight(self) -> Tensor:
        return RotaryBlock.projection_weight(self)

    def feed_forward(self, normed: Tensor) -> Tensor:
        return RotaryBlock.feed_forward(self, normed)


class GraniteDecoder(RotaryDecoder):
    """What both have in common."""

    block: ClassVar[type[DecoderBlock]] = GraniteBlock

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        return [part * self.body.embedding_multiplier for part in super().embed(input_ids, position_ids)]


@final
class Granite(GraniteDecoder):
    """References into a `GraniteForCausalLM`."""

    model_types = ("granite",)

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "rms_norm_eps": 1e-3}
        multipliers: dict[str, Any] = {"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 0.6}
        other: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
        return [
            GraniteConfig(**shape, num_key_value_heads=4, **multipliers, attention_multiplier=0.3),
            GraniteConfig(**shape, num_key_value_heads=2, **multipliers, attention_multiplier=0.5, **other),
        ]

    def head(self, normed: Tensor) -> Tensor:
        return super().head(normed) / self.hf.config.logits_scaling


@final
class HyperCLOVAX(GraniteDecoder):
    """References into a `HyperCLOVAXForCausalLM`."""

    model_types = ("hyperclovax",)
    block = HyperCLOVAXBlock

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        require(hf.config.use_post_norm, "use_post_norm: false")
        require(not hf.config.attention_bias, "attention_bias: a bias under the norm behind the attention")

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "rms_norm_eps": 1e-3, "head_dim": 12}
        multipliers: dict[str, Any] = {"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 0.6}
        return [
            HyperCLOVAXConfig(**shape, num_key_value_heads=2, **multipliers, attention_multiplier=0.3),
            HyperCLOVAXConfig(**shape, num_key_value_heads=4, mlp_bias=True, tie_word_embeddings=True),
        ]

    def head(self, normed: Tensor) -> Tensor:
        return super().head(normed) * self.hf.config.logits_scaling
