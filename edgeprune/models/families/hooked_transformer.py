"""TransformerLens' `HookedTransformer`: GPT-2-like and attention-only models, with any of its norms or none.

The library is not imported: a model comes from who has it. Weights lie by head, `W_Q [H, D, C]` and `W_O [H, C, D]`;
attention is computed from them as the library does. Embeddings, norms, MLPs and the head are the model's own modules.
"""

from typing import Any, Self, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from edgeprune.graph import KVReaders
from edgeprune.models.block import Block, NormSpec, OutputWeight, Projected
from edgeprune.models.family import AbstractFamily, dense, require

# Flags of its config, of all versions, that change what a layer computes, with the values that change nothing.
_OFF: dict[str, tuple[Any, ...]] = {
    "positional_embedding_type": ("standard",),
    "attention_dir": ("causal",),
    "n_devices": (1,),
    "attn_scores_soft_cap": (-1.0, 0.0),
    "output_logits_soft_cap": (-1.0, 0.0),
    **dict.fromkeys(
        (
            "use_local_attn",
            "use_normalization_before_and_after",
            "use_qk_norm",
            "use_attention_sinks",
            "use_logn_attn",
            "clip_qkv",
            "num_experts",
            "load_in_4bit",
        ),
        (False,),
    ),
}
_CONFIG_OF_2 = "transformer_lens.HookedTransformerConfig"  # module in version 2


class HookedConfig(PreTrainedConfig):
    """Shape of a `HookedModel`.

    Attributes:
        vocab_size: Number of input tokens.
        d_out: Number of outputs per position.
        n_ctx: Rows of the position table.
    """

    model_type = "hooked_transformer"

    vocab_size: int = 1
    d_out: int = 1
    n_ctx: int = 1


class _Table:
    """A token embedding as `get_input_embeddings` gives it."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.num_embeddings = weight, len(weight)


@final
class HookedModel(nn.Module):
    """A `HookedTransformer` that is called as the library's models are. It is referred to, not copied.

    Args:
        hooked: The model.
    """

    def __init__(self, hooked: Any) -> None:
        super().__init__()
        self.hooked = hooked
        cfg = hooked.cfg
        self.config: Any = HookedConfig(vocab_size=cfg.d_vocab, d_out=cfg.d_vocab_out, n_ctx=cfg.n_ctx)
        self.config._attn_implementation = "eager"
        self.config.name_or_path = "" if cfg.model_name in (None, "custom") else cfg.model_name

    def get_input_embeddings(self) -> _Table:
        """The token embedding, `weight` `[vocab, D]`."""
        return _Table(self.hooked.embed.W_E)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> CausalLMOutput:
        """The model's own logits `[B, S, vocab]` of tokens `[B, S]`; no token is added, none is taken for padding."""
        hooked = self.hooked
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        stream = hooked.embed(input_ids) + hooked.pos_embed.W_pos[position_ids]
        return CausalLMOutput(logits=hooked(stream, start_at_layer=0, attention_mask=attention_mask))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move or convert the model, and note it in its config, which its own forward reads."""
        super()._apply(fn, recurse)
        weight, cfg = self.hooked.embed.W_E, self.hooked.cfg
        cfg.device, cfg.dtype = str(weight.device), weight.dtype
        return self


@final
class HookedBlock(Block):
    """A `TransformerBlock` of TransformerLens."""

    @property
    def has_mlp(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] -- a fact of the layer here
        """Whether the layer has an MLP."""
        return not self.module.cfg.attn_only

    @property
    def parallel(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the MLP reads what the attention read."""
        return bool(self.module.cfg.parallel_attn_mlp)

    @property
    def input_norm(self) -> nn.Module | None:
        return None if isinstance(self.module.ln1, nn.Identity) else self.module.ln1

    def spec_of(self, norm: Any) -> NormSpec:
        """LayerNorm or RMSNorm; the folded ones have no weights."""
        centred = type(norm).__name__.startswith("LayerNorm")
        return NormSpec(norm.eps, centred, getattr(norm, "w", None), getattr(norm, "b", None))

    def _own(self, name: str) -> Tensor:
        """A weight or bias of the attention; those of grouped keys and values are kept under a name of their own."""
        attention = self.module.attn
        return getattr(attention, f"_{name}" if hasattr(attention, f"_{name}") else name)

    def project(self, normed: Tensor) -> Projected:
        weights, biases = self.qkv_weights(), (self._own("b_Q"), self._own("b_K"), self._own("b_V"))
        q, k, v = (
            nn.functional.linear(normed, weight.transpose(1, 2).flatten(0, 1), bias.flatten()).unflatten(-1, bias.shape)
            for weight, bias in zip(weights, biases, strict=True)
        )
        return q, k, v

    def qkv_weights(self) -> Projected:
        return self._own("W_Q"), self._own("W_K"), self._own("W_V")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Tensor) -> Tensor:
        attention, heads = self.module.attn, q.shape[2]
        k, v = (part.repeat_interleave(heads // part.shape[2], dim=2) for part in (k, v))
        q, k, v = (dense(part).transpose(1, 2) for part in (q, k, v))
        if type(self.module.cfg).__module__ == _CONFIG_OF_2:  # it has scores of half precision in float32
            q, k = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (q, k))
        scores = torch.where(context, q @ k.transpose(2, 3) / attention.attn_scale, attention.IGNORE)
        pattern = scores.softmax(-1)
        pattern = pattern.masked_fill(pattern.isnan(), 0)  # rows of padding, which see nothing
        return (pattern.to(v.dtype) @ v).transpose(1, 2)

    def output_projection(self, values: Tensor) -> Tensor:
        weight = self.projection_weight().permute(2, 0, 1).flatten(1).contiguous()
        return nn.functional.linear(values.flatten(2), weight, self.module.attn.b_O)

    def projection_weight(self) -> Tensor:
        return self.module.attn.W_O

    def attention_output(self) -> OutputWeight:
        weight = self.projection_weight()
        return OutputWeight(weight, (*weight.shape[:2], 1), self.module.attn.b_O)

    @property
    def mlp_norm(self) -> nn.Module | None:
        return None if isinstance(self.module.ln2, nn.Identity) else self.module.ln2

    def feed_forward(self, normed: Tensor) -> Tensor:
        return self.module.mlp(normed)

    def mlp_output(self) -> OutputWeight | None:
        if not self.has_mlp:
            return None
        mlp = self.module.mlp
        return OutputWeight(mlp.W_out, (mlp.W_out.shape[0], 1), mlp.b_out)


@final
class HookedTransformer(AbstractFamily):
    """References into a `HookedModel`."""

    model_types = (HookedConfig.model_type,)
    attention_implementations = ("eager",)
    has_position_embedding = True

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        cfg = hf.hooked.cfg
        for flag, values in _OFF.items():
            value = getattr(cfg, flag, None)
            require(value is None or value in values, f"{flag}={value!r} of a HookedTransformer")
        super().__init__(hf, kv_readers)
        self.hooked = hf.hooked
        self.blocks = [HookedBlock(module, layer) for layer, module in enumerate(self.hooked.blocks)]

    @classmethod
    def tiny(cls) -> list[Any]:
        return []  # those of its tests, which need the library

    @classmethod
    def num_positions(cls, config: Any) -> int | None:
        return config.n_ctx

    @property
    def num_heads(self) -> int:
        return self.hooked.cfg.n_heads

    @property
    def num_kv_heads(self) -> int:
        return self.hooked.cfg.n_key_value_heads or self.num_heads

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        tokens = self.hooked.embed(input_ids)
        return [tokens, self.hooked.pos_embed.W_pos[position_ids].expand_as(tokens)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Tensor:
        """Which keys a query sees, bool `[1 or B, 1, S, S]`."""
        place = torch.arange(stream.shape[1], device=stream.device)
        causal = (place <= place[:, None])[None, None]
        return causal if attention_mask is None else causal & attention_mask[:, None, None].bool()

    @property
    def last_norm(self) -> nn.Module | None:
        return None if self.hooked.cfg.normalization_type is None else self.hooked.ln_final

    def head(self, normed: Tensor) -> Tensor:
        return self.hooked.unembed(normed)
