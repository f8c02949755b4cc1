"""Reads of some readers alone: what their open edges bring, and its norm and projection.

Rows of writers lie together token by token, so that a token's rows are still in a processor's cache when its next
reader wants them. Shapes: N tokens, W writers, R readers, D width, C head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from edgeprune.models.projections import Projection
from edgeprune.models.read_ops import exact_dtype, norm_scale

FEW_OPEN = 0.3  # share of open edges up to which adding rows up is faster than a product with zeros
FEW_READERS = 4  # for which a product is never faster


def open_sums(rows: Tensor, keep: Tensor) -> Tensor:
    """For each reader the sum of what writers with an open edge into it put out, `[N, R, D]`.

    Args:
        rows: What writers put out, `[N, W, D]`.
        keep: Open edges, bool `[R, w]` on the CPU, from the first w writers.
    """
    many = len(keep) > FEW_READERS and int(keep.sum()) > FEW_OPEN * keep.numel()
    if many or rows.device.type != "cpu" or rows.dtype.itemsize < 4:
        return keep.to(rows) @ rows[:, : keep.shape[1]]
    num_tokens, num_writers, width = rows.shape
    readers, writers = keep.nonzero().unbind(1)
    starts = torch.searchsorted(readers, torch.arange(len(keep)))
    tokens = torch.arange(num_tokens)[:, None]
    places, bags = (tokens * num_writers + writers).flatten(), (tokens * len(writers) + starts).flatten()
    return embedding_bag(places, rows.flatten(0, 1), bags, mode="sum").view(num_tokens, len(keep), width)


def projected(inputs: Tensor, place_of: Sequence[int], rows: Sequence[int], projection: Projection) -> Tensor:
    """Norm and projection of some of a layer's attention readers, `[readers, N, C]`, in `exact_dtype`.

    Args:
        inputs: `[N, different inputs, D]`.
        place_of: For each reader the place of its input.
        rows: The readers, as rows of `projection`.
        projection: Of the layer.
    """
    offset, exact = projection.offset, exact_dtype(inputs.dtype)
    weight = projection.weight[..., : offset.shape[-1]].to(offset.dtype)  # without the column that sums inputs
    own, weights = inputs.to(offset.dtype).unbind(1), weight.unbind()
    found = torch.stack([own[place] @ weights[row] for place, row in zip(place_of, rows, strict=True)]).to(exact)
    mean = inputs.new_zeros(inputs.shape[:2], dtype=exact)
    if projection.centred:
        torch.mean(inputs, -1, dtype=exact, out=mean)
    scale = norm_scale(inputs, mean, projection)[:, list(place_of)].T[..., None]
    return found.mul_(scale).add_(offset.to(exact)[list(rows), None])
