"""`fit`, `test` and `evaluate` from one end to the other, in this process, on the model of the quickstart."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edgeprune.circuit import Circuit
from edgeprune.cli import main

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
STEPS = 12
TERM = "--model.recipe.init_args.sparsity_term.init_args"

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
# Going on in another folder than the checkpoint's is what these tests are about.
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]


def arguments(folder: Path, *more: str, command: str = "fit", config: Path = QUICKSTART) -> list[str]:
    return [
        *(command, "--config", str(config)),
        *("--trainer.max_steps", str(STEPS)),
        *("--trainer.default_root_dir", str(folder)),
        *("--trainer.logger.init_args.save_dir", str(folder)),
        *("--trainer.val_check_interval", "5"),
        *("--trainer.log_every_n_steps", "1"),
        *("--trainer.enable_progress_bar", "false"),
        *more,
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one short run whose gates move: its learning rate is high."""
    folder = tmp_path_factory.mktemp("fit")
    assert main(arguments(folder, "--model.recipe.init_args.learning_rate", "0.5")) == 0
    return folder / "quickstart" / "version_0"


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("edgeprune: error: ")
    return lines[0]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# ---------------------------------------------------------------- what a run leaves behind
def test_a_run_leaves_its_circuits_frontier_log_config_and_checkpoint(run: Path, checkpoint: Path) -> None:
    circuits = sorted(path.name for path in (run / "circuits").iterdir())
    assert circuits == ["final.safetensors", "sparsity-0.5000.safetensors", "sparsity-0.8000.safetensors"]
    assert (run / "frontier.png").read_bytes().startswith(b"\x89PNG")
    rows = table(run / "frontier.csv")
    assert len(rows) == len(circuits)
    assert {row["edges"] for row in rows} >= {"47", "19"}  # half and a fifth of 94
    assert [row["knee"] for row in rows].count("True") <= 1
    logged = [row for row in table(run / "metrics.csv") if row["train/penalty"]]
    assert [int(row["step"]) for row in logged] == list(range(STEPS))
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["name"] == "compiled:reverse"
    assert checkpoint.is_file()


def test_a_checkpoint_holds_the_recipe_and_no_model(checkpoint: Path) -> None:
    assert checkpoint.stat().st_size < 60_000
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state
    assert all(name.startswith("recipe.") for name in state)


def test_circuits_of_a_checkpoint_have_exactly_the_edges_asked_for(run: Path, checkpoint: Path) -> None:
    half = Circuit.from_checkpoint(checkpoint, sparsity=0.5)
    assert half.num_edges == half.graph.num_edges // 2 == 47
    assert half.header["step"] == STEPS
    final = Circuit.load(run / "circuits" / "final.safetensors")
    assert Circuit.from_checkpoint(checkpoint).edges() == final.edges()


def test_the_same_seed_gives_the_same_run(tmp_path: Path, run: Path) -> None:
    assert main(arguments(tmp_path, "--model.recipe.init_args.learning_rate", "0.5")) == 0
    again = Circuit.load(tmp_path / "quickstart" / "version_0" / "circuits" / "final.safetensors")
    first = Circuit.load(run / "circuits" / "final.safetensors")
    assert again.scores is not None
    assert first.scores is not None
    assert torch.equal(again.scores, first.scores)


def test_snapshots_at_nearly_equal_sparsities_are_all_kept(tmp_path: Path) -> None:
    options = {"sparsities": [0.79, 0.79001, 0.79004]}
    config = changed(tmp_path, {"callbacks": [{"class_path": "SnapshotCircuits", "init_args": options}]})
    assert main(arguments(tmp_path, "--trainer.max_steps", "1", config=config)) == 0
    names = sorted(path.stem for path in (tmp_path / "quickstart" / "version_0" / "circuits").iterdir())
    assert names == ["final", "sparsity-0.7900", "sparsity-0.79001", "sparsity-0.79004"]


# ---------------------------------------------------------------- checkpoints
def test_the_config_wins_over_the_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    more = (f"{TERM}.worth", "1e-4", "--trainer.max_steps", str(STEPS + 4), "--ckpt_path", str(checkpoint))
    assert main(arguments(tmp_path, *more)) == 0
    folder = tmp_path / "quickstart" / "version_0"
    rows = [row for row in table(folder / "metrics.csv") if row["train/price"]]
    assert [int(row["step"]) for row in rows] == list(range(STEPS, STEPS + 4))
    before, *prices = (float(row["train/price"]) for row in rows)  # the checkpoint's last, then at most the config's
    assert prices == pytest.approx([prices[0]] * 3)
    assert 0 < prices[0] < before / 2


def test_a_checkpoint_of_another_graph_is_refused(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--model.split_embedding", "false", "--ckpt_path", str(checkpoint))
    config = changed(tmp_path, {"callbacks": []})  # the true circuit would not fit this graph either
    assert main(arguments(tmp_path, *more, config=config)) == 2
    assert "the checkpoint's masks are for a graph of {" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_test_judges_the_circuit_of_a_checkpoint(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, "--ckpt_path", str(checkpoint), command="test")) == 0
    assert "test/kl" in capsys.readouterr().out


# ---------------------------------------------------------------- evaluate
def test_evaluate_repeats_the_snapshot_s_own_figures(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = run / "circuits" / "sparsity-0.5000.safetensors", tmp_path / "out.json"
    assert main(["evaluate", str(path), "--config", str(QUICKSTART), "--split", "validation", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    (row,) = json.loads(out.read_text())["circuits"]
    header, found = Circuit.load(path).header, row["ablations"]["zero"]
    for name in ("kl", "accuracy", "exact_match"):
        assert found["measures"][name]["value"] == pytest.approx(header["metrics"][name], abs=1e-6)
    assert row["edges"] == 47
    assert f"{found['measures']['kl']['value']:.3f}" in shown
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


# ---------------------------------------------------------------- mistakes
def test_print_config_shows_the_config_and_leaves_with_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, "--print_config")) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] == STEPS
    assert not files(tmp_path)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown key": (["--model.nonsense", "1"], "nonsense"),
    "option of another callback": (["--trainer.callbacks.init_args.sparsities", "[0.5]"], "has no option 'sparsities'"),
    "unknown compiled model": (["--model.name", "compiled:nope"], "nope"),
    "unknown task": (["--data.task", "NoSuchTask"], "there is no 'NoSuchTask'; known are AutoCircuitTask, "),
    "unknown recipe": (["--model.recipe", "Nope"], "there is no 'Nope'; known are DiscoGP, EdgePruning, "),
    "unknown ablation": (["--model.ablation", "noise"], "noise"),
    "negative batch": (["--data.batch_size", "-1"], "-1"),
    "truth without embeddings apart": (["--model.split_embedding", "false"], "set model.split_embedding to true"),
    "divergence of a single number": (["--model.name", "compiled:or_gate"], "set model.objective to squared_error"),
    "no wrong answers": (["--model.objective", "cmd"], "'cmd' is not defined for some pairs (no right or wrong answer"),
    "nothing to be uncertain of": (["--model.complement_weight", "1"], "leave complement_weight out"),
}


@pytest.mark.parametrize(("more", "named"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    assert main(arguments(tmp_path, *more)) == 2
    assert named in error_line(capsys)
    assert not files(tmp_path)


def test_pairs_of_another_program_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, "--data.task.init_args.program", "sort")) == 2
    assert "target id 3, model 'compiled:reverse' knows 0 to 2: they are made for another model" in error_line(capsys)


def changed(tmp_path: Path, change: dict[str, Any]) -> Path:
    """The quickstart with some of its trainer section replaced, in a folder beside the run's."""
    config = yaml.safe_load(QUICKSTART.read_text())
    config["trainer"] |= change
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    ("callback", "options", "named"),
    [
        ("SnapshotCircuits", {"sparsities": [1.5]}, "1.5"),
        ("CompareToReference", {"reference": "missing.json"}, "missing.json"),
        ("CompareToReference", {"reference": "truth:mean"}, "no true circuit is known under ablation 'mean'"),
    ],
)
def test_a_callback_s_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], callback: str, options: dict[str, Any], named: str
) -> None:
    config = changed(tmp_path, {"callbacks": [{"class_path": callback, "init_args": options}]})
    assert main(arguments(tmp_path / "run", config=config)) == 2
    assert named in error_line(capsys)
    assert not files(tmp_path / "run")


def test_a_missing_config_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, config=tmp_path / "missing.yaml")) == 2
    assert "missing.yaml" in error_line(capsys)
    assert not files(tmp_path)


def test_a_config_that_is_no_yaml_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("model: [unclosed\n")
    assert main(arguments(tmp_path / "run", config=config)) == 2
    assert error_line(capsys)
    assert not (tmp_path / "run").exists()


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    line = error_line(capsys)
    assert "'train'" in line
    assert "fit" in line


def test_a_damaged_circuit_is_refused(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (run / "circuits" / "final.safetensors").read_bytes()
    broken, out = tmp_path / "broken.safetensors", tmp_path / "out.json"
    broken.write_bytes(whole[: len(whole) // 2])
    assert main(["evaluate", str(broken), "--config", str(QUICKSTART), "--json", str(out)]) == 2
    assert "broken.safetensors" in error_line(capsys)
    assert not out.exists()
