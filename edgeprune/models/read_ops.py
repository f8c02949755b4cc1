"""The operations of a read, as one device does them best: mix, collect, slopes, project, unproject, or all in one.

Each is a function of what it is handed, and writes into that alone. Shapes: T tokens (batch x seq), D residual width,
R readers, N writers, A attention readers of a layer, C head width; G groups that the tokens fall into, one after the
other, each with its own gates: of equal size, or as large as `sizes` says (`token_groups.py`).

Numbers stay exact where a model's dtype is not: `closed` (1 - gate) is float32 at least, and enters a product of
half-precision matrices as two terms, which hold 16 bits of it; slopes, sums over all tokens, are float32 at least.
"""

import os
from collections.abc import Iterator, Sequence
from importlib import import_module

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.models.projections import Projection

VARIABLE = "EDGEPRUNE_READ_OPS"
NAMES = ("host", "cuda", "triton")
WIDE_SUMS = "out_dtype" in (torch.bmm.__doc__ or "")  # products of half precision summed in float32, on GPUs: torch 2.8


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of gates, slopes and the norms' statistics in a model of `dtype`: at least float32."""
    return torch.promote_types(dtype, torch.float32)


class ReadOps:
    """The reference, for processors.

    Attributes:
        chunk_bytes: Readers' inputs that are scaled and projected at a time.
        pieces: That long sums of products fall into, so that threads share them.
        keep_bytes: Readers' inputs that stay until the backward, at most, beside those of one segment (`reads.py`).
        segment_readers: Of a segment, about: layers that are read together (docs/performance.md has other numbers).
        fused: Each layer is read by itself, by `read_layer`, and no reader's input is kept: there are no segments.
    """

    fused = False
    chunk_bytes = 8 * 2**20
    pieces = 8
    keep_bytes = 2**30
    segment_readers = 96

    # ---------------------------------------------------------------- inputs
    def mix(self, closed: Tensor, rows: Tensor, out: Tensor, *, add: bool, sizes: Sequence[int] | None = None) -> None:
        """Put `closed @ rows` into `out`, or add it.

        Args:
            closed: `[G, R, N]`, in `exact_dtype`.
            rows: `[N, T, D]`.
            out: `[R, T, D]`, of the dtype of `rows`.
            add: Add to what is there.
            sizes: Tokens of each group; None: all have the same number, here and in what follows.
        """
        parts = zip(_groups(rows, len(closed), sizes), _groups(out, len(closed), sizes), strict=True)
        for own, (group, into) in zip(closed, parts, strict=True):
            for number, term in enumerate(self._terms(own, rows.dtype)):
                into.addmm_(term, group, beta=int(add or number > 0))

    def collect(self, closed: Tensor, grad: Tensor, rows: Tensor, sizes: Sequence[int] | None = None) -> None:
        """Backward of `mix`: add what comes from `grad` `[R, T, D]` to the gradients `rows` `[N, T, D]`."""
        parts = zip(_groups(rows, len(closed), sizes), _groups(grad, len(closed), sizes), strict=True)
        for own, (into, group) in zip(closed, parts, strict=True):
            for term in self._terms(own, rows.dtype):
                into.addmm_(term.T, group)

    def slopes(self, grad: Tensor, rows: Tensor, num_groups: int, sizes: Sequence[int] | None = None) -> Tensor:
        """Backward of `mix`: the gradient of `closed`, `[G, R, N]` in `exact_dtype`, from `grad` `[R, T, D]`."""
        if not len(rows):
            return grad.new_zeros((num_groups, len(grad), 0), dtype=exact_dtype(grad.dtype))
        pairs = zip(_groups(grad, num_groups, sizes), _groups(rows, num_groups, sizes), strict=True)
        return torch.stack([self._sums_of_products(own, group) for own, group in pairs])

    def _terms(self, closed: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Matrices of `dtype` that add up to `closed`, the small one first; one alone where it is exact."""
        high = closed.to(dtype)
        if closed.dtype == dtype:
            return (high,)
        low = (closed - high).to(dtype)
        return (low, high) if low.any() else (high,)

    def _sums_of_products(self, rows: Tensor, others: Tensor) -> Tensor:
        """`rows @ others.T` for few very long rows, `[a, n]` and `[b, n]`, in `exact_dtype`.

        Float32 as a sum over pieces of them, which threads share better: up to twice as fast on two. Bfloat16 in two
        terms, of which the second is what rounding took from the first. Float16 could overflow in the sum.
        """
        if rows.dtype == torch.bfloat16:
            high = rows @ others.T
            return high.float() + torch.addmm(high, rows, others.T, beta=-1).float()
        if rows.dtype == torch.float16:
            size = max(1, self.chunk_bytes // (4 * (len(rows) + len(others))))
            parts = zip(rows.split(size, 1), others.split(size, 1), strict=True)
            return sum((own.float() @ other.float().T for own, other in parts), rows.new_zeros((), dtype=torch.float32))
        if rows.shape[1] % self.pieces or len(rows) == 1:
            return rows @ others.T
        own, other = (part.unflatten(1, (self.pieces, -1)).transpose(0, 1) for part in (rows, others))
        return torch.bmm(own, other.mT).sum(0)

    # ---------------------------------------------------------------- norm and projection
    def project(self, inputs: Tensor, projection: Projection) -> tuple[Tensor, Tensor, Tensor]:
        """Norm and projection of inputs: `offset + scale * inputs @ weight`.

        Args:
            inputs: `[A, T, D]`.
            projection: By reader.

        Returns:
            Projections `[T, A, C]`; the norm's scale and mean, `[A, T]` each.
        """
        offset, exact = projection.offset, exact_dtype(inputs.dtype)
        weight, width = projection.weight.to(offset.dtype), offset.shape[-1]
        out = offset.new_empty((inputs.shape[1], *offset.shape))
        scale, mean = inputs.new_empty((2, *inputs.shape[:2]), dtype=exact)
        offset = offset.to(exact)
        for readers in self._chunks(inputs):
            product = torch.bmm(inputs[readers].to(weight.dtype), weight[readers]).to(exact)
            mean[readers] = product[..., -1] / inputs.shape[-1] if projection.centred else 0
            scale[readers] = norm_scale(inputs[readers], mean[readers], projection)
            product = product[..., :width].mul_(scale[readers, :, None]).add_(offset[readers, None])
            out[:, readers] = product.transpose(0, 1)
        return out, scale, mean

    def unproject(
        self,
        inputs: Tensor,
        stream: Tensor | None,
        grad: Tensor,
        out: Tensor,
        scale: Tensor,
        mean: Tensor,
        projection: Projection,
    ) -> None:
        """Backward of `project`: `inputs` `[A, T, D]` become their gradients.

        Args:
            inputs: What was projected; any values with `stream`.
            stream: `[T, D]`, if that is every input; `scale` and `mean` are then those of the stream, `[T]`.
            grad: Of the projections, `[T, A, C]`.
            out: The projections.
            scale: The norm's.
            mean: The norm's.
            projection: By reader.
        """
        exact, weight = exact_dtype(inputs.dtype), projection.weight.to(inputs.dtype).mT
        scaled, pull = grad.new_empty((len(inputs), len(grad), weight.shape[1]), dtype=exact), None
        head, grad = scaled[..., : grad.shape[-1]], grad.to(exact)
        head.copy_(grad.transpose(0, 1))
        if projection.eps is not None:
            scale, mean = (part.expand(len(inputs), -1) for part in (scale, mean))
            head.mul_(scale[..., None])
            if projection.centred:
                scaled[..., -1] = 0
        if projection.eps is not None and not projection.detached:
            along = (grad * (out - projection.offset)).sum(-1).T  # through the scale: along the input
            pull = scale.square() * along / inputs.shape[-1]
            if projection.centred:
                scaled[..., -1] = pull * mean
            pull = pull.neg_().to(inputs.dtype)[..., None]
        scaled = scaled.to(inputs.dtype)
        for readers in self._chunks(inputs):
            part = inputs[readers]
            if pull is None:
                torch.bmm(scaled[readers], weight[readers], out=part)
            else:
                torch.mul(part if stream is None else stream, pull[readers], out=part)
                part.baddbmm_(scaled[readers], weight[readers])

    # ---------------------------------------------------------------- a whole layer
    def read_layer(
        self, closed: Tensor, delta: Tensor, stream: Tensor, projection: Projection
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`project` of a layer's inputs `stream + closed @ delta`.

        Args:
            closed: `[G, A, N]`, in `exact_dtype`.
            delta: `[N, T, D]`.
            stream: `[T, D]`.
            projection: By reader.

        Returns:
            As `project`.
        """
        return self.project(self._inputs(closed, delta, stream), projection)

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
        """Backward of `read_layer`.

        Args:
            closed: As there.
            delta: As there.
            stream: As there.
            grad: Of the projections, `[T, A, C]`.
            read: What `read_layer` returned; with `all_open`, the norm's scale and mean are those of the stream, `[T]`.
            projection: By reader.
            rows: The gradients of `delta` `[N, T, D]`, to which what comes from here is added; None: nobody needs it.
            all_open: `closed` is all zero.

        Returns:
            The gradients of the stream `[T, D]` and of `closed`, the latter in `exact_dtype`.
        """
        inputs = stream.expand(closed.shape[1], -1, -1).clone() if all_open else self._inputs(closed, delta, stream)
        self.unproject(inputs, stream if all_open else None, grad, *read, projection)
        if rows is not None:
            self.collect(closed, inputs, rows)
        return inputs.sum(0), self.slopes(inputs, delta, len(closed))

    def _inputs(self, closed: Tensor, delta: Tensor, stream: Tensor) -> Tensor:
        inputs = stream.expand(closed.shape[1], -1, -1).clone()
        self.mix(closed, delta, inputs, add=True)
        return inputs

    def _chunks(self, inputs: Tensor) -> Iterator[slice]:
        """Slices of the readers of `[readers, T, D]` that hold about `chunk_bytes`, evenly filled."""
        size = max(1, self.chunk_bytes // (inputs[0].numel() * exact_dtype(inputs.dtype).itemsize))
        size = -(-len(inputs) // -(-len(inputs) // size))
        for start in range(0, len(inputs), size):
            yield slice(start, min(start + size, len(inputs)))


class CudaReadOps(ReadOps):
    """For GPUs: one product for all groups of one size, no question that the processor waits for, larger chunks."""

    chunk_bytes = 256 * 2**20
    pieces = 1
    keep_bytes = 0
    segment_readers = 256

    def mix(self, closed: Tensor, rows: Tensor, out: Tensor, *, add: bool, sizes: Sequence[int] | None = None) -> None:
        """As `ReadOps.mix`."""
        if sizes is not None:
            super().mix(closed, rows, out, add=add, sizes=sizes)
            return
        into, group = (_by_group(part, len(closed)) for part in (out, rows))
        for number, term in enumerate(self._terms(closed, rows.dtype)):
            into.baddbmm_(term, group, beta=int(add or number > 0))

    def collect(self, closed: Tensor, grad: Tensor, rows: Tensor, sizes: Sequence[int] | None = None) -> None:
        """As `ReadOps.collect`."""
        if sizes is not None:
            super().collect(closed, grad, rows, sizes)
            return
        into, group = (_by_group(part, len(closed)) for part in (rows, grad))
        for term in self._terms(closed, rows.dtype):
            into.baddbmm_(term.mT, group)

    def slopes(self, grad: Tensor, rows: Tensor, num_groups: int, sizes: Sequence[int] | None = None) -> Tensor:
        """As `ReadOps.slopes`."""
        if sizes is not None or not len(rows):
            return super().slopes(grad, rows, num_groups, sizes)
        own, other = (_by_group(part, num_groups) for part in (grad, rows))
        if own.dtype.itemsize >= 4:
            return torch.bmm(own, other.mT)
        if not (own.is_cuda and WIDE_SUMS):
            return super().slopes(grad, rows, num_groups)
        return torch.bmm(own, other.mT, out_dtype=torch.float32)

    def _terms(self, closed: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        high = closed.to(dtype)
        return (high,) if closed.dtype == dtype else ((closed - high).to(dtype), high)


HOST, CUDA = ReadOps(), CudaReadOps()


def checked_name(name: str | None) -> str | None:
    """The name of the operations asked for: `name`, or what `EDGEPRUNE_READ_OPS` says; None: those of the device.

    Raises:
        EdgepruneError: There are none of that name, or what they need is not installed.
    """
    where, name = ("read_ops", name) if name else (VARIABLE, os.environ.get(VARIABLE) or None)
    if name not in (None, *NAMES):
        raise EdgepruneError(f"{where} must be one of {', '.join(NAMES)}, got {name!r}")
    if name == "triton":
        try:
            import_module("edgeprune.models.triton_ops")
        except ImportError as error:
            raise EdgepruneError(
                f"{where}='triton' needs the package triton, which does not load ({error}); install it, or take 'cuda'"
            ) from None
    return name


def ops_for(device: torch.device, name: str | None = None) -> ReadOps:
    """The operations of that name for a device; None: see `checked_name`.

    Raises:
        EdgepruneError: As `checked_name`, or the device cannot run them.
    """
    name = checked_name(name)
    if name == "triton":
        from edgeprune.models.triton_ops import TRITON, interpreted

        if device.type != "cuda" and not interpreted():
            raise EdgepruneError(
                f"read_ops='triton' runs on a GPU, the model is on {device}; take 'host', or set TRITON_INTERPRET=1 "
                "for Triton's interpreter, which is slow"
            )
        return TRITON
    return CUDA if (name or device.type) == "cuda" else HOST


def norm_scale(inputs: Tensor, mean: Tensor, projection: Projection) -> Tensor:
    """What the norm multiplies inputs `[..., D]` by, `[...]`, given their mean, or 0 if it takes none away."""
    if projection.eps is None:
        return torch.ones_like(mean)
    length = torch.linalg.vector_norm(inputs, dim=-1, dtype=mean.dtype)
    return (length.square() / inputs.shape[-1] - mean.square() + projection.eps).rsqrt()


def _groups(rows: Tensor, num_groups: int, sizes: Sequence[int] | None) -> tuple[Tensor, ...]:
    """Views of the groups' parts, `[n, tokens of one group * D]`, of `rows` `[n, T, D]`."""
    if sizes is None:
        return rows.view(len(rows), num_groups, -1).unbind(1)
    return rows.view(len(rows), -1).split([size * rows.shape[-1] for size in sizes], 1)


def _by_group(rows: Tensor, num_groups: int) -> Tensor:
    """View `[G, n, tokens of one group * D]` of `rows` `[n, T, D]`."""
    return rows.view(len(rows), num_groups, -1).transpose(0, 1)
