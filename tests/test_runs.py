"""Folders of runs, read back."""

from pathlib import Path

import pytest
import torch

import edgeprune as ep
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=2, num_kv_heads=2))


def circuit(num_edges: int) -> Circuit:
    return Circuit.random(GRAPH, num_edges)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "version_0"
    circuit(20).save(made / "circuits" / "sparsity-0.5000.safetensors")
    circuit(8).save(made / "circuits" / "sparsity-0.8000.safetensors")
    circuit(3).save(made / "circuits" / "final.safetensors")
    (made / "config.yaml").write_text("model:\n  name: tiny\n")
    (made / "metrics.csv").write_text("step,kl,val/kl\n9,0.5,\n19,,0.25\n")
    (made / "frontier.csv").write_text("asked,kl,reached\n0.5,1e-3,True\nfinal gates,2,False\n")
    (made / "checkpoints").mkdir()
    (made / "checkpoints" / "last.ckpt").touch()
    return made


def test_everything_in_the_folder(folder: Path) -> None:
    run = ep.load_run(folder)
    own = round(circuit(3).sparsity, 6)
    assert {sparsity: one.num_edges for sparsity, one in run.snapshots.items()} == {0.5: 20, 0.8: 8, own: 3}
    assert list(run.snapshots) == sorted(run.snapshots)
    assert run.final is not None
    assert run.final.num_edges == 3
    assert run.config == {"model": {"name": "tiny"}}
    assert run.metrics == [{"step": 9, "kl": 0.5}, {"step": 19, "val/kl": 0.25}]
    assert run.frontier == [
        {"asked": 0.5, "kl": 0.001, "reached": True},
        {"asked": "final gates", "kl": 2, "reached": False},
    ]
    assert [path.name for path in run.checkpoints] == ["last.ckpt"]
    assert run.scores is None


def test_nothing_is_read_before_it_is_asked_for(folder: Path) -> None:
    for path in (folder / "circuits").iterdir():
        path.write_bytes(b"damaged")
    run = ep.load_run(str(folder))
    assert "3 circuits" in repr(run)
    with pytest.raises(EdgepruneError, match="not a whole circuit file"):
        _ = run.snapshots


def test_a_folder_of_circuit_files(folder: Path) -> None:
    run = ep.load_run(folder / "circuits")
    assert list(run.circuits) == ["final", "sparsity-0.5000", "sparsity-0.8000"]
    assert (run.config, run.metrics, run.frontier) == ({}, [], [])


def test_scores_are_no_circuit_of_the_run(folder: Path) -> None:
    everything = Circuit.from_scores(GRAPH, torch.rand(GRAPH.shape), num_edges=GRAPH.num_edges)
    everything.save(folder / "scores.safetensors")
    run = ep.load_run(folder)
    assert run.scores is not None
    assert run.scores.num_edges == GRAPH.num_edges
    assert "scores" not in run.circuits


def test_what_is_no_run_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match="no folder at"):
        ep.load_run(tmp_path / "absent")
    with pytest.raises(EdgepruneError, match=r"do you mean .*version_0\?"):
        ep.load_run(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EdgepruneError, match="neither circuits nor a config nor checkpoints"):
        ep.load_run(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "reason"), [("a: [", "is no YAML"), ("- 1", "must hold keys and values, it holds list")]
)
def test_a_damaged_config(folder: Path, text: str, reason: str) -> None:
    (folder / "config.yaml").write_text(text)
    with pytest.raises(EdgepruneError, match=reason):
        _ = ep.load_run(folder).config
