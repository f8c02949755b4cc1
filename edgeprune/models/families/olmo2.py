"""OLMo 2 and OLMo 3: norms behind attention and MLP alone, and norms of the queries and keys of all heads together."""

from typing import Any, final

from torch import Tensor
from torch.func import functional_call
from transformers import Olmo2Config, Olmo3Config

from edgeprune.graph import KVReaders
from edgeprune.models.block import Projected
from edgeprune.models.families.rotary import NormsBehindBlock, RotaryDecoder
from edgeprune.models.family import require


class Olmo2Block(NormsBehindBlock):
    """An `Olmo2DecoderLayer` or `Olmo3DecoderLayer`."""

    qk_norm = "layer"

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        return normed_together(self.attention.q_norm, q), normed_together(self.attention.k_norm, k), v


def normed_together(norm: Any, heads: Tensor) -> Tensor:
    """All heads' queries or keys `[B, S, n, C]` under one norm, whose mean is over heads and widths.

    The norm's weight is `[K * C]`. With one key for each query head there are n > K: each has the weight of the head
    that it is a copy of, and the mean is over all of them. Copies that are equal have the mean of the K heads.
    """
    weight = norm.weight.view(-1, heads.shape[-1])
    weight = weight.repeat_interleave(heads.shape[2] // len(weight), 0)
    return functional_call(norm, {"weight": weight.flatten()}, (heads.flatten(2),)).view(heads.shape)


class Olmo2Decoder(RotaryDecoder):
    """What both have in common."""

    block = Olmo2Block

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        require(not hf.config.attention_bias, "attention_bias: a bias under the norm behind the attention")


@final
class Olmo2(Olmo2Decoder):
    """References into an `Olmo2ForCausalLM`."""

    model_types = ("olmo2",)

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "rms_norm_eps": 1e-3}
        return [
            Olmo2Config(**shape, num_key_value_heads=4),
            Olmo2Config(**shape, num_key_value_heads=2, tie_word_embeddings=True),
        ]


@final
class Olmo3(Olmo2Decoder):
    """References into an `Olmo3ForCausalLM`."""

    model_types = ("olmo3",)
    rotary_by_kind = True

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {**cls.shape(), "rms_norm_eps": 1e-3, "sliding_window": 3}
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}
        rotary: dict[str, Any] = {
            "full_attention": {**yarn, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default"},
        }
        return [
            Olmo3Config(**shape, num_key_value_heads=4),
            Olmo3Config(**shape, num_key_value_heads=2, layer_types=kinds, rope_parameters=rotary),
        ]
