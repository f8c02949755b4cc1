"""One layer of a decoder in steps, and the walk over all layers, in which any value can be looked at and replaced.

    stream ─┬─ norm ─ project ─ heads ─ attend ─ write ─┬──────────────────┬─ join ─ stream
            │                                           │ (none: parallel) │
            └───────────────────────────────────────────┴─ mlp ────────────┘

The masked model reads and writes the stream edge by edge and takes every other step from here; a plain run is `walk`.
Shapes: B batch, S seq, D width, H query heads, K key/value heads, C head width, n H or K or readers of the graph.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Site = Literal["residual", "q_proj", "k_proj", "v_proj", "q", "k", "v", "z", "head_out", "attention_out", "mlp_out"]
Edits = Mapping[Site, Callable[[int, Tensor], Tensor]]  # layer, value; returns the value to go on with
Projected = tuple[Tensor, Tensor, Tensor]

NO_EDITS: Edits = {}
_PER_READER: frozenset[Site] = frozenset({"q_proj", "k_proj", "v_proj", "q", "k", "v"})


class NormSpec(NamedTuple):
    """What a norm does: `(x - mean) * (variance + eps)^(-1/2) * gain + bias`, or the same without the mean.

    Attributes:
        eps: None: there is no norm.
        centred: Take the mean away (LayerNorm) or not (RMSNorm).
        weight: `[D]`, or None for 1.
        bias: `[D]`, or None for 0.
        unit_offset: The gain is `1 + weight` (Gemma), not `weight`.
    """

    eps: float | None
    centred: bool = False
    weight: Tensor | None = None
    bias: Tensor | None = None
    unit_offset: bool = False

    @property
    def gain(self) -> Tensor | None:
        """What normed inputs are multiplied by, `[D]`; None: nothing. With an offset in float32 at least."""
        if self.weight is None or not self.unit_offset:
            return self.weight
        return 1 + self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))

    def scale(self, inputs: Tensor) -> Tensor:
        """`(variance + eps)^(-1/2)` of inputs `[..., D]` that no mean is taken away from, `[...]`, float32 at least."""
        assert self.eps is not None
        assert not self.centred
        exact = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return (exact.square().mean(-1) + self.eps).rsqrt()


class OutputWeight(NamedTuple):
    """The matrix with which attention or MLP writes, in the model's own layout; one of its axes is the stream's.

    Attributes:
        weight: The parameter.
        inputs: Its shape with 1 for the stream's axis, so that one number for each head dimension or neuron, of this
            shape, broadcasts over it.
        bias: What is added to its products, or None.
    """

    weight: Tensor
    inputs: tuple[int, ...]
    bias: Tensor | None


class Block(nn.Module, ABC):
    """One layer of a model: its own modules, never copies of them, behind names that all families share.

    Attributes:
        layer: Its number.
        gather: Makes the weights of a sharded model's layer whole (`sharding.py`); None: they are.
        has_mlp: False for attention-only models.
        parallel: The MLP reads what the attention read, so it does not see the layer's heads.
        qk_norm: `"head"`: queries and keys of each head are normed by themselves. `"layer"`: those of all heads
            together. None: they are not.
    """

    has_mlp: bool = True
    parallel: bool = False
    qk_norm: Literal["head", "layer"] | None = None

    def __init__(self, module: nn.Module, layer: int) -> None:
        super().__init__()
        self.add_module("module", module)
        self.layer = layer
        self.gather: Callable[[], None] | None = None

    @property
    def module(self) -> Any:
        """The model's own layer; in a sharded model, its weights are made whole."""
        if self.gather is not None:
            self.gather()
        return self._modules["module"]

    @property
    def coupled_heads(self) -> bool:
        """Heads share a norm, so what one of them reads moves what all of them write."""
        return self.post_norm is not None or self.qk_norm == "layer"

    # ---------------------------------------------------------------- norms
    @property
    def input_norm(self) -> nn.Module | None:
        """The norm before q, k, v, a module on `[..., D]`; None: there is none."""
        return None

    @property
    def post_norm(self) -> nn.Module | None:
        """The norm of what attention adds to the stream; None: there is none. It takes no mean away."""
        return None

    def spec_of(self, norm: nn.Module) -> NormSpec:
        """A norm as numbers."""
        raise NotImplementedError

    def norm(self, stream: Tensor) -> Tensor:
        """What q, k and v are projected from, `[..., D]`."""
        return stream if self.input_norm is None else self.input_norm(stream)

    def input_spec(self) -> NormSpec:
        """The norm before q, k, v as numbers."""
        return NormSpec(None) if self.input_norm is None else self.spec_of(self.input_norm)

    # ---------------------------------------------------------------- attention
    @abstractmethod
    def project(self, normed: Tensor) -> Projected:
        """The model's own projections of `[B, S, D]`: q `[B, S, H, C]`, k and v `[B, S, K, C]`, as it lays them out."""

    @abstractmethod
    def qkv_weights(self) -> Projected:
        """Views of the same weights by head: q `[H, D, C]`, k and v `[K, D, C]`."""

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> Projected:
        """Queries, keys and values as the heads know them: after norms of q and k, before rotary positions.

        From `project`, or with one k and v for each reader of the graph, `[B, S, n, C]`.
        """
        return q, k, v

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        """Attention-weighted values `[B, S, H, C]` from what `heads` gives; k and v may come once per query head.

        Rotary positions are applied here. The kernel gets tensors laid out as in the model's own forward: products of
        the same numbers laid out otherwise may be rounded otherwise.
        """

    @abstractmethod
    def output_projection(self, values: Tensor) -> Tensor:
        """The model's own output projection of `[B, S, H, C]`, bias included, before `post_norm`, `[B, S, D]`."""

    @abstractmethod
    def projection_weight(self) -> Tensor:
        """View of its weight by head, `[H, C, D]`."""

    @abstractmethod
    def attention_output(self) -> OutputWeight:
        """The parameter of the output projection; its inputs are the heads one after the other."""

    def write(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What heads write.

        Args:
            values: Attention-weighted values `[B, S, H, C]`.

        Returns:
            The values that give each head's output once they are multiplied by its `output_weight`, `[B, S, H, C]`:
            with a norm behind the attention, `values` times its scale for their sum. And the model's own sum of all
            heads' outputs and of the bias, which attention adds to the stream, `[B, S, D]`.
        """
        out = self.output_projection(values)
        if self.post_norm is None:
            return values, out
        scale = self.spec_of(self.post_norm).scale(out)
        return (values * scale[..., None, None]).to(values.dtype), self.post_norm(out)

    def written(self, values: Tensor) -> Tensor:
        """The first of what `write` returns, from values `[B, S, H, C]`."""
        return values if self.post_norm is None else self.write(values)[0]

    def output_weight(self) -> Tensor:
        """By head `[H, C, D]`: what turns written values into the head's output; holds the gain of `post_norm`."""
        weight = self.projection_weight()
        gain = None if self.post_norm is None else self.spec_of(self.post_norm).gain
        return weight if gain is None else (weight * gain).to(weight.dtype)

    def sum_heads(self, written: Tensor) -> Tensor:
        """What attention adds to the stream, `[B, S, D]`, if heads write other values `[B, S, H, C]` than their own."""
        if self.post_norm is None:
            return self.output_projection(written)
        return written.flatten(2) @ self.output_weight().flatten(0, 1).to(written.dtype)

    # ---------------------------------------------------------------- MLP and stream
    @property
    def mlp_norm(self) -> nn.Module | None:
        """The norm before the MLP, a module on `[..., D]`; None: there is none."""
        return None

    @property
    def mlp_post_norm(self) -> nn.Module | None:
        """The norm of what the MLP adds to the stream; None: there is none."""
        return None

    @abstractmethod
    def feed_forward(self, normed: Tensor) -> Tensor:
        """The MLP between its norms, `[..., D]` to `[..., D]`."""

    @abstractmethod
    def mlp_output(self) -> OutputWeight | None:
        """The parameter behind the MLP's neurons; None without an MLP, or where there are several (experts)."""

    def mlp(self, stream: Tensor) -> Tensor:
        """What the MLP adds to the stream, its norms included, `[..., D]` to `[..., D]`."""
        before, behind = self.mlp_norm, self.mlp_post_norm
        out = self.feed_forward(stream if before is None else before(stream))
        return out if behind is None else behind(out)

    def mlp_input(self, stream: Tensor, attention: Tensor) -> Tensor:
        """What the MLP reads `[B, S, D]`: the stream before the layer, with what attention adds unless `parallel`."""
        return stream if self.parallel else stream + attention

    def join(self, stream: Tensor, attention: Tensor, mlp: Tensor | None) -> Tensor:
        """The stream after the layer `[B, S, D]`, added up in the model's own order, which decides the last bit."""
        stream = stream + attention
        return stream if mlp is None else stream + mlp


def walk(
    blocks: Sequence[Block], stream: Tensor, context: Any, edits: Edits = NO_EDITS, kv_copies: int = 1, first: int = 0
) -> Tensor:
    """Run layers one after the other and return the stream after the last, `[B, S, D]`.

    Args:
        blocks: All layers of the model.
        stream: The stream before layer `first`, `[B, S, D]`.
        context: What the family's layers share.
        edits: By site, what looks at its value and returns it or another one. In the order of computation: `residual`
            (the stream before each layer, and the end as layer `num_layers`) `[B, S, D]`; `q_proj`, `k_proj`, `v_proj`
            and, after norms of q and k, `q`, `k`, `v` `[B, S, n, C]`, before rotary positions; `z`, attention-weighted
            values, and `head_out`, the same times the scale of a norm behind them, `[B, S, H, C]`; `attention_out` and
            `mlp_out` `[B, S, D]`.
        kv_copies: K and v readers of the graph for each key/value head, as edits of k and v see them.
        first: Layer to begin with.
    """

    def edited(site: Site, layer: int, value: Tensor) -> Tensor:
        return edits[site](layer, value) if site in edits else value

    copies = 1 if _PER_READER.isdisjoint(edits) else kv_copies
    for block in blocks[first:]:
        layer = block.layer
        stream = edited("residual", layer, stream)
        q, k, v = repeat_kv(block.project(block.norm(stream)), copies)
        q, k, v = block.heads(edited("q_proj", layer, q), edited("k_proj", layer, k), edited("v_proj", layer, v))
        q, k, v = edited("q", layer, q), edited("k", layer, k), edited("v", layer, v)
        own, attention = block.write(edited("z", layer, block.attend(q, k, v, context)))
        written = edited("head_out", layer, own)
        attention = edited("attention_out", layer, attention if written is own else block.sum_heads(written))
        mlp = None
        if block.has_mlp:
            mlp = edited("mlp_out", layer, block.mlp(block.mlp_input(stream, attention)))
        stream = block.join(stream, attention, mlp)
    return edited("residual", len(blocks), stream)


def weights_per_reader(block: Block, copies: int) -> Projected:
    """`Block.qkv_weights` with one k and one v for each reader of the graph, `[n, D, C]` each."""
    q, k, v = block.qkv_weights()
    return (q, k, v) if copies == 1 else (q, k.repeat_interleave(copies, 0), v.repeat_interleave(copies, 0))


def repeat_kv(qkv: Projected, copies: int) -> Projected:
    """Key/value heads `[B, S, K, C]` once for each reader of the graph, `[B, S, K * copies, C]`."""
    if copies == 1:
        return qkv
    q, k, v = qkv
    return q, k.repeat_interleave(copies, dim=2), v.repeat_interleave(copies, dim=2)


def keeping(found: list[Tensor]) -> Callable[[int, Tensor], Tensor]:
    """An edit that puts values `[batch, seq, ...]` into a list and leaves them as they are."""

    def keep(layer: int, value: Tensor) -> Tensor:
        found.append(value)
        return value

    return keep
