"""`edgeprune polish`: the file it writes, going on, and mistakes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.compiled import true_circuit
from edgeprune.graph import EdgeGraph
from edgeprune.methods.polish import Polisher
from edgeprune.models.loading import load_model

DATA: dict[str, Any] = {"task": {"class_path": "CompiledTask", "init_args": {"program": "hist"}}, "batch_size": 16}
MODEL = "compiled:hist"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A circuit with one edge of the true one exchanged, and a config, in the folder where commands are run."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump({"model": {"name": MODEL}, "data": DATA}))
    graph = load_model(MODEL).graph
    truth = sorted(true_circuit("hist", "zero"))
    other = next(edge for edge in Circuit(graph, graph.exists).edges() if edge not in truth)
    circuit_of(graph, [*truth[1:], other]).save("start.safetensors")
    return tmp_path


def circuit_of(graph: EdgeGraph, edges: list[str], **header: Any) -> Circuit:
    about = {"model": MODEL, "ablation": "zero", "objective": "squared_error", "metrics": {"kl": 1.0}}
    return Circuit.from_edges(graph, edges, {**about, **header})


def polish(*arguments: str, circuit: str = "start.safetensors") -> int:
    return main(["polish", circuit, "--config", "config.yaml", "--limit", "12", "--held-out", "8", *arguments])


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str, circuit: str = "start.safetensors") -> str:
    assert polish(*arguments, circuit=circuit) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not list(Path().glob("*polish*"))
    return line


def test_a_circuit_is_polished_and_written_beside_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("start.safetensors").read_bytes()
    assert polish() == 0
    start, made = Circuit.load("start.safetensors"), Circuit.load("start-polished.safetensors")
    assert Path("start.safetensors").read_bytes() == before
    assert set(made.edges()) == set(true_circuit("hist", "zero"))
    about = made.header["derived"][-1]["polished"]
    assert about["from"] == "start.safetensors"
    assert about["from_sha256"] == start.header["sha256"]
    assert about["start"] > 0.01
    assert about["loss"] == pytest.approx(0, abs=1e-6)
    assert (about["num_examples"], about["num_held_out"], about["ablation"]) == (12, 8, "zero")
    assert made.header["model"] == MODEL
    assert "metrics" not in made.header
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 edges swapped in" in shown
    assert "held-out pairs" in shown
    assert not list(Path().glob("*.polishing"))
    assert polish() == 2
    assert "is there already; choose another file, or give --overwrite" in capsys.readouterr().err
    assert polish("--overwrite", "--held-out", "0") == 0
    again = Circuit.load("start-polished.safetensors")
    assert torch.equal(again.keep, made.keep)
    assert again.header["derived"][-1]["polished"]["held_out"] is None


def test_an_interrupted_run_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert polish("--out", "whole.safetensors") == 0
    rounds = 0
    one_round = Polisher._round  # pyright: ignore[reportPrivateUsage]

    def interrupted(self: Polisher) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            raise KeyboardInterrupt
        one_round(self)

    monkeypatch.setattr(Polisher, "_round", interrupted)
    assert polish() == 130
    assert not Path("start-polished.safetensors").exists()
    assert polish() == 0
    assert "going on after round 2 of the interrupted run" in capsys.readouterr().err
    one, other = Circuit.load("whole.safetensors"), Circuit.load("start-polished.safetensors")
    assert torch.equal(one.keep, other.keep)
    about, whole = (circuit.header["derived"][-1]["polished"] for circuit in (other, one))
    assert {**about, "seconds": 0} == {**whole, "seconds": 0}


def test_mistakes_are_one_line_and_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["polish", "start.safetensors"]) == 2
    assert "arguments are required: --config; see edgeprune polish --help" in capsys.readouterr().err
    assert "no circuit file at missing.safetensors" in mistake(capsys, circuit="missing.safetensors")
    assert "--limit must be at least 1, got 0" in mistake(capsys, "--limit", "0")
    assert "probes must be at least 0, got -1" in mistake(capsys, "--probes", "-1")
    assert "is the circuit to polish; choose another file" in mistake(capsys, "--out", "start.safetensors")
    assert "circuit files end in .safetensors" in mistake(capsys, "--out", "made.pt")
    assert "so polish on others" in mistake(capsys, "--split", "validation")
    assert "metric must be one of" in mistake(capsys, "--metric", "loss")
    graph = load_model(MODEL).graph
    circuit_of(graph, []).save("empty.safetensors")
    assert "0 of 13 edges has nothing to swap" in mistake(capsys, circuit="empty.safetensors")
    circuit_of(graph, Circuit(graph, graph.exists).edges()).save("full.safetensors")
    assert "13 of 13 edges has nothing to swap" in mistake(capsys, circuit="full.safetensors")


def test_circuits_of_other_models_and_conventions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the circuit was made for a graph with" in mistake(capsys, "--model", "compiled:sort")
    Path("config.yaml").write_text(yaml.safe_dump({"model": {"name": "compiled:sort"}, "data": DATA}))
    assert "was found in model 'compiled:hist', config.yaml is for 'compiled:sort'" in mistake(capsys)
    Path("config.yaml").write_text(yaml.safe_dump({"model": {"name": MODEL, "kv_readers": "group"}, "data": DATA}))
    kv_readers = Circuit.load("start.safetensors").graph.arch.kv_readers
    other = "head" if kv_readers == "group" else "group"
    Path("config.yaml").write_text(yaml.safe_dump({"model": {"name": MODEL, "kv_readers": other}, "data": DATA}))
    found = mistake(capsys)
    assert f"has kv_readers {kv_readers!r}, config.yaml asks for {other!r}" in found
