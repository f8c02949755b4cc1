"""What decoders with rotary positions have in common: a base for families that are built like Llama."""

import copy
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from edgeprune.models.block import Projected
from edgeprune.models.families.decoder import Decoder, DecoderBlock, num_kv_heads
from edgeprune.models.family import cached, dense

Rotary = tuple[Tensor, Tensor]  # cosines and sines


class Context(NamedTuple):
    """What layers share.

    Attributes:
        masks: One per layer; layers of one kind share theirs.
        rotary: Likewise; None: the layer has no positions.
    """

    masks: list[Any]
    rotary: list[Rotary | None]


class RotaryBlock(DecoderBlock):
    """A layer whose queries and keys are rotated."""

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
        options = {"dropout": 0.0, "scaling": attention.scaling, **self.kernel_options()}
        return self.kernel(attention, q, k, v, context.masks[self.layer], **options)[0]


class NormsBehindBlock(RotaryBlock):
    """A layer with norms behind attention and MLP, and none before them."""

    input_norm_name = None
    post_norm_name = "post_attention_layernorm"
    mlp_norm_name = None
    mlp_post_norm_name = "post_feedforward_layernorm"


class RotaryDecoder(Decoder):
    """References into a model of this kind.

    Attributes:
        rotary_by_kind: The model has one rotary table for each kind of layer that its config names.
    """

    block: ClassVar[type[DecoderBlock]] = RotaryBlock
    rotary_by_kind: ClassVar[bool] = False

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

    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Context:
        arguments = (self.hf.config, stream, attention_mask, None, position_ids)  # without a cache
        windows = [block.window for block in self.layers]
        full = create_causal_mask(*arguments) if None in windows else None
        sliding = create_sliding_window_causal_mask(*arguments) if any(windows) else None
        masks = [full if window is None else sliding for window in windows]
        return Context(masks, self.rotary(stream, position_ids))

    def rotary(self, stream: Tensor, position_ids: Tensor) -> list[Rotary | None]:
        """Rotary tables of each layer for a stream `[B, S, D]`, or None where it has no positions."""
        if not self.rotary_by_kind:
            return [self.body.rotary_emb(stream, position_ids=position_ids)] * len(self.layers)
        kinds = self.hf.config.layer_types
        tables = {kind: self.body.rotary_emb(stream, position_ids, kind) for kind in set(kinds)}
        return [tables[kind] for kind in kinds]
