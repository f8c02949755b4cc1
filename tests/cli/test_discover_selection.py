"""Which circuits `discover` leaves: the method's own, or those that a selection cuts from its scores."""

from pathlib import Path

import pytest

from edgeprune.circuit import Circuit
from edgeprune.cli import main

ROOT = Path(__file__).parents[2]
ACDC = ROOT / "configs" / "discover" / "acdc_reverse.yaml"
EXACT = ROOT / "configs" / "discover" / "exact.yaml"


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
