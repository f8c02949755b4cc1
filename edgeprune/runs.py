"""The folder of a run, as `edgeprune fit` and `edgeprune discover` leave it, read back."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.parsing import parse_yaml, read_table, read_text

CIRCUITS, SCORES = "circuits", "scores.safetensors"
CONFIG, METRICS, FRONTIER = "config.yaml", "metrics.csv", "frontier.csv"
_BY_SPARSITY = "sparsity-"  # file names of circuits that were asked for by their sparsity

Row = dict[str, Any]


def numbered_name(value: float, prefix: str = _BY_SPARSITY, form: str = ".4f") -> str:
    """Name of the circuit for a given number, such as a sparsity; numbers that differ have names that do.

    >>> numbered_name(0.95), numbered_name(0.98764), numbered_name(0.001, "threshold-", "g")
    ('sparsity-0.9500', 'sparsity-0.98764', 'threshold-0.001')
    """
    short = format(value, form)
    return prefix + (short if float(short) == value else repr(float(value)))


def load_run(folder: str | Path) -> "RunFolder":
    """What a run left in its folder. Files are read when they are asked for, each once; the model is never loaded.

    Args:
        folder: The run's folder, with `circuits/` in it, or a folder of circuit files.

    Raises:
        EdgepruneError: There is no such folder, or nothing of a run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EdgepruneError(f"no folder at {folder}; give the folder that a run wrote its circuits to")
    run = RunFolder(folder)
    if not (run.circuit_paths or run.checkpoints or any((folder / name).is_file() for name in (CONFIG, METRICS))):
        inside = next((path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))), None)
        hint = f"do you mean {inside}?" if inside else "it has neither circuits nor a config nor checkpoints"
        raise EdgepruneError(f"{folder} is not the folder of a run; {hint}")
    return run


@final
@dataclass(frozen=True)
class RunFolder:
    """A run's folder."""

    folder: Path

    @cached_property
    def circuit_paths(self) -> dict[str, Path]:
        """Circuit files by name, such as `sparsity-0.9500` or `final`."""
        inside = self.folder / CIRCUITS
        files = (inside if inside.is_dir() else self.folder).glob("*.safetensors")
        return {path.stem: path for path in sorted(files) if path.name != SCORES}

    @cached_property
    def circuits(self) -> dict[str, Circuit]:
        """Circuits by the names of their files."""
        return {name: Circuit.load(path) for name, path in self.circuit_paths.items()}

    @cached_property
    def snapshots(self) -> dict[float, Circuit]:
        """Circuits by sparsity, the lowest first: that asked for, else their own to six decimals.

        From dense to sparse, but for the final circuit of a run of attention edges `alone`: its edges' own sparsity is
        0.0 where all are open, whatever attention edges it closes.
        """
        found = {_sparsity(name, circuit): circuit for name, circuit in self.circuits.items()}
        return dict(sorted(found.items()))

    @property
    def final(self) -> Circuit | None:
        """The circuit of the final gates, if the run got to its end."""
        return self.circuits.get("final")

    @cached_property
    def scores(self) -> Circuit | None:
        """Scores of all edges, which `discover` writes for a method that has them."""
        path = self.folder / SCORES
        return Circuit.load(path) if path.is_file() else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config that the run was started with; empty without one."""
        path = self.folder / CONFIG
        if not path.is_file():
            return {}
        read = parse_yaml(read_text(path), str(path))
        if not isinstance(read, dict):
            raise EdgepruneError(f"{path} must hold keys and values, it holds {type(read).__name__}")
        return read

    @cached_property
    def metrics(self) -> list[Row]:
        """What was logged, a row for each time: numbers by name, without those that were not logged then."""
        return _rows(self.folder / METRICS)

    @cached_property
    def frontier(self) -> list[Row]:
        """A row for each circuit: size and faithfulness, beside those of a random circuit of its size."""
        return _rows(self.folder / FRONTIER)

    @property
    def checkpoints(self) -> list[Path]:
        """Checkpoints of the training, for `Circuit.from_checkpoint`."""
        return sorted(self.folder.glob("checkpoints/*.ckpt"))

    def __repr__(self) -> str:
        found = f"{len(self.circuit_paths)} circuits, {len(self.checkpoints)} checkpoints"
        return f"RunFolder({str(self.folder)!r}, {found})"


def _sparsity(name: str, circuit: Circuit) -> float:
    try:
        return float(name.removeprefix(_BY_SPARSITY)) if name.startswith(_BY_SPARSITY) else round(circuit.sparsity, 6)
    except ValueError:
        return round(circuit.sparsity, 6)


def _rows(path: Path) -> list[Row]:
    """Rows of a CSV file with numbers and truth values read as such; none without the file."""
    return [{name: _value(text) for name, text in row.items()} for row in read_table(path)]


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
