"""Scripts of measurements: asked for help, they give it and measure nothing; the one for GPUs runs in full."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_is_help(script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {script.name}")


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 16


# -------------------------------------------------------------------- the visit to a GPU
BROKEN = """
import time
from benchmarks import gpu

def rows():
    yield {"what": "first", "is": 1}
    raise ValueError("broken")

def hangs():
    yield {"what": "before"}
    time.sleep(600)

def dies():
    import os
    yield {"what": "before"}
    os.kill(os.getpid(), 11)

def good():
    yield {"what": "last"}

found = {"rows": gpu.Part(9, rows), "hangs": gpu.Part(1, hangs), "dies": gpu.Part(9, dies), "good": gpu.Part(9, good)}
gpu.parts = lambda options, card: found
gpu.main()
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_gpu_script_runs_every_part_on_a_processor(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run("-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == [
        *("environment", "conformance", "read operations", "step gpt2 2x8", "step llama 2x8", "training"),
    ]
    assert all(part["status"] == "ok" and part["rows"] for part in parts.values())
    assert {row["failures"] for row in parts["conformance"]["rows"]} == {0}
    kinds = [row["kind"] for row in parts["step gpt2 2x8"]["rows"] if row["ops"] == "host"]
    assert kinds == ["plain", "step", "cached", "masked", "graph"]
    assert all(0 < row["share of floor"] < 1 for row in parts["step gpt2 2x8"]["rows"] if "ms" in row)
    assert "## training: ok" in done.stdout


def test_a_part_that_fails_hangs_or_dies_leaves_the_others_be(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run("-c", BROKEN, "--out", str(out))
    assert done.returncode == 1, done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert parts["rows"]["status"] == "failed"
    assert parts["rows"]["rows"] == [{"what": "first", "is": 1}, {"error": "ValueError: broken"}]
    assert (parts["hangs"]["status"], parts["hangs"]["rows"]) == ("stopped after 1 s", [{"what": "before"}])
    assert (parts["dies"]["status"], parts["dies"]["rows"]) == ("died with status -11", [{"what": "before"}])
    assert parts["good"]["status"] == "ok"
    assert "not ok: rows, hangs, dies;" in done.stdout
