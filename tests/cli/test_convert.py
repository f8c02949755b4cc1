"""`edgeprune convert`: what it writes, what it says, and how it refuses."""

from pathlib import Path

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.compiled import load_compiled, true_circuit
from edgeprune.formats import FORMATS, read_circuit, write_circuit
from edgeprune.graph import ArchSpec, EdgeGraph, RoleSpec
from tests.formats.circuits import PLAIN, same_bits, scored, written

REVERSE = EdgeGraph(ArchSpec(num_layers=4, num_heads=1, num_kv_heads=1, split_embedding=True))


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return scored(PLAIN).save(tmp_path / "ours.safetensors")


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_the_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FORMATS)


def test_there_and_back(tmp_path: Path, ours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = str(tmp_path / "a.json"), str(tmp_path / "back.safetensors")
    assert main(["convert", str(ours), there, "--to", "eap-ig-json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    circuit = Circuit.load(ours)
    assert shown[0] == f"read {circuit.num_edges} of 75 edges, {circuit.num_dangling} dangling, with scores"
    assert shown[1] == f"wrote {there} (eap-ig-json)"
    assert "  wrote: header left out (method, model)" in shown
    assert main(["convert", there, back]) == 0
    assert "  read: its graph has k and v readers of every query head, and one embedding" in capsys.readouterr().out
    found = Circuit.load(back)
    assert same_bits(found.scores, circuit.scores)
    assert torch.equal(found.keep, circuit.keep)
    assert found.header["source"] == "a.json"


def test_of_roles_other_formats_get_the_union_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = PLAIN.with_roles(RoleSpec(("IO", "rest")))
    made = Circuit.random(graph, 60, seed=1)
    path, union = str(made.save(tmp_path / "roles.safetensors")), made.union()
    again, out = tmp_path / "again.safetensors", tmp_path / "union.json"
    assert main(["convert", path, str(again)]) == 0
    assert Circuit.load(again).edges() == made.edges()
    assert capsys.readouterr().err == ""
    for form in ("edges", "eap-ig-json", "auto-circuit-edges"):
        assert main(["convert", path, str(out), "--to", form]) == 2
        line = error_line(capsys)
        assert f"{path} has the roles IO, rest, and files of {form} have none" in line
        assert line.endswith("write the edges kept at any with --union")
        assert not out.exists()
        assert main(["convert", path, str(out), "--to", form, "--union"]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert f"60 edges at the roles IO, rest are written as the {union.num_edges} of their union" in line
        found = read_circuit(out, graph)  # a graph with roles stands for the one without
        assert set(found.circuit.edges()) == set(union.edges())
        out.unlink()
    assert main(["convert", path, str(again), "--union"]) == 0
    assert Circuit.load(again).roles == ()
    assert Circuit.load(again).edges() == union.edges()


def test_scores_or_an_empty_circuit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_circuit(scored(PLAIN), tmp_path / "a.json", "eap-ig-json")
    source = tmp_path / "uncut.json"  # as EAP-IG saves scores, and a circuit without edges
    source.write_text((tmp_path / "a.json").read_text().replace('"in_graph": true', '"in_graph": false'))
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(source), str(out)]) == 2
    assert "--holds scores or --holds circuit" in error_line(capsys)
    assert not out.exists()
    for holds, kept in (("scores", 75), ("circuit", 0)):
        assert main(["convert", str(source), str(out), "--holds", holds]) == 0
        assert capsys.readouterr().out.startswith(f"read {kept} of 75 edges, 0 dangling, with scores")
    assert main(["convert", str(source), str(out), "--holds", "both"]) == 2
    assert "choose from" in error_line(capsys)


def test_a_list_of_edges_on_a_models_graph(tmp_path: Path) -> None:
    truth = true_circuit("reverse", "zero")
    source = written(tmp_path / "edges.json", list(truth))
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(source), str(out), "--model", "compiled:reverse"]) == 0
    assert Circuit.load(out).graph == REVERSE
    assert set(Circuit.load(out).edges()) == set(truth)
    assert main(["convert", str(out), str(tmp_path / "a.pth")]) == 0
    like = str(tmp_path / "like.safetensors")
    assert main(["convert", str(tmp_path / "a.pth"), like, "--like", str(out)]) == 0
    assert torch.equal(Circuit.load(like).keep, Circuit.load(out).keep)


def test_a_models_width_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Circuit.from_edges(REVERSE, true_circuit("reverse", "zero")).save(tmp_path / "a.safetensors")
    width = load_compiled("reverse").config.hidden_size
    assert (
        main(["convert", str(source), str(tmp_path / "a.pt"), "--to", "eap-ig-pt", "--model", "compiled:reverse"]) == 0
    )
    assert "d_model" not in capsys.readouterr().out
    assert torch.load(tmp_path / "a.pt", weights_only=True)["cfg"]["d_model"] == width


def test_membership_alone(tmp_path: Path, ours: Path) -> None:
    out = tmp_path / "a.pt"
    assert main(["convert", str(ours), str(out), "--to", "auto-circuit", "--membership"]) == 0
    found = read_circuit(out).circuit
    assert found.scores is None
    assert torch.equal(found.keep, Circuit.load(ours).keep)
    assert main(["convert", str(ours), str(ours), "--membership"]) == 0
    assert Circuit.load(ours).scores is None


def test_a_submission_is_written_and_validated(tmp_path: Path, ours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "submission"
    assert main(["convert", str(ours), str(folder / "ioi_interpbench"), "--to", "mib"]) == 0
    capsys.readouterr()
    assert main(["convert", "--validate", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "1 tasks (ioi); a submission needs two or more",
        "1 models (interpbench); a submission needs two or more",
    ]
    assert len(err.splitlines()) == 1
    assert "2 problems" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "convert needs IN and OUT, or --list"),
        (["{ours}"], "convert needs IN and OUT"),
        (["absent.json", "{out}"], "at absent.json"),
        (["{ours}", "{out}", "--to", "onnx"], "no format 'onnx'"),
        (["{ours}", "{out}", "--from", "onnx"], "no format 'onnx'"),
        (["{ours}", "{out}.csv"], "no format ends in '.csv'"),
        (["{ours}", "{out}.json"], "several formats end in .json"),
        (["{damaged}", "{out}"], "not a whole .pt file"),
        (["{lacks}", "{out}", "--like", "{ours}"], "no reader named 'a7.h0.q'"),
        (["{lacks}", "{out}"], "give the model (--model)"),
        (["{lacks}", "{out}", "--like", "{ours}", "--model", "gpt2"], "give one of them"),
        (["{ours}", "{out}", "--model", "compiled:reverse"], "num_layers=2"),
        (["--validate", "absent"], "no folder at absent"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    tmp_path: Path, ours: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 cut short")
    names = {
        "ours": ours,
        "out": tmp_path / "out.safetensors",
        "damaged": tmp_path / "damaged.pt",
        "lacks": written(tmp_path / "lacks.json", ["m0->a7.h0.q"]),
    }
    before = sorted(tmp_path.iterdir())
    assert main(["convert", *(argument.format(**names) for argument in arguments)]) == 2
    assert expected in error_line(capsys)
    assert sorted(tmp_path.iterdir()) == before
