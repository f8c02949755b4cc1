"""What the attention readers of each layer are projected with, made from the model's own weights."""

import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, final

import torch
from torch import Tensor

from edgeprune.graph import ArchSpec
from edgeprune.models.block import Block, repeat_kv

KEPT_BYTES = 2**28  # of all layers' weights: more are made for each layer when it is read, in one place


class Projection(NamedTuple):
    """How the attention readers of a layer see their inputs. A readers, C head width, D residual width.

    Attributes:
        weight: By reader, the norm's weight included, `[A, D, C]`. If the norm is centred, its mean over D is 0, and it
            has one column more, of ones.
        offset: What a normed input of zero gives, `[A, C]`, in the dtype of projections.
        eps: The norm's; None: there is no norm.
        centred: The norm takes the mean over the width away.
        stays: The weight is not overwritten when another layer's is asked for.
        detached: In the backward, the norm's scale is a constant.
    """

    weight: Tensor
    offset: Tensor
    eps: float | None
    centred: bool
    stays: bool
    detached: bool = False


class _Kept(NamedTuple):
    """A layer's weights, and what says whether those that they were made from are still the same."""

    weight: Tensor
    state: tuple[object, ...]
    probe: Tensor


@final
class Projections:
    """The projections of a model's layers: kept if they are small, else one at a time.

    The model's weights may change in any way between two runs. What is kept is then made anew: a run asks first
    (`forget_edited`) how the weights project one fixed input, in float32 or better. An edit that leaves every output
    for it as it was, bit for bit, is one that moves the outputs by less than they are rounded by.

    Args:
        blocks: The model's layers.
        arch: Its graph's shape.

    Attributes:
        detach_scale: Make projections `detached`.
    """

    def __init__(self, blocks: Sequence[Block], arch: ArchSpec) -> None:
        self._blocks, self._arch = blocks, arch
        self._kept: dict[int, _Kept] = {}
        self._room: Tensor | None = None
        self._may_keep, self.detach_scale = True, False
        _, head_dim, width = blocks[0].projection_weight().shape
        self._shape = (arch.num_attention_readers, width, head_dim + blocks[0].input_spec().centred)  # of one layer's

    def keep_nothing(self) -> None:
        """Make each layer's weights when it is read: what they are made from is whole only then."""
        self._may_keep = False
        self._kept.clear()

    @property
    def num_bytes(self) -> int:
        """Of the weights that stay: all, or those of one layer."""
        return self._layer_bytes * (len(self._blocks) if self._keeps else 1)

    @property
    def _layer_bytes(self) -> int:
        return math.prod(self._shape) * self._blocks[0].projection_weight().dtype.itemsize

    @property
    def _keeps(self) -> bool:
        """Whether all layers' weights stay."""
        return self._may_keep and self._layer_bytes * len(self._blocks) <= KEPT_BYTES

    @torch.no_grad()
    def forget_edited(self) -> None:
        """Drop what is kept of layers whose weights are not those that it was made from."""
        for layer in [layer for layer, kept in self._kept.items() if kept.state != _state(self._sources(layer))]:
            del self._kept[layer]
        if self._kept:
            new = torch.stack([_probe(self._sources(layer)) for layer in self._kept])
            same = new == torch.stack([kept.probe for kept in self._kept.values()])
            for layer, is_same in zip(list(self._kept), same.all(1).tolist(), strict=True):
                if not is_same:
                    del self._kept[layer]

    @torch.no_grad()
    def __call__(self, layer: int) -> Projection:
        """The projection of a layer, to be used before the next one is asked for unless it stays."""
        block = self._blocks[layer]
        norm, like = block.input_spec(), block.qkv_weights()[0]
        zero = like.new_zeros((1, 1, like.shape[1])) if norm.bias is None else norm.bias[None, None]
        offset = torch.cat(repeat_kv(block.project(zero), self._arch.kv_readers_per_head), 2)
        offset = offset.view(self._shape[0], -1)
        return Projection(self._weight(layer), offset, norm.eps, norm.centred, self._keeps, self.detach_scale)

    def _sources(self, layer: int) -> tuple[Tensor, ...]:
        """What a layer's weights are made from: those of q, k and v by head, and the norm's if it has any."""
        block = self._blocks[layer]
        norm = block.input_spec().weight
        return (*block.qkv_weights(), *(own for own in (norm,) if own is not None))

    def _weight(self, layer: int) -> Tensor:
        if layer in self._kept:
            return self._kept[layer].weight
        parts, norm = self._blocks[layer].qkv_weights(), self._blocks[layer].input_spec()
        room = self._new_room(parts[0])
        _fill(room, parts, norm.gain, self._arch.num_kv_readers)
        if norm.centred:
            room[..., :-1] -= room[..., :-1].mean(1, keepdim=True)
            room[..., -1] = 1
        if self._keeps:
            sources = self._sources(layer)
            self._kept[layer] = _Kept(room, _state(sources), _probe(sources))
        return room

    def _new_room(self, like: Tensor) -> Tensor:
        """Where a layer's weights go: a place of its own, or the one that all layers share."""
        room = None if self._keeps else self._room
        if room is None or (room.dtype, room.device) != (like.dtype, like.device):
            with torch.inference_mode(False):  # a later run may want gradients
                room = like.new_empty(self._shape)
        self._room = None if self._keeps else room
        return room


def _state(sources: tuple[Tensor, ...]) -> tuple[object, ...]:
    """What tells whether tensors are others than before, or edited where torch counts edits, without a look at them."""
    return tuple((own.data_ptr(), own.device, own.dtype, own._version) for own in sources)


def _probe(sources: tuple[Tensor, ...]) -> Tensor:
    """Outputs of q, k and v for one fixed input, and the norm's weight, `[n]`."""
    exact = torch.promote_types(sources[0].dtype, torch.float32)
    fixed = _fixed_input(sources[0].shape[1], exact, sources[0].device)
    with no_autocast(fixed):
        found = [fixed @ own.to(exact) if own.ndim > 1 else own.to(exact) for own in sources]
    return torch.cat([own.flatten() for own in found])


@functools.cache
def _fixed_input(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random numbers from 1 to 2: all different, so that they tell weights apart, and none so small as to miss one."""
    return torch.rand(width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).add(1).to(device, dtype)


def _fill(room: Tensor, parts: tuple[Tensor, Tensor, Tensor], norm: Tensor | None, num_kv: int) -> None:
    """Put the weights of q, k and v `[head, D, C]` into `room` `[A, D, C or more]`, k and v once per reader."""
    width, start = parts[0].shape[-1], 0
    for part, readers in zip(parts, (len(parts[0]), num_kv, num_kv), strict=True):
        own = room[start : start + readers, :, :width].unflatten(0, (len(part), -1))
        own.copy_(part[:, None] if norm is None else part[:, None] * norm[:, None])
        start += readers


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Mixing and norms of a tensor `[...]` run in its own dtype, whatever autocast says; meta tensors know none."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
