"""Edges that carry what a head gives before the norm behind the attention: the convention of EAP-IG and MIB on Gemma 2.

Where attention ends in a norm N (Gemma, OLMo 2), outputs o_h of heads do not reach the stream one by one. The masked
model (decision 25) lets head h write `w s(o) o_h`, its part of N(o), o the sum of all heads, so writers add up. Here
every reader mixes the heads of each earlier layer by itself, and N is taken of that mixture:

    x_reader = embeddings + sum over layers of N(sum_h (g_h o_h + (1 - g_h) o'_h)) + (g_m m + (1 - g_m) m')

with o' and m' of the run that closed edges carry. Both give the full model with every edge open and that run with
every edge closed; in between they differ. There is one norm for each reader and layer, so this is slow: for comparing
figures, not for finding circuits. MLPs write what comes behind their own norm, as in the masked model.
"""

from typing import final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.models.attention_edges import GatedAttention
from edgeprune.models.block import Block, repeat_kv, weights_per_reader
from edgeprune.models.masked import COMPUTED, MaskedModel
from edgeprune.models.sharding import Whole
from edgeprune.models.states import FixedOutputs, WriterStates


@final
class EdgesBeforeNorm(MaskedModel):
    """The same model under the other convention; recorded states hold attention-weighted values as they are.

    Circuits can be run and measured. What runs parts of a circuit anew, or reads them, is of the masked model alone.

    Args:
        model: A masked model; its weights are shared.

    Raises:
        EdgepruneError: The model has no norm behind its attention, so both conventions are one.
    """

    sums_to_stream = False

    def __init__(self, model: MaskedModel) -> None:
        arch = model.graph.arch
        if not isinstance(model.sharding, Whole):
            raise EdgepruneError("edges before the norm need a model that is whole in every process; load it unsharded")
        super().__init__(
            model.hf, split_embedding=arch.split_embedding, kv_readers=arch.kv_readers, read_ops=model.read_ops
        )
        if any(block.post_norm is None for block in self.blocks):
            raise EdgepruneError(
                f"{model.hf.config.model_type} has no norm behind its attention, so there is one convention for its "
                "edges; leave --edges-before-norm out"
            )

    def _last_inputs(
        self,
        input_ids: Tensor,
        gates: Tensor,
        ablated: WriterStates,
        attention_mask: Tensor | None,
        positions: Tensor | None,
        role_of: Tensor | None,
        edges: GatedAttention | None,
        fixed: FixedOutputs,
        relative: bool,
        all_open: bool | None,
    ) -> Tensor:
        """See `MaskedModel`; `fixed`, `relative`, gates of tokens and roles are refused, and `edges` by the caller."""
        if gates.ndim == 4 or relative or fixed is not COMPUTED or role_of is not None:
            raise EdgepruneError(
                "edges before the norm know gates [reader, writer] alone, or one such matrix per group"
            )
        if gates.ndim == 3:
            size, parts = len(input_ids) // len(gates), list[Tensor]()
            for place, own in enumerate(gates):
                rows = slice(size * place, size * (place + 1))
                mask, at = (None if part is None else part[rows] for part in (attention_mask, positions))
                states = ablated.map(lambda field, rows=rows: field if field.shape[1] == 1 else field[:, rows])
                own_inputs = self._last_inputs(
                    input_ids[rows], own, states, mask, at, None, edges, fixed, relative, all_open
                )
                parts.append(own_inputs)
            return torch.cat(parts)
        return self.at(_RunBeforeNorm(self, input_ids, gates, ablated, attention_mask).stream, positions)


class _RunBeforeNorm:
    """One run; what every writer gives, and what closed edges carry instead, is kept until the end."""

    def __init__(
        self, model: EdgesBeforeNorm, ids: Tensor, gates: Tensor, ablated: WriterStates, mask: Tensor | None
    ) -> None:
        self.model, self.gates = model, gates.to(model.dtype)
        graph = model.graph
        embeddings, start, context = model.start(ids, mask)
        pairs = zip(embeddings, ablated.embeddings, strict=True)
        self.plain = [(row, own, other.expand_as(own)) for row, (own, other) in enumerate(pairs)]
        self.heads: list[tuple[Block, Tensor, Tensor]] = []  # outputs before the norm, [head, batch, seq, d]
        for layer, block in enumerate(model.blocks):
            rows = graph.rows(layer)
            inputs = self._read(rows.attention, layer)
            values = block.attend(*block.heads(*self._project(block, inputs)), context)
            weight, other = block.projection_weight(), ablated.heads[layer].expand_as(values)
            own, other = (torch.einsum("bshc,hcd->hbsd", part.to(weight.dtype), weight) for part in (values, other))
            self.heads.append((block, own, other))
            if ablated.mlps is not None:
                (seen,) = self._read(rows.mlp, layer if block.parallel else layer + 1)
                self.plain.append((graph.mlp_writer(layer), block.mlp(seen), ablated.mlps[layer].expand_as(start)))
        (self.stream,) = self._read(slice(len(graph.readers) - 1, None), len(model.blocks))

    def _read(self, readers: slice, num_layers: int) -> Tensor:
        """Inputs of readers that see the heads of the first `num_layers` layers, `[reader, batch, seq, d]`."""
        gates, total = self.gates[readers], self.plain[0][1].new_zeros(())
        for row, own, other in self.plain:
            gate = gates[:, row, None, None, None]
            total = total + gate * own + (1 - gate) * other
        for block, own, other in self.heads[:num_layers]:
            gate = gates[:, self.model.graph.heads(block.layer)]
            mixed = torch.einsum("rh,hbsd->rbsd", gate, own) + torch.einsum("rh,hbsd->rbsd", 1 - gate, other)
            assert block.post_norm is not None
            total = total + block.post_norm(mixed)
        return total

    def _project(self, block: Block, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v `[batch, seq, readers, c]` from the inputs of their readers."""
        arch = self.model.graph.arch
        copies = arch.kv_readers_per_head
        weight = torch.cat(weights_per_reader(block, copies))
        bias = torch.cat(repeat_kv(block.project(inputs.new_zeros(1, 1, inputs.shape[-1])), copies), 2)
        made = torch.einsum("rbsd,rdc->bsrc", block.norm(inputs), weight) + bias
        q, k, v = made.split(arch.reader_counts, dim=2)
        return q, k, v
