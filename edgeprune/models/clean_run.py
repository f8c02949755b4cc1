"""What parts of a circuit are run anew from: a run of one batch, and how far each ablated writer is from it.

Shapes: B examples, S positions, T = B * S tokens, P = B * scored positions, D width, H heads, C head width.
"""

from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.models.block import Edits, Site, keeping, walk
from edgeprune.models.masked import MaskedModel
from edgeprune.models.places import rows_of
from edgeprune.models.projections import Projection
from edgeprune.models.states import WriterStates
from edgeprune.roles import roles_in

_KEPT: tuple[Site, ...] = ("residual", "q_proj", "k_proj", "v_proj", "head_out", "attention_out", "mlp_out")


class LayerValues(NamedTuple):
    """What one layer computed: projected q, k, v `[T, readers, C]`, what heads write `[T, H, C]`, the MLP `[T, D]`."""

    qkv: tuple[Tensor, ...]
    heads: Tensor
    mlp: Tensor | None


class StartingRun:
    """A run of one batch, from which parts are run again.

    Attributes:
        model: The masked model.
        batch: On the model's device.
        embedded: The stream before the first layer, `[B, S, D]`.
        tokens: Scored positions as rows of T, long `[P]`.
        layers: What each layer computed.
        delta: `ablated - own` of every writer, `[writer, T, D]`.
        graph: The model's graph without roles.
        role_of: The number of each token's role, long `[T]` on the CPU; None where the model's graph has no roles.
    """

    delta: Tensor

    def __init__(self, model: MaskedModel, batch: PairBatch, what: str, *, by_role: bool = False) -> None:
        model.require_sums(what)
        if model.graph.roles is not None and not by_role:
            raise EdgepruneError(f"{what} is of circuits without roles; take the union, `Circuit.union`")
        self.model, self.batch, self.graph = model, batch, model.graph.without_roles
        roles = roles_in(model.graph, batch)
        self.role_of = None if roles is None else roles.flatten().cpu()
        self.embeddings, self.embedded, self.first_context = model.start(batch.clean, batch.attention_mask)
        self.tokens = rows_of(batch.positions, batch.clean.shape[1])
        self.layers: list[LayerValues] = []
        self._projections: dict[int, Projection] = {}
        model.projections.forget_edited()

    def put_embeddings(self, ablated: WriterStates) -> None:
        """Fill the embeddings' rows of `delta`."""
        for row, (own, other) in enumerate(zip(self.embeddings, ablated.embeddings, strict=True)):
            self.delta[row] = (other - own).flatten(0, 1)

    def context(self, copies: int) -> Any:
        """What layers share for some copies of the batch."""
        if copies == 1:
            return self.first_context
        return self.model.context(self.embedded, self.batch.clean, self.batch.attention_mask, copies)

    def projection(self, layer: int) -> Projection:
        """What a layer's readers are projected with, to be used before the next one is asked for."""
        if layer in self._projections:
            return self._projections[layer]
        found = self.model.projections(layer)
        if found.stays:
            self._projections[layer] = found
        return found

    def mixed(self, readers: list[int], closed: Tensor, stream: Tensor) -> Tensor:
        """A stream `[T, D]` with what closed edges bring, `[readers, T, D]`, for readers that see the same writers.

        `closed` is of the shape of the model's graph.
        """
        n = self.graph.num_visible[readers[0]]
        if self.role_of is None:
            mixed = closed[readers, :n] @ self.delta[:n].view(n, -1)
            return mixed.view(-1, *stream.shape).add_(stream)
        inputs = stream.repeat(len(readers), 1, 1)
        for role, tokens in tokens_by_role(self.role_of):
            moved = closed[role, readers, :n] @ self.delta[:n, tokens].flatten(1)
            inputs[:, tokens] += moved.view(len(readers), len(tokens), -1)
        return inputs


def tokens_by_role(role_of: Tensor) -> list[tuple[int, Tensor]]:
    """Of some tokens, roles `[N]`, each role that one has, and the places of those that have it, long `[n]`."""
    return [(role, (role_of == role).nonzero().flatten()) for role in role_of.unique().tolist()]


@final
class CleanRun(StartingRun):
    """The full model on one batch, which no circuit changes.

    Attributes:
        streams: Input of each layer's attention and MLP, and of the logits, `[T, D]` each.
    """

    @torch.no_grad()
    def __init__(self, model: MaskedModel, batch: PairBatch, ablated: WriterStates) -> None:
        super().__init__(model, batch, "running parts of a circuit anew", by_role=True)
        graph = self.graph
        found: dict[str, list[Tensor]] = {}
        edits: Edits = {site: keeping(found.setdefault(site, [])) for site in _KEPT}
        walk(model.blocks, self.embedded, self.first_context, edits, graph.arch.kv_readers_per_head)
        flat = {site: [value.flatten(0, 1) for value in values] for site, values in found.items()}
        self.delta = self.embedded.new_empty((len(graph.writers), batch.clean.numel(), self.embedded.shape[-1]))
        self.put_embeddings(ablated)
        self.streams: list[Tensor] = []
        for layer, block in enumerate(model.blocks):
            heads = flat["head_out"][layer]
            other = ablated.heads[layer].expand_as(found["head_out"][layer]).flatten(0, 1)
            rows = self.delta[graph.heads(layer)]
            torch.bmm((other - heads).transpose(0, 1), block.output_weight(), out=rows)
            self.streams.append(flat["residual"][layer])
            mlp = None
            if ablated.mlps is not None:
                self.streams.append(block.mlp_input(flat["residual"][layer], flat["attention_out"][layer]))
                mlp = flat["mlp_out"][layer]
                self.delta[graph.mlp_writer(layer)] = ablated.mlps[layer].expand_as(self.embedded).flatten(0, 1) - mlp
            qkv = tuple(flat[site][layer] for site in ("q_proj", "k_proj", "v_proj"))
            self.layers.append(LayerValues(qkv, heads, mlp))
        self.streams.append(flat["residual"][-1])

    def stream(self, reader: int) -> Tensor:
        """What `reader` sees in the full model, `[T, D]`."""
        graph = self.graph
        layer = graph.layer_of(reader)
        if layer == graph.arch.num_layers:
            return self.streams[-1]
        return self.streams[layer * (1 + graph.arch.has_mlp) + (reader >= graph.rows(layer).mlp.start)]
