"""`discover` from one end to the other, in this process, on a compiled model."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.console import Progress
from edgeprune.methods import ExactEdgePatching
from edgeprune.methods.discovery import AbstractDiscovery, DiscoveryResult
from edgeprune.methods.problem import Problem

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "discover" / "eap_ig_inputs.yaml"


@dataclass(frozen=True)
class OneCircuit(AbstractDiscovery):
    """A method that makes a circuit itself and scores nothing."""

    name: str = "tau-0.01"

    def discover(self, problem: Problem, report: Progress, folder: Path | None = None) -> DiscoveryResult:
        circuit = Circuit.from_edges(problem.model.graph, ["tok_embed->logits"], {"tau": 0.01})
        return DiscoveryResult(circuits={self.name: circuit})

    def describe(self) -> dict[str, Any]:
        return {"method": "one_circuit"}


def arguments(out: Path, *more: str) -> list[str]:
    small = ("--data.task.init_args.lengths", "[3]", "--limit", "12")
    return ["discover", "--config", str(CONFIG), *small, "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one run."""
    out = tmp_path_factory.mktemp("discover") / "out"
    assert main(arguments(out)) == 0
    return out


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("edgeprune: error: ")
    return lines[0]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- what a run leaves behind
def test_a_run_leaves_scores_circuits_frontier_and_config(folder: Path) -> None:
    sparsities = ("0.5000", "0.8000", "0.9000", "0.9500")
    circuits = [f"circuits/sparsity-{value}.safetensors" for value in sparsities]
    assert files(folder) == sorted(
        [*circuits, "config.yaml", "frontier.csv", "frontier.png", "scores.safetensors"],
    )
    assert not (folder / "state").exists()
    assert yaml.safe_load((folder / "config.yaml").read_text())["method"]["init_args"]["steps"] == 5
    rows = list(csv.DictReader((folder / "frontier.csv").read_text().splitlines()))
    assert [row["asked"] for row in rows] == [Path(name).stem for name in circuits]
    for row, name in zip(rows, circuits, strict=True):
        circuit = Circuit.load(folder / name)
        assert int(row["edges"]) == circuit.num_edges
        assert float(row["squared_error"]) == circuit.header["metrics"]["squared_error"]
        assert float(row["random_kl"]) == circuit.header["random_control"]["kl"]


def test_the_scores_file_holds_every_edge_with_its_score(folder: Path) -> None:
    everything = Circuit.load(folder / "scores.safetensors")
    assert everything.num_edges == everything.graph.num_edges
    assert everything.scores is not None
    half = Circuit.load(folder / "circuits" / "sparsity-0.5000.safetensors")
    again = Circuit.from_scores(everything.graph, everything.scores.abs(), sparsity=0.5)
    assert half.num_edges == again.num_edges - again.num_dangling
    assert half.scores is not None
    assert torch.equal(half.scores, everything.scores)


def test_headers_say_where_a_circuit_comes_from(folder: Path) -> None:
    header = Circuit.load(folder / "circuits" / "sparsity-0.9000.safetensors").header
    assert header["method"] == "eap_ig"
    assert header["variant"] == "inputs"
    assert header["metric"] == header["objective"] == "squared_error"
    assert header["model"] == "compiled:reverse"
    assert len(header["model_fingerprint"]) == 16
    assert header["ablation"] == "interchange"
    assert header["num_examples"] == 12
    assert header["found_on"] == "train"
    assert header["task"]["program"] == "reverse"
    assert header["selection"]["rule"] == "top_n"
    assert header["selection"]["edges_before_pruning"] == 9
    assert header["seconds"] > 0


def test_evaluate_repeats_the_figures(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = folder / "circuits" / "sparsity-0.9500.safetensors"
    config = tmp_path / "data.yaml"
    config.write_text(yaml.safe_dump({"data": yaml.safe_load((folder / "config.yaml").read_text())["data"]}))
    assert main(["evaluate", str(path), "--config", str(config), "--split", "validation"]) == 0
    error = Circuit.load(path).header["metrics"]["squared_error"]
    assert f"{error:.3f}" in capsys.readouterr().out


# ---------------------------------------------------------------- options
def test_everything_can_come_from_the_command_line(tmp_path: Path) -> None:
    options = {
        "--model.name": "compiled:reverse",
        "--method": "InformationFlowRoutes",
        "--method.norm": "2",
        "--data.task": "CompiledTask",
        "--data.task.lengths": "[2]",
        "--selection.rule": "greedy",
        "--selection.sparsities": "[0.7]",
        "--out": str(tmp_path / "out"),
    }
    assert main(["discover", *(part for pair in options.items() for part in pair)]) == 0
    header = Circuit.load(tmp_path / "out" / "circuits" / "sparsity-0.7000.safetensors").header
    assert (header["method"], header["norm"], header["selection"]["rule"]) == ("information_flow_routes", 2, "greedy")


def test_a_method_may_make_its_circuits_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "out", "--method", "OneCircuit")) == 0
    assert files(tmp_path / "out") == ["circuits/tau-0.01.safetensors", "config.yaml", "frontier.csv", "frontier.png"]
    circuit = Circuit.load(tmp_path / "out" / "circuits" / "tau-0.01.safetensors")
    assert circuit.edges() == ["tok_embed->logits"]
    assert (circuit.header["method"], circuit.header["tau"]) == ("one_circuit", 0.01)
    assert "tau-0.01" in capsys.readouterr().out


def test_thresholds(tmp_path: Path) -> None:
    more = ("--selection.rule", "threshold", "--selection.thresholds", "[0.001, 1e9]")
    assert main(arguments(tmp_path / "out", *more)) == 0
    assert Circuit.load(tmp_path / "out" / "circuits" / "threshold-1e+09.safetensors").num_edges == 0
    assert Circuit.load(tmp_path / "out" / "circuits" / "threshold-0.001.safetensors").num_edges > 0


def test_print_config_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "out", "--print_config")) == 0
    assert yaml.safe_load(capsys.readouterr().out)["limit"] == 12
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- folders
def test_results_are_not_overwritten_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(arguments(out)) == 0
    capsys.readouterr()
    before = {name: (out / name).read_bytes() for name in files(out)}
    assert main(arguments(out)) == 2
    assert "--overwrite" in error_line(capsys)
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    (out / "notes.txt").write_text("mine")
    assert main(arguments(out, "--overwrite", "--selection.sparsities", "[0.6]")) == 0
    assert [name for name in files(out) if name.startswith("circuits")] == ["circuits/sparsity-0.6000.safetensors"]
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(arguments(tmp_path, *more)) == 2
    assert "other things" in error_line(capsys)
    assert files(tmp_path) == ["thesis.tex"]


class Stop:
    """Interrupts the exact sweep after some passes, the first time; counts the passes of each run."""

    def __init__(self, after: int) -> None:
        self.after, self.passes = after, [0]

    def wrap(self, discover: Callable[..., DiscoveryResult]) -> Callable[..., DiscoveryResult]:
        def wrapped(method: ExactEdgePatching, problem: Problem, report: Progress, folder: Path) -> DiscoveryResult:
            def counting(what: str, done: int, total: int) -> None:
                report(what, done, total)
                self.passes[-1] += 1
                if len(self.passes) == 1 and self.passes[0] == self.after:
                    raise KeyboardInterrupt

            return discover(method, problem, counting, folder)

        return wrapped


def test_an_interrupted_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop(after=30)
    monkeypatch.setattr(ExactEdgePatching, "discover", stop.wrap(ExactEdgePatching.discover))
    exact = ("--method", "ExactEdgePatching", "--method.edges", "null")
    assert main(arguments(tmp_path / "out", *exact)) == 130
    assert files(tmp_path / "out") == ["config.yaml", "state/exact.safetensors"]
    capsys.readouterr()
    assert main(arguments(tmp_path / "out", *exact, "--limit", "11")) == 2  # another question
    assert "another config" in error_line(capsys)
    stop.passes.append(0)
    monkeypatch.setattr("edgeprune.methods.exact._State.seconds", property(lambda state: state.done / 4))
    assert main(arguments(tmp_path / "out", *exact)) == 0
    said = capsys.readouterr().err
    assert main(arguments(tmp_path / "whole", *exact)) == 0
    assert "going on" not in capsys.readouterr().err
    first, second = (Circuit.load(tmp_path / name / "scores.safetensors") for name in ("out", "whole"))
    total = first.graph.num_edges
    where = f"{tmp_path / 'out'}: edges closed one by one, 30 of {total:,} done"
    assert said == f"edgeprune: going on with the interrupted run in {where}\n"
    assert stop.passes == [30, 1 + 2 * total - 30]  # of the rest and the whole; the first says where it goes on
    assert first.header["seconds"] == second.header["seconds"] == total / 4  # of both parts
    assert first.scores is not None
    assert second.scores is not None
    assert torch.equal(first.scores, second.scores)
    assert not (tmp_path / "out" / "state").exists()


# ---------------------------------------------------------------- mistakes
MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown key": (["--model.nonsense", "1"], "nonsense"),
    "unknown method": (["--method", "Guessing"], "Guessing"),
    "unknown setting": (["--method.depth", "1"], "depth"),
    "setting outside its range": (["--method.steps", "0"], "steps"),
    "metric without slope": (["--method", "HISP"], "squared_error"),
    "metric that is not defined": (["--metric", "logit_difference"], "logit_difference"),
    "unknown metric": (["--metric", "bleu"], "bleu"),
    "unknown model": (["--model.name", "compiled:nope"], "nope"),
    "unknown ablation": (["--model.ablation", "noise"], "noise"),
    "unknown rule": (["--selection.rule", "best"], "best"),
    "sparsity outside [0, 1)": (["--selection.sparsities", "[1.5]"], "1.5"),
    "nothing to look at": (["--limit", "0"], "limit"),
    "no validation pairs": (["--data.task.init_args.num_validation", "0"], "validation"),
    "missing config": (["--config", "missing.yaml"], "missing.yaml"),
}


@pytest.mark.parametrize(("more", "named"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    assert main(arguments(tmp_path / "out", *more)) == 2
    assert named in error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_a_missing_method_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", "--model.name", "compiled:reverse", "--out", str(tmp_path / "out")]) == 2
    assert "method" in error_line(capsys)
