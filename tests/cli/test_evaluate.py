"""`evaluate` from one end to the other, in this process, on a compiled model."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from datamodules.collate import collate
from datamodules.tasks.compiled import CompiledTask
from edgeprune import canonical, console
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.cli.evaluate import EVERY_ABLATION
from edgeprune.comparison.overlap import compare_circuits
from edgeprune.evaluation.size_areas import mib_areas
from edgeprune.methods.selection import top_n
from edgeprune.metrics.measure import measure_examples
from edgeprune.metrics.registry import MEASURES
from edgeprune.models.loading import load_model
from edgeprune.report import report_html
from edgeprune.report.evaluate import SCHEMA, TESTS
from tests.cli.test_compare import error_line

TASK = {"class_path": "CompiledTask", "init_args": {"program": "reverse", "lengths": [3]}}
OTHERS = ["tok_embed->a3.h0.v", "tok_embed->a3.h0.q"]  # one of the published circuit's
QUICK = ["--seeds", "2", "--draws", "20", "--random", "2", "--test-limit", "5", "--minimality-edges", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, the published circuit, and one of its edges and some others with scores."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": {"task": TASK, "eval_batch_size": 4}}))
    header = {"model": "compiled:reverse", "ablation": "zero", "method": "by hand"}
    graph = load_model("compiled:reverse").graph
    good = ["tok_embed->a3.h0.v", "pos_embed->a3.h0.q", "pos_embed->a3.h0.k", "a3.h0->logits"]
    Circuit.from_edges(graph, good, header).save(folder / "good.safetensors")
    scores = graph.keep_matrix(good).float() + graph.exists / 2
    Circuit(graph, top_n(graph, scores, 20), scores, header).save(folder / "scored.safetensors")
    return folder


def evaluate(folder: Path, out: Path, *more: str) -> dict[str, Any]:
    files = [str(folder / "good.safetensors"), str(folder / "scored.safetensors")]
    assert main(["evaluate", *files, "--config", str(folder / "data.yaml"), *QUICK, "--json", str(out), *more]) == 0
    return json.loads(out.read_text(), parse_constant=pytest.fail)  # NaN and infinity are no JSON


def test_figures_are_those_of_single_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate(folder, tmp_path / "out.json", "--split", "validation")
    assert result["schema"] == SCHEMA
    about = result["about"]
    assert (about["model"], about["ablation"], about["split"]) == ("compiled:reverse", "zero", "validation")
    pairs = list(enumerate(CompiledTask("reverse", lengths=(3,)).splits(None)["validation"]))
    runs = ReferenceRuns(load_model("compiled:reverse"), "zero")
    circuits = [Circuit.load(folder / f"{name}.safetensors") for name in ("good", "scored")]
    gates = [circuit.gates() for circuit in circuits]
    gates += [Circuit.random(circuits[0].graph, 4, seed).gates() for seed in (0, 1)]
    good, scored, *random = measure_examples(runs.model, runs, [collate(pairs)], gates, "validation").as_dicts()
    for row, expected in zip(result["circuits"], (good, scored), strict=True):
        found = row["ablations"]["zero"]["measures"]
        for name in ("kl", "squared_error", "accuracy"):
            figure = found[name]
            assert figure["value"] == pytest.approx(expected[name], rel=1e-5, abs=1e-6)
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["num_examples"] == about["num_examples"] == len(pairs)
    spread = result["circuits"][0]["ablations"]["zero"]["random"]["squared_error"]
    assert spread["mean"] == pytest.approx(sum(item["squared_error"] for item in random) / 2, rel=1e-4)
    ends = result["ends"]["zero"]
    assert ends["full"]["kl"]["value"] == 0
    whole, empty = (ends[end]["squared_error"]["value"] for end in ("full", "empty"))
    normalised = result["circuits"][1]["ablations"]["zero"]["normalised"]["squared_error"]["value"]
    assert normalised == pytest.approx((scored["squared_error"] - empty) / (whole - empty), rel=1e-4)
    assert result["pairs"][0]["both"] == 4
    assert result["pairs"][0]["differences"]["kl"]["value"] == pytest.approx(good["kl"] - scored["kl"], abs=1e-6)
    assert set(result["measures"]) <= set(MEASURES)
    assert "(no edges)" in capsys.readouterr().out


def test_everything_at_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All tests, several ablations, a known circuit and the page; what needs scores is left out without them."""
    page = tmp_path / "page.html"
    more = (
        "--tests",
        "all",
        "--ablations",
        "mean:corrupted,resample",
        "--known",
        "tracr_reverse",
        "--report",
        str(page),
    )
    result = evaluate(folder, tmp_path / "out.json", *more)
    assert list(result["ends"]) == ["zero", "mean:corrupted", "resample"]
    good, scored = result["circuits"]
    assert set(TESTS) <= set(scored)
    assert good["mib"] is None
    assert scored["mib"]["cpr"] is not None
    known = canonical.load("tracr_reverse").circuit(Circuit.load(folder / "good.safetensors").graph)
    expected = compare_circuits(Circuit.load(folder / "good.safetensors"), known)
    assert 0 < good["known"]["tracr_reverse"]["edges"]["precision"] == expected["precision"]
    assert scored["minimality"]["num_closed"] - scored["minimality"]["num_idle"] <= 8
    assert good["completeness"]["num_examples"] == result["about"]["test_examples"] == 5
    shown = capsys.readouterr().out
    for text in ("KL by ablation", "Controls, first 5 pairs", "good: minimality: ", "good: equivalence: ", "against "):
        assert text in shown
    signed, absolute = (scored["mib"][ranking] for ranking in ("signed", "absolute"))
    cpr, cmd = signed["intervals"]["cpr"], absolute["intervals"]["cmd"]
    assert f"scored: CPR {signed['cpr']:.3f} [{cpr['low']:.3f}, {cpr['high']:.3f}], CMD {signed['cmd']:.3f} [" in shown
    assert f"CMD {absolute['cmd']:.3f} [{cmd['low']:.3f}, {cmd['high']:.3f}], accuracy area " in shown
    assert signed["resampling"] == result["about"]["resampling"]
    (run,) = result["runs"]
    assert (run["circuits"], run["nested"]["share"]) == ([0, 1], 1)
    assert page.read_text() == report_html(result)


def test_a_circuit_of_another_format(folder: Path, tmp_path: Path) -> None:
    """An edge list says nothing of its model and ablation: both are asked for."""
    edges, out = tmp_path / "edges.json", tmp_path / "out.json"
    edges.write_text(json.dumps(Circuit.load(folder / "good.safetensors").edges()))
    rest = ["--config", str(folder / "data.yaml"), *QUICK, "--json", str(out)]
    assert main(["evaluate", str(edges), "--model", "compiled:reverse", "--ablation", "zero", *rest]) == 0
    assert json.loads(out.read_text())["circuits"][0]["edges"] == 4


def test_the_whole_model_under_every_ablation(folder: Path, tmp_path: Path) -> None:
    """All edges open: KL 0 whatever closed edges would carry, and all faithfulness that there is to have."""
    graph, path, out = load_model("compiled:reverse").graph, tmp_path / "whole.safetensors", tmp_path / "out.json"
    Circuit(graph, graph.exists, None, {"model": "compiled:reverse"}).save(path)
    rest = ["--config", str(folder / "data.yaml"), *QUICK, "--measures", "kl,squared_error", "--limit", "6"]
    assert main(["evaluate", str(path), *rest, "--ablations", "all", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["about"]["ablations"] == list(EVERY_ABLATION)
    for name, found in result["circuits"][0]["ablations"].items():
        assert found["measures"]["kl"]["value"] == pytest.approx(0, abs=1e-6)
        assert found["normalised"]["squared_error"]["value"] == pytest.approx(1, abs=1e-6)
        assert result["ends"][name]["empty"]["squared_error"]["value"] > 1


MISTAKES = {
    "unknown test": (["--tests", "beauty"], "tests are controls, "),
    "unknown measure": (["--measures", "kl,beauty"], "'beauty'"),
    "unknown ablation": (["--ablations", "zero,noise"], "'noise'"),
    "unknown circuit": (["--known", "nope.json"], "nope.json"),
    "no pairs": (["--limit", "0"], "--limit must be at least 1, got 0"),
    "no seeds": (["--seeds", "0"], "--seeds must be at least 1, got 0"),
    "level": (["--level", "95"], "level between 0 and 1"),
    "page in no folder": (["--report", "nowhere/page.html"], "there is no folder nowhere"),
    "page of another name": (["--report", "page.txt"], "a page ends in .html or .htm"),
    "pairs of tests": (["--test-limit", "0"], "--test-limit must be at least 1, got 0"),
    "edges": (["--minimality-edges", "0"], "--minimality-edges must be at least 1, got 0"),
    "pairs read": (["--reading", "0"], "--reading must be at least 1, got 0"),
    "edges read": (["--reading-edges", "-1"], "--reading-edges must be at least 0, got -1"),
    "memory": (["--cache-gb", "nan"], "--cache-gb must be at least 0, got nan"),
    "measure that the pairs have not": (["--measures", "kl,logit_difference"], "'logit_difference' is not defined"),
    "one convention": (["--edges-before-norm"], "has no norm behind its attention, so there is one convention"),
    "another model": (["--model", "compiled:hist"], "num_layers"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong, expected = MISTAKES[name]
    out = tmp_path / "out.json"
    arguments = [str(folder / "good.safetensors"), "--config", str(folder / "data.yaml"), "--json", str(out), *wrong]
    assert main(["evaluate", *arguments]) == 2
    assert expected in error_line(capsys)
    assert not out.exists()


def test_one_file_for_figures_and_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "out.html")
    arguments = [str(folder / "good.safetensors"), "--config", str(folder / "data.yaml")]
    assert main(["evaluate", *arguments, "--json", path, "--report", path]) == 2
    assert "pages are written by --report" in error_line(capsys)
    assert not Path(path).exists()


def test_a_reading_needs_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["evaluate", str(folder / "good.safetensors"), "--config", str(folder / "data.yaml"), "--reading", "2"])
        == 2
    )
    assert "--reading 2 is written to --json or --report; name one of them" in error_line(capsys)


def test_a_missing_file_of_another_format(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not asked for its model."""
    assert main(["evaluate", "nope.json", "--config", str(folder / "data.yaml")]) == 2
    assert "no circuit file at nope.json" in error_line(capsys)
    assert main(["evaluate", str(folder), "--config", str(folder / "data.yaml")]) == 2
    assert "is a folder; name one file" in error_line(capsys)


def test_lists_may_be_given_in_parts(folder: Path, tmp_path: Path) -> None:
    more = ("--tests", "suffix", "--tests", "controls,suffix", "--ablations", "zero,mean", "--ablations", "mean")
    about = evaluate(folder, tmp_path / "out.json", *more)["about"]
    assert about["tests"] == ["suffix", "controls"]
    assert about["ablations"] == ["zero", "mean"]


def test_seeds_of_one_method(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random circuits of two seeds, and a third that was found under another ablation."""
    graph, out = load_model("compiled:reverse").graph, tmp_path / "out.json"
    for seed, ablation in enumerate(("zero", "zero", "mean")):
        header = {"model": "compiled:reverse", "ablation": ablation, "method": "random", "seed": seed}
        Circuit(graph, Circuit.random(graph, 60, seed).keep, None, header).save(tmp_path / f"seed-{seed}.safetensors")
    files = [str(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert main(["evaluate", *files, "--config", str(folder / "data.yaml"), *QUICK, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    (group,) = result["seeds"]
    assert (group["circuits"], group["seeds"], group["edges"]) == ([0, 1], [0, 1], [60, 60])
    figures = [row["ablations"]["zero"]["measures"]["kl"]["value"] for row in result["circuits"][:2]]
    assert group["ablations"]["zero"]["measures"]["kl"]["mean"] == pytest.approx(sum(figures) / 2)
    shown = capsys.readouterr()
    assert "seed-0, seed-1: random, 2 seeds: " in shown.out
    assert "seed-2.safetensors was found under ablation mean and is run under zero" in shown.err


def test_circuits_of_one_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three sizes, of which the smallest is not inside the next; the areas are those of the figures in the rows."""
    graph, out, page = load_model("compiled:reverse").graph, tmp_path / "out.json", tmp_path / "page.html"
    good = Circuit.load(folder / "good.safetensors")
    header = {"model": "compiled:reverse", "ablation": "zero", "method": "edge_pruning", "seed": 4}
    keeps = {"b": good.keep, "c": good.keep | Circuit.random(graph, 40).keep, "a": graph.keep_matrix(OTHERS)}
    for step, (name, keep) in enumerate(keeps.items()):
        Circuit(graph, keep, None, {**header, "step": step}).save(tmp_path / f"{name}.safetensors")
    files = [str(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    more = ["--json", str(out), "--report", str(page)]
    assert main(["evaluate", *files, "--config", str(folder / "data.yaml"), *QUICK, *more]) == 0
    result = json.loads(out.read_text())
    (run,) = result["runs"]
    assert (run["method"], run["seed"], run["circuits"]) == ("edge_pruning", 4, [0, 1, 2])
    assert [step["share"] for step in run["nested"]["steps"]] == [1 / 2, 1]
    assert run["nested"]["share"] == pytest.approx(3 / 4)
    curve = run["mib"]
    ends = [result["ends"]["zero"][end][curve["measure"]]["value"] for end in ("full", "empty")]
    rows = [row["ablations"]["zero"]["measures"] for row in result["circuits"]]
    taken = [point["circuit"] for point in curve["points"]]
    assert set(taken) == {None, 0, 1, 2}
    figures = [ends[1] if place is None else rows[place][curve["measure"]]["value"] for place in taken[:-1]]
    expected = mib_areas(torch.tensor([*ends, *figures, ends[0]], dtype=torch.float64)).tolist()
    assert [curve[name] for name in ("cpr", "cmd", "average")] == pytest.approx(expected, rel=1e-9)
    assert curve["num_examples"] == result["about"]["num_examples"], "all pairs, not those of the tests alone"
    shown = capsys.readouterr().out
    assert "Circuits of one run over their sizes" in shown
    assert "edge_pruning, seed 4" in shown
    assert "Circuits of one run" in page.read_text()


def test_a_circuit_named_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the pairs are made; also by another spelling."""
    path, other = str(folder / "good.safetensors"), str(folder / ".." / folder.name / "good.safetensors")
    assert main(["evaluate", path, path, "--config", "nope.yaml"]) == 2
    assert "is named twice" in error_line(capsys)
    assert main(["evaluate", path, other, "--config", "nope.yaml"]) == 2
    assert f"{other} is the same file as {path}" in error_line(capsys)


def test_circuits_that_differ_in_their_suffix(folder: Path, tmp_path: Path) -> None:
    edges = folder / "good.json"
    edges.write_text(json.dumps(Circuit.load(folder / "good.safetensors").edges()))
    files, out = [str(folder / "good.safetensors"), str(edges)], tmp_path / "out.json"
    assert main(["evaluate", *files, "--config", str(folder / "data.yaml"), *QUICK, "--json", str(out)]) == 0
    assert [row["name"] for row in json.loads(out.read_text())["circuits"]] == files


# -------------------------------------------------------------------- many circuits
@pytest.fixture(scope="module")
def many(folder: Path) -> list[str]:
    """Nine circuits, of which there are 36 pairs."""
    graph, header = load_model("compiled:reverse").graph, {"model": "compiled:reverse", "ablation": "zero"}
    paths = [folder / f"many-{seed}.safetensors" for seed in range(9)]
    for seed, path in enumerate(paths):
        Circuit(graph, Circuit.random(graph, 50, seed).keep, None, header).save(path)
    return [str(path) for path in paths]


def test_of_many_circuits_the_table_has_neighbours(
    many: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All pairs are in the JSON and on the page; lines are not broken where there is no terminal."""
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    arguments = [*many, "--config", str(folder / "data.yaml"), *QUICK, "--limit", "4", "--ablations", "mean,resample"]
    assert main(["evaluate", *arguments, "--json", str(out), "--report", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "Each circuit and the next on the same pairs (8 of 36; --json and --report have all)" in shown
    rows = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│ many-")]
    assert rows[-8:] == [f"many-{seed}, many-{seed + 1}" for seed in range(8)]
    pairs = json.loads(out.read_text())["pairs"]
    assert [(pair["a"], pair["b"]) for pair in pairs] == list(combinations(range(9), 2))
    for pair in pairs:
        alone = compare_circuits(*(Circuit.load(many[pair[side]]) for side in ("a", "b")))
        assert pair == {**pair, **alone}
    assert page.read_text().count(">many-7<") > 8


def test_pairs_may_be_left_out(
    many: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    arguments = [*many[:2], "--config", str(folder / "data.yaml"), *QUICK, "--no-pairs"]
    assert main(["evaluate", *arguments, "--json", str(out), "--report", str(page)]) == 0
    assert json.loads(out.read_text())["pairs"] == []
    assert "on the same pairs" not in capsys.readouterr().out
    assert "Each two circuits" not in page.read_text()


def test_without_a_terminal_a_line_now_and_then(
    many: list[str], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["evaluate", *many[:3], "--config", str(folder / "data.yaml"), *QUICK, "--limit", "5"]
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "SECONDS", 0.0)
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("circuits, zero 1 of 2") for line in lines)
    assert any(line.startswith("every two circuits ") for line in lines)


def test_tables_in_a_file_are_as_wide_as_they_need(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A circuit of a long name, ten ablations: more than any terminal has, and no cell on two lines."""
    monkeypatch.setenv("COLUMNS", "60")
    name, header = "a-circuit-" * 20, {"model": "compiled:reverse", "ablation": "zero"}
    path = folder / f"{name}.safetensors"
    Circuit(load_model("compiled:reverse").graph, Circuit.load(folder / "good.safetensors").keep, None, header).save(
        path
    )
    arguments = [str(path), "--config", str(folder / "data.yaml"), *QUICK, "--limit", "4"]
    assert main(["evaluate", *arguments, "--ablations", "mean,resample,mean:both,mean:positional"]) == 0
    shown = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in shown.splitlines() if line.startswith("│") and "(no edges)" not in line]
    assert sum(row[0].strip() == name for row in rows) == 2  # of circuits and by ablation
    assert all(row[0].strip() in (name, "random", "(full model)") for row in rows)
