"""GPT-Neo: learned positions, layers that see everything or a window in turn, attention of its own without a scale."""

from typing import Any, final

from torch import Tensor
from transformers import GPTNeoConfig

from edgeprune.errors import EdgepruneError
from edgeprune.models.families.decoder import DecoderBlock, LearnedPositionsDecoder
from edgeprune.models.family import cached, dense


@final
class GPTNeoBlock(DecoderBlock):
    """A `GPTNeoBlock` of the library."""

    attention_name = "attn.attention"
    output_name = "out_proj"
    input_norm_name = "ln_1"
    mlp_norm_name = "ln_2"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        q, k, v = (dense(part).transpose(1, 2) for part in (q, k, v))
        k, v = cached(k, self.config), cached(v, self.config)
        return self.attention._attn(q, k, v, context)[0].transpose(1, 2)


@final
class GPTNeo(LearnedPositionsDecoder):
    """References into a `GPTNeoForCausalLM`."""

    model_types = ("gpt_neo",)
    attention_implementations = ("eager",)  # of the others the library's model has flash attention, without windows
    positions_bound_padding = True  # each layer has a table of which positions see which
    block = GPTNeoBlock
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")

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

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        config, length = self.hf.config, stream.shape[1]
        if length > config.max_position_embeddings:
            raise EdgepruneError(
                f"prompts padded to {length} tokens: {config.name_or_path or config.model_type!r} takes "
                f"{config.max_position_embeddings}, padding included; pad less"
            )
        return super().context(stream, attention_mask, position_ids)
