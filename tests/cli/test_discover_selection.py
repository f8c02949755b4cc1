"""Which circuits `discover` leaves: the method's own, or those that a selection cuts from its scores."""

from pathlib import Path

import pytest

from edgeprune.circuit import Circuit
from edgeprune.cli import main

ROOT = Path(__file__).parents[2]
ACDC = ROOT / "configs" / "discover" / "acdc_reverse.yaml"
EXACT = ROOT / "configs" / "discover" / "exact.yaml"
LOCAL = ROOT / "configs" / "discover" / "eap_ig_local.yaml"


def circuits(config: Path, out: Path, *more: str) -> list[str]:
    """Names of the circuits that a short run writes."""
    small = ["--data.task.init_args.lengths", "[3]", "--limit", "6", "--out", str(out)]
    assert main(["discover", "--config", str(config), *small, *more]) == 0
    return sorted(path.stem for path in (out / "circuits").iterdir())


def test_acdc_leaves_its_own_circuits_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert circuits(ACDC, tmp_path / "out", "--method.taus", "[0.001, 0.1]") == ["tau-0.001", "tau-0.1"]
    assert "sparsity-" not in capsys.readouterr().out
    assert Circuit.load(tmp_path / "out" / "scores.safetensors").scores is not None


def test_a_selection_that_is_given_cuts_beside_them(tmp_path: Path) -> None:
    found = circuits(ACDC, tmp_path / "out", "--selection.sparsities", "[0.9]", "--selection.absolute", "true")
    assert found == ["sparsity-0.9000", "tau-0.001"]
    selection = Circuit.load(tmp_path / "out" / "circuits" / "sparsity-0.9000.safetensors").header["selection"]
    assert (selection["rule"], selection["absolute"]) == ("top_n", True)


def test_scores_alone_are_cut_as_by_default(tmp_path: Path) -> None:
    more = ("--selection", "null", "--method.edges", '["tok_embed->logits"]')
    assert circuits(EXACT, tmp_path / "out", *more) == [
        f"sparsity-{value}" for value in ("0.5000", "0.8000", "0.9000", "0.9500", "0.9800", "0.9900")
    ]


def test_connected_circuits_of_scores_with_intervals(tmp_path: Path) -> None:
    more = ("--data.batch_size", "2", "--selection.rule", "connected", "--selection.sparsities", "[0.9]")
    more = (*more, "--selection.bootstrap.resamples", "50", "--selection.prune_dangling", "false")
    assert circuits(LOCAL, tmp_path / "out", *more) == ["sparsity-0.9000"]
    circuit = Circuit.load(tmp_path / "out" / "circuits" / "sparsity-0.9000.safetensors")
    assert circuit.num_dangling == 0
    assert circuit.header["backward_passes"] == 15  # three batches, five steps
    selection = circuit.header["selection"]
    assert (selection["gap"], selection["edges"]) == (0, circuit.num_edges)
    assert (selection["bootstrap"]["batches"], selection["bootstrap"]["resamples"]) == (3, 50)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--selection.bootstrap.resamples=50"], "lower data.batch_size"),
        (["--selection.bootstrap.confidence=2"], "confidence must lie in"),
        (["--selection.positive_first=0.5", "--selection.absolute=false"], "absolute=true"),
        (["--selection.seconds=0"], "seconds must be above 0"),
        (["--method=EAP", "--method.rules.norm=frozen"], "frozen"),
    ],
)
def test_mistakes_are_one_line(more: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", "--config", str(LOCAL), "--limit", "6", "--out", str(tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert named in error
    assert not (tmp_path / "out").exists()
