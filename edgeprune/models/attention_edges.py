"""Attention of a layer, and attention edges: what the queries of one role see at key positions of another one.

Where an attention edge is closed, the queries of its head at its query role see the k and v that the head's readers
would give there if every edge into them were closed: under interchange those of the corrupted run. In between

    k_seen[h, t, u] = g k_own[h, u] + (1 - g) k_ablated[h, u],   g = gates[layer, h, role of t, role of u]          (1)

for the query at token t and a key at token u, and likewise v. Keys are mixed as heads know them, after norms of their
own and before rotary positions, which are linear; so no head's gate moves another head's keys.

Every family's own attention does the rest: an example is there once for each role that it has tokens of, as all its
queries of that role see the same keys. Shapes: B examples, S positions, N pairs of an example and a role in it, H query
heads, K k (and v) readers, R roles, C head width, D width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.models.block import Block, Projected
from edgeprune.models.read_functions import ScaleGradient
from edgeprune.models.read_ops import exact_dtype
from edgeprune.models.states import WriterStates
from edgeprune.models.token_groups import check_roles

if TYPE_CHECKING:
    from edgeprune.models.masked import MaskedModel


def attend(block: Block, qkv: Projected, context: Any, copies: int, all_open: bool) -> Tensor:
    """Attention-weighted values of a layer, `[B, S, H, C]`.

    With every gate open, heads that share k and v in the model see the same ones: the kernel then gets one of them,
    as in the model, for its result depends on how often they are there. Gradients are those of all.

    Args:
        block: The layer.
        qkv: What its readers give, `[B, S, readers, C]` each.
        context: What layers share.
        copies: K and v readers for each key/value head of the model.
        all_open: Whether every gate is open.
    """
    if not all_open or copies == 1:
        return block.attend(*block.heads(*qkv), context)
    with torch.no_grad():
        k, v = (part[:, :, ::copies] for part in qkv[1:])
        values = block.attend(*block.heads(qkv[0], k, v), context)
    return with_gradient(values, lambda: block.attend(*block.heads(*qkv), context))


def with_gradient(values: Tensor, other: Callable[[], Tensor]) -> Tensor:
    """Values `[...]` with the gradient of others, `[...]`, that are the same but for rounding; `other` makes these."""
    if not torch.is_grad_enabled():
        return values
    made = other()
    return values + (made - made.detach())


class AblatedKeys:
    """Keys and values of readers into which every edge is closed, layer by layer, in order. No gradient passes them.

    Args:
        ablated: What closed edges carry. Batch and sequence may be 1 in any field.
        blocks: The model's layers.
    """

    def __init__(self, ablated: WriterStates, blocks: Sequence[Block]) -> None:
        self._ablated, self._blocks, self._layer = ablated, blocks, 0
        self._stream = functools.reduce(torch.add, ablated.embeddings.unbind())

    @torch.no_grad()
    def __call__(self, layer: int) -> tuple[Tensor, Tensor]:
        """K and v of a layer, `[B or 1, S or 1, key/value heads, C]`; a layer behind the one asked for before."""
        while self._layer < layer:
            self._pass()
        block = self._blocks[layer]
        _, k, v = block.heads(*block.project(block.norm(self._stream)))
        self._pass()  # now, while the layer of a sharded model is whole
        return k, v

    def _pass(self) -> None:
        """Add what the present layer writes to the stream, and go on to the next."""
        states, layer = self._ablated, self._layer
        mlp = None if states.mlps is None else states.mlps[layer]
        block = self._blocks[layer]
        self._stream = block.join(self._stream, block.sum_heads(states.heads[layer]), mlp)
        self._layer += 1


@final
class GatedAttention:
    """Attention with gates on its edges, for one run.

    Args:
        gates: `[G, layer, H, R, R]`, of as many groups of equal size that the batch falls into.
        role_of: Long `[B, S]`.
        keys: Of the ablated run.
        all_open: Whether every gate is.
    """

    def __init__(self, gates: Tensor, role_of: Tensor, keys: AblatedKeys, all_open: bool) -> None:
        num_groups, num_layers, num_heads, num_roles, _ = gates.shape
        batch, seq = role_of.shape
        number = torch.arange(batch, device=role_of.device)
        pairs, pair_of = (number[:, None] * num_roles + role_of).unique(return_inverse=True)
        self._examples, role = pairs // num_roles, pairs % num_roles
        group = self._examples // (batch // num_groups)
        self._places = ((group * num_roles + role)[:, None] * num_roles + role_of[self._examples]).flatten()
        self._table = gates.permute(1, 0, 3, 4, 2).reshape(num_layers, -1, num_heads)
        self._rows = (pair_of * seq + torch.arange(seq, device=role_of.device)).flatten()  # of each query, in N x S
        self._keys, self._all_open = keys, all_open
        self._context: Any = None  # of layers, for the examples of the pairs

    @classmethod
    def of(
        cls,
        model: "MaskedModel",
        gates: Tensor | None,
        role_of: Tensor | None,
        ablated: WriterStates,
        scale: float,
        *,
        may_be_open: bool,
    ) -> Self | None:
        """The attention edges of a run; None: there are no gates, or they are all open and get no gradient.

        Args:
            model: The model.
            gates: As in `MaskedModel.forward`.
            role_of: Likewise.
            ablated: Likewise.
            scale: What gradients inside the model are multiplied by.
            may_be_open: False: they are a sample, of which some are closed, so that nobody looks.
        """
        if gates is None or role_of is None:
            return None
        needed = gates.requires_grad and torch.is_grad_enabled()
        all_open = may_be_open and bool((gates == 1).all())
        if all_open and not needed:
            return None
        exact: Tensor = gates.to(model.device, exact_dtype(model.dtype)).reshape(-1, *gates.shape[-4:])
        exact = ScaleGradient.apply(exact, 1 / scale) if needed else exact  # pyright: ignore[reportAssignmentType]
        return cls(exact, role_of.to(model.device), AblatedKeys(ablated, model.blocks), all_open)

    @property
    def requires_grad(self) -> bool:
        """Whether the gates get gradients."""
        return self._table.requires_grad

    def tied(self, chain: Tensor) -> Tensor:
        """The first link of a run's chain (scalar), from which the gates now get a gradient of 0.

        A backward to them alone visits all of the chain then, and the run's gradients start anew in the next one.
        """
        return chain + 0 * self._table[0, 0, 0].to(chain.dtype)

    def begin(self, model: "MaskedModel", stream: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """What layers share is that of the run's prompts, `[B, S]`, and its embeddings `[B, S, D]`, once per pair."""
        mask = None if attention_mask is None else attention_mask[self._examples]
        self._context = model.context(stream[self._examples], input_ids[self._examples], mask)

    def __call__(self, block: Block, qkv: Projected, context: Any, copies: int, all_open: bool) -> Tensor:
        """Attention-weighted values of a layer, `[B, S, H, C]`; the arguments are those of `attend`."""
        if not self._all_open:
            return self._mixed(block, qkv)
        with torch.no_grad():
            values = attend(block, qkv, context, copies, all_open)
        return with_gradient(values, lambda: self._mixed(block, qkv))

    def _mixed(self, block: Block, qkv: Projected) -> Tensor:
        """(1), and attention over it."""
        q, *own = block.heads(*qkv)
        gates = self._table[block.layer].index_select(0, self._places)
        gates = gates.view(len(self._examples), -1, gates.shape[-1]).to(q.dtype)
        k, v = (_Seen.apply(*pair, gates, self._examples) for pair in zip(own, self._keys(block.layer), strict=True))
        values = block.attend(q.index_select(0, self._examples), k, v, self._context)
        return values.flatten(0, 1).index_select(0, self._rows).view(q.shape)


@final
class _Seen(torch.autograd.Function):
    """What the queries of each pair see of k, or v: own `[B, S, K, C]` and ablated ones `[B or 1, S or 1, n, C]` mixed.

    Inputs: these; gates `[N, S, H]`; the example of each pair, long `[N]`. Returns: `[N, S, H, C]`.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, other: Tensor, gates: Tensor, examples: Tensor) -> Tensor:
        ctx.save_for_backward(own, other, gates, examples)
        own, other = (_of_heads(part, gates.shape[-1]) for part in (own, other))
        other = other if len(other) == 1 else other.index_select(0, examples)
        own = own.index_select(0, examples)
        return torch.lerp(other.to(own.dtype), own, gates[..., None])  # both ends are exact

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        own, other, gates, examples = ctx.saved_tensors
        apart = _of_heads(own, gates.shape[-1]) - _of_heads(other, gates.shape[-1])
        grad_gates = apart.index_select(0, examples).mul_(grad).sum(-1)
        shares = (grad * gates[..., None]).unflatten(2, (own.shape[2], -1))
        shares = shares[:, :, :, 0] if shares.shape[3] == 1 else shares.sum(3)
        return torch.zeros_like(own).index_add_(0, examples, shares), None, grad_gates, None


def _of_heads(part: Tensor, num_heads: int) -> Tensor:
    """K or v of readers `[..., n, C]` once for each query head, `[..., H, C]`."""
    return part if part.shape[2] == num_heads else part.repeat_interleave(num_heads // part.shape[2], 2)


def check_attention_gates(
    gates: Tensor, role_of: Tensor | None, input_ids: Tensor, graph: EdgeGraph, relative: bool
) -> None:
    """Refuse gates of attention edges that do not fit a run.

    Args:
        gates: As in `MaskedModel.forward`.
        role_of: Likewise.
        input_ids: Long `[batch, seq]`.
        graph: Of the model.
        relative: As in `MaskedModel.forward`.

    Raises:
        EdgepruneError: They have another shape, there are no roles, or `ablated` holds differences.
    """
    if role_of is None:
        raise EdgepruneError("attention edges lead from role to role: give role_of with attention_gates")
    if relative:
        raise EdgepruneError("closed attention edges carry ablated keys, not differences: leave relative out")
    arch = graph.arch
    fits = gates.ndim in (4, 5) and tuple(gates.shape[-4:-2]) == (arch.num_layers, arch.num_heads)
    if not fits or gates.shape[-1] != gates.shape[-2]:
        raise EdgepruneError(
            f"attention_gates have shape {tuple(gates.shape)}, this model needs [layer, head, query role, key role] = "
            f"({arch.num_layers}, {arch.num_heads}, roles, roles), or one more axis before: of groups"
        )
    if gates.ndim == 5 and (not len(gates) or len(input_ids) % len(gates)):
        raise EdgepruneError(f"{len(input_ids)} examples do not fall into {len(gates)} groups of equal size")
    check_roles(role_of, gates.shape[-1], input_ids)
