"""Checkpoint files: torch's own, sealed with a SHA-256 of all their bytes.

A torch file is a zip archive, whose checksums torch does not look at when it reads: a weight with a flipped bit loads.
The seal stands in the archive's comment, at the very end, so any program that reads torch files reads these.
"""

import hashlib
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import torch

from edgeprune.errors import EdgepruneError
from edgeprune.paths import whole_file

_MARK = b"edgeprune sha256 "
_END = b"PK\x05\x06"  # begins the last record of a zip archive, 22 bytes without a comment
_END_SIZE, _SEAL_SIZE = 22, len(_MARK) + 64
SEALED = "sealed"  # key of a checkpoint that was written with a seal, so that a missing one shows


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint with its seal, whole or not at all.

    Raises:
        DiskFullError: There is no room for it.
    """
    buffer = io.BytesIO()
    torch.save({**checkpoint, SEALED: True}, buffer)
    data = bytearray(buffer.getvalue())
    assert data[-_END_SIZE:].startswith(_END)
    data[-2:] = struct.pack("<H", _SEAL_SIZE)  # the length of the comment
    with whole_file(path) as partial:
        partial.write_bytes(bytes(data) + _seal(bytes(data)))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """All of a Lightning checkpoint, on the CPU; no code in the file is run.

    Files without a seal, which other programs write, load if torch can read them.

    Raises:
        EdgepruneError: There is no such file, or it was cut short or altered.
    """
    if not Path(path).is_file():
        raise EdgepruneError(f"no checkpoint at {path}")
    try:
        data = Path(path).read_bytes()
        body, seal = data[:-_SEAL_SIZE], data[-_SEAL_SIZE:]
        sealed = seal.startswith(_MARK)
        if sealed and seal != _seal(body):
            raise ValueError("its contents are not what they were when it was written")
        checkpoint: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError(f"it holds {type(checkpoint).__name__}")
        if not sealed and SEALED in checkpoint:
            raise ValueError("its seal was altered")
    except pickle.UnpicklingError:  # torch's own message advises to switch the safety off
        raise EdgepruneError(
            f"{path} is not a whole checkpoint: damaged, or holds more than tensors and plain values; use another one"
        ) from None
    except Exception as error:  # torch raises many kinds for a damaged file, some without a text
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise EdgepruneError(f"{path} is not a whole checkpoint: {reason}; use another one") from None
    return checkpoint


def _seal(data: bytes) -> bytes:
    return _MARK + hashlib.sha256(data).hexdigest().encode()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The `edgeprune` part of a Lightning checkpoint: graph, scores, num_open, header."""
    checkpoint = load_checkpoint(path)
    saved: Any = checkpoint.get("edgeprune")
    if not isinstance(saved, dict) or not {"graph", "scores", "num_open", "header"} <= saved.keys():
        raise EdgepruneError(f"{path} is a checkpoint, but not one of edgeprune: it holds no masks")
    return saved
