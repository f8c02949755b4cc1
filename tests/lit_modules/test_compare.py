"""What a run logs and shows about its snapshots and the true circuit."""

import csv
import sys
from pathlib import Path

import pytest

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.compiled import true_circuit
from edgeprune.metrics.overlap import by_chance, edge_overlap

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


def test_snapshots_are_compared_at_their_own_size_and_at_the_reference_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["edgeprune"])
    arguments = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "6", "--trainer.log_every_n_steps", "1"]
    arguments += ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger.init_args.save_dir", str(tmp_path)]
    arguments += ["--model.recipe.init_args.learning_rate", "0.5", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", str(QUICKSTART), *arguments]) == 0
    folder = tmp_path / "quickstart" / "version_0"
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    *_, row = [row for row in rows if row["reference/log10_p_value"]]
    last = Circuit.load(folder / "circuits" / "final.safetensors")  # the last one taken
    truth = Circuit.from_edges(last.graph, true_circuit("reverse", "zero"))
    overlap = edge_overlap(last.keep, truth.keep, last.graph.exists)
    chance = by_chance(int(overlap["both"]), last.num_edges, 11, 94)
    assert float(row["reference/missing"]) == overlap["only_reference"]
    assert float(row["reference/extra"]) == overlap["only_found"]
    assert float(row["reference/log10_p_value"]) == pytest.approx(chance["log10_p_value"])
    assert last.scores is not None
    best = Circuit.from_scores(last.graph, last.scores, num_edges=11)
    matched = edge_overlap(best.keep, truth.keep, last.graph.exists)
    assert float(row["reference/matched_jaccard"]) == pytest.approx(matched["jaccard"])
    best.save(folder / "best.safetensors")
    figures = folder / "best.json"
    judged = ["--config", str(QUICKSTART), "--split", "validation", "--model", "compiled:reverse", "--ablation", "zero"]
    assert main(["evaluate", str(folder / "best.safetensors"), *judged, "--json", str(figures)]) == 0
    assert f'"kl": {float(row["reference/matched_kl"])}' in figures.read_text()
    assert 0 <= float(row["reference/kl"]) < 1e-3
    shown = " ".join(capsys.readouterr().out.split())  # titles are folded
    assert "at the reference's size (11 edges by score)" in shown
    assert "reference │" in shown
