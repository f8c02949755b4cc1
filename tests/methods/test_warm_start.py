"""Warm starts of Edge Pruning: ranks, frozen edges, and runs that go on without the file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.compiled import true_circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import EdgePruning, WarmStart
from edgeprune.methods.warm_start import ranks
from edgeprune.models.loading import load_model
from edgeprune.objectives import GeometricPenalty, Lagrangian
from tests.methods.fits import ROOT, XPROPORTION, fit, only

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))
PATH = "--model.recipe.init_args.warm_start.path"

# See tests/cli/test_fit.py for both.
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]


def noise(graph: EdgeGraph = GRAPH, seed: int = 0) -> Tensor:
    return torch.randn(graph.shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return Circuit.from_scores(GRAPH, noise(), num_edges=30).save(tmp_path / "scores.safetensors")


def build(path: Path, term: Any = None, recipe: dict[str, Any] | None = None, **options: Any) -> EdgePruning:
    made = EdgePruning(term or GeometricPenalty(1.0, 1.0), warm_start=WarmStart(str(path), **options), **(recipe or {}))
    made.build(GRAPH)
    return made


def start(recipe: EdgePruning) -> Tensor:
    return recipe.edges.log_alpha.detach()


# ------------------------------------------------------------------ where gates start
def test_ranks_are_linear_and_ties_share_theirs() -> None:
    assert ranks(torch.tensor([3.0, -1.0, 100.0, 0.5, 7.0])).tolist() == [0, -1, 1, -0.5, 0.5]
    assert ranks(torch.tensor([0.0, 0.0, 0.0, 5.0, 9.0])).tolist() == pytest.approx([-1, -1, -1, 1 / 3, 1])
    assert ranks(torch.tensor([2.0, 2.0])).tolist() == [0, 0]


def test_log_alphas_are_linear_in_the_rank_of_the_scores(scores: Path) -> None:
    found = start(build(scores, spread=1.5, recipe={"init_mean": 4.0}))
    order = GRAPH.to_vector(noise()).argsort()
    torch.testing.assert_close(found[order], torch.linspace(2.5, 5.5, GRAPH.num_edges))


def test_scores_can_be_ranked_by_magnitude(scores: Path) -> None:
    found = start(build(scores, magnitude=True))
    assert torch.equal(found.argsort(), GRAPH.to_vector(noise()).abs().argsort())


@pytest.mark.parametrize("header", [{"selection": {"absolute": True}}, {"method": "acdc", "absolute": True}])
def test_a_circuit_is_taken_as_it_was_cut(tmp_path: Path, header: dict[str, Any]) -> None:
    """By absolute scores, and not every best edge kept: what dangled is gone."""
    sizes = noise().abs()
    keep = Circuit.from_scores(GRAPH, sizes, num_edges=30).keep & ~Circuit.random(GRAPH, 40).keep
    path = Circuit(GRAPH, keep, noise(), header).save(tmp_path / "circuit.safetensors")
    trained = int(keep.sum())
    found = build(path, keep_below=trained / GRAPH.num_edges)
    assert found.num_open() == trained
    assert torch.equal(Circuit.from_scores(GRAPH, found.scores(), num_edges=trained).keep, keep)
    kept = GRAPH.to_vector(keep)
    assert torch.equal(start(build(path))[kept].argsort(), GRAPH.to_vector(sizes)[kept].argsort())
    assert not torch.equal(start(build(path, magnitude=False))[kept].argsort(), GRAPH.to_vector(sizes)[kept].argsort())


def test_an_edge_list_of_another_tool_is_a_start(tmp_path: Path) -> None:
    edges = [
        ["blocks.1.hook_resid_post", [None], "blocks.0.hook_mlp_out", [None]],
        ["blocks.1.hook_q_input", [None, None, 3], "blocks.0.attn.hook_result", [None, None, 1]],
        ["blocks.0.hook_mlp_in", [None], "blocks.0.hook_resid_pre", [None]],
    ]
    (tmp_path / "acdc.json").write_text(json.dumps(edges))
    kept = GRAPH.keep_matrix(["m0->logits", "a0.h1->a1.h3.q", "embed->m0"])
    found = build(tmp_path / "acdc.json", keep_below=3 / GRAPH.num_edges)
    assert torch.equal(found.circuit().keep, kept)


def test_a_circuit_without_scores_has_two_levels(tmp_path: Path) -> None:
    circuit = Circuit.from_edges(GRAPH, ["embed->a0.h1.q", "m1->logits"])
    found = start(build(circuit.save(tmp_path / "circuit.safetensors"), spread=0.5))
    assert torch.equal(found, torch.where(GRAPH.to_vector(circuit.keep), 2.5, 1.5))


def test_without_a_warm_start_nothing_changes() -> None:
    plain = EdgePruning(GeometricPenalty())
    plain.build(GRAPH)
    assert list(plain.state_dict()) == ["edges.log_alpha"]
    assert (start(plain) == 2).all()
    assert "warm_start" not in plain.describe()
    plain.check_started()


def test_the_header_records_file_and_settings(scores: Path) -> None:
    record = build(scores, spread=0.25, keep_below=0.5).circuit().header["warm_start"]
    assert record == {
        "path": str(scores),
        "spread": 0.25,
        "keep_below": 0.5,
        "magnitude": None,
        "sha256": hashlib.sha256(scores.read_bytes()).hexdigest(),
    }


# ------------------------------------------------------------------ frozen edges
def frozen_of(share: float) -> Tensor:
    values = GRAPH.to_vector(noise())
    keep = round(share * GRAPH.num_edges)
    return values < values.sort(descending=True).values[keep - 1]


@pytest.mark.parametrize("node_gates", [False, True])
def test_frozen_edges_are_closed_and_feel_nothing(scores: Path, node_gates: bool) -> None:
    recipe = build(scores, keep_below=0.3, recipe={"node_gates": node_gates})
    frozen = frozen_of(0.3)
    assert int((~frozen).sum()) == round(0.3 * GRAPH.num_edges)
    for step in range(5):
        gates = recipe.sample(0, step)
        assert (GRAPH.to_vector(gates)[frozen] == 0).all()
        assert (GRAPH.to_vector(gates)[~frozen] > 0).float().mean() > 0.5
        (gradient,) = torch.autograd.grad((gates * noise()).sum() + recipe.penalty(gates, 0.0), recipe.edges.log_alpha)
        assert (gradient[frozen] == 0).all()
        assert (gradient[~frozen] != 0).all()


@pytest.mark.parametrize("estimator", ["pathwise", "local"])
def test_frozen_edges_are_never_updated(scores: Path, estimator: Any) -> None:
    options = {"estimator": estimator, "init_mean": 0.0, "num_flips": GRAPH.num_edges}
    recipe = build(scores, Lagrangian(0.9), options, keep_below=0.3)
    frozen, before = frozen_of(0.3), start(recipe).clone()
    optimizer = torch.optim.AdamW(recipe.parameter_groups())
    seen: list[Tensor] = []

    def error_of(gates: Tensor) -> Tensor:
        seen.append(GRAPH.to_vector(gates.detach()))
        return (gates * noise(seed=1)).sum()

    for step in range(3):
        error, gates = recipe.expected_error(error_of, 0, step)
        optimizer.zero_grad()
        (error + recipe.penalty(gates, 0.5)).backward()
        optimizer.step()
        assert (GRAPH.to_vector(gates)[frozen] == 0).all()
    assert len(seen) == (3 if estimator == "pathwise" else 3 * (1 + int((~frozen).sum())))
    assert all((values[frozen] == 0).all() for values in seen)
    assert torch.equal(start(recipe)[frozen], before[frozen])
    assert (start(recipe)[~frozen] != before[~frozen]).all()


@pytest.mark.parametrize("estimator", ["pathwise", "local"])
def test_frozen_edges_count_as_closed(scores: Path, estimator: Any) -> None:
    recipe = build(scores, keep_below=0.3, recipe={"init_mean": 50.0, "estimator": estimator})
    share = round(0.3 * GRAPH.num_edges) / GRAPH.num_edges
    assert recipe.penalty(recipe.sample(0, 0), 0.0).item() == pytest.approx(share)
    assert recipe.state(0.0)["expected_open"] == pytest.approx(share)
    assert recipe.num_open() == round(0.3 * GRAPH.num_edges)
    assert recipe.sparsity == 1 - share
    sampled = build(scores, keep_below=0.3, recipe={"init_mean": 50.0, "penalty_on": "sample"})
    assert sampled.penalty(sampled.sample(0, 0), 0.0).item() == pytest.approx(share)


@pytest.mark.parametrize("node_gates", [False, True])
def test_frozen_edges_rank_last_in_the_order_of_the_file(scores: Path, node_gates: bool) -> None:
    recipe = build(scores, keep_below=0.3, recipe={"node_gates": node_gates})
    frozen = frozen_of(0.3)
    with torch.no_grad():  # the trained ones end up anywhere
        recipe.edges.log_alpha[~frozen] = 9 * noise(seed=2).flatten()[: int((~frozen).sum())]
    found = GRAPH.to_vector(recipe.scores())
    assert found[frozen].max() < min(0.0, found[~frozen].min().item())
    assert torch.equal(found[frozen].argsort(), GRAPH.to_vector(noise())[frozen].argsort())
    larger = recipe.circuit(sparsity=0.5)
    assert GRAPH.to_vector(larger.keep)[~frozen].all()


def test_a_share_of_one_freezes_nothing(scores: Path) -> None:
    recipe = build(scores, keep_below=1.0)
    assert torch.equal(GRAPH.to_vector(recipe.scores()), start(recipe))
    assert recipe.num_open() == GRAPH.num_edges


# ------------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"spread": -1.0}, "spread must be a finite number >= 0, got -1.0"),
        ({"spread": float("inf")}, "got inf"),
        ({"keep_below": 0.0}, r"keep_below must lie in \(0, 1\], got 0.0"),
        ({"keep_below": 1.5}, "got 1.5"),
        ({"layer_sparsity": 1.0}, r"layer_sparsity must lie in \(0, 1\), got 1.0"),
        ({"layer_sparsity": 0.0}, "got 0.0"),
        ({"softness": 0.0}, "softness must be a finite number > 0, got 0.0"),
        ({"softness": float("inf")}, "got inf"),
        ({"calibrated": "median"}, "calibrated must be 'open' or 'mean', got 'median'"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(EdgepruneError, match=named):
        WarmStart("scores.safetensors", **options)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    other = EdgeGraph(ArchSpec(num_layers=3, num_heads=4, num_kv_heads=2))
    path = Circuit.random(other, 10).save(tmp_path / "other.safetensors")
    with pytest.raises(EdgepruneError, match="num_layers=3"):
        build(path)
    holes = noise()
    holes[0, 0] = float("inf")
    path = Circuit(GRAPH, GRAPH.exists, holes).save(tmp_path / "holes.safetensors")
    with pytest.raises(EdgepruneError, match="NaN or infinity cannot be ranked"):
        build(path)
    path = tmp_path / "cut.safetensors"
    path.write_bytes(Circuit.random(GRAPH, 10).save(tmp_path / "whole.safetensors").read_bytes()[:200])
    with pytest.raises(EdgepruneError, match="not a whole circuit file"):
        build(path)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_missing_file_is_one_line_and_nothing_is_written(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [command, "--config", str(ROOT / "configs" / "warm_start.yaml"), PATH, str(tmp_path / "nothing")]
    arguments += ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger.init_args.save_dir", str(tmp_path)]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no circuit or score file at {tmp_path / 'nothing'} to start from" in line
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ runs
def compiled_scores(name: str, path: Path) -> Path:
    """Scores that are right about two thirds of the true edges: noise, with the truth one deviation up."""
    graph = load_model(f"compiled:{name}").graph
    truth = graph.keep_matrix(true_circuit(name, "interchange"))
    return Circuit.from_scores(graph, noise(graph, 5) + 2.0 * truth, num_edges=len(truth)).save(path)


def test_a_run_goes_on_without_the_file(tmp_path: Path) -> None:
    path = compiled_scores("reverse", tmp_path / "scores.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert fit(tmp_path / "whole", "warm_start", 6, PATH, str(path)) == 0
    assert fit(tmp_path / "half", "warm_start", 3, PATH, str(path)) == 0
    path.unlink()
    more = (PATH, str(path), "--ckpt_path", str(only(tmp_path / "half", "last.ckpt")))
    # half of a run has another schedule of the penalty, so that only what is frozen must agree
    assert fit(tmp_path / "rest", "warm_start", 6, *more) == 0
    whole, rest = (torch.load(only(tmp_path / run, "last.ckpt"), weights_only=True) for run in ("whole", "rest"))
    frozen = whole["state_dict"]["recipe.start.frozen"]
    assert int(frozen.sum()) == 47
    assert torch.equal(frozen, rest["state_dict"]["recipe.start.frozen"])
    name = "recipe.edges.log_alpha"
    assert torch.equal(whole["state_dict"][name][frozen], rest["state_dict"][name][frozen])
    assert (whole["state_dict"][name][~frozen] != rest["state_dict"][name][~frozen]).any()
    header = Circuit.load(only(tmp_path / "rest", "final.safetensors")).header
    assert header["warm_start"]["sha256"] == digest
    assert header["step"] == 6


def test_a_warm_start_finds_the_circuit_of_xproportion(tmp_path: Path) -> None:
    path = compiled_scores("xproportion", tmp_path / "scores.safetensors")
    assert fit(tmp_path, "warm_start", 100, *XPROPORTION, PATH, str(path)) == 0
    found = Circuit.load(only(tmp_path, "final.safetensors"))
    assert set(found.edges()) == set(true_circuit("xproportion", "interchange"))
