"""What contextual decomposition has added up so far, and the file that lets a killed run go on."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, final

import torch

from edgeprune.errors import EdgepruneError
from edgeprune.methods.relevance import Relevances
from edgeprune.sealed import SealedFile

SAVE_SECONDS = 20.0  # between two saves
FILE = "contextual_decomposition.safetensors"
_TENSORS = ("nodes", "edges", "targets")
_FILE = SealedFile(
    "edgeprune-cd-state/1",
    "state of contextual decomposition",
    dict.fromkeys(_TENSORS, torch.float64),
    "remove it to begin anew",
)


@final
class DecompositionState:
    """Sums over examples, and how many steps are in them: one for each batch and group of sources.

    Attributes:
        sums: What was added up.
        done: Steps.
    """

    def __init__(self, key: str, sums: Relevances, path: Path | None) -> None:
        self.sums, self.done = sums, 0
        self._whole = True  # no step has begun that is not in the sums to its end
        self._key, self._path = key, path
        self._saved_at = self._started = time.monotonic()

    @classmethod
    def start(cls, key: str, sums: Relevances, folder: Path | None) -> Self:
        """A new state over `sums`, which are 0, or that of the interrupted run in `folder`.

        Args:
            key: Hash of everything that the sums depend on.
            sums: Where to add.
            folder: None: the state is not kept.

        Raises:
            EdgepruneError: The file is damaged, or belongs to another run.
        """
        state = cls(key, sums, None if folder is None else folder / FILE)
        if state._path is None or not state._path.exists():
            return state
        header, tensors = _FILE.read(state._path)
        if header["key"] != key:
            raise EdgepruneError(
                f"{state._path} is the state of a run over another model, other pairs, settings, ablation or metric; "
                "delete it or choose another folder"
            )
        for name in _TENSORS:
            getattr(sums, name).copy_(tensors[name])
        state.done, state._started = header["done"], time.monotonic() - header["seconds"]
        return state

    @property
    def seconds(self) -> float:
        """What it has taken, over all parts of an interrupted run."""
        return time.monotonic() - self._started

    def take(self, step: Callable[[Relevances], None]) -> None:
        """Take a step, which adds to the sums; save when it is time. Of one that is interrupted nothing is saved."""
        self._whole = False
        step(self.sums)
        self.done += 1
        self._whole = True
        if time.monotonic() - self._saved_at > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the state, whole or not at all; in the middle of a step the last one stays."""
        self._saved_at = time.monotonic()
        if self._path is not None and self.done and self._whole:
            tensors = {name: getattr(self.sums, name) for name in _TENSORS}
            _FILE.write(self._path, tensors, {"key": self._key, "done": self.done, "seconds": self.seconds})
