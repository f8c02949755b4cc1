"""Files of tensors with a header, under a seal: a file of which any bit was changed is refused.

One `.safetensors` file. The header is JSON in its metadata under `edgeprune`: `format`, what the kind of file adds, and
under `sha256` a hash of tensors and header. No pickle; written whole or not at all.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.paths import whole_file

_KEY, _SEAL = "edgeprune", "sha256"


@final
@dataclass(frozen=True)
class SealedFile:
    """One kind of file.

    Attributes:
        format: Its name and version, as the header says it.
        what: What such a file is, in a message: `"circuit file"`.
        dtypes: Of the tensors that have the same type in every file.
        remedy: What to do about one that cannot be read.
        also: Other formats that are read.
    """

    format: str
    what: str
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict[str, torch.dtype])
    remedy: str = "write it again"
    also: tuple[str, ...] = ()

    def write(self, path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
        """Write tensors and header, whole or not at all.

        Args:
            path: The file; folders on the way are made.
            tensors: Of any shape and device.
            header: What JSON can hold; anything else is written as its text. Format and seal are added.

        Raises:
            EdgepruneError: `path` is a folder.
        """
        path = Path(path)
        if path.is_dir():
            raise EdgepruneError(f"{path} is a folder; give the {self.what} a name in it")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        plain = json.loads(json.dumps({**header, "format": self.format}, default=str))
        plain[_SEAL] = _digest(tensors, plain)
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata={_KEY: json.dumps(plain)})
        return path

    def read(self, path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Header and tensors of a file.

        Raises:
            EdgepruneError: It is missing, cut short, altered, without a seal, or of another kind.
        """
        if not Path(path).is_file():
            raise EdgepruneError(f"no {self.what} at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {})[_KEY]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            header = json.loads(text)
            self._check(header, tensors, text)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise self.refused(path, error) from None
        return header, tensors

    def refused(self, path: str | Path, error: Exception) -> EdgepruneError:
        """What to raise for a file that cannot be read, or whose content makes no sense, because of `error`."""
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        said = next((name for name in self.also if says(path, name)), self.format)
        return EdgepruneError(f"{path} is not a whole {self.what} of format {said}: {reason}; {self.remedy}")

    def _check(self, header: dict[str, Any], tensors: Mapping[str, Tensor], text: str) -> None:
        if header["format"] not in (self.format, *self.also):
            raise ValueError(f"it holds {header['format']}")
        if _SEAL not in header:
            raise ValueError("it has no seal, it may be of a version that wrote none")
        # JSON has several ways to write a value (1e-05, 1E-05), the file has the one that was written
        if header[_SEAL] != _digest(tensors, header) or json.dumps(header) != text:
            raise ValueError("its contents are not what they were when it was written")
        if any(tensors[name].dtype != dtype for name, dtype in self.dtypes.items() if name in tensors):
            raise ValueError("a tensor is of another type than when it was written")


def format_of(path: Path) -> str:
    """What a file says that it holds; its seal is not looked at.

    Raises:
        EdgepruneError: It says nothing.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads((file.metadata() or {})[_KEY])["format"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError):
        raise EdgepruneError(f"{path} is not a whole file of edgeprune; write it again") from None


def says(path: str | Path, kind: str) -> bool:
    """Whether a file says that it holds a format whose name begins so."""
    try:
        return format_of(Path(path)).startswith(kind)
    except EdgepruneError:
        return False


def check_identity(path: Path, found: Mapping[str, Any], identity: Mapping[str, Any], elsewhere: str) -> None:
    """Refuse the state of another run than the one that is to go on.

    Args:
        path: The file, for the message.
        found: Hashes and settings by what they describe, as the file's header has them.
        identity: Those of this run.
        elsewhere: What to give instead, for the message: `"another folder"`.

    Raises:
        EdgepruneError: One differs.
    """
    for name, value in json.loads(json.dumps(identity)).items():
        if found.get(name) != value:
            raise EdgepruneError(
                f"{path} was made with another {name}: {found.get(name)!r}, now {value!r}; "
                f"go on with the same, or give {elsewhere}"
            )


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Hash of the tensors and of the header as JSON gives it back, its own hash left out."""
    plain = {key: value for key, value in header.items() if key != _SEAL}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
