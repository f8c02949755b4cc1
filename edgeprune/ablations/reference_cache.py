"""Values of examples that are computed once: in memory, or in a file that is mapped into it."""

import mmap
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, final, get_args

import torch
from torch import Tensor

Place = Literal["memory", "disk"]
PLACES: tuple[Place, ...] = get_args(Place)
Key = tuple[str, int]  # split, number of the example
ALIGNMENT = 64  # bytes, at which every tensor of the file begins


class Values(NamedTuple):
    """What is kept of one example, or of a batch."""

    logits: Tensor  # [positions, vocab], of a batch [batch, positions, vocab]
    heads: Tensor | None  # [layer, tokens, head, head_dim], of a batch [layer, batch, tokens, head, head_dim]
    mlps: Tensor | None  # [layer, tokens, d_model], of a batch [layer, batch, tokens, d_model]


class _Kept(NamedTuple):
    values: Values
    dtypes: tuple[torch.dtype | None, ...]  # of heads and MLPs as they are handed out
    place: Place


@final
class ReferenceCache:
    """Keeps values of examples exactly, or rounded to `dtype`, and hands them out as batches.

    Args:
        room: Bytes, by place.
        folder: Where files lie. They have no name, and are gone when this object or its process is.
        dtype: In which heads and MLPs are kept; None: as they come.

    Attributes:
        free: Bytes that nobody has laid claim to, by place.
    """

    def __init__(self, room: Mapping[Place, int], folder: Path, dtype: torch.dtype | None = None) -> None:
        self.free = dict(room)
        self.folder, self.dtype = folder, dtype
        self._kept: dict[Key, _Kept] = {}
        self._regions: dict[tuple[str, Place], _Region] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def reserve(self, split: str, place: Place, num_bytes: int) -> None:
        """Set room aside for the values of a split, in one piece.

        Memory that is set aside counts when it is first written. A file has its full size at once, so that a full disk
        shows now and not in the middle of a run.

        Raises:
            OSError: There is no room on disk, or the folder cannot be written.
        """
        self.free[place] -= num_bytes
        self._regions[split, place] = _Region(num_bytes, self.folder if place == "disk" else None)

    def put_if_room(self, key: Key, values: Values) -> None:
        """Keep a copy of an example's values in memory, if it is not kept yet and there is room."""
        dtypes = self._dtypes(values)
        size = sum(
            value.numel() * dtype.itemsize
            for value, dtype in zip(values, dtypes, strict=True)
            if value is not None and dtype is not None
        )
        if key not in self and size <= self.free["memory"]:
            self.free["memory"] -= size
            self._put(key, values, "memory", _new)

    def put(self, key: Key, values: Values, place: Place) -> None:
        """Keep a copy of an example's values where its split has room set aside."""
        self._put(key, values, place, self._regions[key[0], place].take)

    def _put(self, key: Key, values: Values, place: Place, take: Callable[[torch.Size, torch.dtype], Tensor]) -> None:

        def copy(value: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
            if value is None or dtype is None:
                return None
            return take(value.shape, dtype).copy_(value)

        with torch.inference_mode(False), torch.no_grad():  # kept values must serve later steps that need gradients
            logits, heads, mlps = map(copy, values, self._dtypes(values))
        assert logits is not None
        given = tuple(None if value is None else value.dtype for value in values[1:])
        self._kept[key] = _Kept(Values(logits, heads, mlps), given, place)

    def _dtypes(self, values: Values) -> tuple[torch.dtype | None, ...]:
        """In which values are kept; logits always as they come."""
        states = (None if value is None else self.dtype or value.dtype for value in values[1:])
        return values.logits.dtype, *states

    def get(self, keys: Sequence[Key], seq: int, num_positions: int) -> Values:
        """Values of some examples as a batch on the CPU, padded on the right.

        States are padded with zeros, logits by repeating those of the last position; logits are float32.

        Args:
            keys: Which examples, all of them kept.
            seq: Tokens of the batch.
            num_positions: Scored positions of the batch.
        """
        kept = [self._kept[key] for key in keys]
        for key, item in zip(keys, kept, strict=True):
            if item.place == "disk":
                self._regions[key[0], item.place].fetch(item.values)
        heads, mlps = kept[0].dtypes
        return Values(
            logits=_pad_logits([item.values.logits for item in kept], num_positions),
            heads=heads and _pad_states([item.values.heads for item in kept], seq, heads),
            mlps=mlps and _pad_states([item.values.mlps for item in kept], seq, mlps),
        )


def _new(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


@final
class _Region:
    """Bytes that are filled from the front, and never given back one by one.

    They are a mapping of their own, in which small tensors do not split up the memory that steps use again and again.
    With a folder it is that of a nameless file there, whose pages the system writes and reads.
    """

    def __init__(self, num_bytes: int, folder: Path | None) -> None:
        if folder is None:
            self._map = mmap.mmap(-1, num_bytes)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
                else:
                    file.truncate(num_bytes)
                self._map = mmap.mmap(file.fileno(), num_bytes)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._next = 0

    def take(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The next part as a tensor."""
        first = -(-self._next // ALIGNMENT) * ALIGNMENT
        self._next = first + shape.numel() * dtype.itemsize
        return self._bytes[first : self._next].view(dtype).view(shape)

    def fetch(self, values: Values) -> None:
        """Ask the system to read an example, which lies in one piece, at once instead of page by page."""
        if hasattr(self._map, "madvise"):
            parts = [value for value in values if value is not None]
            start = (parts[0].data_ptr() - self._bytes.data_ptr()) // mmap.PAGESIZE * mmap.PAGESIZE
            end = parts[-1].data_ptr() - self._bytes.data_ptr() + parts[-1].nbytes
            self._map.madvise(mmap.MADV_WILLNEED, start, end - start)


def _pad_logits(rows: Sequence[Tensor], num_positions: int) -> Tensor:
    out = torch.empty((len(rows), num_positions, rows[0].shape[-1]))
    for own, row in zip(out, rows, strict=True):
        own[: len(row)] = row
        own[len(row) :] = row[-1]
    return out


def _pad_states(rows: Sequence[Any], seq: int, dtype: torch.dtype) -> Tensor:
    first = rows[0]
    out = torch.empty((len(first), len(rows), seq, *first.shape[2:]), dtype=dtype)
    for number, row in enumerate(rows):
        length = row.shape[1]
        out[:, number, :length] = row
        out[:, number, length:] = 0
    return out
