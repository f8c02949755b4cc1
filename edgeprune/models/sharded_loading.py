"""A model read part by part into shards: no process ever holds more than its shards and one whole part."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.models.weights import check_complete, check_finite

FORMER = {"lm_head.weight": "embed_out.weight"}  # GPT-NeoX


@final
class WeightFiles:
    """The safetensors files of a model whose own weights are on the meta device; each is read when its turn comes.

    Every process reads all of them, a part at a time, so nothing is sent, and each can check every weight.

    Args:
        hf: The model.
        folder: With `model.safetensors`, or an index of several files.
        name: Of the model, for messages.
        device: Where its weights go.

    Raises:
        EdgepruneError: There are no such files, or they do not hold the model's weights under its modules' names.
    """

    def __init__(self, hf: Any, folder: Path, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self._files = _in_files(folder, name)
        self._places: dict[int, list[tuple[nn.Module, str]]] = {}  # of each weight, several where it is tied
        names: dict[int, list[str]] = {}
        for prefix, module in hf.named_modules():
            for leaf, weight in module.named_parameters(recurse=False):
                self._places.setdefault(id(weight), []).append((module, leaf))
                names.setdefault(id(weight), []).append(f"{prefix}.{leaf}".lstrip("."))
        weights = {id(weight): weight for weight in hf.parameters()}
        found = {key: [own for name in known for own in _known(name, hf)] for key, known in names.items()}
        self._keys = {key: next((own for own in known if own in self._files), None) for key, known in found.items()}
        self._check_names(hf, {key: known[0] for key, known in names.items()}, found, weights)

    def _check_names(
        self, hf: Any, names: Mapping[int, str], known: Mapping[int, Sequence[str]], weights: Mapping[int, Any]
    ) -> None:
        missing = sorted(names[key] for key, own in self._keys.items() if own is None)
        if missing:
            raise EdgepruneError(
                f"{self.name} cannot be read in shards: its files have no {missing[0]} under that name"
                f"{f', nor {len(missing) - 1} other weights' if missing[1:] else ''}; load it whole, with "
                "trainer.strategy ddp"
            )
        buffers = dict(hf.named_buffers())
        self._buffers = {own: buffers[own] for own in hf.state_dict() if own in buffers and own in self._files}
        used = {own for owns in known.values() for own in owns} | set(buffers)
        shapes = [(own, self._files[own][1], list(weights[key].shape)) for key, own in self._keys.items() if own]
        mismatched = [(own, have, want) for own, have, want in shapes if have != want]
        found = {"missing_keys": (), "mismatched_keys": mismatched, "unexpected_keys": set(self._files) - used}
        check_complete(hf, found, self.name)

    def _read(self, key: str) -> Tensor:
        """One weight. Its file is opened for it alone: what was read of an open file counts as memory."""
        with safe_open(self._files[key][0], "pt") as file:
            return file.get_tensor(key)

    def fill(self, part: nn.Module) -> None:
        """Give the weights of a part that are on the meta device their values; refuse those that are no numbers."""
        for weight in [weight for weight in part.parameters() if weight.is_meta]:
            key = self._keys[id(weight)]
            assert key is not None
            value = self._read(key).to(self.device, weight.dtype)
            check_finite({key: value}, self.name)
            filled = nn.Parameter(value, requires_grad=False)
            for module, leaf in self._places[id(weight)]:
                setattr(module, leaf, filled)

    def fill_buffers(self) -> None:
        """Give buffers that are in the files their values."""
        for key, buffer in self._buffers.items():
            buffer.copy_(self._read(key))


def _known(name: str, hf: Any) -> tuple[str, ...]:
    """Names of a weight in files: its own, without the body's prefix (the body was saved alone), or a former one."""
    return name, name.removeprefix(f"{hf.base_model_prefix}."), FORMER.get(name, name)


def _in_files(folder: Path, name: str) -> dict[str, tuple[Path, list[int]]]:
    """Of each weight, the file that it is in, and its shape."""
    index, found = folder / "model.safetensors.index.json", dict[str, tuple[Path, list[int]]]()
    try:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else None
        for path in (folder / file for file in files or ["model.safetensors"]):
            with safe_open(path, "pt") as file:
                found |= {key: (path, file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise EdgepruneError(
            f"{name} cannot be read in shards ({' '.join(str(error).split())}): it needs model.safetensors or "
            "several such files with an index, as save_pretrained writes them"
        ) from None
    return found
