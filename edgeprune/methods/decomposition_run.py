"""One batch taken apart: what each of several sources makes of every activation downstream of it.

The total of every activation is the clean run's, whatever the source, and is computed once; what is carried from layer
to layer is the relevant part alone. Shapes: B examples, T tokens, D width, H heads, K key/value heads, C head width, S
sources of one layer.

Hsu et al. 2024, "Efficient Automated Circuit Discovery in Transformers using Contextual Decomposition" (arXiv
2407.00886); the rule for products of two activations is ours, as the method has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.methods.decomposition_rules import (
    Biases,
    larger_takes_all,
    norm_part,
    relevant_of,
    spec_or_none,
    through_function,
    through_linear,
)
from edgeprune.models.block import Block, Edits, Projected, Site, keeping, walk
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates

AttentionRule = Literal["relevant", "frozen"]
_KEPT: tuple[Site, ...] = ("residual", "q_proj", "k_proj", "v_proj", "q", "k", "v", "z", "head_out", "attention_out")


@final
@dataclass(frozen=True)
class Rules:
    """How activations are taken apart.

    Attributes:
        attention: `"relevant"`: the pattern of the relevant part is that of relevant queries and keys. `"frozen"`: the
            pattern is the model's own.
        biases: See `norm_part`.
        larger: Behind linear layers of MLPs and behind additions to the stream, of two parts with opposed signs the
            larger takes all.
    """

    attention: AttentionRule = "relevant"
    biases: Biases = "split"
    larger: bool = False


class Source(NamedTuple):
    """A writer, and at which tokens its difference from the ablated run is relevant, bool `[B, T]`."""

    writer: int
    where: Tensor


class Looker(Protocol):
    """What sees relevant parts on the way. `direct` is that of what sources write themselves, `[S, B, T, D]`."""

    def attention(self, layer: int, qkv: Projected, direct: Tensor) -> None:
        """Queries, keys and values as they are projected, `[S, B, T, H or K, C]`."""

    def heads(self, layer: int, written: Tensor) -> None:
        """What heads write, `[S, B, T, H, C]`, before their `output_weight`."""

    def mlp(self, layer: int, normed: Tensor, out: Tensor, direct: Tensor) -> None:
        """What an MLP takes in behind its norm, and what it writes, `[S, B, T, D]` each."""


@final
class DecomposedRun:
    """The clean run of a batch, ready to be taken apart by any source.

    Attributes:
        model: The masked model.
        batch: On the model's device.
        rules: How activations are taken apart.
        clean: Values of the clean run by site, one `[B, T, ...]` for each layer.
        mlps: What MLPs write, likewise; empty without any.
    """

    @torch.no_grad()
    def __init__(self, model: MaskedModel, batch: PairBatch, ablated: WriterStates, rules: Rules) -> None:
        """Run the clean prompts; `ablated` holds the irrelevant part of every source."""
        model.require_sums("contextual decomposition")
        self.model, self.batch, self.rules, self._ablated = model, batch, rules, ablated
        self._embeddings, stream, self._context = model.start(batch.clean, batch.attention_mask)
        self.clean: dict[Site, list[Tensor]] = {site: [] for site in _KEPT}
        self.mlps: list[Tensor] = []
        edits: Edits = {site: keeping(values) for site, values in self.clean.items()}
        walk(model.blocks, stream, self._context, {**edits, "mlp_out": keeping(self.mlps)})

    @torch.no_grad()
    def __call__(self, sources: Sequence[Source], looker: Looker) -> tuple[Tensor, Tensor]:
        """Take the run apart.

        Args:
            sources: All of one layer, or all embeddings.
            looker: Sees the relevant parts.

        Returns:
            The relevant part of the last stream, `[S, B, T, D]`; and that of what the sources themselves write.
        """
        model, graph = self.model, self.model.graph
        stream = torch.zeros_like(self.clean["residual"][0]).repeat(len(sources), 1, 1, 1)
        direct = torch.zeros_like(stream)
        origin = layer_of_writer(model, sources[0].writer)
        if origin < 0:
            for row, source in enumerate(sources):
                own, other = self._embeddings[source.writer], self._ablated.embeddings[source.writer]
                stream[row] = direct[row] = (own - other) * source.where[..., None]
        for layer in range(max(origin, 0), len(model.blocks)):
            block, at_origin = model.blocks[layer], layer == origin
            written = self._own_heads(layer, sources) if at_origin else self._attend(block, stream, looker, direct)
            attention = self._sum_heads(block, written, from_values=not at_origin)
            if at_origin:
                direct += attention
            else:
                looker.heads(layer, self._scaled(block, written))
            mlp: Tensor | None = None
            if block.has_mlp:
                mlp = self._mlp(block, stream, attention, looker, direct)
                for row, source in enumerate(sources):
                    if at_origin and source.writer == graph.mlp_writer(layer):
                        assert self._ablated.mlps is not None
                        own = (self.mlps[layer] - self._ablated.mlps[layer]) * source.where[..., None]
                        mlp[row] = direct[row] = own
            stream = block.join(stream, attention, mlp)
            if self.rules.larger:
                stream = larger_takes_all(stream, self.clean["residual"][layer + 1] - stream)
        return stream, direct

    # ---------------------------------------------------------------- attention
    def project(self, layer: int, stream: Tensor) -> Projected:
        """Relevant parts `[S, B, T, H or K, C]` of q, k and v as they are projected, from that of the stream."""
        block, total = self.model.blocks[layer], self.clean["residual"][layer]
        normed = norm_part(block.input_spec(), total, stream, self.rules.biases)
        counts = [self.clean[site][layer].shape[2] for site in ("q_proj", "k_proj", "v_proj")]
        rows = through_linear(
            lambda rows: torch.cat(block.project(rows), 2), block.norm(total), normed, self.rules.biases
        )
        q, k, v = rows.split(counts, 3)
        return q, k, v

    def _attend(self, block: Block, stream: Tensor, looker: Looker, direct: Tensor) -> Tensor:
        """Relevant part of attention-weighted values `[S, B, T, H, C]`, before any norm behind the attention."""
        projected = self.project(block.layer, stream)
        looker.attention(block.layer, projected, direct)
        num = len(stream)
        q, k, v = self._at_heads(block, projected)
        if self.rules.attention == "frozen":
            q, k = (self.clean[site][block.layer].expand(num, -1, -1, -1, -1) for site in ("q", "k"))
        context = self.model.context(self.clean["residual"][0], self.batch.clean, self.batch.attention_mask, copies=num)
        values = block.attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), context)
        return values.unflatten(0, (num, -1))

    def _at_heads(self, block: Block, projected: Projected) -> Projected:
        """Behind norms and bounds of q, k and v: f(total) - f(irrelevant)."""
        sites: tuple[Site, ...] = ("q_proj", "k_proj", "v_proj")
        given = [self.clean[site][block.layer] - part for site, part in zip(sites, projected, strict=True)]
        flat = [part.flatten(0, 1) for part in given]
        behind = block.heads(*flat)
        found: list[Tensor] = []
        for site, before, own, after in zip(("q", "k", "v"), flat, projected, behind, strict=True):
            if after is not before:
                whole: Tensor = self.clean[site][block.layer]
                own = relevant_of(whole, after.unflatten(0, (len(own), -1)), own)
            found.append(own)
        q, k, v = found
        return q, k, v

    def _own_heads(self, layer: int, sources: Sequence[Source]) -> Tensor:
        """What source heads write that the ablated run does not, `[S, B, T, H, C]`, 0 at all other heads."""
        own, first = self.clean["head_out"][layer], self.model.graph.heads(layer).start
        written = own.new_zeros(len(sources), *own.shape)
        for row, source in enumerate(sources):
            head = source.writer - first
            if head < own.shape[2]:
                other = self._ablated.heads[layer][:, :, head]
                written[row, :, :, head] = (own[:, :, head] - other) * source.where[..., None]
        return written

    def _sum_heads(self, block: Block, values: Tensor, *, from_values: bool) -> Tensor:
        """Relevant part of what attention adds to the stream, `[S, B, T, D]`.

        From attention-weighted values, or from written ones, which have the scale of a norm behind them.
        """
        layer, biases = block.layer, self.rules.biases
        if block.post_norm is not None and not from_values:
            return block.sum_heads(values.flatten(0, 1)).unflatten(0, (len(values), -1))
        width = values.shape[3:]
        total = self.clean["z"][layer].flatten(2)
        out = through_linear(
            lambda rows: block.output_projection(rows.unflatten(-1, width)), total, values.flatten(3), biases
        )
        if block.post_norm is None:
            return out
        whole = block.output_projection(self.clean["z"][layer])
        return norm_part(block.spec_of(block.post_norm), whole, out, biases)

    def _scaled(self, block: Block, values: Tensor) -> Tensor:
        """Attention-weighted values `[S, B, T, H, C]` as heads write them."""
        if block.post_norm is None:
            return values
        scale = block.spec_of(block.post_norm).scale(block.output_projection(self.clean["z"][block.layer]))
        return (values * scale[..., None, None]).to(values.dtype)

    # ---------------------------------------------------------------- MLP and logits
    def mlp_normed(self, layer: int, stream: Tensor) -> Tensor:
        """Relevant part behind the norm before an MLP, from that of what the MLP reads, `[S, B, T, D]`."""
        block = self.model.blocks[layer]
        spec = spec_or_none(block.mlp_norm, block.spec_of)
        return norm_part(spec, self.mlp_input(layer), stream, self.rules.biases)

    def mlp_total(self, layer: int) -> Tensor:
        """What an MLP takes in behind its norm in the clean run, `[B, T, D]`."""
        norm, inputs = self.model.blocks[layer].mlp_norm, self.mlp_input(layer)
        return inputs if norm is None else norm(inputs)

    def mlp_input(self, layer: int) -> Tensor:
        """What an MLP reads in the clean run, `[B, T, D]`."""
        return self.model.blocks[layer].mlp_input(self.clean["residual"][layer], self.clean["attention_out"][layer])

    def _mlp(self, block: Block, stream: Tensor, attention: Tensor, looker: Looker, direct: Tensor) -> Tensor:
        """Relevant part of what an MLP writes, `[S, B, T, D]`."""
        layer, biases = block.layer, self.rules.biases
        inputs = block.mlp_input(stream, attention)
        if not inputs.any():
            return torch.zeros_like(stream)
        normed, larger = self.mlp_normed(layer, inputs), self.rules.larger
        total = self.mlp_total(layer)
        out_total, irrelevant = through_function(block.feed_forward, total, normed, biases, larger=larger)
        out = relevant_of(out_total, irrelevant, normed)
        out = norm_part(spec_or_none(block.mlp_post_norm, block.spec_of), out_total, out, biases)
        looker.mlp(layer, normed, out, direct)
        return out

    @torch.no_grad()
    def logits(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the scored positions, `[B, n, vocab]`, and their irrelevant part, `[S, B, n, vocab]`.

        Args:
            stream: Relevant part of the last stream, `[S, B, T, D]`.
        """
        model, family, positions = self.model, self.model.family, self.batch.positions
        model.sharding.gather_ends()
        total = model.at(self.clean["residual"][-1], positions)
        part = model.at(stream.flatten(0, 1), positions.repeat(len(stream), 1)).unflatten(0, (len(stream), -1))
        spec = spec_or_none(family.last_norm, model.blocks[-1].spec_of)
        part = norm_part(spec, total, part, self.rules.biases)
        whole = total if family.last_norm is None else family.last_norm(total)
        return through_function(family.head, whole, part, self.rules.biases)


def layer_of_writer(model: MaskedModel, writer: int) -> int:
    """Layer of a writer's column; -1 for an embedding."""
    arch = model.graph.arch
    return -1 if writer < arch.num_embeddings else (writer - arch.num_embeddings) // arch.writers_per_layer
