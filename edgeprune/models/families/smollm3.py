"""SmolLM3: Llama with layers that have no rotary positions, and windows in some layers."""

from typing import Any, final

from torch import Tensor
from transformers import SmolLM3Config

from edgeprune.graph import KVReaders
from edgeprune.models.families.rotary import Rotary, RotaryDecoder
from edgeprune.models.family import require


@final
class SmolLM3(RotaryDecoder):
    """References into a `SmolLM3ForCausalLM`."""

    model_types = ("smollm3",)

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        for block, kind in zip(self.layers, hf.config.layer_types, strict=False):
            require(kind == "full_attention" or block.window is not None, "a layer type without the window")

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "rms_norm_eps": 1e-3}
        other: dict[str, Any] = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}
        return [
            SmolLM3Config(**shape, num_key_value_heads=2, no_rope_layers=[1, 0, 1]),
            SmolLM3Config(
                **shape,
                num_key_value_heads=4,
                no_rope_layers=[1, 0, 0],
                use_sliding_window=True,
                sliding_window=3,
                **other,
            ),
        ]

    def rotary(self, stream: Tensor, position_ids: Tensor) -> list[Rotary | None]:
        tables = super().rotary(stream, position_ids)
        return [table if block.attention.use_rope else None for table, block in zip(tables, self.layers, strict=True)]
