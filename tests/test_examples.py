"""What the notebooks under examples/ were committed with. pytest runs them itself, through nbmake."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MOST_BYTES = 120_000
# Differs from machine to machine: absolute paths, addresses in memory.
PLACE = re.compile(r"(?<![\w.<])/(?:home|root|tmp|usr|var|opt|mnt|Users)/|0x[0-9a-f]{6,}")


def cells(path: Path) -> list[dict[str, Any]]:
    read = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in read["cells"] if cell["cell_type"] == "code"]


def test_there_is_a_notebook_that_pytest_runs(pytestconfig: pytest.Config) -> None:
    assert NOTEBOOKS
    assert "examples" in pytestconfig.getini("testpaths")
    assert pytestconfig.getoption("nbmake")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_run_from_top_to_bottom_without_noise(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output
            assert not PLACE.search(json.dumps(output)), output


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_links_lead_somewhere(path: Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])
    links = re.findall(r"\]\(((?!http)[^)#]+)", text)
    assert links
    assert [link for link in links if not (path.parent / link).is_file()] == []
