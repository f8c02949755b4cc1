"""Files to plain values: by their first bytes, and without running code that a file may bring."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.formats.base import Loaded
from edgeprune.parsing import parse_json, read_text

SUFFIXES = (".safetensors", ".json", ".pth", ".pkl", ".pt", ".bin")
MASKS = "log_alpha"  # in the names of Edge Pruning's mask parameters
_ZIP = b"PK"  # `torch.save` writes a zip archive


def load_values(path: Path) -> Loaded:
    """Read a file, or the one file of a folder, or the masks of a checkpoint's folder.

    Raises:
        EdgepruneError: Nothing is there, it is damaged, asks for code to be run, or is of an unknown suffix.
    """
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise EdgepruneError(f"no reference circuit at {path}")
    if path.suffix not in SUFFIXES:
        raise EdgepruneError(
            f"{path}: cannot tell what a {path.suffix!r} file holds; known suffixes: {', '.join(SUFFIXES)}"
        )
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix == ".json":
        return Loaded(path, "json", parse_json(read_text(path), str(path)))
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if path.suffix == ".pkl" and start != _ZIP:
        return Loaded(path, "pickle", _whole(path, _read_pickle))
    return Loaded(path, "torch", _whole(path, _read_torch))


def _load_folder(path: Path) -> Loaded:
    checkpoint = sorted([*path.glob("model*.safetensors"), *path.glob("pytorch_model*.bin")])
    if checkpoint:
        return Loaded(
            path, "tensors", {name: mask for file in checkpoint for name, mask in _masks(load_values(file)).items()}
        )
    files = [file for file in sorted(path.iterdir()) if file.suffix in (".json", ".pt")]
    if len(files) == 1:
        return load_values(files[0])
    raise EdgepruneError(f"{path} is a folder; name one file, such as a circuit in {path / 'circuits'}")


def _masks(loaded: Loaded) -> dict[str, Any]:
    """Masks of Edge Pruning in one file of a checkpoint."""
    value = loaded.value if isinstance(loaded.value, dict) else {}
    return {str(name): tensor for name, tensor in value.items() if MASKS in str(name)}


def _load_safetensors(path: Path) -> Loaded:
    """Only the masks of a checkpoint are read; whatever else is in a file is left to `Circuit.load`."""
    try:
        with safe_open(path, framework="pt") as file:
            masks = {name: file.get_tensor(name) for name in file.keys() if MASKS in name}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError):
        masks = {}
    return Loaded(path, "tensors", masks) if masks else Loaded(path, "circuit", None)


# -------------------------------------------------------------------- one kind each
def _whole(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except EdgepruneError as error:
        raise EdgepruneError(f"{path}: {error}") from None
    except Exception as error:  # json, pickle and torch raise many kinds for a damaged file
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise EdgepruneError(f"{path}: not a whole {path.suffix} file ({reason}); write it again") from None


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles in other protocols, which are refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message advises to switch the safety off
        raise EdgepruneError("damaged, or holds more than tensors and plain values; refused, write it again") from None
    tensors = [value for value in content.values() if isinstance(value, Tensor)] if isinstance(content, dict) else []
    if any(tensor.layout != torch.strided or tensor.is_complex() for tensor in tensors):
        raise EdgepruneError("it holds sparse or complex tensors; no format has them")
    return content


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return EdgeUnpickler(file).load()


class TorchIndex:
    """Stands in for ACDC's class of that name, whatever module it was in."""

    hashable_tuple: tuple[int | None, ...] = ()


class EdgeUnpickler(pickle.Unpickler):
    """Builds plain values, `TorchIndex` and the slices in it: nothing that a file could make run."""

    def find_class(self, module: str, name: str, /) -> type:
        """The two classes that a list of ACDC's edges needs."""
        if name == "TorchIndex":
            return TorchIndex
        if module in ("builtins", "__builtin__") and name == "slice":  # the older name is protocol 2's
            return slice
        raise EdgepruneError(
            f"the pickle asks for {module}.{name}, a list of ACDC edges needs only TorchIndex; refused"
        )
