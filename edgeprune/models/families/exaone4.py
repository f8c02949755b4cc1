"""EXAONE 4: norms behind attention and MLP alone, norms of queries and keys, windows; full layers have no positions."""

from typing import Any, final

from torch import Tensor
from transformers import Exaone4Config

from edgeprune.models.families.rotary import NormsBehindBlock, Rotary, RotaryDecoder


@final
class Exaone4Block(NormsBehindBlock):
    """An `Exaone4DecoderLayer`."""

    qk_norm = "head"

    @property
    def window(self) -> int | None:
        return self.attention.sliding_window if self.attention.is_sliding else None

    @property
    def has_positions(self) -> bool:
        """Full layers have none in a model with windows."""
        return self.attention.is_sliding or self.attention.sliding_window is None


@final
class Exaone4(RotaryDecoder):
    """References into an `Exaone4ForCausalLM`."""

    model_types = ("exaone4",)
    block = Exaone4Block

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "rms_norm_eps": 1e-3}
        return [
            Exaone4Config(**shape, num_key_value_heads=2, sliding_window=3, sliding_window_pattern=2),
            Exaone4Config(**shape, num_key_value_heads=4, sliding_window=None, layer_types=["full_attention"] * 3),
        ]

    def rotary(self, stream: Tensor, position_ids: Tensor) -> list[Rotary | None]:
        tables = super().rotary(stream, position_ids)
        blocks: Any = self.layers
        return [table if block.has_positions else None for table, block in zip(tables, blocks, strict=True)]
