"""What the attention readers of each layer are projected with, made from the model's own weights."""

import math
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edgeprune.models.masked import MaskedModel

KEPT_BYTES = 2**28  # of all layers' weights: more are made for each layer when it is read, in one place


class Projection(NamedTuple):
    """How the attention readers of a layer see their inputs. A readers, C head width, D residual width.

    Attributes:
        weight: By reader, the norm's weight included, `[A, D, C]`. If the norm is centred, its mean over D is 0, and it
            has one column more, of ones.
        offset: What a normed input of zero gives, `[A, C]`, in the dtype of projections.
        eps: The norm's; None: there is no norm.
        centred: The norm takes the mean over the width away.
    """

    weight: Tensor
    offset: Tensor
    eps: float | None
    centred: bool


@final
class Projections:
    """The projections of a model's layers: kept if they are small, else one at a time.

    Args:
        model: The masked model, whose weights may change: what was kept is then made anew.
    """

    def __init__(self, model: "MaskedModel") -> None:
        self._model = model
        self._kept: dict[int, tuple[tuple[object, ...], Tensor]] = {}
        self._room: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Of the weights that stay: all, or those of one layer."""
        size = math.prod(self._shape) * self._model.dtype.itemsize
        return size * self._model.graph.arch.num_layers if self._keeps else size

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Of one layer's weights."""
        _, head_dim, width = self._model.family.output_weight(0).shape
        return self._model.graph.arch.num_attention_readers, width, head_dim + self._model.family.read_norm(0).centred

    @property
    def _keeps(self) -> bool:
        """Whether all layers' weights stay."""
        size = math.prod(self._shape) * self._model.dtype.itemsize
        return size * self._model.graph.arch.num_layers <= KEPT_BYTES

    @torch.no_grad()
    def __call__(self, layer: int) -> Projection:
        """The projection of a layer, to be used before the next one is asked for."""
        model = self._model
        norm, like = model.family.read_norm(layer), model.family.qkv_weights(layer)[0]
        zero = like.new_zeros((1, 1, like.shape[1])) if norm.bias is None else norm.bias[None, None]
        offset = torch.cat(model._repeat_kv(model.family.qkv(layer, zero)), -1)
        return Projection(self._weight(layer), offset.view(self._shape[0], -1), norm.eps, norm.centred)

    def _weight(self, layer: int) -> Tensor:
        parts, norm = self._model.family.qkv_weights(layer), self._model.family.read_norm(layer)
        sources = (*parts, *(own for own in (norm.weight,) if own is not None))
        state = tuple((own.data_ptr(), own.device, own.dtype, own._version) for own in sources)
        if layer in self._kept and self._kept[layer][0] == state:
            return self._kept[layer][1]
        room = self._new_room(parts[0])
        _fill(room, parts, norm.weight, self._model.graph.arch.num_kv_readers)
        if norm.centred:
            room[..., :-1] -= room[..., :-1].mean(1, keepdim=True)
            room[..., -1] = 1
        if self._keeps:
            self._kept[layer] = (state, room)
        return room

    def _new_room(self, like: Tensor) -> Tensor:
        """Where a layer's weights go: a place of its own, or the one that all layers share."""
        room = None if self._keeps else self._room
        if room is None or (room.dtype, room.device) != (like.dtype, like.device):
            with torch.inference_mode(False):  # a later run may want gradients
                room = like.new_empty(self._shape)
        self._room = None if self._keeps else room
        return room


def _fill(room: Tensor, parts: tuple[Tensor, Tensor, Tensor], norm: Tensor | None, num_kv: int) -> None:
    """Put the weights of q, k and v `[head, D, C]` into `room` `[A, D, C or more]`, k and v once per reader."""
    width, start = parts[0].shape[-1], 0
    for part, readers in zip(parts, (len(parts[0]), num_kv, num_kv), strict=True):
        own = room[start : start + readers, :, :width].unflatten(0, (len(part), -1))
        own.copy_(part[:, None] if norm is None else part[:, None] * norm[:, None])
        start += readers
