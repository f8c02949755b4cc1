"""Every YAML under configs/ is read and its classes are built, without loading a model."""

import re
from pathlib import Path

import pytest
import yaml

from datamodules import PairDataModule
from edgeprune.cli import main
from edgeprune.cli.configs import find_config
from edgeprune.cli.data import read_data_config
from edgeprune.cli.discover import make_parser
from edgeprune.cli.training import TRAINER_DEFAULTS, EdgepruneCLI, OneLineParser
from lit_modules import PruningModule, WeightPruningModule

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("case_study/*.yaml")])
OWN_FILES = {"jsonl.yaml", "auto_circuit.yaml", "eap_csv.yaml"}  # need a file of the user's


def names(path: Path) -> str:
    return path.name


def built_from(module: type[PruningModule], path: Path, folder: Path) -> EdgepruneCLI:
    return EdgepruneCLI(
        module,
        PairDataModule,
        args=["--config", str(path), "--trainer.logger.init_args.save_dir", str(folder)],
        parser_class=OneLineParser,
        trainer_defaults=TRAINER_DEFAULTS,
        save_config_callback=None,
        auto_configure_optimizers=False,
        run=False,
    )


@pytest.mark.parametrize("path", EXPERIMENTS, ids=names)
def test_an_experiment_builds(path: Path, tmp_path: Path) -> None:
    cli = built_from(PruningModule, path, tmp_path)
    config = yaml.safe_load(path.read_text())
    assert cli.model.name == config["model"]["name"]
    assert cli.model.masked is None
    assert cli.trainer.max_steps == config["trainer"]["max_steps"]
    assert type(cli.datamodule.task).__name__ == config["data"]["task"]["class_path"]
    callbacks = cli.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    built = {type(callback).__name__ for callback in callbacks}
    assert built >= {callback["class_path"] for callback in config["trainer"].get("callbacks", [])}


@pytest.mark.parametrize("path", sorted((CONFIGS / "logger").glob("*.yaml")), ids=names)
def test_a_logger_config_goes_on_top_of_the_quickstart(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(CONFIGS / "quickstart.yaml"), "--config", str(path), "--print_config"]) == 0
    merged = yaml.safe_load(capsys.readouterr().out)["trainer"]
    own = yaml.safe_load(path.read_text())["trainer"]
    classes = [logger["class_path"].rsplit(".", 1)[-1] for logger in merged["logger"]]
    assert classes == [logger["class_path"].rsplit(".", 1)[-1] for logger in own["logger"]]
    assert merged["callbacks"]  # the quickstart's own are still there


DISCOVER = sorted((CONFIGS / "discover").glob("*.yaml"))


@pytest.mark.parametrize("path", DISCOVER, ids=names)
def test_a_discover_config_builds(path: Path) -> None:
    parser = make_parser()
    built = parser.instantiate(parser.parse_args(["--config", str(path)]))
    config = yaml.safe_load(path.read_text())
    assert built.model.name == config["model"]["name"]
    method = config["method"]  # a name alone says: with its own defaults
    assert type(built.method).__name__ == (method if isinstance(method, str) else method["class_path"])
    assert type(built.data.task).__name__ == config["data"]["task"]["class_path"]
    assert built.out == f"runs/discover/{path.stem}"


DATA = [path for path in sorted((CONFIGS / "data").glob("*.yaml")) if path.name not in OWN_FILES]


@pytest.mark.parametrize("path", DATA, ids=names)
def test_a_data_config_builds(path: Path) -> None:
    data = read_data_config(str(path), tokenizer="some-model")
    config = yaml.safe_load(path.read_text())["data"]
    assert type(data.task).__name__ == config["task"]["class_path"]
    assert data.batch_size == config["batch_size"]
    assert data.tokenizer == config.get("tokenizer", "some-model")


WEIGHTS = sorted((CONFIGS / "weights").glob("*.yaml"))


@pytest.mark.parametrize("path", WEIGHTS, ids=names)
def test_an_experiment_on_weights_builds(path: Path, tmp_path: Path) -> None:
    cli = built_from(WeightPruningModule, path, tmp_path)
    config = yaml.safe_load(path.read_text())
    assert cli.model.name == config["model"]["name"]
    recipe = config["model"]["recipe"]
    assert type(cli.model.gates).__name__ == recipe["class_path"]
    if recipe["class_path"] == "NodePruning":
        return
    assert type(cli.model.gates.sparsity_term).__name__ == recipe["init_args"]["sparsity_term"]["class_path"]
    follows = re.search(r"--then (\S+)", path.read_text())
    assert follows is not None
    assert find_config(follows[1]) in EXPERIMENTS


def test_every_config_is_covered() -> None:
    covered = {*EXPERIMENTS, *WEIGHTS, *DISCOVER, *DATA, *(CONFIGS / "logger").glob("*.yaml")}
    covered |= {*(CONFIGS / "sweeps").glob("*.yaml")}  # read in tests/sweeps/test_file.py
    left = {path.relative_to(CONFIGS).as_posix() for path in set(CONFIGS.rglob("*.yaml")) - covered}
    assert left <= {f"data/{name}" for name in OWN_FILES}
