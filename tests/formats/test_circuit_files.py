"""Which format a file has, and files that must not be trusted."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edgeprune.errors import EdgepruneError
from edgeprune.formats import FORMATS, format_for, format_named, is_native, read_circuit, write_circuit
from edgeprune.methods.warm_start import Start, WarmStart
from edgeprune.reference import read_reference
from tests.formats.circuits import PLAIN, refused, scored, written

WRITTEN = {
    "edgeprune": ".safetensors",
    "eap-ig-json": ".json",
    "eap-ig-pt": ".pt",
    "acdc-subgraph": ".pth",
    "acdc-edges": ".pkl",
    "edge-pruning": ".json",
    "auto-circuit": ".pt",
    "auto-circuit-edges": ".json",
    "edges": ".json",
}


def test_the_table_above_is_whole() -> None:
    others = {"mib", "mib-circuits", "edge-pruning-checkpoint"}
    assert set(WRITTEN) == set(FORMATS) - others
    assert {name: FORMATS[name].suffixes for name in WRITTEN} == {name: (suffix,) for name, suffix in WRITTEN.items()}


@pytest.mark.parametrize(("name", "suffix"), WRITTEN.items())
def test_every_format_is_told_by_its_content(tmp_path: Path, name: str, suffix: str) -> None:
    circuit = scored(PLAIN)
    path = tmp_path / f"circuit{suffix}"
    write_circuit(circuit, path, name)
    for found in (read_circuit(path, PLAIN).circuit, read_circuit(path, PLAIN, name).circuit):
        assert found.header.get("source_format", "edgeprune") == name
    # What compare, warm starts and CompareToReference read
    assert torch.equal(read_reference(path, PLAIN).keep, found.keep)
    assert (name == "auto-circuit") != torch.equal(found.keep, circuit.keep)


def test_a_warm_start_ranks_by_the_scores_of_a_file(tmp_path: Path) -> None:
    circuit = scored(PLAIN)
    write_circuit(circuit, tmp_path / "a.json", "eap-ig-json")
    ours = Start(WarmStart(str(circuit.save(tmp_path / "a.safetensors"))), PLAIN).offsets
    theirs = Start(WarmStart(str(tmp_path / "a.json")), PLAIN).offsets
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)
    assert len(ours.unique()) > 70


def test_which_files_are_ours(tmp_path: Path) -> None:
    ours = scored(PLAIN).save(tmp_path / "a.safetensors")
    save_file({"model.final_read_log_alphas": torch.zeros(4)}, tmp_path / "b.safetensors")
    assert [is_native(path) for path in (ours, tmp_path / "b.safetensors", "absent.safetensors", "a.json")] == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin"])
def test_the_suffix_does_not_tell(tmp_path: Path, suffix: str) -> None:
    write_circuit(scored(PLAIN), tmp_path / "a.pt", "eap-ig-pt")
    (tmp_path / "a.pt").rename(tmp_path / f"b{suffix}")
    assert read_circuit(tmp_path / f"b{suffix}").circuit.header["source_format"] == "eap-ig-pt"


def test_names_and_suffixes(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match="no format 'onnx'; the formats are edgeprune, eap-ig-json"):
        format_named("onnx")
    with pytest.raises(EdgepruneError, match=r"several formats end in \.json; give --to, one of eap-ig-json, "):
        format_for(Path("a.json"))
    with pytest.raises(EdgepruneError, match=r"no format ends in '\.csv'"):
        format_for(Path("a.csv"))
    assert format_for(Path("a.pth")).name == "acdc-subgraph"
    with pytest.raises(EdgepruneError, match=r"files of eap-ig-pt end in \.pt"):
        write_circuit(scored(PLAIN), tmp_path / "a.json", "eap-ig-pt")
    (tmp_path / "a.json").mkdir()
    with pytest.raises(EdgepruneError, match="is a folder"):
        write_circuit(scored(PLAIN), tmp_path / "a.json", "edges")


def test_a_format_that_the_file_is_not(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", ["embed->m0"])
    assert "not a file of eap-ig-json; it looks like edges" in refused(path, PLAIN, "eap-ig-json")
    assert "not a file of acdc-edges" in refused(path, PLAIN, "acdc-edges")
    assert "no format 'onnx'" in refused(path, PLAIN, "onnx")


@pytest.mark.parametrize("content", [5, None, "text", {}, {"edges": []}, 1.5, True])
def test_json_of_no_format(tmp_path: Path, content: Any) -> None:
    assert "expected a list of edges or EAP-IG's mapping" in refused(written(tmp_path / "a.json", content), PLAIN)


@pytest.mark.parametrize("content", [5, None, "text", [1], {"a": 1}, torch.zeros(3)])
def test_torch_files_of_no_format(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert "of a known format" in refused(tmp_path / "a.pt", PLAIN)


@pytest.mark.parametrize("tensor", [torch.zeros(3).to_sparse(), torch.zeros(3).to(torch.complex64)])
def test_tensors_that_no_format_has(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"blocks.0.hook_mlp_in": tensor}, tmp_path / "a.pt")
    assert "sparse or complex" in refused(tmp_path / "a.pt", PLAIN)


@pytest.mark.parametrize("name", ["acdc-subgraph", "edge-pruning", "edges", "auto-circuit-edges", "acdc-edges"])
def test_lists_need_a_graph(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a{WRITTEN[name]}"
    write_circuit(scored(PLAIN), path, name)
    assert "give the model (--model) or a circuit of the same graph (--like)" in refused(path)


# ---------------------------------------------------------------- files that must not be trusted
class Calls:
    """A pickle that runs a command when a careless reader loads it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_file_runs_anything(tmp_path: Path, suffix: str, zipped: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / f"bad{suffix}"
    content = {"cfg": Calls(f"touch {trace}"), "edges_scores": Calls(f"touch {trace}")}
    with path.open("wb") as file:
        (torch.save if zipped else pickle.dump)(content, file)
    text = refused(path, PLAIN)
    assert "refused" in text
    assert "weights_only" not in text
    assert not trace.exists()


def test_a_folder_of_a_checkpoint_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "run").mkdir()
    torch.save({"final_read_log_alphas": Calls(f"touch {trace}")}, tmp_path / "run" / "pytorch_model.bin")
    assert "refused" in refused(tmp_path / "run")
    assert not trace.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("torch.save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_circuit(scored(PLAIN), path, "eap-ig-pt")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
