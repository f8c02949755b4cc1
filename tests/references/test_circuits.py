"""Circuits run here against what EAP-IG and auto-circuit found for the same ones, per pair."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.formats import read_circuit
from edgeprune.methods.selection import above, greedy, prune_dangling, top_n
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.masked import MaskedModel
from edgeprune.objectives import OBJECTIVES
from tests.references.tiny_models import FILES, MODELS, close, matrix, model, numbers, problem

CIRCUITS = ("topn_60_abs", "topn_60_signed", "topn_20_abs", "greedy_40_abs", "thr_0.1_abs", "topn_0_abs")
ABLATIONS = {"patching": "interchange", "zero": "zero", "mean-positional": "mean:positional"}
ALL_FROM_FILES = [
    ("gpt2_topn_60_abs", "gpt2_topn_60_abs_pruned.json"),
    ("gpt2_topn_0_abs", "gpt2_topn_0_abs_raw.json"),
    ("gpt2_topn_0_abs", "gpt2_topn_0_abs_raw.pt"),
]


def measured(masked: MaskedModel, keep: Tensor, ablation: str) -> dict[str, Tensor]:
    """Wrong minus right logit, and KL to the full model, of each pair."""
    given = problem(masked, ablation=ablation)
    ((batch, full, ablated),) = list(given.batches_with_runs())
    logits = gated_logits(masked, batch, keep.double(), ablated)
    return {
        "logit_difference": given.losses(full, logits, batch),
        "kl": OBJECTIVES["kl"](full[:, 0], logits[:, 0]),
    }


def agree(found: dict[str, Tensor], key: str) -> None:
    difference, kl = torch.tensor(numbers("eap_ig_evaluate")["values"][key], dtype=torch.float64)
    # without any edge, Llama's logits are all 0 under zero ablation, and so are their differences
    torch.testing.assert_close(found["logit_difference"].double(), difference, atol=1e-5, rtol=0)
    close(found["kl"], kl, 2e-5)


def chosen(name: str, circuit: str) -> Tensor:
    """A circuit cut by the rule that its name tells, `[reader, writer]`, on the graph that EAP-IG counts."""
    graph, scores = model(name).graph, matrix(model(name).graph, "eap_ig", f"{name}/logit_difference/ig_inputs")
    rule, size, sign = circuit.split("_")
    absolute = sign == "abs"
    if rule == "thr":
        keep = above(graph, scores, float(size), absolute=absolute)
    else:
        keep = {"topn": top_n, "greedy": greedy}[rule](graph, scores, int(size), absolute=absolute)
    return prune_dangling(graph, keep)


def with_positions(keep: Tensor, masked: MaskedModel) -> Tensor:
    """The circuit on the model's own graph: every edge of a position embedding is kept."""
    if not masked.graph.arch.split_embedding:
        return keep
    found = torch.ones(masked.graph.shape).bool()
    found[:, [0, *range(2, found.shape[1])]] = keep
    return found & masked.graph.exists


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("circuit", CIRCUITS)
@pytest.mark.parametrize("name", MODELS)
def test_circuits_of_eap_ig(name: str, circuit: str, ablation: str) -> None:
    masked, keep = model(name, split=True), chosen(name, circuit)
    assert int(keep.sum()) == numbers("eap_ig_evaluate")["values"][f"{name}_{circuit}/edges"]
    agree(measured(masked, with_positions(keep, masked), ABLATIONS[ablation]), f"{name}_{circuit}/{ablation}")


@pytest.mark.parametrize("name", MODELS)
def test_full_and_corrupted_runs(name: str) -> None:
    masked = model(name)
    for keep, key in ((masked.graph.exists, "base"), (~masked.graph.exists, "corr")):
        found = measured(masked, keep, "interchange")["logit_difference"]
        close(found, torch.tensor(numbers("eap_ig_evaluate")["values"][f"{name}/{key}"]), 1e-5)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(("circuit", "file"), ALL_FROM_FILES)
def test_files_of_eap_ig_run_as_there(circuit: str, file: str, ablation: str) -> None:
    """With the position embedding kept; where it is ablated with the tokens', zero ablation is many logits away."""
    masked, merged = model("gpt2", split=True), model("gpt2")
    found = read_circuit(FILES / file, masked.graph, holds="circuit")
    agree(measured(masked, found.circuit.keep, ABLATIONS[ablation]), f"{circuit}/{ablation}")
    one = read_circuit(FILES / file, merged.graph, holds="circuit")
    assert any("read it with split_embedding=True" in note for note in one.notes)
    expected = torch.tensor(numbers("eap_ig_evaluate")["values"][f"{circuit}/{ablation}"][0])
    away = (measured(merged, one.circuit.keep, ABLATIONS[ablation])["logit_difference"] - expected).abs().max()
    assert (away > 10) == (ablation == "zero")


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in MODELS for size in (20, 60)])
@pytest.mark.parametrize(("theirs", "ours"), [("RESAMPLE", "interchange"), ("ZERO", "zero")])
def test_circuits_of_auto_circuit(name: str, size: int, theirs: str, ours: str) -> None:
    """Its logits are float32; its start of the stream is both embeddings, as ours."""
    masked = model(name)
    keep = top_n(masked.graph, matrix(masked.graph, "auto_circuit", f"{name}/mask_grad"), size, absolute=True)
    ((batch, _, ablated),) = list(problem(masked, ablation=ours).batches_with_runs())
    expected = torch.tensor(numbers("auto_circuit")["logits"][f"{name}/circ/{size}/{theirs}"])
    close(gated_logits(masked, batch, keep.double(), ablated)[:, 0, : expected.shape[1]], expected, 2e-4)


def test_a_written_circuit_is_the_one_that_was_read(tmp_path: Path) -> None:
    """Through our own file, which says what the reading said."""
    found = read_circuit(FILES / "gpt2_topn_60_abs_pruned.json", model("gpt2", split=True).graph)
    back = Circuit.load(found.circuit.save(tmp_path / "a.safetensors"))
    assert torch.equal(back.keep, found.circuit.keep)
    assert back.header["notes"] == list(found.notes)
