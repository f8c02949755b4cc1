"""`fit`, `validate`, `test` and `discover` with ablations that take their values from pairs."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from datamodules import PairDataModule
from datamodules.collate import collate
from datamodules.tasks.compiled import CompiledTask
from edgeprune.ablations import mean_of_pairs, save_states
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.metrics.measure import measure_examples
from edgeprune.models.loading import load_model
from tests.cli.test_discover import arguments as discover
from tests.cli.test_discover import error_line
from tests.cli.test_fit import QUICKSTART
from tests.cli.test_fit import arguments as fit

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The quickstart, with three steps and without callbacks."""
    options = yaml.safe_load(QUICKSTART.read_text())
    options["trainer"]["callbacks"] = []
    options["model"]["recipe"]["init_args"]["sparsity_term"]["init_args"].pop("worth")  # which a callback measures
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def prepared(ablation: str, data: PairDataModule) -> ReferenceRuns:
    """Runs with the values that a command should have given them."""
    runs = ReferenceRuns(load_model("compiled:reverse"), ablation)
    for split in ("train", "validation", "test"):
        runs.prepare([collate(list(enumerate(data.pairs(split))))], split)
    return runs


@pytest.mark.parametrize("ablation", ["mean", "mean:positional:corrupted", "resample:seed=3"])
def test_discover_takes_values_from_all_pairs_of_a_split(tmp_path: Path, ablation: str) -> None:
    """Whatever `--limit` says about those on which circuits are found. One edge is too few, so ablations differ."""
    out = tmp_path / "out"
    assert main(discover(out, "--model.ablation", ablation, "--selection.sparsities", "[0.99]")) == 0
    circuit = Circuit.load(out / "circuits" / "sparsity-0.9900.safetensors")
    data = PairDataModule(CompiledTask("reverse", lengths=(3,)), cache=False)
    runs = prepared(ablation, data)
    assert circuit.header["ablation"] == runs.ablation
    batch = collate(list(enumerate(data.pairs("validation"))))
    (found,) = measure_examples(runs.model, runs, [batch], [circuit.gates()], "validation").as_dicts()
    assert circuit.header["metrics"] == pytest.approx(found, rel=1e-4, abs=1e-6, nan_ok=True)
    other = ReferenceRuns(runs.model, "interchange")
    (elsewhere,) = measure_examples(runs.model, other, [batch], [circuit.gates()], "validation").as_dicts()
    assert found["squared_error"] != pytest.approx(elsewhere["squared_error"], rel=1e-3)


def test_evaluate_and_compare_take_values_from_pairs(tmp_path: Path, config: Path) -> None:
    """A circuit's own ablation is the default; every circuit of `compare` runs under one."""
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    assert main(discover(out, "--model.ablation", "mean:corrupted", "--selection.sparsities", "[0.99]")) == 0
    path = out / "circuits" / "sparsity-0.9900.safetensors"
    told = Circuit.load(path).header["metrics"]
    options = yaml.safe_load(config.read_text())
    options["data"]["task"]["init_args"]["lengths"] = [3]
    config.write_text(yaml.safe_dump(options))
    rest = ["--config", str(config), "--split", "validation", "--json", str(figures)]
    assert main(["evaluate", str(path), *rest]) == 0
    result = json.loads(figures.read_text())
    assert result["about"]["ablation"] == "mean:corrupted"
    error = result["circuits"][0]["ablations"]["mean:corrupted"]["measures"]["squared_error"]["value"]
    assert error == pytest.approx(told["squared_error"], rel=1e-4)
    assert main(["compare", str(path), str(path), *rest]) == 0
    assert json.loads(figures.read_text())["circuits"][0]["squared_error"] == pytest.approx(error)
    assert main(["evaluate", str(path), *rest, "--ablation", "zero"]) == 0
    other = json.loads(figures.read_text())["circuits"][0]["ablations"]["zero"]["measures"]["squared_error"]["value"]
    assert other != pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_an_unknown_ablation_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [command, "a.safetensors", "b.safetensors", "--config", str(tmp_path), "--ablation", "noise"]
    assert main(wrong) == 2
    assert "'noise'" in error_line(capsys)


def test_discover_reads_constants_from_a_file(tmp_path: Path) -> None:
    model = load_model("compiled:reverse")
    data = PairDataModule(CompiledTask("reverse", lengths=(3,)), cache=False)
    states = mean_of_pairs(model, [collate(list(enumerate(data.pairs("train"))))])
    path = save_states(tmp_path / "means.safetensors", model, states, {})
    scores = list[torch.Tensor]()
    for number, ablation in enumerate(("mean", f"optimal:{path}")):
        out = tmp_path / str(number)
        assert main(discover(out, "--model.ablation", ablation, "--selection.sparsities", "[0.8]")) == 0
        found = Circuit.load(out / "scores.safetensors").scores
        assert found is not None
        scores.append(found)
    assert torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("ablation", ["mean:both:positional", "resample"])
def test_fit_validate_and_test_take_values_from_pairs(tmp_path: Path, config: Path, ablation: str) -> None:
    """The circuit is one of few edges: its gates start nearly closed."""
    more = ("--model.ablation", ablation, "--trainer.max_steps", "3", "--trainer.val_check_interval", "2")
    assert main(fit(tmp_path, *more, "--model.recipe.init_args.init_mean", "-1", config=config)) == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    circuit = Circuit.from_checkpoint(checkpoint)
    assert circuit.header["ablation"] == ablation
    for command in ("validate", "test"):
        rest = ("--model.ablation", ablation, "--ckpt_path", str(checkpoint))
        assert main(fit(tmp_path / command, *rest, command=command, config=config)) == 0
    path = next((tmp_path / "test").rglob("metrics.csv"))
    names, values = (line.split(",") for line in path.read_text().splitlines())
    measured = dict(zip(names, values, strict=True))
    data = PairDataModule(CompiledTask("reverse"), cache=False)
    runs, batch = prepared(ablation, data), collate(list(enumerate(data.pairs("test"))))
    (found,) = measure_examples(runs.model, runs, [batch], [circuit.gates()], "test").as_dicts()
    assert float(measured["test/kl"]) == pytest.approx(found["kl"], rel=1e-4)
    assert found["kl"] > 0.01


MISTAKES = {
    "unknown option": (["--model.ablation", "mean:pooled"], "knows clean, corrupted, both, positional, got 'pooled'"),
    "missing file": (["--model.ablation", "optimal:none.safetensors"], "no file of states at none.safetensors"),
    "no pairs to average": (
        ["--model.ablation", "mean", "--split", "test", "--data.task.init_args.num_train", "0"],
        "gives no train pairs",
    ),
    "no other pair": (
        ["--model.ablation", "resample", "--data.task.init_args.num_validation", "1"],
        "another pair of the split, which has 1",
    ),
}


@pytest.mark.parametrize(("more", "named"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    assert main(discover(tmp_path / "out", *more)) == 2
    assert named in error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_longer_validation_prompts_are_refused_before_anything_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = PairDataModule.pairs
    monkeypatch.setattr(
        PairDataModule,
        "pairs",
        lambda self, split: [pair for pair in pairs(self, split) if split != "train" or len(pair.clean) < 4],
    )
    more = ("--model.ablation", "mean:positional", "--data.task.init_args.lengths", "[2, 3]")
    assert main(discover(tmp_path / "out", *more)) == 2
    assert "knows the first 3 positions" in error_line(capsys)
    assert not (tmp_path / "out").exists()
