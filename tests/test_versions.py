"""The ranges of pyproject.toml, the tested set of constraints.txt, and README's lines that use them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import edgeprune

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ASKED = {one.name: one for one in map(Requirement, [*EXTRAS["docs"], *EXTRAS["test"], *PROJECT["dependencies"]])}
PINS = {
    one.name.lower().replace("_", "-"): one
    for one in map(Requirement, (ROOT / "constraints.txt").read_text().splitlines()[2:])
}


@pytest.mark.parametrize("name", ASKED)
def test_the_tested_set_pins_what_is_asked_for(name: str) -> None:
    (pin,) = PINS[name.lower()].specifier
    assert pin.operator == "=="
    assert pin.version in ASKED[name].specifier


@pytest.mark.parametrize("version", ["2.6.0", "2.8.0", "2.11.0", "2.13.0", "2.13.0+cpu", "2.14.1", "2.15.0"])
def test_a_torch_that_is_there_may_stay(version: str) -> None:
    assert version in ASKED["torch"].specifier


def test_the_next_major_versions_are_not_taken_unseen() -> None:
    assert "3.0.0" not in ASKED["torch"].specifier
    assert "6.0.0" not in ASKED["transformers"].specifier


def test_the_version_is_named_once_more_in_the_package_and_in_the_citation() -> None:
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert PROJECT["version"] == edgeprune.__version__ == cited


def test_readme_installs_the_tested_set() -> None:
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if "pip install" in line]
    assert lines[:2] == [
        "pip install -e . -c constraints.txt && edgeprune fit --config configs/quickstart.yaml",
        "pip install -e '.[test]' -c constraints.txt && pytest",
    ]
