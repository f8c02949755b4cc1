"""The callback that gives signs to the scores of a run."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.cli.data import read_data_config
from edgeprune.cli.pairs import pair_batches
from edgeprune.errors import EdgepruneError
from edgeprune.methods import Matryoshka
from edgeprune.methods.problem import Problem
from edgeprune.methods.signed_scores import signed
from edgeprune.models.loading import load_model
from lit_modules import SignedScores

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
RUN = Path("runs/quickstart/version_0/circuits")

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


def test_a_run_writes_signed_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the final circuit on the first training pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["edgeprune"])
    config = yaml.safe_load(QUICKSTART.read_text())
    config["model"]["objective"] = "squared_error"
    config["model"]["recipe"]["init_args"]["sparsity_term"] = "GeometricPenalty"
    config["trainer"] |= {"max_steps": 3, "val_check_interval": 3, "enable_progress_bar": False}
    config["trainer"]["callbacks"] = [
        {"class_path": "SnapshotCircuits", "init_args": {"sparsities": [0.5]}},
        {"class_path": "SignedScores", "init_args": {"limit": 12, "towards": "fall"}},
    ]
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "config.yaml"]) == 0
    made, final = (Circuit.load(RUN / f"{name}.safetensors") for name in ("signed", "final"))
    assert made.scores is not None
    about = made.header["signed"]
    assert (about["towards"], about["metric"], about["num_examples"]) == ("fall", "squared_error", 12)
    data = read_data_config("config.yaml")
    data.setup()
    model = load_model(config["model"]["name"])
    batches = pair_batches(data, "train", 12, 12)
    asked = Problem(model, batches, ReferenceRuns(model, final.header["ablation"]), "squared_error")
    expected = signed(asked, final, towards="fall").scores
    assert expected is not None
    assert torch.equal(made.scores, expected)
    negative = int((model.graph.to_vector(expected) < 0).sum())
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{negative} of {model.graph.num_edges} edges have a negative score" in shown


def test_mistakes_are_found_before_training() -> None:
    with pytest.raises(EdgepruneError, match="limit must be at least 1, got 0"):
        SignedScores(limit=0)
    with pytest.raises(EdgepruneError, match="towards must be 'rise' or 'fall', got 'up'"):
        SignedScores(towards="up")  # pyright: ignore[reportArgumentType]
    trainer, module = SimpleNamespace(world_size=1), SimpleNamespace(recipe=Matryoshka())
    with pytest.raises(EdgepruneError, match="gates of EdgePruning without node_gates, got Matryoshka"):
        SignedScores().setup(cast("Any", trainer), cast("Any", module), "fit")
