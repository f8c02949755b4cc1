"""A small transformer whose weights are written rather than trained: the host of compiled programs.

No normalisation, absolute positions, ReLU, biases everywhere but at the output; x is the residual stream:

    x = tok_embed[ids] + pos_embed[positions]
    x = x + o_proj(concat_h softmax(q_h k_h^T * attn_scale) v_h)      q, k, v = linear maps of x
    x = x + fc_out(relu(fc_in(x)))
    logits = unembed(x)

It is an ordinary `PreTrainedModel`, so that everything that works on language models works on it.
"""

from dataclasses import field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgeprune.errors import EdgepruneError


class CompiledConfig(PreTrainedConfig):
    """Shape of a `CompiledTransformer`.

    Attributes:
        vocab_size: Number of input tokens.
        n_ctx: Rows of the position table: the longest sequence.
        num_hidden_layers: Layers of attention and MLP.
        num_attention_heads: Heads per layer.
        head_dim: Width of a query, key or value.
        hidden_size: Width of the residual stream.
        intermediate_size: Hidden units of an MLP; 0 for an attention-only model.
        d_out: Number of outputs per position.
        causal: Whether a position sees only itself and those before it.
        attn_scale: Factor on the attention scores.
        bos_token_id: Token that inputs begin with; None if they have none.
        pad_token_id: Token to fill rows with; None if there is none.
        vocab: Names of the input tokens, one per id; empty if unnamed.
        output_labels: Names of the outputs, one per logit; empty if unnamed.
        initializer_range: Standard deviation of random weights; large, as no norm rescales the stream.
    """

    model_type = "edgeprune_compiled"

    vocab_size: int = 8
    n_ctx: int = 16
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    head_dim: int = 4
    hidden_size: int = 16
    intermediate_size: int = 12
    d_out: int = 8
    causal: bool = False
    attn_scale: float = 1.0
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    vocab: list[str] = field(default_factory=list[str])
    output_labels: list[str] = field(default_factory=list[str])
    initializer_range: float = 0.2


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Plain attention: `[batch, head, seq, head_dim]` in, `[batch, seq, head, head_dim]` out; mask added."""
    del module  # part of the signature that transformers' attention functions share
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    at_least_float32 = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=at_least_float32).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class CompiledAttention(nn.Module):
    """Multi-head attention without rotary positions; every projection has a bias."""

    num_key_value_groups = 1

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.scaling = config.attn_scale
        self.is_causal = config.causal
        width = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width)
        self.k_proj = nn.Linear(config.hidden_size, width)
        self.v_proj = nn.Linear(config.hidden_size, width)
        self.o_proj = nn.Linear(width, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map the stream `[batch, seq, d]` to what attention adds to it."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        implementation = cast(str, self.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        values = attend(self, q, k, v, mask, dropout=0.0, scaling=self.scaling)[0]
        return self.o_proj(values.flatten(2).contiguous())


class CompiledMLP(nn.Module):
    """One hidden layer of ReLU units."""

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__()
        self.fc_in = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc_out = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map the stream `[batch, seq, d]` to what the MLP adds to it."""
        return self.fc_out(self.fc_in(x).relu())


class CompiledLayer(nn.Module):
    """Attention, then the MLP if there is one, each added to the stream."""

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__()
        self.attn = CompiledAttention(config)
        self.mlp = CompiledMLP(config) if config.intermediate_size else None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map the stream `[batch, seq, d]` to the stream after this layer."""
        x = x + self.attn(x, mask)
        return x if self.mlp is None else x + self.mlp(x)


class CompiledTransformer(PreTrainedModel):
    """The transformer of this module's docstring; random weights until something writes others."""

    config_class = CompiledConfig
    config: CompiledConfig
    _supports_sdpa = True
    _supports_attention_backend = True
    _input_embed_layer = "tok_embed"

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__(config)
        self.tok_embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.pos_embed = nn.Embedding(config.n_ctx, config.hidden_size)
        self.layers = nn.ModuleList(CompiledLayer(config) for _ in range(config.num_hidden_layers))
        self.unembed = nn.Linear(config.hidden_size, config.d_out, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model.

        Args:
            input_ids: Long `[batch, seq]`.
            attention_mask: 1 for a token, 0 for padding, `[batch, seq]`; None if there is no padding.
            position_ids: Rows of the position table, `[batch, seq]` or `[1, seq]`; 0, 1, 2, ... by default.

        Returns:
            Its `logits` are `[batch, seq, d_out]`: at every position the output *for that position*.

        Raises:
            EdgepruneError: The sequence is longer than the position table.
        """
        length = input_ids.shape[1]
        if position_ids is None:
            if length > self.config.n_ctx:
                raise EdgepruneError(
                    f"{length} tokens given, this model takes at most {self.config.n_ctx}; shorten the input"
                )
            position_ids = torch.arange(length, device=input_ids.device)[None]
        x = self.tok_embed(input_ids) + self.pos_embed(position_ids)
        mask = self.make_mask(x, attention_mask, position_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return CausalLMOutputWithPast(logits=self.unembed(x))

    def make_mask(self, x: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Tensor | None:
        """Attention mask in the form that the attention function wants; `x` gives shape, dtype and device."""
        if not self.config.causal:
            return create_bidirectional_mask(self.config, x, attention_mask)
        return create_causal_mask(self.config, x, attention_mask, None, position_ids)  # without a cache
