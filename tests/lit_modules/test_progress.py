"""What a run shows on its way: bars of steps in a terminal, lines in a log, full tables in both."""

import os
import pickle
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeprune import console
from edgeprune.cli import main
from edgeprune.console import ProgressReporter
from edgeprune.errors import EdgepruneError
from lit_modules import RunProgress

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
STEPS = 8
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"}

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


def arguments(*more: str, command: str = "fit") -> list[str]:
    steps = ("--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", "4")
    name = "--model.recipe.init_args.sparsity_term"  # `Pace` warns of so few steps
    term = (name, "GeometricPenalty", f"{name}.init_args.start", "0.02", f"{name}.init_args.end", "1.0")
    return [command, "--config", str(QUICKSTART), *steps, *term, "--progress.seconds", "1e-6", *more]


# ---------------------------------------------------------------- whole runs
def test_a_piped_run_has_lines_and_full_tables_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeprune", *arguments()]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no tips, no warnings about what is as it should be
    out = done.stdout
    assert not {"\r", "\x1b", "…"} & set(out)
    assert "Epoch" not in out
    lines = out.splitlines()
    assert lines[0].startswith("memory in GB: ")
    steps = [line for line in lines if re.match(r"step \d+ of ", line)]
    assert [line.split(",")[0] for line in steps] == [f"step {step} of {STEPS}" for step in range(1, STEPS + 1)]
    assert re.fullmatch(r"step 1 of 8, sparsity 0, kl [-\d.e]+", steps[0])
    assert re.fullmatch(r"step 7 of 8, sparsity 0, kl [-\d.e]+, val/exact_match 1, \d:\d\d:\d\d left", steps[6])
    circuits = [line for line in lines if line.startswith("step 8: circuit of ")]
    values = r"kl [-\d.e]+ \(random circuit [-\d.e]+\)"
    expected = [
        rf"step 8: circuit of sparsity 0.5, cut from the final gates, 47 edges, {values}",
        rf"step 8: circuit of sparsity 0.8, cut from the final gates, 19 edges, {values}",
        rf"step 8: circuit of the final gates, sparsity 0, 94 edges, {values}",
    ]
    assert all(map(re.fullmatch, expected, circuits)), circuits
    assert len(circuits) == len(expected)
    assert len([line for line in lines if re.fullmatch(rf"{STEPS} steps in \d:\d\d:\d\d", line)]) == 1
    assert any(re.search(r"recovered +┃ missing +┃ extra +┃ precision +┃ recall +┃ jaccard", line) for line in lines)
    assert lines[-1].startswith("recovered 11 of 11 edges")


def test_a_terminal_has_one_bar_of_steps(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "edgeprune", *arguments()], ENVIRONMENT)
    shown = b""
    while part := _read(terminal):
        shown += part
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    text = shown.decode()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "Epoch" not in drawn
    assert re.search(rf"step [━╸╺]+ +\d+/{STEPS} \d:\d\d:\d\d left \S+ sparsity 0, kl ", drawn)
    assert re.search(r"validation batch [━╸╺]+ 1/1", drawn)
    assert "step 8: circuit of the final gates" in drawn
    end = drawn[drawn.index("Circuits on the validation pairs") :]
    assert "━ 8/8" not in end  # the bars are gone
    assert end.splitlines()[-1].startswith("recovered 11 of 11 edges")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux: the other side is closed
        return b""


@pytest.mark.parametrize("own", [False, True])
def test_no_progress_where_it_is_off_or_the_config_has_a_bar_of_its_own(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config: Any = yaml.safe_load(QUICKSTART.read_text())
    config["trainer"] |= {"max_steps": 2, "enable_progress_bar": own}
    if own:
        config["trainer"]["callbacks"].append({"class_path": "TQDMProgressBar"})
    Path("run.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "run.yaml", "--progress.seconds", "1e-6"]) == 0
    shown = capsys.readouterr()
    assert "step 1" not in shown.out
    assert "Circuits on the validation pairs" in shown.out
    assert own == ("Epoch" in shown.out + shown.err)


def test_seconds_that_are_none_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--progress.seconds", "0", "--trainer.default_root_dir", str(tmp_path))
    assert main(arguments(*more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "seconds between two lines must be a number above 0, got 0" in line
    with pytest.raises(EdgepruneError, match="got nan"):
        RunProgress(float("nan"))


def test_a_progress_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(RunProgress(7.0))).seconds == 7.0


# ---------------------------------------------------------------- lines
def test_a_line_every_so_many_seconds_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    bars, asked = ProgressReporter(seconds=30), []
    for done in range(1, 101):
        now[0] += 4.0  # seconds each
        bars.report("step", done, 100, lambda done=done: asked.append(done) or {"kl": done / 7, "state": "good"})
    bars.print("[a line] that stays")
    bars.report("other things", 3, None, at_once=True)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0] == "step 8 of 100, kl 1.143, state good, 0:06:08 left"  # 92 of 4 seconds
    assert len(lines) == len(asked) + 2 == 12 + 2
    assert lines[11] == "step 96 of 100, kl 13.71, state good, 0:00:16 left"
    assert lines[12:] == ["[a line] that stays", "other things 3"]


def test_reports_are_as_wide_as_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table(*(f"a long heading {number}" for number in range(20)))
    console.report_console().print(table)
    assert "a long heading 19" in capsys.readouterr().out
