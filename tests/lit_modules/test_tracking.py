"""Weights & Biases without a key and without network: everything lands in a folder that can be synced later."""

import sys
from pathlib import Path

import pytest
import wandb

from edgeprune.cli import main
from lit_modules.tracking import WandbTracker, has_wandb_key

CONFIGS = Path(__file__).parents[2] / "configs"

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without a key, and W&B's own files inside the test's folder."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "home").mkdir()


def test_a_key_is_looked_for_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()


def test_a_key_is_looked_for_in_netrc(tmp_path: Path) -> None:
    file = tmp_path / "home" / ".netrc"
    file.write_text("machine elsewhere.example login user password secret\n")
    file.chmod(0o600)
    assert not has_wandb_key()
    file.write_text("machine api.wandb.ai login user password secret\n")
    assert has_wandb_key()


def test_a_broken_netrc_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "home" / ".netrc").write_text("machine\n")
    assert not has_wandb_key()


def test_offline_by_itself_only_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert WandbTracker(save_dir=str(tmp_path))._offline
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert not WandbTracker(save_dir=str(tmp_path))._offline
    assert WandbTracker(save_dir=str(tmp_path), offline=True)._offline


def test_an_offline_fit_leaves_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["edgeprune"])
    config = tmp_path / "wandb.yaml"
    config.write_text(
        (CONFIGS / "logger" / "wandb.yaml").read_text().replace("save_dir: runs", f"save_dir: {tmp_path}")
    )
    status = main(
        [
            *("fit", "--config", str(CONFIGS / "quickstart.yaml"), "--config", str(config)),
            *("--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--trainer.log_every_n_steps", "1"),
            *("--trainer.default_root_dir", str(tmp_path), "--trainer.enable_progress_bar", "false"),
        ]
    )
    wandb.teardown()  # as at the end of a process: what is buffered is written
    assert status == 0
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = folder.glob("run-*.wandb")
    content = record.read_bytes()
    assert b"train/penalty" in content  # a curve
    assert b"compiled:reverse" in content  # the resolved config
    assert b"final.safetensors" in content  # the circuits' artifact
