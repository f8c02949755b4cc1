"""`fit-weights`, and circuits on masked weights in `fit`, `evaluate`, `compare` and `draw`, on a compiled program."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeprune as ep
from edgeprune.cli import main
from edgeprune.cli.circuits import CircuitFiles
from edgeprune.models.weight_mask import WeightMask, applied_mask

CONFIGS = Path(__file__).parents[2] / "configs"
WEIGHTS, EDGES = CONFIGS / "weights" / "disco_induction.yaml", CONFIGS / "disco_induction.yaml"
NODES = CONFIGS / "weights" / "nodes_reverse.yaml"
TERM = "--model.recipe.sparsity_term.init_args"
FAST = (f"{TERM}.start", "0.1", "--model.recipe.learning_rate", "0.3")

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]


def arguments(folder: Path, steps: int, *more: str, command: str = "fit-weights", config: Path = WEIGHTS) -> list[str]:
    return [
        *(command, "--config", str(config), "--trainer.max_steps", str(steps)),
        *("--trainer.default_root_dir", str(folder), "--trainer.logger.init_args.save_dir", str(folder)),
        *("--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", "20"),
        *more,
    ]


def error_line(capsys: pytest.CaptureFixture[str], command: Sequence[str]) -> str:
    """The one line of a command that is refused."""
    assert main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on weights."""
    folder = tmp_path_factory.mktemp("weights")
    assert main(arguments(folder, 60, *FAST)) == 0
    return folder / "disco_weights_induction" / "version_0"


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """The circuit of a short run on edges, on the weights that the first one kept."""
    folder = tmp_path_factory.mktemp("edges")
    mask = ("--model.weight_mask", str(weights / "weight_mask.safetensors"))
    assert main(arguments(folder, 60, *mask, command="fit", config=EDGES)) == 0
    return folder / "disco_induction" / "version_0" / "circuits" / "final.safetensors"


# ------------------------------------------------------------------ the weight phase
def test_every_weight_that_the_program_did_not_write_goes_and_the_others_stay(weights: Path) -> None:
    mask, model = WeightMask.load(weights / "weight_mask.safetensors"), ep.load_model("compiled:induction")
    written = {name: value != 0 for name, value in model.hf.named_parameters() if name in mask.keep}
    assert {name: int(part.sum()) for name, part in mask.keep.items() if part.any()}
    assert all(torch.equal(mask.keep[name], part) for name, part in written.items())
    assert mask.header["method"] == "disco_gp_weights"
    assert mask.header["model"] == "compiled:induction"
    assert mask.header["task"]["task"] == "CompiledTask"
    with mask(model):
        found = ep.load_model("compiled:induction", weight_mask=str(weights / "weight_mask.safetensors"))
        assert all(map(torch.equal, model.hf.parameters(), found.hf.parameters()))


def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    steady = (f"{TERM}.start", "0.5", "--model.recipe.learning_rate", "0.5")  # whatever the number of steps is
    assert main(arguments(tmp_path / "whole", 12, *steady)) == 0
    assert main(arguments(tmp_path / "parts", 6, *steady)) == 0
    assert main(arguments(tmp_path / "parts", 12, *steady, "--ckpt_path", "last")) == 0
    whole, parts = (next((tmp_path / name).rglob("last.ckpt")) for name in ("whole", "parts"))
    states = [torch.load(path, weights_only=True)["state_dict"] for path in (whole, parts)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    masks = [next((tmp_path / name).rglob("weight_mask.safetensors")) for name in ("whole", "parts")]
    assert WeightMask.load(masks[0]).digest == WeightMask.load(masks[1]).digest


def test_evaluation_in_between_does_not_change_what_is_learned(tmp_path: Path) -> None:
    assert main(arguments(tmp_path / "often", 8, "--trainer.val_check_interval", "1")) == 0
    assert main(arguments(tmp_path / "never", 8, "--trainer.val_check_interval", "100")) == 0
    states = [
        torch.load(next((tmp_path / name).rglob("last.ckpt")), weights_only=True)["state_dict"]
        for name in ("often", "never")
    ]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model.objective", "cmd"), "no edge is closed here"),
        (("--model.recipe.tensors", "[nothing*]"), "no weight of the model fits 'nothing*'"),
        (("--model.complement_weight", "1.0"), "the complement's loss is not defined for some pairs"),
        (("--model.recipe.temperature", "0"), "temperature > 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert message in error_line(capsys, arguments(tmp_path, 4, *more))
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ node pruning
def test_a_mask_of_units_is_judged_as_a_circuit_of_all_edges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ("--model.recipe.learning_rate", "0.3", "--model.recipe.mlp_blocks", "null")
    assert main(arguments(tmp_path, 12, *recipe, config=NODES)) == 0
    assert "Units that still write something" in capsys.readouterr().out
    path = tmp_path / "nodes_reverse" / "version_0" / "weight_mask.safetensors"
    mask = WeightMask.load(path)
    assert mask.header["method"] == "node_pruning"
    assert mask.header["prices"] == {"heads": 0.01, "head_dimensions": 0.1, "neurons": 0.1}
    units, width = mask.header["units"]["neurons"], mask.keep["layers.0.mlp.fc_out.weight"].shape[0]
    assert units["of"] == [15] * 4
    assert sum(units["kept"]) * width == sum(int(part.sum()) for name, part in mask.keep.items() if "fc_out" in name)
    assert not any("bias" in name for name in mask.keep)
    command = ["evaluate", str(path), "--config", str(NODES), "--tests", "functional", "--limit", "8", "--draws", "20"]
    assert main([*command, "--json", str(tmp_path / "x.json")]) == 0
    assert "other weights" not in capsys.readouterr().err
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["about"]["model"] == "compiled:reverse"
    assert found["about"]["ablation"] == "zero"
    own = found["circuits"][0]["functional"]
    assert own["weights"]["share"] == pytest.approx(mask.density)
    assert own["edges"]["share"] == 1
    accuracy = own["weights"]["circuit"]["value"]
    assert own["edges"]["circuit"]["value"] == accuracy, "every edge on the kept weights is the kept weights"
    assert found["weights"]["digest"] == mask.digest


def test_a_mask_that_does_not_say_its_graph_is_one_line(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = WeightMask.load(weights / "weight_mask.safetensors")
    del mask.header["graph"]
    line = error_line(capsys, ["evaluate", str(mask.save(tmp_path / "old.safetensors")), "--config", str(EDGES)])
    assert "does not say how its model's edges are counted" in line


# ------------------------------------------------------------------ both phases
def test_edges_are_found_on_the_weights_that_were_kept(weights: Path, edges: Path) -> None:
    circuit, mask = ep.Circuit.load(edges), WeightMask.load(weights / "weight_mask.safetensors")
    about = circuit.header["weight_mask"]
    assert about["digest"] == mask.digest
    assert about["file"] == str(weights / "weight_mask.safetensors")
    assert about["density"] == pytest.approx(mask.density)
    assert circuit.header["method"] == "disco_gp"


def test_one_command_trains_both_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = EDGES.read_text().replace("max_steps: 300", "max_steps: 3").replace("val_check_interval: 100", "")
    (tmp_path / "edges.yaml").write_text(short)
    assert main(arguments(tmp_path, 3, "--then", "edges.yaml")) == 0
    circuit = ep.Circuit.load(next(tmp_path.rglob("circuits/final.safetensors")))
    assert circuit.header["weight_mask"]["file"] == str(next(tmp_path.rglob("weight_mask.safetensors")).resolve())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("init_mean:", "init_maen:"), "init_maen"),
        (("max_steps: 300", "max_steps: many"), "max_steps"),
        (("compiled:induction", "compiled:reverse"), "is for model 'compiled:reverse', the weights are those of"),
        (("program: induction", "program: inductoin"), "inductoin"),
    ],
)
def test_a_second_phase_that_cannot_begin_is_refused_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = EDGES.read_text()
    assert change[0] in text
    (tmp_path / "edges.yaml").write_text(text.replace(*change))
    assert message in error_line(capsys, arguments(tmp_path, 3, "--then", "edges.yaml"))
    assert [path.name for path in tmp_path.iterdir()] == ["edges.yaml"]


def test_a_circuit_is_evaluated_on_its_weights_and_both_by_what_they_answer(
    edges: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "evaluate",
        str(edges),
        "--config",
        str(EDGES),
        "--tests",
        "functional",
        "--limit",
        "20",
        "--draws",
        "50",
    ]
    assert main([*command, "--json", str(tmp_path / "x.json"), "--report", str(tmp_path / "x.html")]) == 0
    captured = capsys.readouterr()
    assert "other weights" not in captured.err
    assert "functional, weights (2.98 % kept): accuracy 1.000 [1.000, 1.000] with, 0.000" in captured.out
    found = json.loads((tmp_path / "x.json").read_text())
    mask = WeightMask.load(weights / "weight_mask.safetensors")
    assert found["weights"]["density"] == pytest.approx(mask.density)
    assert found["weights"]["tensors"] == mask.densities()
    own = found["circuits"][0]["functional"]
    assert own["weights"]["share"] == pytest.approx(mask.density)
    assert own["full"]["value"] == 1
    page = (tmp_path / "x.html").read_text()
    assert "Functional faithfulness and completeness" in page
    assert "Weights kept, by tensor" in page


def test_a_drawing_says_how_much_of_the_weights_is_kept(edges: Path, tmp_path: Path) -> None:
    assert main(["draw", str(edges), "--out", str(tmp_path / "x.html")]) == 0
    text = (tmp_path / "x.html").read_text()
    assert '["weights kept","2.976 %"]' in text
    assert '"weights":{"a0.h0":"3.571 %","a1.h0":"2.381 %"}' in text


def test_circuits_on_masked_weights_are_compared_with_their_masks(
    edges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(edges), str(edges), "--json", str(tmp_path / "x.json")]) == 0
    assert "A, B: Jaccard index of the weights 1.000" in capsys.readouterr().out
    found = json.loads((tmp_path / "x.json").read_text())["weight_masks"]
    assert found == {"kept": [pytest.approx(40 / 1344)] * 2, "pairs": [{"a": 0, "b": 1, "jaccard": 1.0}]}


# ------------------------------------------------------------------ files that are not there, or others
def moved(edges: Path, weights: Path, folder: Path, change: Any) -> Path:
    """The circuit and its mask in another folder, the circuit's header changed."""
    circuit = ep.Circuit.load(edges)
    circuit.header["weight_mask"] |= change
    shutil.copy(weights / "weight_mask.safetensors", folder / "weight_mask.safetensors")
    return circuit.save(folder / "circuit.safetensors")


def test_a_mask_that_moved_along_with_its_circuit_is_found(edges: Path, weights: Path, tmp_path: Path) -> None:
    path = moved(edges, weights, tmp_path, {"file": "/nowhere/weight_mask.safetensors"})
    assert main(["evaluate", str(path), "--config", str(EDGES), "--limit", "4", "--draws", "10"]) == 0


def test_a_mask_that_is_missing_or_another_one_is_one_line(
    edges: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = moved(edges, weights, tmp_path, {"file": "/nowhere/gone.safetensors"})
    command = ["evaluate", str(path), "--config", str(EDGES)]
    assert "needs its weight mask, /nowhere/gone.safetensors, which is not there" in error_line(capsys, command)
    moved(edges, weights, tmp_path, {"digest": "0123"})
    assert "holds another weight mask" in error_line(capsys, command)


def test_circuits_on_other_weights_are_not_run_together(
    edges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    circuit = ep.Circuit.load(edges)
    del circuit.header["weight_mask"]
    plain = circuit.save(tmp_path / "plain.safetensors")
    line = error_line(capsys, ["evaluate", str(edges), str(plain), "--config", str(EDGES)])
    assert "do not have the same weight mask; run them apart" in line


def test_a_mask_of_another_model_is_one_line(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = ("--model.weight_mask", str(weights / "weight_mask.safetensors"))
    more = (*mask, "--model.name", "compiled:reverse", "--data.task.init_args.program", "reverse")
    line = error_line(capsys, arguments(tmp_path, 2, *more, command="fit", config=EDGES))
    assert "which the model has not; load the model it was made for, compiled:induction" in line
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ masks of different weights, and none
def on_mask(folder: Path, name: str, weights: str | None = None) -> Path:
    """A circuit of 8 edges with a mask that keeps half of a tensor; `weights`: the mask says it is of other ones."""
    model = ep.load_model("compiled:induction")
    tensor = next(item for item, value in model.hf.named_parameters() if value.ndim == 2 and ".0." in item)
    keep = torch.arange(dict(model.hf.named_parameters())[tensor].numel()) % 2 == 0
    mask = WeightMask.of(model, {tensor: keep.view_as(dict(model.hf.named_parameters())[tensor])}, {})
    if weights is not None:
        mask = WeightMask(mask.keep, weights, mask.nodes, mask.header)
    path = mask.save(folder / f"{name}-mask.safetensors")
    circuit = ep.Circuit.random(model.graph, 8)
    about = {"file": str(path), "digest": mask.digest, "density": mask.density, "nodes": mask.nodes}
    circuit.header.update({"model": "compiled:induction", "weight_mask": about})
    return circuit.save(folder / f"{name}.safetensors")


@pytest.mark.parametrize("more", [[], ["--model", "compiled:induction"]])
def test_of_masks_of_different_weights_edges_alone_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    first, second = on_mask(tmp_path, "first"), on_mask(tmp_path, "second", "0" * 16)
    assert main(["compare", str(first), str(second), *more, "--json", str(tmp_path / "x.json")]) == 0
    captured = capsys.readouterr()
    assert "A, B: only edges are compared, for the weight masks are of different models' weights" in captured.out
    assert "warning" not in captured.err
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["weight_masks"]["pairs"] == [{"a": 0, "b": 1, "jaccard": None}]
    assert found["pairs"][0]["both"] == 8
    line = error_line(capsys, ["compare", str(first), str(second), "--config", str(EDGES)])
    assert "do not have the same weight mask; run them apart" in line


def test_a_file_that_names_no_mask_runs_with_one_after_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of other tools; a native one is refused, for it would say so."""
    own, other = on_mask(tmp_path, "own"), tmp_path / "other.json"
    other.write_text("{}")
    files = CircuitFiles.open([str(other), str(own)])
    for runs, expected in ((True, 1), (False, 0)):
        model = files.load_model("compiled:induction", "cpu", runs=runs)
        assert (applied_mask(model) is not None) == runs
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == expected
        assert all(f"{other} names no weight mask, so it was found on other weights" in line for line in lines)
