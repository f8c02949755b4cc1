"""`edgeprune compare` on circuits of a compiled model."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.comparison.overlap import by_chance, compare_circuits, cut_to, edge_overlap
from edgeprune.compiled import true_circuit
from edgeprune.graph import ArchSpec, EdgeGraph, RoleSpec

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
GRAPH = EdgeGraph(ArchSpec(num_layers=4, num_heads=1, num_kv_heads=1, split_embedding=True))
HEADER = {"model": "compiled:reverse", "ablation": "zero"}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The true circuit, one of 30 edges that scores its edges highest, and the true one without two edges as JSON."""
    folder = tmp_path / "circuits"
    truth = Circuit.from_edges(GRAPH, true_circuit("reverse", "zero"), HEADER)
    noise = torch.rand(GRAPH.shape, generator=torch.Generator().manual_seed(0))
    scored = Circuit.from_scores(GRAPH, noise + truth.keep, num_edges=30, header=HEADER)
    paths = [truth.save(folder / "truth.safetensors"), scored.save(folder / "scored.safetensors")]
    (folder / "partial.json").write_text(json.dumps(truth.edges()[2:]))
    return [str(path) for path in (*paths, folder / "partial.json")]


def compare(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    assert main(["compare", *arguments, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_figures_of_every_pair(tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    result = compare(tmp_path, *files, "--edges")
    assert [row["edges"] for row in result["circuits"]] == [11, 30, 9]
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    truth, scored = (Circuit.load(path) for path in files[:2])
    pair = result["pairs"][0]
    expected = edge_overlap(truth.keep, scored.keep, GRAPH.exists)
    assert {name: pair[name] for name in expected} == expected
    assert (pair["precision"], pair["recall"]) == (1.0, 11 / 30)
    assert pair["log10_p_value"] == by_chance(11, 11, 30, 94)["log10_p_value"]
    assert pair["expected"] == pytest.approx(11 * 30 / 94)
    assert pair["edges_only_a"] == []
    assert sorted(pair["edges_only_b"]) == sorted(set(scored.edges()) - set(truth.edges()))
    assert sum(part["both"] for part in pair["kinds"].values()) == 11
    assert sum(part["only_reference"] for part in pair["layers"].values()) == 19
    partial = Circuit.from_edges(GRAPH, json.loads(Path(files[2]).read_text()))
    for row, two in zip(result["pairs"], combinations((truth, scored, partial), 2), strict=True):
        assert row == {**row, **compare_circuits(*two)}
    assert pair["weights"]["same_sign"] is None
    assert result["core"]["edges"] == sorted(set(partial.edges()), key=partial.edges().index)
    assert (result["core"]["num_edges"], result["core"]["union"]) == (9, 30)
    shown = capsys.readouterr().out
    assert "all 3 have 9 edges in common (by chance 0.3), of 30 that any has" in shown
    assert "Scores" not in shown
    assert "only in B of A, B: 19 edges" in shown
    assert pair["edges_only_b"][0] in shown


def test_the_larger_is_cut_to_the_smaller_by_its_scores(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    result = compare(tmp_path, *files)
    matched = [pair["matched"] for pair in result["pairs"]]
    assert matched[0]["edges"] == matched[0]["both"] == 11  # the best eleven are the true ones
    assert matched[1] is None  # the larger one has no scores
    shown = capsys.readouterr().out
    assert "A, C: not compared at one size, for A is larger and has no scores to be cut by" in shown
    assert shown.count("not compared at one size") == 1
    assert matched[2]["edges"] == 9
    best = set(cut_to(Circuit.load(files[1]), 9).edges())
    assert matched[2]["both"] == len(best & set(json.loads(Path(files[2]).read_text())))


def test_scores_are_compared_by_weight_and_rank(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    noise = torch.rand(GRAPH.shape, generator=torch.Generator().manual_seed(1))
    other = Circuit.from_scores(GRAPH, noise, num_edges=20, header=HEADER).save(tmp_path / "other.safetensors")
    (pair,) = compare(tmp_path, files[1], str(other))["pairs"]
    assert pair["ranks"] == compare_circuits(Circuit.load(files[1]), Circuit.load(other))["ranks"]
    shown = capsys.readouterr().out
    for value in (*pair["weights"].values(), *pair["ranks"].values()):
        assert f"{value:.3f}" in shown
    assert max(map(len, (line for line in shown.splitlines() if line[:3] not in ("A: ", "B: ")))) <= 80


def test_two_circuits_are_broken_down(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *files[:2]]) == 0
    shown = capsys.readouterr().out
    assert "by kind of edge" in shown
    assert "embed->v" in shown
    assert "by layer" in shown
    assert main(["compare", *files]) == 0
    assert "kind of edge" not in capsys.readouterr().out
    assert main(["compare", *files, "--breakdown"]) == 0
    assert capsys.readouterr().out.count("by kind of edge") == 3


def test_with_pairs_the_circuits_are_run(tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    result = compare(tmp_path, *files, "--config", str(QUICKSTART), "--split", "validation")
    assert (result["model"], result["ablation"], result["split"]) == ("compiled:reverse", "zero", "validation")
    evaluated = tmp_path / "evaluated.json"
    arguments = ["--config", str(QUICKSTART), "--split", "validation", "--json", str(evaluated)]
    assert main(["evaluate", *files[:2], *arguments]) == 0
    for row, same in zip(result["circuits"], json.loads(evaluated.read_text())["circuits"], strict=False):
        measures = same["ablations"]["zero"]["measures"]
        assert row["kl"] == pytest.approx(measures["kl"]["value"], abs=1e-6)
        assert row["accuracy"] == measures["accuracy"]["value"]
    assert result["full_model"]["kl"] == 0
    matched = result["pairs"][0]["matched"]
    for side in ("measures_a", "measures_b"):
        assert matched[side]["kl"] == pytest.approx(result["circuits"][0]["kl"], abs=1e-6)
    assert result["circuits"][2]["kl"] > result["circuits"][0]["kl"]
    assert "(full model)" in capsys.readouterr().out


def test_lists_alone_need_a_model(tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", files[2], files[2]]) == 2
    assert "give --model" in error_line(capsys)
    result = compare(tmp_path, files[2], files[2], "--model", "compiled:reverse")
    assert result["pairs"][0]["jaccard"] == 1.0
    assert result["circuits"][0]["nodes"] == result["circuits"][1]["nodes"]


def test_nothing_is_wider_than_a_terminal(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*files[:2], "--config", str(QUICKSTART), "--split", "validation", "--breakdown"]
    assert main(["compare", *arguments]) == 0
    shown = capsys.readouterr().out
    tables = [line for line in shown.splitlines() if not line.startswith(("A: ", "B: "))]
    assert max(map(len, tables)) <= 80
    assert "…" not in shown


# ---------------------------------------------------------------- roles
def role_files(folder: Path, names: tuple[str, ...] = ("IO", "S2", "rest")) -> list[str]:
    graph = GRAPH.with_roles(RoleSpec(names))
    noise = torch.rand(2, *graph.shape, generator=torch.Generator().manual_seed(2))
    sizes = zip(noise, (60, 40), strict=True)
    made = [Circuit.from_scores(graph, scores, num_edges=size, header=HEADER) for scores, size in sizes]
    return [str(one.save(folder / f"{len(names)}_{place}.safetensors")) for place, one in enumerate(made)]


def test_circuits_with_roles_are_compared_at_each_role_and_as_unions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = role_files(tmp_path)
    result = compare(tmp_path, *paths, "--edges")
    first, second = map(Circuit.load, paths)
    (pair,) = result["pairs"]
    names = [set(one.edges()) for one in (first, second)]
    assert (pair["both"], pair["only_found"]) == (len(names[0] & names[1]), len(names[0] - names[1]))
    assert pair["expected"] == pytest.approx(60 * 40 / (3 * 94))
    assert set(pair["edges_only_b"]) == names[1] - names[0]
    for role, found in pair["roles"].items():
        here = [{edge for edge in some if edge.endswith(f"@{role}")} for some in names]
        assert found["both"] == len(here[0] & here[1])
        assert found["jaccard"] == pytest.approx(len(here[0] & here[1]) / len(here[0] | here[1]))
    assert sum(found["only_reference"] for found in pair["roles"].values()) == pair["only_reference"]
    for part in (pair["kinds"], pair["layers"]):
        assert sum(found["both"] for found in part.values()) == pair["both"]
    unions = [{edge.partition("@")[0] for edge in some} for some in names]
    assert pair["union"]["both"] == len(unions[0] & unions[1])
    assert pair["union"]["log10_p_value"] == by_chance(pair["union"]["both"], *map(len, unions), 94)["log10_p_value"]
    assert [row["union"] for row in result["circuits"]] == list(map(len, unions))
    assert pair["matched"]["edges"] == 40
    assert result["unions"] is None
    shown = capsys.readouterr().out
    assert "A and B by role" in shown
    assert "any (union)" in shown
    assert "Shared edges of the unions" in shown


def test_with_a_circuit_without_roles_unions_are_compared_and_that_is_said(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with_roles = role_files(tmp_path)[0]
    union = set(Circuit.load(with_roles).union().edges())
    for other, edges in (
        (files[0], Circuit.load(files[0]).edges()),
        (files[2], json.loads(Path(files[2]).read_text())),
    ):
        result = compare(tmp_path, with_roles, other)
        assert result["pairs"][0]["both"] == len(union & set(edges))
        assert "roles" not in result["pairs"][0]
        assert result["unions"] == f"of circuits with roles, unions are compared, for {other} has no roles"
        assert result["unions"] in capsys.readouterr().out


def test_circuits_with_roles_are_run_with_them(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"class_path": "CompiledTask", "init_args": {"program": "reverse", "lengths": [3]}}
    config = tmp_path / "data.yaml"
    config.write_text(yaml.safe_dump({"data": {"task": task, "eval_batch_size": 8}}))
    size = 4  # tokens of a prompt: three and the one that starts it
    truth, roles = Circuit.load(files[0]), RoleSpec(tuple(f"p{place}" for place in range(size)))
    everywhere = truth.with_roles(roles)
    keep = everywhere.keep.clone()
    keep[-1] = False
    paths = [
        str(one.save(tmp_path / f"{name}.safetensors"))
        for name, one in (("everywhere", everywhere), ("some", everywhere.with_edges(keep, {})))
    ]
    here = ["--config", str(config), "--split", "validation"]
    plain = compare(tmp_path, files[0], files[1], *here)["circuits"][0]
    rows = compare(tmp_path, *paths, *here)["circuits"]
    assert rows[0]["kl"] == pytest.approx(plain["kl"], abs=1e-9)
    assert abs(rows[1]["kl"] - plain["kl"]) > 1e-3
    with_rest = role_files(tmp_path)
    capsys.readouterr()
    assert main(["compare", *with_rest, *here]) == 2
    assert "no prompt has a role 'IO'" in error_line(capsys)


def test_other_roles_are_refused_unless_unions_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = role_files(tmp_path)[0], role_files(tmp_path, ("IO", "rest"))[0]
    assert main(["compare", one, two]) == 2
    line = error_line(capsys)
    assert f"{two} has the roles IO, rest, {one} has IO, S2, rest; compare their unions with --union" in line
    result = compare(tmp_path, one, two, "--union")
    assert result["unions"] == "of circuits with roles, unions are compared, as asked"
    sizes = [Circuit.load(path).union().num_edges for path in (one, two)]
    assert [row["edges"] for row in result["circuits"]] == sizes


# ---------------------------------------------------------------- mistakes
def test_mistakes_are_one_line_and_nothing_is_written(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    other = Circuit.random(EdgeGraph(ArchSpec(num_layers=4, num_heads=1, num_kv_heads=1)), 5).save(
        tmp_path / "o.safetensors"
    )
    foreign = tmp_path / "foreign.json"
    foreign.write_text('["m0->a9.h0.q"]')
    (tmp_path / "two.json").write_text("[]")  # of a folder with one file, that file is read
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(Path(files[0]).read_bytes()[:100])
    for arguments, named in (
        ([files[0]], "needs two circuits"),
        ([files[0], str(other)], "split_embedding=False"),
        ([files[0], str(foreign)], "a9.h0.q"),
        ([files[0], str(broken)], "broken.safetensors"),
        ([files[0], str(tmp_path / "none.json")], "none.json"),
        ([*files, "--config", "missing.yaml"], "missing.yaml"),
        ([*files, "--split", "all"], "all"),
        ([*files[:2], "--model", "compiled:sort"], "'compiled:sort'"),
        ([files[0], str(tmp_path)], "is a folder"),
        ([*files, "--model", "compiled:nope", "--config", str(QUICKSTART)], "nope"),
    ):
        assert main(["compare", *arguments, "--json", str(out)]) == 2
        assert named in error_line(capsys)
        assert not out.exists()
    assert main(["compare", *files, "--json", str(tmp_path / "no" / "out.json")]) == 2
    assert "no folder" in error_line(capsys)
