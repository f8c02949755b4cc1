"""What decoders with rotary positions have in common: a base for families that are built like Llama.

The names of modules are Llama's, which most of the library's models share. A model's own functions (rotary positions,
eager attention) are taken from the file that its attention is written in.
"""

import copy
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgeprune.graph import KVReaders
from edgeprune.models.block import Block, NormSpec, Projected
from edgeprune.models.family import AbstractFamily, by_head, cached, dense, require_plain

Rotary = tuple[Tensor, Tensor]  # cosines and sines


class Context(NamedTuple):
    """What layers share.

    Attributes:
        masks: One per layer; layers of one kind share theirs.
        rotary: Likewise; None: the layer has no positions.
    """

    masks: list[Any]
    rotary: list[Rotary | None]


class RotaryBlock(Block):
    """A layer with the names of Llama's modules."""

    def __init__(self, module: nn.Module, layer: int, config: Any) -> None:
        super().__init__(module, layer)
        self.config = config

    @property
    def attention(self) -> Any:
        """The attention module."""
        return self.module.self_attn

    @property
    def output(self) -> Any:
        """The linear layer behind the attention-weighted values."""
        return self.attention.o_proj

    @property
    def window(self) -> int | None:
        """How many tokens back the layer sees, itself included; None: all."""
        if hasattr(self.attention, "sliding_window"):
            return self.attention.sliding_window
        slides = hasattr(self._file, "create_sliding_window_causal_mask")  # other models ignore what the config says
        return getattr(self.config, "sliding_window", None) if slides else None

    def kernel_options(self) -> dict[str, Any]:
        """What the model hands to the kernel beyond tensors, mask and scaling."""
        return {} if self.window is None else {"sliding_window": self.window}

    def _own(self, function: str) -> Any:
        """A function of the file that the model's attention is written in."""
        return getattr(self._file, function)

    @property
    def _file(self) -> ModuleType:
        return importlib.import_module(type(self.attention).__module__)

    # ---------------------------------------------------------------- steps
    @property
    def input_norm(self) -> nn.Module | None:
        return self.module.input_layernorm

    def spec_of(self, norm: Any) -> NormSpec:
        """LayerNorm or RMSNorm."""
        if isinstance(norm, nn.LayerNorm):
            return NormSpec(norm.eps, True, norm.weight, norm.bias)
        return NormSpec(norm.variance_epsilon, weight=norm.weight)

    def project(self, normed: Tensor) -> Projected:
        attention, width = self.attention, self.attention.head_dim
        q, k, v = (project(normed) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
        return q.unflatten(-1, (-1, width)), k.unflatten(-1, (-1, width)), v.unflatten(-1, (-1, width))

    def qkv_weights(self) -> Projected:
        attention, config = self.attention, self.config
        return (
            by_head(attention.q_proj.weight, config.num_attention_heads),
            by_head(attention.k_proj.weight, num_kv_heads(config)),
            by_head(attention.v_proj.weight, num_kv_heads(config)),
        )

    def rotate(self, q: Tensor, k: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Queries and keys `[B, n, S, C]` at their positions."""
        return self._own("apply_rotary_pos_emb")(q, k, *rotary)

    def as_projected(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        """The same numbers with the strides that the model's own projections have, `[B, S, n, C]`."""
        return dense(q), dense(k), dense(v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        attention, config, rotary = self.attention, self.config, context.rotary[self.layer]
        q, k, v = (part.transpose(1, 2) for part in self.as_projected(q, k, v))
        if rotary is not None:
            q, k = self.rotate(q, k, rotary)
        if k.shape[1] == num_kv_heads(config):
            k, v = cached(k, config), cached(v, config)
        else:  # one for each query head, which the kernel must not repeat
            attention = copy.copy(attention)
            attention.num_key_value_groups = 1
            k, v = dense(k), dense(v)
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(
            config._attn_implementation, self._own("eager_attention_forward")
        )
        options = {"dropout": 0.0, "scaling": attention.scaling, **self.kernel_options()}
        return kernel(attention, q, k, v, context.masks[self.layer], **options)[0]

    def output_projection(self, values: Tensor) -> Tensor:
        return self.output(values.flatten(2).contiguous())

    def projection_weight(self) -> Tensor:
        weight = self.output.weight
        return weight.view(weight.shape[0], self.config.num_attention_heads, -1).permute(1, 2, 0)

    def mlp(self, stream: Tensor) -> Tensor:
        norm = self.module.input_layernorm if self.parallel else self.module.post_attention_layernorm
        return self.module.mlp(norm(stream))


class NormsBehindBlock(RotaryBlock):
    """A layer with norms behind attention and MLP, and none before them."""

    @property
    def input_norm(self) -> nn.Module | None:
        return None

    @property
    def post_norm(self) -> nn.Module | None:
        return self.module.post_attention_layernorm

    def mlp(self, stream: Tensor) -> Tensor:
        return self.module.post_feedforward_layernorm(self.module.mlp(stream))


def num_kv_heads(config: Any) -> int:
    """Key/value heads of a model, which a config without grouped ones does not name."""
    return getattr(config, "num_key_value_heads", config.num_attention_heads)


class RotaryDecoder(AbstractFamily):
    """References into a model of this kind.

    Attributes:
        block: Its layers' class.
        projections: Names of the attention's modules that are split by head.
        rotary_by_kind: The model has one rotary table for each kind of layer that its config names.
    """

    block: ClassVar[type[RotaryBlock]] = RotaryBlock
    projections: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "o_proj")
    rotary_by_kind: ClassVar[bool] = False

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        self.body = hf.base_model
        self.layers = [self.block(module, layer, hf.config) for layer, module in enumerate(self.modules)]
        self.blocks = self.layers
        for block in self.layers:
            for name in self.projections:
                require_plain(getattr(block.attention, name), nn.Linear, name)

    @classmethod
    def shape(cls) -> dict[str, Any]:
        """What the configs of `tiny` share."""
        return {
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

    @classmethod
    def num_positions(cls, config: Any) -> int | None:
        """Those of a `dynamic` table: beyond its length, what it holds depends on the prompts that came before."""
        rope = getattr(config, "rope_parameters", None) or {}
        kinds = [part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)]
        return config.max_position_embeddings if "dynamic" in kinds else None

    @property
    def modules(self) -> Iterable[nn.Module]:
        """The model's layers."""
        return self.body.layers

    @property
    def num_heads(self) -> int:
        return self.hf.config.num_attention_heads

    @property
    def num_kv_heads(self) -> int:
        return num_kv_heads(self.hf.config)

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        return [self.hf.get_input_embeddings()(input_ids)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Context:
        arguments = (self.hf.config, stream, attention_mask, None, position_ids)  # without a cache
        windows = [block.window for block in self.layers]
        full = create_causal_mask(*arguments) if None in windows else None
        sliding = create_sliding_window_causal_mask(*arguments) if any(windows) else None
        masks = [full if window is None else sliding for window in windows]
        return Context(masks, self.rotary(stream, position_ids))

    def rotary(self, stream: Tensor, position_ids: Tensor) -> list[Rotary | None]:
        """Rotary tables of each layer."""
        if not self.rotary_by_kind:
            return [self.body.rotary_emb(stream, position_ids=position_ids)] * len(self.layers)
        kinds = self.hf.config.layer_types
        tables = {kind: self.body.rotary_emb(stream, position_ids, kind) for kind in set(kinds)}
        return [tables[kind] for kind in kinds]

    def finish(self, stream: Tensor) -> Tensor:
        return self.hf.lm_head(self.body.norm(stream))
