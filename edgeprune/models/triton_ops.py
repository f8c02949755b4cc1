"""A layer's read in one kernel: mix, norm and projection, and their backward, with no `[readers, T, D]` in memory.

No GPU has run these kernels: they are held against `ReadOps` in Triton's interpreter on a processor, and chosen by name
alone (`ops_for`). They compile for sm_90, with Triton 3.6 and 3.9; with these block sizes forms in bfloat16 do with the
registers there are, or nearly (heads of 128 columns, forward). How fast they are is not known.
"""

from typing import Any, final

import torch
from torch import Tensor

from edgeprune.models.projections import Projection
from edgeprune.models.read_ops import CudaReadOps, exact_dtype
from edgeprune.models.triton_kernels import INTERPRETED, read_kernel, unread_kernel

READ: Any = read_kernel
UNREAD: Any = unread_kernel
READER_BLOCK, WRITER_BLOCK, TOKEN_BLOCK, WIDTH_BLOCK = 16, 32, 16, 16
HEAD_BLOCK = 128  # of the forward: columns of a head that a program has
HEAD_STEP = 32  # of the backward: columns at a time
PROGRAMS = 264  # of the backward, about: two for each multiprocessor of an H100


@final
class TritonReadOps(CudaReadOps):
    """For GPUs: attention readers by the fused kernels, other readers as `CudaReadOps`; inputs `[T, D]` as there."""

    fused = True

    def read_layer(
        self, closed: Tensor, delta: Tensor, stream: Tensor, projection: Projection
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `ReadOps.read_layer`."""
        (groups, readers, writers), (tokens, width), offset = closed.shape, stream.shape, projection.offset
        head, exact = offset.shape[-1], exact_dtype(stream.dtype)
        offset, weight = offset.contiguous(), projection.weight.to(offset.dtype)
        stream = stream.contiguous()
        out = offset.new_empty((tokens, *offset.shape))
        scale, mean = stream.new_empty((2, readers, tokens), dtype=exact)
        columns = min(HEAD_BLOCK if exact == torch.float32 else HEAD_BLOCK // 2, _block(head))
        blocks = tokens // groups, readers, head
        sizes = TOKEN_BLOCK, READER_BLOCK, columns
        by_token, by_reader, by_column = (-(-n // size) for n, size in zip(blocks, sizes, strict=True))
        READ[(groups * by_token * by_reader * by_column,)](
            closed,
            delta,
            stream,
            weight,
            offset,
            out,
            scale,
            mean,
            projection.eps or 0.0,
            groups,
            readers,
            writers,
            tokens,
            width,
            head,
            *closed.stride(),
            delta.stride(0),
            *weight.stride(),
            by_token,
            by_reader,
            NORM=projection.eps is not None,
            CENTRED=projection.centred,
            READERS=READER_BLOCK,
            WRITERS=WRITER_BLOCK,
            TOKENS=TOKEN_BLOCK,
            WIDTH=WIDTH_BLOCK,
            HEAD=columns,
            num_warps=8,
        )
        return out, scale, mean

    def unread_layer(
        self,
        closed: Tensor,
        delta: Tensor,
        stream: Tensor,
        grad: Tensor,
        read: tuple[Tensor, Tensor, Tensor],
        projection: Projection,
        rows: Tensor | None,
        *,
        all_open: bool,
    ) -> tuple[Tensor, Tensor]:
        """As `ReadOps.unread_layer`."""
        (groups, readers, writers), (tokens, width) = closed.shape, stream.shape
        head, exact, weight = grad.shape[-1], exact_dtype(stream.dtype), projection.weight.to(stream.dtype)
        out, scale, mean = read
        scale, mean = (part.expand(readers, -1) for part in (scale, mean))
        wide = grad.to(exact)
        along = (wide * (out - projection.offset)).sum(-1).T
        pull = (scale.square() * along * (not projection.detached) / width).contiguous()
        centre = (pull * mean).contiguous()
        if projection.eps is not None:
            wide = wide * scale.T[..., None]
        scaled = wide.to(stream.dtype).transpose(0, 1).contiguous()
        stream = stream.contiguous()
        of_stream = torch.empty_like(stream)
        tiles = -(-(tokens // groups) // TOKEN_BLOCK) * -(-width // WIDTH_BLOCK)
        slots = max(1, min(tiles, PROGRAMS // groups))
        of_closed = scale.new_zeros((slots, groups, readers, writers))
        UNREAD[(slots * groups,)](
            closed,
            delta,
            stream,
            weight,
            scaled,
            pull,
            centre,
            of_stream if rows is None else rows,
            of_stream,
            of_closed,
            groups,
            slots,
            readers,
            writers,
            tokens,
            width,
            head,
            *closed.stride(),
            delta.stride(0),
            *weight.stride(),
            NORM=projection.eps is not None,
            CENTRED=projection.centred,
            MIXES=not all_open,
            COLLECTS=rows is not None,
            READERS=READER_BLOCK,
            WRITERS=WRITER_BLOCK,
            TOKENS=TOKEN_BLOCK,
            WIDTH=WIDTH_BLOCK,
            HEAD=min(HEAD_STEP, _block(head)),
            num_warps=8,
            num_stages=1,
        )
        return of_stream, of_closed.sum(0)


def _block(size: int) -> int:
    """The power of two that holds `size`, 16 at least: less a tile of a product cannot be."""
    return max(16, 1 << (size - 1).bit_length())


def interpreted() -> bool:
    """Whether kernels run on the processor, in Triton's interpreter."""
    return INTERPRETED.value


TRITON = TritonReadOps()
