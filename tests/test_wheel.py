"""A wheel is enough: built and installed into a folder, it works in an empty one, its configs included."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.tasks.ioi import NAMES, OBJECTS, PLACES
from tests.datamodules.conftest import TEMPLATE_WORDS, word_tokenizer

ROOT = Path(__file__).parents[1]
SOURCES = ("edgeprune", "lit_modules", "datamodules", "configs")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed into."""
    tree, wheels, target = (tmp_path_factory.mktemp(name) for name in ("tree", "wheels", "site"))
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    # pip fetches the build system where the one that is here is too old.
    enough = int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77
    pip("wheel", str(tree), "--no-deps", "--wheel-dir", str(wheels), *(["--no-build-isolation"] if enough else []))
    [wheel] = wheels.glob("*.whl")
    pip("install", str(wheel), "--no-deps", "--target", str(target))
    return target


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def edgeprune(site: Path, folder: Path, *words: str) -> str:
    """What a command prints that is run in a folder with the installed package and nothing of this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "edgeprune", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_whole_package_and_every_config(site: Path) -> None:
    packages = [path.relative_to(ROOT) for name in SOURCES[:3] for path in (ROOT / name).rglob("*")]
    whole = {path for path in packages if (ROOT / path).is_file() and path.suffix not in (".pyc", ".pyo")}
    configs = {
        Path("edgeprune/_configs") / path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")
    }
    installed = {path.relative_to(site) for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path for path in installed if path.parts[0] in SOURCES} == whole | configs


def test_configs_are_listed_and_found_from_an_empty_folder(site: Path, empty: Path) -> None:
    listed = [line.split()[0] for line in edgeprune(site, empty, "configs").splitlines()]
    configs = sorted((ROOT / "configs").rglob("*.yaml"))
    assert sorted(listed) == sorted(path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in configs)
    word_tokenizer([*TEMPLATE_WORDS, *NAMES, *PLACES, *OBJECTS]).save_pretrained(empty / "tokenizer")
    assert "tokenizer  tokenizer" in edgeprune(site, empty, "data", "data/ioi", "--tokenizer", "tokenizer", "-n", "1")


def test_fit_by_the_name_of_a_config(site: Path, empty: Path) -> None:
    edgeprune(site, empty, "fit", "--config", "quickstart", "--trainer.max_steps", "2")
    assert (empty / "runs" / "quickstart" / "version_0" / "circuits" / "final.safetensors").is_file()
    circuit = "runs/quickstart/version_0/circuits/final.safetensors"
    assert "Circuits" in edgeprune(site, empty, "compare", circuit, circuit, "--config", "configs/data/compiled.yaml")
