"""What a run of ACDC has found so far, and the file that lets a killed run go on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from edgeprune.sealed import SealedFile, check_identity

FILE = "acdc.safetensors"
_FILE = SealedFile(
    "edgeprune-acdc-state/1",
    "state of ACDC",
    {"keep": torch.bool, "effects": torch.float64},
    "remove it to begin anew",
)


@dataclass
class Counts:
    """What happened in one run.

    Attributes:
        tested: Edges whose removal was tried.
        removed: Edges that were removed because of it.
        free: Edges removed without a test, as nothing reads from their reader's node, or as it went as a whole.
        direct_tested: Readers whose removal as a whole was tried.
        direct_removed: Readers that went because of it.
        evaluated: Circuits evaluated, those included that turned out not to be needed.
        ties: Tests so close to the threshold that the plain model decided.
        largest_free_change: Largest change of the loss after removals without a test; 0 in exact arithmetic.
    """

    tested: int = 0
    removed: int = 0
    free: int = 0
    direct_tested: int = 0
    direct_removed: int = 0
    evaluated: int = 0
    ties: int = 0
    largest_free_change: float = 0.0


@dataclass
class ThresholdRun:
    """The circuit of one threshold, as far as it is known.

    Attributes:
        tau: The threshold.
        keep: Bool `[reader, writer]`, edges not removed so far.
        effects: Float64 `[reader, writer]`, rise of the loss when the edge was tested; 0 where it was not.
        next_receiver: How many receivers are done.
        rate: Share of tested edges that were removed lately; what speculation is built on.
        loss: Of the circuit so far.
        unchecked: Edges were removed without a test since the plain model last looked.
        counts: What happened.
    """

    tau: float
    keep: Tensor
    effects: Tensor
    next_receiver: int = 0
    rate: float = 0.5
    loss: float = 0.0
    unchecked: bool = False
    counts: Counts = field(default_factory=Counts)

    def plain(self) -> dict[str, Any]:
        """Everything but the matrices."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("keep", "effects")}
        return values | {"counts": asdict(self.counts)}


@dataclass
class State:
    """The runs of all thresholds, and what they were made of.

    Attributes:
        identity: Hashes and settings by what they describe; a run goes on only with the same.
        runs: Finished ones, then the one under way.
        seconds: What they have taken, over all parts of an interrupted run.
    """

    identity: Mapping[str, Any]
    runs: list[ThresholdRun]
    seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Write the state file, whole or not at all."""
        tensors = {name: torch.stack([getattr(run, name) for run in self.runs]) for name in _FILE.dtypes}
        runs = [run.plain() for run in self.runs]
        _FILE.write(folder / FILE, tensors, {"identity": self.identity, "runs": runs, "seconds": self.seconds})

    @classmethod
    def load(cls, folder: Path, identity: Mapping[str, Any]) -> Self:
        """Go on from the state file in `folder`, or begin.

        Raises:
            EdgepruneError: The file is damaged, or belongs to another run.
        """
        path = folder / FILE
        if not path.is_file():
            return cls(identity, [])
        header, tensors = _FILE.read(path)
        check_identity(path, header["identity"], identity, "another folder")
        rows = zip(header["runs"], tensors["keep"], tensors["effects"], strict=True)
        runs = [_run(values, keep.clone(), effects.clone()) for values, keep, effects in rows]
        return cls(identity, runs, header["seconds"])


def _run(values: dict[str, Any], keep: Tensor, effects: Tensor) -> ThresholdRun:
    counts = Counts(**values.pop("counts"))
    return ThresholdRun(**values, keep=keep, effects=effects, counts=counts)
