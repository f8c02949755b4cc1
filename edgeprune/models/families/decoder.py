"""What decoders with one attention and one MLP per layer have in common, with Llama's names of modules as defaults.

A model's own functions (eager attention, rotary positions) are taken from the file that its attention is written in.
"""

import importlib
from types import ModuleType
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from edgeprune.graph import KVReaders
from edgeprune.models.block import Block, NormSpec, OutputWeight, Projected
from edgeprune.models.family import AbstractFamily, by_head, require_plain
from edgeprune.models.lean import lean


class DecoderBlock(Block):
    """A layer with projections of q, k, v and of the heads' values.

    Attributes:
        attention_name: Of the attention module in the layer; names of norms likewise, None where there is none.
        output_name: Of the output projection in the attention module.
        input_norm_name: Of the norm before q, k and v.
        post_norm_name: Of the norm behind the attention.
        mlp_norm_name: Of the norm before the MLP.
        mlp_post_norm_name: Of the norm behind the MLP.
        mlp_output_names: Of the linear layer behind the MLP's neurons; the first that the layer has.
    """

    attention_name: str = "self_attn"
    output_name: str = "o_proj"
    input_norm_name: str | None = "input_layernorm"
    post_norm_name: str | None = None
    mlp_norm_name: str | None = "post_attention_layernorm"
    mlp_post_norm_name: str | None = None
    mlp_output_names: tuple[str, ...] = tuple(
        f"mlp.{name}" for name in ("down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h")
    )

    def __init__(self, module: nn.Module, layer: int, config: Any) -> None:
        super().__init__(module, layer)
        self.config = config

    @property
    def attention(self) -> Any:
        """The attention module."""
        return self.module.get_submodule(self.attention_name)

    @property
    def output(self) -> Any:
        """The linear layer behind the attention-weighted values."""
        return self.attention.get_submodule(self.output_name)

    @property
    def kernel(self) -> Any:
        """The attention kernel that the config names."""
        name = self.config._attn_implementation
        return ALL_ATTENTION_FUNCTIONS.get_interface(name, self._own("eager_attention_forward"))

    def _own(self, function: str) -> Any:
        """A function of the file that the model's attention is written in."""
        return getattr(self._file, function)

    @property
    def _file(self) -> ModuleType:
        return importlib.import_module(type(self.attention).__module__)

    # ---------------------------------------------------------------- steps
    def _named(self, name: str | None) -> nn.Module | None:
        return None if name is None else self.module.get_submodule(name)

    @property
    def input_norm(self) -> nn.Module | None:
        return self._named(self.input_norm_name)

    @property
    def post_norm(self) -> nn.Module | None:
        return self._named(self.post_norm_name)

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

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        if self.qk_norm != "head":
            return q, k, v
        return self.attention.q_norm(q), self.attention.k_norm(k), v

    def output_projection(self, values: Tensor) -> Tensor:
        return self.output(values.flatten(2).contiguous())

    def projection_weight(self) -> Tensor:
        weight = self.output.weight
        return weight.view(weight.shape[0], self.config.num_attention_heads, -1).permute(1, 2, 0)

    def attention_output(self) -> OutputWeight:
        return _linear(self.output)

    @property
    def mlp_norm(self) -> nn.Module | None:
        return self._named(self.mlp_norm_name)

    @property
    def mlp_post_norm(self) -> nn.Module | None:
        return self._named(self.mlp_post_norm_name)

    def feed_forward(self, normed: Tensor) -> Tensor:
        return lean(self.module.mlp)(normed)

    def mlp_output(self) -> OutputWeight | None:
        modules = dict(self.module.named_modules())
        found = next((modules[name] for name in self.mlp_output_names if name in modules), None)
        return None if found is None else _linear(found)


def _linear(module: Any) -> OutputWeight:
    """The weight of a linear layer, or of one that is stored transposed."""
    size = module.weight.shape[0] if isinstance(module, Conv1D) else module.weight.shape[1]
    return OutputWeight(module.weight, (size, 1) if isinstance(module, Conv1D) else (1, size), module.bias)


def num_kv_heads(config: Any) -> int:
    """Key/value heads of a model, which a config without grouped ones does not name."""
    return getattr(config, "num_key_value_heads", config.num_attention_heads)


class Decoder(AbstractFamily):
    """References into a decoder.

    Attributes:
        block: Its layers' class.
        projections: Names of the attention's modules that are split by head.
        projection_type: What they are.
        layer_list: Name of the list of layers in the model's body.
        final_norm: Name of the norm before the head.
    """

    block: ClassVar[type[DecoderBlock]] = DecoderBlock
    projections: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "o_proj")
    projection_type: ClassVar[type[nn.Module]] = nn.Linear
    layer_list: ClassVar[str] = "layers"
    final_norm: ClassVar[str] = "norm"

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        super().__init__(hf, kv_readers)
        self.layers: Any = [
            self.block(module, layer, hf.config) for layer, module in enumerate(getattr(self.body, self.layer_list))
        ]
        self.blocks = self.layers
        for block in self.layers:
            for name in self.projections:
                require_plain(getattr(block.attention, name), self.projection_type, name)

    @property
    def body(self) -> Any:
        """The model without its head."""
        return self.hf.base_model

    @property
    def num_heads(self) -> int:
        return self.hf.config.num_attention_heads

    @property
    def num_kv_heads(self) -> int:
        return num_kv_heads(self.hf.config)

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        return [self.hf.get_input_embeddings()(input_ids)]

    @property
    def last_norm(self) -> nn.Module | None:
        return getattr(self.body, self.final_norm)

    def head(self, normed: Tensor) -> Tensor:
        return self.hf.lm_head(normed)


class LearnedPositionsDecoder(Decoder):
    """References into a decoder with a table of positions, and GPT-2's names."""

    has_position_embedding = True
    layer_list = "h"
    final_norm = "ln_f"

    @classmethod
    def num_positions(cls, config: Any) -> int | None:
        return config.max_position_embeddings

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        tokens = self.body.wte(input_ids)
        return [tokens, self.body.wpe(position_ids).expand_as(tokens)]

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        return create_causal_mask(self.hf.config, stream, attention_mask, None, position_ids)  # without a cache
