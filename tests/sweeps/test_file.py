"""Sweep files, and the commands of their trials against W&B's own agent."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from edgeprune.errors import EdgepruneError
from edgeprune.sweeps.command import fit_arguments, trial_command
from edgeprune.sweeps.file import SweepFile, SweepMetric
from tests.sweeps.trials import GRID, HEAD, write_sweep

CONFIGS = Path(__file__).parents[2] / "configs" / "sweeps"


def test_a_grid_has_every_combination_once(tmp_path: Path) -> None:
    sweep = SweepFile.read(write_sweep(tmp_path))
    assert sweep.size == 6
    found = [tuple(sweep.combination(number).values()) for number in range(6)]
    assert found == list(product(range(3), range(2)))


def test_whole_numbers_and_constants_in_a_grid(tmp_path: Path) -> None:
    text = HEAD + "method: grid\nparameters: {a: {min: 2, max: 5}, b: {value: 1}}\n"
    assert SweepFile.read(write_sweep(tmp_path, text)).size == 4


def test_run_cap_shortens_a_grid_and_ends_a_search(tmp_path: Path) -> None:
    assert SweepFile.read(write_sweep(tmp_path, GRID + "run_cap: 4\n")).size == 4
    search = GRID.replace("grid", "random")
    assert SweepFile.read(write_sweep(tmp_path, search)).size is None
    assert SweepFile.read(write_sweep(tmp_path, search + "run_cap: 40\n")).size == 40


# Files named ..._trial.yaml are configs that the sweep beside them lays over another.
SWEEPS = sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.endswith("_trial"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_of_the_project_is_one(path: Path, tmp_path: Path) -> None:
    sweep = SweepFile.read(path)
    assert sweep.size
    assert sweep.metric
    values = {parameter.name: parameter.distribution.extremes()[0] for parameter in sweep.parameters}
    arguments = fit_arguments(trial_command(sweep.command, sweep.program, values, tmp_path / "values.json"))
    configs = [word for word in arguments if word.endswith(".yaml")]
    assert configs
    assert all((CONFIGS.parents[1] / word).is_file() for word in configs)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("method: grid", "method: byes", "method must be one of grid, random, bayes, got 'byes'"),
        ("method: grid\n", "", "method must be one of grid, random, bayes, got None"),
        ("metric:", "metrics:", "a sweep has no 'metrics'; did you mean 'metric'?"),
        ("name: val/kl, ", "", "metric must have a name"),
        ("goal: minimize", "goal: minimise", "metric.goal must be minimize or maximize, got 'minimise'"),
        ("goal: minimize", "target: low", "metric.target must be a number"),
        ("goal: minimize", "gaol: minimize", "metric has no 'gaol'"),
        ("{values: [0, 1]}", "{min: 0.0, max: 1.0}", "seed_everything has no list of values, which method grid needs"),
        ("name: small", "run_cap: 0", "run_cap must be a whole number of at least 1, got 0"),
        ("name: small", "project: 3", "project must be a text, got 3"),
        ("method: grid", "method: grid\nmethod: random", ":4: key 'method' comes twice, first on line 3"),
        ("method: grid", "method: [", "is no YAML"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = write_sweep(tmp_path, GRID.replace(old, new))
    with pytest.raises(EdgepruneError) as error:
        SweepFile.read(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_bayes_needs_a_metric(tmp_path: Path) -> None:
    text = HEAD + "method: bayes\nrun_cap: 3\nparameters: {a: {min: 0.0, max: 1.0}}\n"
    with pytest.raises(EdgepruneError, match="method bayes needs a metric"):
        SweepFile.read(write_sweep(tmp_path, text))


def test_no_file_and_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match="No such file"):
        SweepFile.read(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1]\n")
    with pytest.raises(EdgepruneError, match="must be a mapping"):
        SweepFile.read(tmp_path / "list.yaml")


def test_targets() -> None:
    assert SweepMetric("x", "minimize", 0.1).reached(0.1)
    assert not SweepMetric("x", "minimize", 0.1).reached(0.2)
    assert SweepMetric("x", "maximize", 0.1).reached(0.2)
    assert not SweepMetric("x").reached(-1e9)


# ---------------------------------------------------------------- commands
VALUES: dict[str, Any] = {
    "model.lr": 0.1,
    "data": {"task": {"n": 3}},
    "flag": True,
    "off": False,
    "none": None,
    "s": "a b",
}
MACROS = ["args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags", "args_json", "args_append_hydra"]


@pytest.mark.parametrize("macro", [*MACROS, "args_override_hydra"])
def test_commands_are_those_of_the_agent(macro: str, tmp_path: Path) -> None:
    """Every form that W&B fills in, by the function with which its agent does."""
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in VALUES.items()}})
    ours = trial_command(["${" + macro + "}"], "p", VALUES, tmp_path / "x.json")
    assert ours == theirs[macro]


def test_variables_of_the_environment_are_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLACE", "here")
    words = ["${envvar:PLACE}/x", "${envvar:NOWHERE}", "${env}", "${interpreter}", "${program}", "plain"]
    ours = trial_command(words, "p.py", {}, tmp_path / "x.json")
    assert ours == [*create_sweep_command(words[:2]), "/usr/bin/env", "python", "p.py", "plain"]
    assert ours[0] == "here/x"


def test_a_file_of_arguments(tmp_path: Path) -> None:
    import json

    file = tmp_path / "deep" / "x.json"
    assert trial_command(["--config", "${args_json_file}"], "p", VALUES, file) == ["--config", str(file)]
    assert json.loads(file.read_text()) == VALUES


def test_only_fit_can_be_swept() -> None:
    assert fit_arguments(["/usr/bin/env", "/x/edgeprune", "fit", "--a=1"]) == ["fit", "--a=1"]
    assert fit_arguments(["python", "-m", "edgeprune", "fit"]) == ["fit"]
    for words in (["python", "train.py"], ["edgeprune", "discover"], ["edgeprune"]):
        with pytest.raises(EdgepruneError, match="does not run `edgeprune fit`"):
            fit_arguments(words)
