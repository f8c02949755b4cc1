"""`metrics.csv` of a run: written whole or not at all, and carried on when the run is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from edgeprune.parsing import read_table
from edgeprune.paths import whole_file, write_table

FILE = "metrics.csv"


@final
class MetricsTable:
    """Takes the place of the writer of Lightning's CSV log, which appends to its file and deletes an older one.

    Args:
        logger: The log that it writes for.
        kept_rows: Rows of the file that is there which belong to the run; the others are dropped.
    """

    def __init__(self, logger: CSVLogger, kept_rows: int = 0) -> None:
        self._logger = logger
        self._rows: list[dict[str, Any]] | None = None if kept_rows else []
        self._kept_rows = kept_rows
        self._unsaved = False
        self.hparams: dict[str, Any] = {}

    @classmethod
    def attach(cls, logger: CSVLogger, kept_rows: int = 0) -> None:
        """Let a log write by way of a table."""
        logger._experiment = cls(logger, kept_rows)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self._logger.log_dir) / FILE

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All rows."""
        if self._rows is None:
            self._rows = read_table(self.path)[: self._kept_rows]  # the others are gone when a new one is written
        return self._rows

    def log_metrics(self, metrics_dict: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row."""
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics_dict.items()}
        self.metrics.append({**values, "step": len(self.metrics) if step is None else step})
        self._unsaved = True

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write `hparams.yaml`."""
        self.hparams.update(params)
        with whole_file(Path(self._logger.log_dir) / "hparams.yaml") as partial:
            save_hparams_to_yaml(partial, self.hparams)

    def save(self) -> None:
        """Write the file, if there is anything new."""
        rows = self.metrics
        if not self._unsaved:
            return
        write_table(self.path, rows, sorted(set[str]().union(*rows)))
        self._unsaved = False
