"""The masked model: `logits = model(tokens, gates, ablated)`, a pure function over a frozen Hugging Face model.

This file owns the residual wiring: the steps of a layer and the walk over layers are in `block.py`, a family adapter
hands out the blocks, embeddings and head, reads and writes live in `stack.py`, and gates come from outside.
"""

import functools
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph, KVReaders, RoleSpec
from edgeprune.models.attention_edges import GatedAttention, attend, check_attention_gates
from edgeprune.models.block import NO_EDITS, Block, Edits, keeping, walk
from edgeprune.models.family import find_family
from edgeprune.models.limits import Limits
from edgeprune.models.places import position_ids, rows_of
from edgeprune.models.projections import Projections
from edgeprune.models.read_functions import ReadStream, ScaleGradient, WriteHeads, WriteOne
from edgeprune.models.read_ops import checked_name, exact_dtype
from edgeprune.models.reads import LayerReads
from edgeprune.models.sharding import Sharding, Whole
from edgeprune.models.stack import DeltaStack, Workspace
from edgeprune.models.states import FixedOutputs, WriterStates
from edgeprune.models.token_groups import check_gates, groups_of

COMPUTED = FixedOutputs()  # nothing is given
FLOAT16_SCALE = 4.0  # of an example's gradients inside a float16 model, whose small ones would be rounded to 0


class MaskedModel(nn.Module):
    """A frozen transformer whose edges can be closed.

    Args:
        hf: A loaded Hugging Face causal language model. It is frozen and put in evaluation mode, and stays so.
        split_embedding: Token and position embedding are two writers.
        kv_readers: `"group"` or `"head"`; see `ArchSpec`.
        read_ops: How edges are read: `"host"`, `"cuda"` or `"triton"`. None: what the environment variable
            `EDGEPRUNE_READ_OPS` names, else what the device does best.
    """

    sums_to_stream = True  # recorded writers add up to the stream; not those of `before_norm.py`

    def __init__(
        self, hf: Any, *, split_embedding: bool = False, kv_readers: KVReaders = "group", read_ops: str | None = None
    ) -> None:
        super().__init__()
        self.read_ops = checked_name(read_ops)
        self.hf: Any = hf.requires_grad_(False)
        self.family = find_family(hf.config.model_type)(hf, kv_readers)
        self.graph = EdgeGraph(self.family.arch(split_embedding))
        self.workspace = Workspace()
        self.projections = Projections(self.blocks, self.graph.arch)
        self.head_shape = self.blocks[0].projection_weight().shape  # heads, their width, width of the stream
        self.sharding: Whole | Sharding = Whole(hf)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: dropout in the frozen model would make gates learn noise."""
        return super().train(False)

    @property
    def blocks(self) -> Sequence[Block]:
        """The model's layers."""
        return self.family.blocks

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights."""
        return self.hf.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the frozen weights."""
        return self.hf.get_input_embeddings().weight.device

    def _gradient_scale(self, examples: int) -> float:
        """What gradients inside the model are multiplied by, a power of 2: losses are means over about `examples`."""
        return FLOAT16_SCALE * 2 ** (examples - 1).bit_length() if self.dtype == torch.float16 else 1.0

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.head_shape[-1]

    @property
    def num_outputs(self) -> int:
        """Outputs per position: the vocabulary, of most models."""
        return getattr(self.hf.config, "d_out", None) or self.hf.get_output_embeddings().weight.shape[0]

    @property
    def layer_states(self) -> int:
        """Numbers per token that the layers leave in `record`'s states: heads before their projection, and MLPs."""
        arch, (heads, head_dim, width) = self.graph.arch, self.head_shape
        return arch.num_layers * (heads * head_dim + width * arch.has_mlp)

    def use_roles(self, roles: RoleSpec | None) -> None:
        """Make `graph` that of edges at roles, whose gates `forward` then takes with `role_of`; None: without roles."""
        self.graph = self.graph.with_roles(roles)

    # ---------------------------------------------------------------- runs without gates
    @torch.no_grad()
    def record(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, embeddings: Tensor | None = None
    ) -> WriterStates:
        """Run the full model on `input_ids` `[batch, seq]`, keep what every writer wrote; no gradients. See `start`."""
        heads, mlps = list[Tensor](), list[Tensor]()
        edits: Edits = {"head_out" if self.sums_to_stream else "z": keeping(heads), "mlp_out": keeping(mlps)}
        parts, stream, context = self.start(input_ids, attention_mask, embeddings)
        walk(self.blocks, stream, context, edits)
        return WriterStates(
            embeddings=torch.stack(parts),
            heads=torch.stack(heads) if heads else stream.new_empty(0),
            mlps=torch.stack(mlps) if mlps else None,
        )

    def full(self, input_ids: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits of the model with every edge open, `[batch, seq or positions, vocab]`."""
        return self.logits(self.run(input_ids, attention_mask), positions)

    def run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        edits: Edits = NO_EDITS,
        *,
        first: int = 0,
        stream: Tensor | None = None,
    ) -> Tensor:
        """The full model's stream before the final norm, `[batch, seq, d]`, with edits on the way; see `walk`.

        Args:
            input_ids: Long `[batch, seq]`.
            attention_mask: 1 for a token, 0 for padding, `[batch, seq]`.
            edits: What looks at values and replaces them. There is one k and one v for each reader of the graph.
            first: Layer to begin with.
            stream: The stream before that layer, `[batch, seq, d]`; needed where `first` is not 0.
        """
        _, start, context = self.start(input_ids, attention_mask)
        stream = start if stream is None else stream
        with self.sharding.keeping():
            return walk(self.blocks, stream, context, edits, self.graph.arch.kv_readers_per_head, first)

    def logits(self, stream: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits of a final stream `[batch, seq, d]`, at all positions or at `positions`, long `[batch, n]`."""
        self.sharding.gather_ends()
        with self.sharding.keeping():
            return self.family.finish(self.at(stream, positions))

    @staticmethod
    def at(stream: Tensor, positions: Tensor | None) -> Tensor:
        """A stream `[batch, seq, d]` at `positions` `[batch, n]`; None: all of it."""
        return stream if positions is None else stream.gather(1, positions[..., None].expand(-1, -1, stream.shape[-1]))

    def require_sums(self, what: str) -> None:
        """Refuse what rests on writers that add up to the stream."""
        if not self.sums_to_stream:
            raise EdgepruneError(f"{what} is not defined for edges before the norm; leave it or that option out")

    def start(
        self, input_ids: Tensor, attention_mask: Tensor | None, embeddings: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Any]:
        """Embedding writers `[batch, seq, d]` (or those given), the stream they start, and what layers share."""
        given = self.embeddings(input_ids, attention_mask) if embeddings is None else list(embeddings.detach())
        stream = functools.reduce(torch.add, given)
        return given, stream, self.context(stream, input_ids, attention_mask)

    def context(self, stream: Tensor, input_ids: Tensor, attention_mask: Tensor | None, copies: int = 1) -> Any:
        """What the layers share for some copies of a batch, one below the other; `stream` `[batch, seq, d]`."""
        positions = position_ids(input_ids, attention_mask)
        if copies > 1:
            stream, positions = stream.repeat(copies, 1, 1), positions.repeat(copies, 1)
            attention_mask = None if attention_mask is None else attention_mask.repeat(copies, 1)
        return self.family.context(stream, attention_mask, positions)

    def embeddings(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
        """Outputs of the embedding writers, whose sum starts the stream, `[batch, seq, d_model]` each.

        Raises:
            EdgepruneError: A prompt has a token or a position that the model does not know; padding may have any.
        """
        positions = position_ids(input_ids, attention_mask)
        self.sharding.gather_ends()
        parts = self.family.embed(*Limits.of(self).fitted(input_ids, positions, attention_mask))
        return parts if self.graph.arch.split_embedding else [functools.reduce(torch.add, parts)]

    # ---------------------------------------------------------------- the run with gates
    def forward(
        self,
        input_ids: Tensor,
        gates: Tensor,
        ablated: WriterStates,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        role_of: Tensor | None = None,
        attention_gates: Tensor | None = None,
        fixed: FixedOutputs = COMPUTED,
        relative: bool = False,
        head: bool = True,
        all_open: bool | None = None,
    ) -> Tensor:
        """Logits of the model in which each edge carries `gate * own + (1 - gate) * ablated`.

        Args:
            input_ids: Long `[batch, seq]`.
            gates: Float `[reader, writer]`, 1 = open, 0 = closed; entries of edges that do not exist are ignored.
                Gradients reach the gates only. Or `[group, reader, writer]`: the batch falls into as many groups of
                equal size, one after the other, each with its own gates. Or `[batch, seq, reader, writer]`: every token
                has its own, so that an edge can be closed at some positions alone. With `role_of`
                `[role, reader, writer]`, or `[group, role, reader, writer]`.
            ablated: What closed edges carry: `record(...)` of the corrupted prompts, or one of `edgeprune.ablations`.
            attention_mask: 1 for a token, 0 for padding, `[batch, seq]`; padding may be on either side.
            positions: Long `[batch, n]`: return the logits at these positions only.
            role_of: The number of each token's role, long `[batch, seq]`: the gates of this role hold for what readers
                take in at this token. None: there are no roles.
            attention_gates: Float `[layer, head, query role, key role]`, or one more axis before, of groups: what a
                head's queries at tokens of one role see at tokens of another, 1 = its k and v, 0 = those of readers
                all of whose edges are closed. Need `role_of`; `gates` may then be `[reader, writer]`, of all roles.
                None: all open. See `attention_edges.py`.
            fixed: Outputs of some writers that are taken as given in this run; `input_ids` still say how many tokens.
            relative: `ablated` holds differences: an edge carries `own + (1 - gate) * ablated`. With open gates, the
                gradient of a gate is then minus the product of these differences with the gradient of its reader's
                input.
            head: False: return what the logits read, before the final norm, instead of logits.
            all_open: Whether every gate is open, from a caller who knows it and has not changed a weight since the last
                run. None: look, which makes a GPU wait.

        Returns:
            `[batch, seq, vocab]`, or `[batch, n, vocab]` with `positions`; d_model instead of vocab without `head`.
        """
        if attention_gates is not None:
            check_attention_gates(attention_gates, role_of, input_ids, self.graph, relative)
            self.require_sums("closing attention edges")
        edge_roles = role_of if attention_gates is None or gates.ndim > 2 else None
        check_gates(gates, edge_roles, input_ids, self.graph)
        ablated.check_fits(input_ids)
        scale = self._gradient_scale(len(input_ids))
        attention = GatedAttention.of(self, attention_gates, role_of, ablated, scale, may_be_open=all_open is not False)
        with self.sharding.keeping():
            inputs = self._last_inputs(
                input_ids, gates, ablated, attention_mask, positions, edge_roles, attention, fixed, relative, all_open
            )
        logits = self.logits(inputs) if head else inputs
        scaled = gates.requires_grad or (attention is not None and attention.requires_grad)
        return ScaleGradient.apply(logits, scale) if scaled else logits

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
        """What the logits read, `[batch, seq or n, d]`; the arguments are those of `forward`."""
        batch, seq = input_ids.shape
        graph = self.graph.without_roles
        embeddings, stream, context = self.start(input_ids, attention_mask, fixed.embeddings)
        if edges is not None:
            edges.begin(self, stream, input_ids, attention_mask)
        stream = stream.flatten(0, 1)
        closed = (1 - gates).to(stream.device, exact_dtype(stream.dtype)).reshape(-1, *graph.shape)
        groups, present = groups_of(gates, role_of, input_ids)
        closed = closed if present is None else closed[present]
        if gates.requires_grad:
            closed = ScaleGradient.apply(closed, 1 / self._gradient_scale(batch))
        reads = LayerReads(
            graph, self.blocks, self.projections, closed, stream, self.workspace, all_open, self.read_ops, groups
        )
        stack = reads.stack
        chain = stream.new_zeros((), requires_grad=gates.requires_grad)
        chain = chain if edges is None else edges.tied(chain)
        for row, (own, other) in enumerate(zip(embeddings, ablated.embeddings, strict=True)):
            stack.delta[row] = groups.sort((other if relative else other - own).expand_as(own).flatten(0, 1))
        for layer, block in enumerate(self.blocks):
            qkv, mlp_mix, chain = reads(layer, chain, stream, batch)
            if layer in fixed.heads:
                written = fixed.heads[layer].detach()
                attention = block.sum_heads(written)
            else:
                attended = (edges or attend)(block, qkv, context, graph.arch.kv_readers_per_head, stack.all_open)
                written, attention = block.write(attended)
            chain = self.write_heads(chain, written, ablated.heads[layer], stack, block, relative)
            attention, mlp = attention.flatten(0, 1), None
            if ablated.mlps is not None:
                inputs = block.mlp_input(stream, attention) + mlp_mix
                if not block.parallel:
                    heads = graph.heads(layer)
                    own_heads = reads.closed[layer][:, -1:, heads]
                    inputs, chain = ReadStream.apply(chain, groups.sort(inputs), own_heads, stack, heads.start)
                    inputs = groups.unsort(inputs)
                inputs = inputs.view(batch, seq, -1)
                mlp = fixed.mlps[layer].detach() if layer in fixed.mlps else block.mlp(inputs)
                chain = self._write_mlp(chain, mlp, ablated.mlps[layer], stack, graph.mlp_writer(layer), relative)
                mlp = mlp.flatten(0, 1)
            stream = block.join(stream, attention, mlp)
        return self._last_input(chain, stream, reads.closed[-1], stack, positions, (batch, seq))

    def write_heads(
        self, chain: Tensor, own: Tensor, other: Tensor, stack: DeltaStack, block: Block, relative: bool = False
    ) -> Tensor:
        """Deltas of a layer's heads into the stack, from written values `[batch, seq, head, head_dim]`; the next link.

        `relative`: `other` holds differences.
        """
        heads = self.graph.heads(block.layer)
        own, other = (stack.groups.sort(part.flatten(0, 1)) for part in (own, other.expand_as(own)))
        if not relative:
            return WriteHeads.apply(chain, own, other, block.output_weight, stack, heads.start)
        weight = block.output_weight()
        torch.bmm(other.transpose(0, 1).to(weight.dtype), weight, out=stack.delta[heads])
        return chain

    @staticmethod
    def _write_mlp(chain: Tensor, own: Tensor, other: Tensor, stack: DeltaStack, row: int, relative: bool) -> Tensor:
        """The delta of an MLP into the stack, from `[batch, seq, d_model]`; the next link."""
        own, other = (stack.groups.sort(part.flatten(0, 1)) for part in (own, other.expand_as(own)))
        if not relative:
            return WriteOne.apply(chain, own, other, stack, row)
        stack.delta[row] = other
        return chain

    @staticmethod
    def _last_input(
        chain: Tensor,
        stream: Tensor,
        closed: Tensor,
        stack: DeltaStack,
        positions: Tensor | None,
        shape: tuple[int, int],
    ) -> Tensor:
        """What the logits read, `[batch, seq or positions, d_model]`."""
        if positions is None:
            inputs, _ = ReadStream.apply(chain, stack.groups.sort(stream), closed, stack, 0)
            return stack.groups.unsort(inputs).view(*shape, -1)
        tokens = rows_of(positions, shape[1])
        groups, columns, closed = stack.groups.at(tokens, closed, len(stream))
        inputs, _ = ReadStream.apply(chain, groups.sort(stream[tokens]), closed, stack, 0, columns, groups)
        return groups.unsort(inputs).view(*positions.shape, -1)
