"""Submissions to MIB: what is written is valid, and every kind of problem is found."""

import json
from pathlib import Path

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats import ExportOptions, read_circuit, write_circuit
from edgeprune.formats.eap_ig_pt import EapIgPt
from edgeprune.formats.mib_submission import MODELS, SHARES, edge_budget, validate
from edgeprune.formats.plain_values import load_values
from edgeprune.graph import ArchSpec, EdgeGraph
from tests.formats.circuits import GPT2, PLAIN, same_bits, scored

QWEN = EdgeGraph(ArchSpec(num_layers=24, num_heads=14, num_kv_heads=2))


@pytest.fixture(scope="module")
def gpt2() -> Circuit:
    noise = torch.randn(GPT2.shape, generator=torch.Generator().manual_seed(0))
    return Circuit.from_scores(GPT2, noise, num_edges=GPT2.num_edges)


def submission(folder: Path, *names: str) -> Path:
    """Small files under a model without a known shape, to have something to spoil."""
    for seed, name in enumerate(names):
        write_circuit(scored(PLAIN, seed=seed), folder / name, "mib", ExportOptions(d_model=8))
    return folder


def nine(folder: Path) -> Path:
    write_circuit(
        scored(EdgeGraph(ArchSpec(num_layers=6, num_heads=8, num_kv_heads=8))), folder, "mib-circuits", ExportOptions(8)
    )
    return folder


def problems_of(folder: Path, name: str) -> list[str]:
    return [problem.removeprefix(f"{name}: ") for problem in validate(folder) if problem.startswith(name)]


# ---------------------------------------------------------------- writing
def test_the_known_models_have_their_published_numbers_of_edges() -> None:
    counts = {"gpt2": 32_491, "qwen2.5": 179_749, "gemma2": 74_218, "llama3": 1_592_881}
    for model, count in counts.items():
        shape = MODELS[model]
        assert shape is not None
        arch = ArchSpec(num_layers=shape.n_layers, num_heads=shape.n_heads, num_kv_heads=shape.n_heads)
        assert EdgeGraph(arch).num_edges == count


def test_scores_of_two_models_and_tasks_are_a_submission(tmp_path: Path, gpt2: Circuit) -> None:
    other = Circuit.from_scores(QWEN, torch.randn(QWEN.shape, generator=torch.Generator().manual_seed(1)), num_edges=5)
    write_circuit(gpt2, tmp_path / "ioi_gpt2", "mib", ExportOptions(d_model=768))
    write_circuit(other, tmp_path / "mcqa_qwen2.5", "mib", ExportOptions(d_model=896))
    assert validate(tmp_path) == []
    assert [file.name for file in (tmp_path / "ioi_gpt2").iterdir()] == ["importances.pt"]
    assert same_bits(read_circuit(tmp_path / "ioi_gpt2").circuit.scores, gpt2.scores)


def test_nine_circuits_are_the_best_edges(tmp_path: Path, gpt2: Circuit) -> None:
    write_circuit(gpt2, tmp_path / "ioi_gpt2", "mib-circuits", ExportOptions(d_model=768))
    assert problems_of(tmp_path, "ioi_gpt2") == []
    contents = {
        share: EapIgPt().parse(load_values(tmp_path / "ioi_gpt2" / f"circuit_{share:g}.pt")) for share in SHARES
    }
    assert [content.num_edges for content in contents.values()] == [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245]
    for content in contents.values():
        best = Circuit.from_scores(GPT2, gpt2.scores, num_edges=content.num_edges)  # pyright: ignore[reportArgumentType]
        assert torch.equal(content.in_graph, best.keep)
        assert not content.is_scored


def test_nine_circuits_of_a_ranking_by_absolute_value(tmp_path: Path) -> None:
    circuit = scored(PLAIN)
    absolute = Circuit(PLAIN, circuit.keep, circuit.scores, {"absolute": True})
    write_circuit(absolute, tmp_path / "ioi_interpbench", "mib-circuits", ExportOptions(8))
    content = EapIgPt().parse(load_values(tmp_path / "ioi_interpbench" / "circuit_50.pt"))
    assert circuit.scores is not None
    best = Circuit.from_scores(PLAIN, circuit.scores.abs(), num_edges=content.num_edges)
    assert torch.equal(content.in_graph, best.keep)


def test_shares_are_rounded_down() -> None:
    assert [edge_budget(share, 1000) for share in SHARES] == [1, 2, 5, 10, 20, 50, 100, 200, 500]
    assert edge_budget(0.1, 999) == 0


@pytest.mark.parametrize("form", ["mib", "mib-circuits"])
def test_what_is_not_written(tmp_path: Path, form: str) -> None:
    with pytest.raises(EdgepruneError, match="needs scores"):
        write_circuit(Circuit.random(PLAIN, 5).from_edges(PLAIN, []), tmp_path / "ioi_gpt2", form)
    with pytest.raises(EdgepruneError, match="not TASK_MODEL"):
        write_circuit(scored(PLAIN), tmp_path / "my_ioi_gpt2", form)
    infinite = Circuit(PLAIN, PLAIN.exists, torch.full(PLAIN.shape, float("inf")))
    with pytest.raises(EdgepruneError, match="finite"):
        write_circuit(infinite, tmp_path / "ioi_gpt2", form)
    assert not list(tmp_path.iterdir())
    (tmp_path / "ioi_gpt2").mkdir()
    (tmp_path / "ioi_gpt2" / "mine.txt").touch()
    with pytest.raises(EdgepruneError, match="written into a new folder"):
        write_circuit(scored(PLAIN), tmp_path / "ioi_gpt2", form)
    assert [file.name for file in tmp_path.rglob("*.*")] == ["mine.txt"]


# ---------------------------------------------------------------- validating
def test_all_problems_are_listed_together(tmp_path: Path) -> None:
    submission(tmp_path, "ioi_interpbench", "chess_gpt2")
    (tmp_path / "a_b_c").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "ioi_interpbench" / "log.csv").touch()
    problems = validate(tmp_path)
    assert "notes.txt: a file beside the folders; remove it" in problems
    assert "ioi_interpbench: log.csv is no .json or .pt file; remove it" in problems
    assert any(problem.startswith("a_b_c: the name is not TASK_MODEL") for problem in problems)
    assert "a_b_c: 0 files; expected 1 with scores, or 9 with membership" in problems
    assert any("no task 'chess'" in problem for problem in problems)
    for name, wrong, right in (("n_layers", 2, 12), ("n_heads", 3, 12), ("d_model", 8, 768)):
        assert f"chess_gpt2: importances.pt: cfg has {name}={wrong}, gpt2 has {right}" in problems
    assert len(problems) == 8


def test_two_models_and_two_tasks(tmp_path: Path) -> None:
    submission(tmp_path, "ioi_interpbench")
    assert sorted(validate(tmp_path)) == [
        "1 models (interpbench); a submission needs two or more",
        "1 tasks (ioi); a submission needs two or more",
    ]
    assert len(validate(submission(tmp_path / "empty", *()) if (tmp_path / "empty").mkdir() is None else tmp_path)) == 2
    with pytest.raises(EdgepruneError, match="no folder"):
        validate(tmp_path / "absent")


def spoil(folder: Path, **changes: object) -> None:
    content = torch.load(folder / "importances.pt", weights_only=True)
    torch.save(content | changes, folder / "importances.pt")


def test_scores_that_are_none(tmp_path: Path) -> None:
    name = "ioi_interpbench"
    folder = submission(tmp_path, name) / name
    scores = torch.load(folder / "importances.pt", weights_only=True)["edges_scores"]
    spoil(folder, edges_scores=torch.where(scores == scores[0, 0], float("nan"), scores))
    assert problems_of(tmp_path, name) == ["importances.pt: 1 scores are not finite numbers"]
    spoil(folder, edges_scores=torch.zeros_like(scores))
    assert problems_of(tmp_path, name) == ["importances.pt has no scores; a single file must have them"]
    spoil(folder, edges_scores=(scores > 0).float())
    assert "only scores of 0 and 1" in problems_of(tmp_path, name)[0]
    spoil(folder, edges_scores=scores, edges_in_graph=torch.ones_like(scores).bool())
    cells = scores.numel() - PLAIN.num_edges
    assert problems_of(tmp_path, name) == [f"importances.pt: {cells} cells that are no edge are in the graph"]
    (folder / "importances.pt").write_bytes(b"PK nonsense")
    assert "damaged" in problems_of(tmp_path, name)[0]


def test_sizes_of_nine(tmp_path: Path) -> None:
    name = "ioi_interpbench"
    folder = nine(tmp_path / name)
    assert problems_of(tmp_path, name) == []
    small, large = folder / "circuit_0.1.pt", folder / "circuit_0.2.pt"
    small.write_bytes((folder / "circuit_50.pt").read_bytes())
    found = problems_of(tmp_path, name)
    # In the order of sizes each circuit now stands one place too early, but for the last.
    assert [problem.partition(" has ")[0] for problem in found] == [
        f"circuit_{share:g}.pt" for share in SHARES[1:-1]
    ] + ["circuit_0.1.pt"]
    large.unlink()
    assert "8 files; expected 1 with scores, or 9 with membership" in problems_of(tmp_path, name)


def test_membership_beside_scores(tmp_path: Path) -> None:
    name = "ioi_interpbench"
    folder = nine(tmp_path / name)
    content = torch.load(folder / "circuit_5.pt", weights_only=True)
    content["edges_scores"][0, 0] = 0.5
    torch.save(content, folder / "circuit_5.pt")
    assert problems_of(tmp_path, name) == ["circuit_5.pt has scores; files beside others must have membership alone"]


def test_scores_of_nodes_alone_are_allowed(tmp_path: Path) -> None:
    name = "ioi_interpbench"
    nodes = {"input": 0.5, "a0.h0": -0.25, "m0": 3.0}
    content = {
        "cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 4},
        "nodes": {node: {"in_graph": True, "score": score} for node, score in nodes.items()},
        "edges": {},
    }
    (tmp_path / name).mkdir()
    (tmp_path / name / "importances.json").write_text(json.dumps(content))
    assert problems_of(tmp_path, name) == []
    for node in content["nodes"].values():  # pyright: ignore[reportAttributeAccessIssue]
        node["score"] = float("nan")
    (tmp_path / name / "importances.json").write_text(json.dumps(content))
    assert problems_of(tmp_path, name) == ["importances.json: 3 scores are not finite numbers"]


def test_a_file_that_the_leaderboard_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.formats.mib_submission.MAX_BYTES", 100)
    name = "ioi_interpbench"
    assert "the leaderboard skips" in problems_of(submission(tmp_path, name), name)[0]
