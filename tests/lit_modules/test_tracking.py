"""Weights & Biases without a key and without network: everything lands in a folder that can be synced later."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

import edgeprune
from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph, RoleSpec
from lit_modules.tracking import (
    UploadCircuits,
    WandbTracker,
    _alias,
    best_circuit,
    code_version,
    edge_table,
    figures,
    has_wandb_key,
    silence_of,
)

CONFIGS = Path(__file__).parents[2] / "configs"

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without a key, and W&B's own files inside the test's folder."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "NETRC"):
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


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server that says no to everything."""

    class No(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), No) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        yield os.environ["WANDB_BASE_URL"]
        server.shutdown()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> str:
    """Address at which there is no server."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{place.getsockname()[1]}")
    return os.environ["WANDB_BASE_URL"]


@pytest.mark.usefixtures("refusing")
def test_offline_by_itself_only_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert WandbTracker(save_dir=str(tmp_path))._offline
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert not WandbTracker(save_dir=str(tmp_path))._offline
    assert WandbTracker(save_dir=str(tmp_path), offline=True)._offline


def test_offline_with_one_line_where_no_server_answers(
    silent: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert WandbTracker(save_dir=str(tmp_path))._offline
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"edgeprune: no W&B server answers at {silent} (")
    assert "is logged offline" in line
    with pytest.raises(EdgepruneError, match=f"no W&B server answers at {silent} .*: set offline of the logger to"):
        WandbTracker(save_dir=str(tmp_path / "new"), offline=False)
    assert not (tmp_path / "new").exists()


def test_a_server_that_accepts_and_says_nothing_is_silent() -> None:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()
        assert silence_of(f"http://127.0.0.1:{place.getsockname()[1]}", seconds=0.3)


def fit_with_key(folder: Path, key: str) -> subprocess.CompletedProcess[str]:
    """A run of two steps that logs to W&B, in a process of its own and in `folder`."""
    command = [sys.executable, "-m", "edgeprune", "fit", "--config", str(CONFIGS / "quickstart.yaml")]
    more = ["--config", str(CONFIGS / "logger" / "wandb.yaml"), "--trainer.max_steps", "2"]
    environment = os.environ | {"WANDB_API_KEY": key, "PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *more], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.usefixtures("silent")
def test_a_run_with_a_key_and_without_network_is_made_offline(tmp_path: Path) -> None:
    done = fit_with_key(tmp_path, "0" * 40)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no W&B server answers") == 1
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.usefixtures("refusing")
def test_a_key_that_is_none_stops_the_run_before_anything_is_written(tmp_path: Path) -> None:
    done = fit_with_key(tmp_path, "abc")
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("edgeprune: ")]
    assert line.startswith("edgeprune: error: W&B does not begin the run: ")
    assert "40+ characters, has 3; set WANDB_API_KEY to a key of http" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "tracked").exists()


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a short offline run left, read back by W&B's own reader after the folder was moved elsewhere."""
    monkeypatch.setattr(sys, "argv", ["edgeprune"])
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "runs" / "wandb-data"))
    monkeypatch.chdir(tmp_path)
    status = main(
        [
            *("fit", "--config", str(CONFIGS / "quickstart.yaml"), "--config", str(CONFIGS / "logger" / "wandb.yaml")),
            *("--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--trainer.log_every_n_steps", "1"),
            *("--trainer.default_root_dir", str(tmp_path), "--trainer.enable_progress_bar", "false"),
        ]
    )
    wandb.teardown()  # as at the end of a process: what is buffered is written
    assert status == 0
    elsewhere = tmp_path / "another" / "machine"
    elsewhere.mkdir(parents=True)
    (tmp_path / "runs").rename(elsewhere / "runs")
    monkeypatch.chdir(elsewhere)
    (folder,) = (elsewhere / "runs" / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_offline_run_holds_everything_and_can_be_moved(records: list[dict[str, Any]]) -> None:
    curve = [item["history"]["item"] for item in records if item["type"] == "history"]
    assert [row["train/penalty"] for row in curve if "train/penalty" in row]
    config: dict[str, Any] = {}
    for record in records:
        if record["type"] == "config":
            config |= record["config"]["update"]
    assert config["model"]["name"] == "compiled:reverse"
    assert config["code"]["edgeprune"] == edgeprune.__version__

    artifacts = [record["artifact"] for record in records if record["type"] == "artifact"]
    assert {artifact["type"] for artifact in artifacts} == {"circuit", "frontier", "edges"}
    circuits = [artifact for artifact in artifacts if artifact["type"] == "circuit"]
    assert len({artifact["name"] for artifact in circuits}) == 1
    aliases = [set(artifact["aliases"]) - {"latest", "best"} for artifact in circuits]
    assert aliases == [{"final"}, {"sparsity-0.5"}, {"sparsity-0.8"}]
    assert sum("best" in artifact["aliases"] for artifact in circuits) == 1
    for entry in (entry for artifact in artifacts for entry in artifact["manifest"]["contents"]):
        file = Path(entry["local_path"])
        assert not file.is_absolute()
        # What would be uploaded from here is what was logged there: its digest is the base64 of the file's MD5.
        assert base64.b64encode(hashlib.md5(file.read_bytes()).digest()).decode() == entry["digest"]

    (table,) = [artifact for artifact in artifacts if artifact["type"] == "edges"]
    (entry,) = table["manifest"]["contents"]
    content = json.loads(Path(entry["local_path"]).read_text())
    assert content["columns"] == ["circuit", "edge", "writer", "reader", "score"]
    circuit = Circuit.load("runs/tracked/version_0/circuits/sparsity-0.8000.safetensors")
    assert {row[1] for row in content["data"] if row[0] == "sparsity-0.8000"} == set(circuit.edges())


# ---------------------------------------------------------------- artifacts
def judged(kl: float, random_kl: float) -> Circuit:
    graph = EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1))
    header = {"metrics": {"kl": kl}, "random_control": {"kl": random_kl}}
    scores = torch.arange(graph.num_edges).float()
    return replace(Circuit.from_scores(graph, graph.to_matrix(scores), num_edges=graph.num_edges), header=header)


def test_the_best_circuit_beats_chance_by_most() -> None:
    dense, middle, sparse = judged(0.0, 0.1), judged(0.3, 2.0), judged(1.9, 2.1)
    assert best_circuit([dense, middle, sparse], "kl") == 1
    unjudged = replace(dense, header={})
    assert best_circuit([unjudged, sparse], "kl") == 1
    assert best_circuit([unjudged], "kl") is None


def test_artifacts_say_how_many_attention_edges_are_open() -> None:
    circuit = judged(0.25, 0.1)
    assert figures(circuit) == {"sparsity": 0, "edges": circuit.num_edges, "kl": 0.25}
    graph = circuit.graph.with_roles(RoleSpec(("first", "second")))
    closed = torch.zeros_like(graph.attention.exists)
    assert figures(Circuit(graph, graph.exists, None, {}, closed))["attention_edges"] == 0


def test_a_table_of_edges_is_cut_to_the_best() -> None:
    circuit = judged(0.0, 1.0)
    rows = edge_table({"x": circuit}, 2).data
    scores = [row[4] for row in rows]
    assert scores == [circuit.num_edges - 1, circuit.num_edges - 2]
    assert rows[0][:2] == ["x", "->".join(rows[0][2:4])]


def test_aliases_tell_nearly_equal_sparsities_apart() -> None:
    names = ("sparsity-0.9500", "sparsity-0.9876541", "sparsity-0.9876542", "final")
    aliases = ["sparsity-0.95", "sparsity-0.9876541", "sparsity-0.9876542", "final"]
    assert [_alias(Path(f"{name}.safetensors")) for name in names] == aliases


def test_a_negative_number_of_edges_is_refused() -> None:
    with pytest.raises(EdgepruneError, match="max_edges must not be negative"):
        UploadCircuits(max_edges=-1)


def test_the_version_names_the_commit_of_a_checkout() -> None:
    version = code_version()
    root = Path(edgeprune.__file__).parents[1]
    assert version["edgeprune"] == edgeprune.__version__
    assert ("commit" in version) == (root / ".git").exists()
