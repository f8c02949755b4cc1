"""The masked model: `logits = model(tokens, gates, ablated)`, a pure function over a frozen Hugging Face model.

This file owns the residual wiring and nothing else: the leaves (norms, projections, attention kernels, MLPs, head) are
references that a family adapter hands out, reads and writes live in `stack.py`, and gates come from outside.
"""

import functools
from typing import Any, Self

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph, KVReaders
from edgeprune.models.family import find_family
from edgeprune.models.limits import Limits
from edgeprune.models.projections import Projections
from edgeprune.models.reads import LayerReads
from edgeprune.models.stack import DeltaStack, ReadStream, Workspace, WriteHeads, WriteOne
from edgeprune.models.states import FixedOutputs, WriterStates

COMPUTED = FixedOutputs()  # nothing is given


class MaskedModel(nn.Module):
    """A frozen transformer whose edges can be closed.

    Args:
        hf: A loaded Hugging Face causal language model. It is frozen and put in evaluation mode, and stays so.
        split_embedding: Token and position embedding are two writers.
        kv_readers: `"group"` or `"head"`; see `ArchSpec`.
    """

    def __init__(self, hf: Any, *, split_embedding: bool = False, kv_readers: KVReaders = "group") -> None:
        super().__init__()
        self.hf: Any = hf.requires_grad_(False)
        self.family = find_family(hf.config.model_type)(hf, kv_readers)
        self.graph = EdgeGraph(self.family.arch(split_embedding))
        self._workspace = Workspace()
        self.projections = Projections(self)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: dropout in the frozen model would make gates learn noise."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights."""
        return self.hf.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the frozen weights."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def has_position_embedding(self) -> bool:
        """Learned positions are added to the tokens' embedding, whether or not they are a writer of their own."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        return len(self.family.embed(token, token)) > 1

    @property
    def num_outputs(self) -> int:
        """Outputs per position: the vocabulary, of most models."""
        return getattr(self.hf.config, "d_out", None) or self.hf.get_output_embeddings().weight.shape[0]

    @property
    def layer_states(self) -> int:
        """Numbers per token that the layers leave in `record`'s states: heads before their projection, and MLPs."""
        arch, (heads, head_dim, width) = self.graph.arch, self.family.output_weight(0).shape
        return arch.num_layers * (heads * head_dim + width * arch.has_mlp)

    # ---------------------------------------------------------------- runs without gates
    @torch.no_grad()
    def record(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> WriterStates:
        """Run the full model on `input_ids` `[batch, seq]` and keep what every writer wrote. No gradients."""
        return self._plain(input_ids, attention_mask, keep=True)[1]

    def full(self, input_ids: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits of the model with every edge open, `[batch, seq or positions, vocab]`."""
        stream = self._plain(input_ids, attention_mask, keep=False)[0]
        return self.family.finish(stream if positions is None else _gather(stream, positions))

    def _plain(self, input_ids: Tensor, attention_mask: Tensor | None, keep: bool) -> tuple[Tensor, WriterStates]:
        family = self.family
        embeddings, stream, context = self._start(input_ids, attention_mask)
        heads: list[Tensor] = []
        mlps: list[Tensor] = []
        for layer in range(self.graph.arch.num_layers):
            qkv = family.qkv(layer, family.attention_norm(layer)(stream))
            values = family.attend(layer, *qkv, context)
            stream = stream + family.attention_output(layer, values)
            if self.graph.arch.has_mlp:
                mlp = family.mlp(layer, stream)
                stream = stream + mlp
                mlps += [mlp] * keep
            heads += [values] * keep
        states = WriterStates(
            embeddings=torch.stack(embeddings),
            heads=torch.stack(heads) if heads else stream.new_empty(0),
            mlps=torch.stack(mlps) if mlps else None,
        )
        return stream, states

    def _start(
        self, input_ids: Tensor, attention_mask: Tensor | None, embeddings: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Any]:
        """Embedding writers (or those given), the stream they start, and the layers' shared context."""
        given = self.embeddings(input_ids, attention_mask) if embeddings is None else list(embeddings.detach())
        stream = functools.reduce(torch.add, given)
        context = self.family.context(stream, attention_mask, _position_ids(input_ids, attention_mask))
        return given, stream, context

    def embeddings(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
        """Outputs of the embedding writers, whose sum starts the stream, `[batch, seq, d_model]` each.

        Raises:
            EdgepruneError: A prompt has a token or a position that the model does not know; padding may have any.
        """
        positions = _position_ids(input_ids, attention_mask)
        parts = self.family.embed(*Limits.of(self).fitted(input_ids, positions, attention_mask))
        return parts if self.graph.arch.split_embedding else [functools.reduce(torch.add, parts)]

    def _repeat_kv(self, qkv: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """With one k/v reader per query head, give the kernel one k/v head per query head."""
        arch = self.graph.arch
        if arch.kv_readers == "group" or arch.num_kv_heads == arch.num_heads:
            return qkv
        q, k, v = qkv
        shape = (arch.num_kv_heads, -1)
        times = arch.num_heads // arch.num_kv_heads
        k, v = (part.unflatten(-1, shape).repeat_interleave(times, dim=-2).flatten(-2) for part in (k, v))
        return q, k, v

    # ---------------------------------------------------------------- the run with gates
    def forward(
        self,
        input_ids: Tensor,
        gates: Tensor,
        ablated: WriterStates,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        fixed: FixedOutputs = COMPUTED,
        relative: bool = False,
    ) -> Tensor:
        """Logits of the model in which each edge carries `gate * own + (1 - gate) * ablated`.

        Args:
            input_ids: Long `[batch, seq]`.
            gates: Float `[reader, writer]`, 1 = open, 0 = closed; entries of edges that do not exist are ignored.
                Gradients reach the gates only. Or `[group, reader, writer]`: the batch falls into as many groups of
                equal size, one after the other, each with its own gates. Or `[batch, seq, reader, writer]`: every token
                has its own, so that an edge can be closed at some positions alone.
            ablated: What closed edges carry: `record(...)` of the corrupted prompts, or one of `edgeprune.ablations`.
            attention_mask: 1 for a token, 0 for padding, `[batch, seq]`; padding may be on either side.
            positions: Long `[batch, n]`: return the logits at these positions only.
            fixed: Outputs of some writers that are taken as given in this run; `input_ids` still say how many tokens.
            relative: `ablated` holds differences: an edge carries `own + (1 - gate) * ablated`. With open gates, the
                gradient of a gate is then minus the product of these differences with the gradient of its reader's
                input.

        Returns:
            `[batch, seq, vocab]`, or `[batch, n, vocab]` with `positions`.
        """
        self._check(input_ids, gates, ablated)
        batch, seq = input_ids.shape
        arch, family, graph = self.graph.arch, self.family, self.graph
        embeddings, stream, context = self._start(input_ids, attention_mask, fixed.embeddings)
        stream = stream.flatten(0, 1)
        reads = LayerReads(self, (1 - gates).to(stream).reshape(-1, *graph.shape), stream, self._workspace)
        stack = reads.stack
        token = stream.new_zeros((), requires_grad=gates.requires_grad)
        for row, (own, other) in enumerate(zip(embeddings, ablated.embeddings, strict=True)):
            stack.delta[row] = (other if relative else other - own).expand_as(own).flatten(0, 1)
        for layer in range(arch.num_layers):
            first = graph.first_writer(layer)
            qkv, mlp_mix, token = reads(layer, token, stream, batch)
            values = fixed.heads[layer].detach() if layer in fixed.heads else self._attend(layer, qkv, context, stack)
            token = self._write_heads(token, values, ablated.heads[layer], stack, layer, relative)
            stream = stream + family.attention_output(layer, values).flatten(0, 1)
            if ablated.mlps is not None:
                own_heads = reads.closed[layer][:, -1:, first : first + arch.num_heads]
                inputs, token = ReadStream.apply(token, stream + mlp_mix, own_heads, stack, first, None)
                inputs = inputs.view(batch, seq, -1)
                mlp = fixed.mlps[layer].detach() if layer in fixed.mlps else family.mlp(layer, inputs)
                token = self._write_mlp(token, mlp, ablated.mlps[layer], stack, first + arch.num_heads, relative)
                stream = stream + mlp.flatten(0, 1)
        return self._finish(token, stream, reads.closed[-1], stack, positions, (batch, seq))

    def _attend(self, layer: int, qkv: tuple[Tensor, Tensor, Tensor], context: Any, stack: DeltaStack) -> Tensor:
        """Attention-weighted values from what the readers give, `[batch, seq, head, head_dim]`.

        With every gate open, heads that share k and v in the model see the same ones: the kernel then gets one of them,
        as in the model, for its result depends on how often they are there. Gradients are those of all.
        """
        arch, attend = self.graph.arch, self.family.attend
        if not stack.all_open or arch.num_kv_readers == arch.num_kv_heads:
            return attend(layer, *qkv, context)
        with torch.no_grad():
            groups = (arch.num_kv_heads, arch.num_heads // arch.num_kv_heads, -1)
            k, v = (part.unflatten(-1, groups)[..., 0, :].flatten(2) for part in qkv[1:])
            values = attend(layer, qkv[0], k, v, context)
        if not torch.is_grad_enabled():
            return values
        separate = attend(layer, *qkv, context)
        return values + (separate - separate.detach())

    def _write_heads(
        self, token: Tensor, own: Tensor, other: Tensor, stack: DeltaStack, layer: int, relative: bool
    ) -> Tensor:
        """Deltas of a layer's heads into the stack, from `[batch, seq, head, head_dim]`; the next token."""
        first, weight = self.graph.first_writer(layer), self.family.output_weight(layer)
        own, other = own.flatten(0, 1), other.expand_as(own).flatten(0, 1)
        if not relative:
            return WriteHeads.apply(token, own, other, weight, stack, first)
        rows = stack.delta[first : first + len(weight)]
        torch.bmm(other.transpose(0, 1).to(weight.dtype), weight, out=rows)
        return token

    @staticmethod
    def _write_mlp(token: Tensor, own: Tensor, other: Tensor, stack: DeltaStack, row: int, relative: bool) -> Tensor:
        """The delta of an MLP into the stack, from `[batch, seq, d_model]`; the next token."""
        own, other = own.flatten(0, 1), other.expand_as(own).flatten(0, 1)
        if not relative:
            return WriteOne.apply(token, own, other, stack, row)
        stack.delta[row] = other
        return token

    def _finish(
        self,
        token: Tensor,
        stream: Tensor,
        closed: Tensor,
        stack: DeltaStack,
        positions: Tensor | None,
        shape: tuple[int, int],
    ) -> Tensor:
        if positions is None:
            inputs, _ = ReadStream.apply(token, stream, closed, stack, 0, None)
            return self.family.finish(inputs.view(*shape, -1))
        rows = torch.arange(shape[0], device=positions.device)[:, None] * shape[1] + positions
        tokens = rows.flatten()
        closed = closed[tokens] if len(closed) == len(stream) else closed  # every token has its own gates
        inputs, _ = ReadStream.apply(token, stream[tokens], closed, stack, 0, tokens)
        return self.family.finish(inputs.view(*positions.shape, -1))

    def _check(self, input_ids: Tensor, gates: Tensor, ablated: WriterStates) -> None:
        if tuple(gates.shape[-2:]) != self.graph.shape or gates.ndim not in (2, 3, 4):
            raise EdgepruneError(
                f"gates have shape {tuple(gates.shape)}, this model's graph needs [reader, writer] = {self.graph.shape}"
            )
        if gates.ndim == 3 and (not len(gates) or len(input_ids) % len(gates)):
            raise EdgepruneError(f"{len(input_ids)} examples do not fall into {len(gates)} groups of equal size")
        if gates.ndim == 4 and gates.shape[:2] != input_ids.shape:
            raise EdgepruneError(
                f"gates of single tokens are for [batch, seq] = {tuple(gates.shape[:2])}, the prompts have "
                f"{tuple(input_ids.shape)}"
            )
        fits = ablated.heads.shape[1:3]
        if any(have not in (1, want) for have, want in zip(fits, input_ids.shape, strict=True)):
            raise EdgepruneError(
                f"ablated states are for [batch, seq] = {tuple(fits)}, the prompts have {tuple(input_ids.shape)}: "
                "record the corrupted prompts of the same batch, padded alike"
            )


def _position_ids(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Positions from the first real token on: 0, 1, 2, ... whatever the padding on the left."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    if attention_mask is None:
        return positions
    left = attention_mask.to(torch.long).argmax(1, keepdim=True)
    return (positions - left).clamp(min=0)


def _gather(stream: Tensor, positions: Tensor) -> Tensor:
    """`[batch, seq, d]` at `positions` `[batch, n]`."""
    return stream.gather(1, positions[..., None].expand(-1, -1, stream.shape[-1]))
