"""Llama and the models built like it: Llama, CodeLlama, SmolLM2, Mistral, Qwen2. Rotary, RMSNorm, gated MLP."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, final

from torch import Tensor, nn
from transformers import LlamaConfig, MistralConfig, Qwen2Config
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from edgeprune.errors import UnsupportedFamilyError
from edgeprune.graph import ArchSpec, KVReaders
from edgeprune.models.family import AbstractFamily, ReadNorm, by_head, dense, require_plain


class _Context(NamedTuple):
    masks: list[Any]  # one per layer; layers of one kind share theirs
    rotary: tuple[Tensor, Tensor]


@final
class Llama(AbstractFamily):
    """References into a `LlamaForCausalLM`, `MistralForCausalLM` or `Qwen2ForCausalLM`."""

    model_types = ("llama", "mistral", "qwen2")

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        self.body, self.layers = hf.model, hf.model.layers
        for layer in self.layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                require_plain(getattr(layer.self_attn, name), nn.Linear, name)
        self.windows = [self._window(index) for index in range(len(self.layers))]
        self.ungrouped = [self._ungrouped(layer.self_attn) for layer in self.layers]

    def _window(self, layer: int) -> int | None:
        """Sliding window of a layer: set per layer in Qwen2, for all layers in Mistral, never in Llama."""
        config = self.hf.config
        if config.model_type == "qwen2":
            return self.layers[layer].self_attn.sliding_window
        return config.sliding_window if config.model_type == "mistral" else None

    @staticmethod
    def _ungrouped(attn: nn.Module) -> nn.Module:
        """The module to hand to the attention kernel with one k/v head per query head: it must not repeat them."""
        ungrouped: Any = copy.copy(attn)
        ungrouped.num_key_value_groups = 1
        return ungrouped

    @classmethod
    def tiny(cls) -> list[Any]:
        shape: dict[str, Any] = {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "vocab_size": 61,
            "pad_token_id": None,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        return [
            LlamaConfig(**shape, num_key_value_heads=4),
            LlamaConfig(**shape, num_key_value_heads=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
            MistralConfig(**shape, num_key_value_heads=2, head_dim=12, sliding_window=4),
            Qwen2Config(**shape, num_key_value_heads=1),
            Qwen2Config(**shape, num_key_value_heads=2, use_sliding_window=True, sliding_window=3, max_window_layers=1),
        ]

    def arch(self, split_embedding: bool) -> ArchSpec:
        if split_embedding:
            raise UnsupportedFamilyError(
                f"split_embedding=True needs a position embedding, {self.hf.config.model_type} has rotary positions; "
                "set split_embedding to false"
            )
        return ArchSpec(
            num_layers=len(self.layers),
            num_heads=self.hf.config.num_attention_heads,
            num_kv_heads=self.hf.config.num_key_value_heads,
            kv_readers=self.kv_readers,
        )

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        return [self.body.embed_tokens(input_ids)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        arguments = (self.hf.config, stream, attention_mask, None, position_ids)  # without a cache
        full = create_causal_mask(*arguments) if None in self.windows else None
        sliding = create_sliding_window_causal_mask(*arguments) if any(self.windows) else None
        masks = [full if window is None else sliding for window in self.windows]
        return _Context(masks, self.body.rotary_emb(stream, position_ids=position_ids))

    def attention_norm(self, layer: int) -> Callable[[Tensor], Tensor]:
        return self.layers[layer].input_layernorm

    def read_norm(self, layer: int) -> ReadNorm:
        norm = self.layers[layer].input_layernorm
        return ReadNorm(self.hf.config.rms_norm_eps, weight=norm.weight)

    def qkv(self, layer: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.layers[layer].self_attn
        return attn.q_proj(normed), attn.k_proj(normed), attn.v_proj(normed)

    def qkv_weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        attn, config = self.layers[layer].self_attn, self.hf.config
        return (
            by_head(attn.q_proj.weight, config.num_attention_heads),
            by_head(attn.k_proj.weight, config.num_key_value_heads),
            by_head(attn.v_proj.weight, config.num_key_value_heads),
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        attn = self.layers[layer].self_attn
        q, k, v = (dense(part).view(*part.shape[:2], -1, attn.head_dim).transpose(1, 2) for part in (q, k, v))
        q, k = apply_rotary_pos_emb(q, k, *context.rotary)
        grouped = k.shape[1] == self.hf.config.num_key_value_heads
        seen, laid_out = (attn, self.cached) if grouped else (self.ungrouped[layer], dense)
        k, v = laid_out(k), laid_out(v)
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self.hf.config._attn_implementation, eager_attention_forward)
        window = self.windows[layer]
        extra = {} if window is None else {"sliding_window": window}
        return kernel(seen, q, k, v, context.masks[layer], dropout=0.0, scaling=attn.scaling, **extra)[0]

    def attention_output(self, layer: int, values: Tensor) -> Tensor:
        return self.layers[layer].self_attn.o_proj(values.flatten(2).contiguous())

    def output_weight(self, layer: int) -> Tensor:
        weight = self.layers[layer].self_attn.o_proj.weight
        return weight.view(weight.shape[0], self.hf.config.num_attention_heads, -1).permute(1, 2, 0)

    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        block = self.layers[layer]
        return block.mlp(block.post_attention_layernorm(stream))

    def finish(self, stream: Tensor) -> Tensor:
        return self.hf.lm_head(self.body.norm(stream))
