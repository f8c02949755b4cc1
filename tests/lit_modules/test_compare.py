"""What a run logs and shows about its snapshots and the true circuit."""

import csv
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.comparison.overlap import by_chance, edge_overlap
from edgeprune.compiled import true_circuit
from edgeprune.models.loading import load_model

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
    (judged_alone,) = json.loads(figures.read_text())["circuits"]
    kl = judged_alone["ablations"]["zero"]["measures"]["kl"]["value"]
    assert float(row["reference/matched_kl"]) == pytest.approx(kl, abs=1e-6)
    assert 0 <= float(row["reference/kl"]) < 1e-3
    shown = " ".join(capsys.readouterr().out.split())  # titles are folded
    assert "[/" not in shown  # colours are not written out
    assert "at the reference's size (11 edges by score)" in shown
    assert "reference │" in shown


# ---------------------------------------------------------------- references of ACDC
class TorchIndex:
    """As ACDC's, in a pickle: only the class's name and this attribute count."""

    def __init__(self, *entries: int | None) -> None:
        self.hashable_tuple = entries


WHOLE, HEAD = (None,), (None, None, 0)
ACDC = [  # the last one lies inside a head and is no edge of ours
    ("blocks.3.hook_resid_post", WHOLE, "blocks.3.attn.hook_result", HEAD),
    ("blocks.3.hook_v_input", HEAD, "hook_embed", WHOLE),
    ("blocks.3.attn.hook_v", HEAD, "blocks.3.hook_v_input", HEAD),
]
OURS = ["a3.h0->logits", "tok_embed->a3.h0.v"]


def reference_of(kind: str, folder: Path) -> Path:
    """The same circuit as ACDC's repository saves it, or as `discover` does."""
    path = folder / f"reference.{kind}"
    if kind == "pth":
        torch.save(dict.fromkeys(ACDC, True), path)
    elif kind == "pkl":
        edges = [((child, TorchIndex(*at), parent, TorchIndex(*to)), 0.5) for child, at, parent, to in ACDC]
        path.write_bytes(pickle.dumps(edges))
    else:
        Circuit.from_edges(load_model("compiled:reverse").graph, OURS, {"method": "acdc", "tau": 0.1}).save(path)
    return path


def short_run(reference: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["edgeprune"])
    config: Any = yaml.safe_load(QUICKSTART.read_text())
    callbacks = [callback for callback in config["trainer"]["callbacks"] if "Compare" not in callback["class_path"]]
    callbacks.append({"class_path": "CompareToReference", "init_args": {"reference": str(reference)}})
    config["trainer"] |= {"callbacks": callbacks, "max_steps": 3, "val_check_interval": 3, "log_every_n_steps": 1}
    config["trainer"] |= {"default_root_dir": str(folder), "enable_progress_bar": False}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return main(["fit", "--config", str(folder / "config.yaml")])


@pytest.mark.parametrize("kind", ["pth", "pkl", "safetensors"])
def test_a_run_of_acdc_is_a_reference(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert short_run(reference_of(kind, tmp_path), tmp_path, monkeypatch) == 0
    (metrics,) = tmp_path.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(metrics.read_text().splitlines()) if row["reference/jaccard"]]
    (final,) = tmp_path.rglob("final.safetensors")
    circuit = Circuit.load(final)
    overlap = edge_overlap(circuit.keep, circuit.graph.keep_matrix(OURS), circuit.graph.exists)
    for name in ("precision", "recall", "jaccard"):
        assert float(rows[-1][f"reference/{name}"]) == pytest.approx(overlap[name])
    assert float(rows[-1]["reference/missing"]) == overlap["only_reference"]
    assert all(float(row[f"reference/{name}"]) >= 0 for row in rows for name in ("kl", "matched_kl"))


def test_a_file_of_scores_is_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = load_model("compiled:reverse").graph
    path = Circuit(graph, graph.exists, torch.rand(graph.shape)).save(tmp_path / "scores.safetensors")
    assert short_run(path, tmp_path, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "keeps every edge, as a file of scores does" in line
    assert not list(tmp_path.rglob("*.ckpt"))
