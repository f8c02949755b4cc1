"""Nemotron (and Minitron): LayerNorm with the gain 1 + w, positions in a part of each head, squared ReLU."""

from typing import Any, final

from transformers import NemotronConfig

from edgeprune.models.block import NormSpec
from edgeprune.models.families.rotary import RotaryBlock, RotaryDecoder


@final
class NemotronBlock(RotaryBlock):
    """A `NemotronDecoderLayer`."""

    def spec_of(self, norm: Any) -> NormSpec:
        """LayerNorm with the gain 1 + w."""
        return super().spec_of(norm)._replace(unit_offset=True)


@final
class Nemotron(RotaryDecoder):
    """References into a `NemotronForCausalLM`."""

    model_types = ("nemotron",)
    block = NemotronBlock

    @classmethod
    def tiny(cls) -> list[Any]:
        narrow = {**cls.shape(), "hidden_size": 16}  # norms start with the gain 2, and scores with 4 times the usual
        shape: dict[str, Any] = {**narrow, "norm_eps": 1e-3, "head_dim": 12, "partial_rotary_factor": 0.5}
        biases: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}
        return [
            NemotronConfig(**shape, num_key_value_heads=2),
            NemotronConfig(**shape, num_key_value_heads=4, **biases, tie_word_embeddings=True),
        ]
