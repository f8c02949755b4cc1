"""The log of a run: whole after every save, and carried on from a given row."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from edgeprune.errors import EdgepruneError
from edgeprune.parsing import read_table
from edgeprune.paths import DiskFullError
from lit_modules.metrics_log import FILE, MetricsTable


def log(folder: Path, kept_rows: int = 0) -> CSVLogger:
    logger = CSVLogger(str(folder), name="run", version=0)
    MetricsTable.attach(logger, kept_rows)
    return logger


def test_rows_are_kept_up_to_the_checkpoint_s_and_go_on(tmp_path: Path) -> None:
    path = tmp_path / "run" / "version_0" / FILE
    first = log(tmp_path)
    for step in range(4):
        first.log_metrics({"kl": torch.tensor(step / 3)}, step)
    assert not path.exists()  # nothing is written before it is asked for
    first.save()
    whole = path.read_text()
    first.log_metrics({"kl": 5.0, "val/kl": 6.0}, 4)
    first.finalize("success")
    assert [row["step"] for row in read_table(path)] == ["0", "1", "2", "3", "4"]
    again = log(tmp_path, kept_rows=3)
    again.log_metrics({"kl": torch.tensor(1.0)}, 3)
    again.save()
    assert path.read_text() == whole  # the same digits, and no column of dropped rows
    assert [item.name for item in path.parent.iterdir()] == [FILE]


def test_a_damaged_log_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"step,kl\n0,\xff\n")
    with pytest.raises(EdgepruneError, match=rf"{FILE} is no table: .*move it away"):
        read_table(path)


def test_hyper_parameters_are_written(tmp_path: Path) -> None:
    log(tmp_path).log_hyperparams({"seed": 3})
    assert (tmp_path / "run" / "version_0" / "hparams.yaml").read_text() == "seed: 3\n"


def test_a_full_disk_leaves_the_rows_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = log(tmp_path)
    logger.log_metrics({"kl": 1.0}, 0)
    logger.save()
    before = (tmp_path / "run" / "version_0" / FILE).read_text()
    logger.log_metrics({"kl": 2.0}, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DiskFullError, match=rf"no room to write .*{FILE}"):
        logger.save()
    monkeypatch.undo()
    assert (tmp_path / "run" / "version_0" / FILE).read_text() == before
    logger.save()
    assert len(read_table(tmp_path / "run" / "version_0" / FILE)) == 2
