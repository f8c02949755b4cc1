"""How far polishing a circuit has come, and the file that lets a killed run go on."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor

from edgeprune.sealed import SealedFile, check_identity

FILE = "polish.safetensors"
_TENSORS = {"keep": torch.bool}
_FILE = SealedFile("edgeprune-polish-state/2", "state of polishing", _TENSORS, "remove it to begin anew")


@final
@dataclass(frozen=True, eq=False)
class Better:
    """A circuit, bool `[..., reader, writer]`, its loss over the training pairs, and over the held-out pairs if any."""

    keep: Tensor
    loss: float
    held_out: float | None

    @property
    def deciding(self) -> float:
        """The loss by which one of several is chosen."""
        return self.loss if self.held_out is None else self.held_out


@dataclass
class State:
    """A circuit that is being polished, after some rounds.

    Attributes:
        keep: The best one so far, bool `[reader, writer]`.
        step: Edges to swap at once in the next round.
        skipped: Swaps at the head of the model's line to leave out in the next round.
        swaps_left: Whether the model had as many swaps as it was asked for.
        overshoot: Edges to open in the next round before as many are closed, by exact effects; 0: swap by the model.
        start: Loss of the circuit to begin with, over the training pairs.
        loss: Of `keep`, likewise; while it goes on, over those of the round.
        held_out_start: Loss of the circuit to begin with over the held-out pairs; None without any.
        held_out: Of `keep`, likewise.
        rounds: Rounds so far.
        accepted: Those that lowered the loss.
        looks: Models of the loss that were made.
        evaluated: Circuits run over the training pairs.
        passes: What it all took, in forward and backward passes over the training pairs.
        seconds: And in seconds, over all parts of an interrupted run.
        stopped: Why no round follows; empty while one does.
    """

    keep: Tensor
    step: int
    skipped: int = 0
    swaps_left: bool = True
    overshoot: int = 0
    start: float = 0.0
    loss: float = 0.0
    held_out_start: float | None = None
    held_out: float | None = None
    rounds: int = 0
    accepted: int = 0
    looks: int = 0
    evaluated: int = 0
    passes: float = 0.0
    seconds: float = 0.0
    stopped: str = ""

    def save(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Write the state file, whole or not at all."""
        plain = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _TENSORS}
        tensors = {name: getattr(self, name).clone() for name in _TENSORS}
        _FILE.write(folder / FILE, tensors, {"identity": identity, "state": plain})

    @classmethod
    def load(cls, folder: Path, identity: Mapping[str, Any]) -> Self | None:
        """The state in `folder`; None if there is none.

        Raises:
            EdgepruneError: The file is damaged, or belongs to another run.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        header, tensors = _FILE.read(path)
        check_identity(path, header["identity"], identity, "another place for the result")
        return cls(**{name: tensor.clone() for name, tensor in tensors.items()}, **header["state"])
