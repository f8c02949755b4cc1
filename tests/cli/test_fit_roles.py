"""`edgeprune fit` with roles: from a config to circuits, going on, and the lines that refuse."""

import csv
from pathlib import Path
from typing import Any

import pytest

from edgeprune.circuit import Circuit
from tests.methods.fits import fit, only

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
]
HIST = (
    *("--model.name", "compiled:hist", "--data.task.init_args.program", "hist"),
    *("--data.task.init_args.lengths", "[2]", "--trainer.val_check_interval", "1"),
)
POSITIONS = (*HIST, "--model.roles", "positions")
ATTENTION = (
    *("--model.recipe.init_args.attention_edges", "true"),
    *("--model.recipe.init_args.attention_sparsity", "0.5"),
)


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_with_positions_and_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The known circuit has no positions, so that it is compared with unions."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fit(whole, "quickstart", 6, *POSITIONS) == 0
    shown = capsys.readouterr().out
    assert "union" in shown
    assert "Against the reference, 6 edges" in shown
    found = Circuit.load(only(whole, "circuits/final.safetensors"))
    assert found.roles == ("p0", "p1", "p2")
    assert found.header["union"]["num_edges"] == found.union().num_edges
    frontier = rows(only(whole, "frontier.csv"))
    assert all(int(row["union_edges"]) <= int(row["edges"]) for row in frontier)
    logged = rows(only(whole, "metrics.csv"))
    assert any(row["val/union_sparsity"] for row in logged)
    assert any(row["snapshot/union_sparsity"] for row in logged)

    stop = ("--checkpoint.every_n_train_steps", "1")
    assert fit(parts, "quickstart", 3, *POSITIONS, *stop) == 0
    assert fit(parts, "quickstart", 6, *POSITIONS, *stop, "--ckpt_path", "last") == 0
    again = Circuit.load(only(parts, "circuits/final.safetensors"))
    assert again.roles == found.roles
    assert again.header["step"] == 6
    saved = Circuit.from_checkpoint(only(parts, "checkpoints/last.ckpt"))
    assert saved.edges() == again.edges()


def test_a_run_with_attention_edges_and_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = (*POSITIONS, *ATTENTION, "--checkpoint.every_n_train_steps", "1")
    assert fit(whole, "quickstart", 4, *options) == 0
    assert "attention edges" in capsys.readouterr().out
    found = Circuit.load(only(whole, "circuits/sparsity-0.8000.safetensors"))
    assert found.attend is not None
    assert found.header["attention"]["sparsity"] == pytest.approx(0.5, abs=0.1)
    assert fit(parts, "quickstart", 2, *options) == 0
    assert fit(parts, "quickstart", 4, *options, "--ckpt_path", "last") == 0
    again = Circuit.load(only(parts, "circuits/sparsity-0.8000.safetensors"))
    saved = Circuit.from_checkpoint(only(parts, "checkpoints/last.ckpt"), 0.8)
    assert again.header["step"] == 4
    assert saved.attention_edges() == again.attention_edges() != []
    assert saved.edges() == again.edges()
    logged = rows(only(whole, "metrics.csv"))
    assert any(row["val/attention_sparsity"] for row in logged)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((*HIST, *ATTENTION), "set model.roles, or leave attention_edges out"),
        ((*HIST, "--model.roles", "true"), "the task marks no position roles"),
        ((*HIST, "--model.roles", "[S2]"), "no prompt has a role 'S2'"),
        ((*POSITIONS, "--data.task.init_args.lengths", "[1,2]"), "need prompts of one length"),
        (
            (*POSITIONS, "--model.recipe", "SubnetworkProbing"),
            "granularity 'nodes' masks a node at all tokens",
        ),
    ],
)
def test_refusals_are_one_line(
    options: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, "quickstart", 2, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("edgeprune: error: ")
    assert line in error
