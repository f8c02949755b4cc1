"""Pairs of ground-truth folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeprune as ep
from datamodules import PairDataModule
from datamodules.tasks.base import TokenPair
from datamodules.tasks.tracr import TracrTask
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import IGNORE
from edgeprune.circuit import Circuit
from edgeprune.compiled.tracr_format import known_edges
from edgeprune.errors import EdgepruneError
from edgeprune.metrics.measure import measure_examples
from tests.files import KNOWN_MODELS


@pytest.fixture(params=KNOWN_MODELS, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def pairs_of(folder: Path, **options: object) -> dict[str, list[TokenPair]]:
    return TracrTask(str(folder), **options).splits(None)  # pyright: ignore[reportArgumentType]


def test_splits_share_no_clean_prompt(folder: Path) -> None:
    splits = pairs_of(folder)
    prompts = [{pair.clean for pair in pairs} for pairs in splits.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    assert pairs_of(folder) == splits
    whole = pairs_of(folder, held_out=False)
    assert len(whole["train"]) == sum(map(len, splits.values()))
    assert whole["train"] == whole["validation"] == whole["test"]


def test_targets_are_what_the_model_says(folder: Path) -> None:
    model = ep.load_model(folder)
    for pair in pairs_of(folder, held_out=False)["train"][:20]:
        logits = model.full(torch.tensor([pair.clean]))[0]
        best = logits.argmax(-1)[list(pair.positions)].tolist()
        expected = best if model.hf.config.d_out > 1 else [IGNORE] * len(best)
        assert list(pair.targets) == expected
        assert len(pair.corrupted) == len(pair.clean)


def test_the_true_circuit_says_the_same_on_every_stored_pair(folder: Path) -> None:
    """All edges outside it closed at once, for every ablation; the figures are those of the folder's README."""
    model = ep.load_model(folder)
    content = json.loads((folder / "circuit.json").read_text())
    for ablation in (name for name in content["pairs"] if f"minimal_{name}" in content):
        circuit = Circuit.from_edges(model.graph, known_edges(folder, ablation, "minimal"))
        task = TracrTask(str(folder), pairs="none" if ablation == "zero" else ablation, held_out=False)
        data = PairDataModule(task, cache=False)
        runs = ReferenceRuns(model, "zero" if ablation == "zero" else "interchange")
        batches: Any = data.ordered_dataloader("train")
        (found,) = measure_examples(model, runs, batches, [circuit.gates()], "train").as_dicts()
        assert found["squared_error"] < 1e-4, (folder.name, ablation)  # threshold 0.01 per output


def test_unknown_pairs_and_fractions_are_refused(folder: Path) -> None:
    with pytest.raises(EdgepruneError, match=r"no pairs of kind 'shuffled'; it has: .*none"):
        pairs_of(folder, pairs="shuffled")
    with pytest.raises(EdgepruneError, match="must leave something to train on"):
        TracrTask(str(folder), validation_fraction=0.6, test_fraction=0.4)
    with pytest.raises(EdgepruneError, match="cannot read"):
        pairs_of(folder / "absent")
