"""A method that does not train: it scores edges, or finds circuits, in one go."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.console import Progress
from edgeprune.methods.problem import Problem


@dataclass(frozen=True, eq=False)
class DiscoveryResult:
    """What a method found.

    Attributes:
        scores: Float `[reader, writer]`; positive: closing the edge raises the loss. None for a method that only
            makes circuits.
        circuits: Circuits by name (`"tau-0.01"`), for methods that make them themselves.
        about: Further plain values for the record: runs of the model, settings that were derived.
        seconds: What it took, over all parts of a run that was interrupted; None where there can only be one part.
    """

    scores: Tensor | None = None
    circuits: Mapping[str, Circuit] = field(default_factory=dict[str, Circuit])
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seconds: float | None = None


class AbstractDiscovery(ABC):
    """A method that does not train. A final class is a frozen dataclass whose fields are its settings.

    Attributes:
        name: The method, as a circuit's header names it.
    """

    name: ClassVar[str]

    @abstractmethod
    def discover(self, problem: Problem, report: Progress, folder: Path | None = None) -> DiscoveryResult:
        """Find out which edges matter.

        Args:
            problem: Model, pairs, ablation, metric.
            report: Called with what is being done, how many of it are done, and how many there are; where a method goes
                on from its state, first with what that holds.
            folder: Where a method that can take long keeps its state, to go on after an interruption.
        """

    def describe(self) -> dict[str, Any]:
        """`method` and its settings, plain values for a circuit's header."""
        settings: dict[str, Any] = asdict(cast("Any", self))
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        return {"method": self.name, **plain}
