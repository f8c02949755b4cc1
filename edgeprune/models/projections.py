"""What the attention readers of each layer are projected with, made from the model's own weights."""

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
        arch, norm = self._model.graph.arch, self._model.family.read_norm(0)
        _, head_dim, width = self._model.family.output_weight(0).shape
        one = arch.num_attention_readers * width * (head_dim + norm.centred) * self._model.dtype.itemsize
        return one * arch.num_layers if one * arch.num_layers <= KEPT_BYTES else one

    @torch.no_grad()
    def __call__(self, layer: int) -> Projection:
        """The projection of a layer, to be used before the next one is asked for."""
        model = self._model
        norm, like = model.family.read_norm(layer), model.family.qkv_weights(layer)[0]
        zero = like.new_zeros((1, 1, like.shape[1])) if norm.bias is None else norm.bias[None, None]
        offset = torch.cat(model._repeat_kv(model.family.qkv(layer, zero)), -1)
        return Projection(self._weight(layer), offset.view(self._num_readers, -1), norm.eps, norm.centred)

    @property
    def _num_readers(self) -> int:
        return self._model.graph.arch.num_attention_readers

    def _weight(self, layer: int) -> Tensor:
        parts, norm = self._model.family.qkv_weights(layer), self._model.family.read_norm(layer)
        sources = (*parts, *(own for own in (norm.weight,) if own is not None))
        state = tuple((own.data_ptr(), own.device, own.dtype, own._version) for own in sources)
        if layer in self._kept and self._kept[layer][0] == state:
            return self._kept[layer][1]
        shape = (self._num_readers, parts[0].shape[1], parts[0].shape[2] + norm.centred)
        room = self._room_for(shape, parts[0])
        _fill(room, parts, norm.weight, self._model.graph.arch.num_kv_readers)
        if norm.centred:
            room[..., :-1] -= room[..., :-1].mean(1, keepdim=True)
            room[..., -1] = 1
        if self._room is None:
            self._kept[layer] = (state, room)
        return room

    def _room_for(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        arch = self._model.graph.arch
        with torch.inference_mode(False):  # a later run may want gradients
            if torch.Size(shape).numel() * like.itemsize * arch.num_layers <= KEPT_BYTES:
                self._room = None
                return like.new_empty(shape)
            room = self._room
            if room is None or (room.shape, room.dtype, room.device) != (shape, like.dtype, like.device):
                room = self._room = like.new_empty(shape)
            return room


def _fill(room: Tensor, parts: tuple[Tensor, Tensor, Tensor], norm: Tensor | None, num_kv: int) -> None:
    """Put the weights of q, k and v `[head, D, C]` into `room` `[A, D, C or more]`, k and v once per reader."""
    width, start = parts[0].shape[-1], 0
    for part, readers in zip(parts, (len(parts[0]), num_kv, num_kv), strict=True):
        own = room[start : start + readers, :, :width].unflatten(0, (len(part), -1))
        own.copy_(part[:, None] if norm is None else part[:, None] * norm[:, None])
        start += readers
