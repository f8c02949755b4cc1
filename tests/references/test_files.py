"""Files that EAP-IG and auto-circuit saved, against the scores that our methods find on the same graph."""

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats import read_circuit
from edgeprune.methods.eap import EAP
from edgeprune.methods.warm_start import Start, WarmStart
from edgeprune.models.masked import MaskedModel
from tests.references.tiny_models import FILES, close, matrix, model, problem

UNCUT = ("gpt2_scores.pt", "gpt2_topn_0_abs_raw.json", "gpt2_topn_0_abs_raw.pt")


def eap(masked: MaskedModel) -> torch.Tensor:
    found = EAP().discover(problem(masked), lambda what, done, total: None).scores
    assert found is not None
    return found


def scores_of(file: str, masked: MaskedModel) -> torch.Tensor:
    circuit = read_circuit(FILES / file, masked.graph, holds="scores").circuit
    assert circuit.scores is not None
    assert torch.equal(circuit.keep, masked.graph.exists)
    return circuit.scores


@pytest.mark.parametrize("file", UNCUT)
def test_scores_or_an_empty_circuit(file: str) -> None:
    with pytest.raises(EdgepruneError, match="--holds scores or --holds circuit") as caught:
        read_circuit(FILES / file)
    assert "\n" not in str(caught.value)
    assert read_circuit(FILES / file, holds="scores").circuit.num_edges == 262
    assert read_circuit(FILES / file, holds="circuit").circuit.num_edges == 0


def test_scores_of_one_reader_per_head() -> None:
    masked = model("gpt2")
    close(scores_of("gpt2_scores.pt", masked), matrix(masked.graph, "eap_ig", "gpt2/logit_difference/eap"), 1e-6)
    close(scores_of("gpt2_scores.pt", masked), eap(masked), 2e-6)
    close(scores_of("auto_gpt2_maskgrad.pt", masked), eap(masked), 1e-5)


@pytest.mark.parametrize(("file", "tolerance"), [("llama_scores.json", 2e-6), ("auto_llama_maskgrad.pt", 1e-5)])
def test_slopes_of_query_heads_add_up_to_those_of_shared_readers(file: str, tolerance: float) -> None:
    grouped = model("llama", kv_readers="group")
    found = read_circuit(FILES / file, grouped.graph, holds="scores")
    assert any("the sum of their scores" in note for note in found.notes)
    assert any("72 edges had another value" in note for note in found.notes)
    close(scores_of(file, grouped), eap(grouped), tolerance)


def test_slopes_of_positions_add_up() -> None:
    masked = model("gpt2")
    close(scores_of("auto_gpt2_perpos.pt", masked), scores_of("auto_gpt2_maskgrad.pt", masked), 2e-6)
    close(scores_of("auto_gpt2_perpos.pt", masked), eap(masked), 1e-5)
    notes = read_circuit(FILES / "auto_gpt2_perpos.pt", masked.graph).notes
    assert any("an edge has the sum of its positions" in note for note in notes)


def test_infinity_is_what_acdc_keeps() -> None:
    found = read_circuit(FILES / "auto_gpt2_acdc.pt", model("gpt2").graph)
    assert found.circuit.num_edges == 81
    assert any("81 edges score inf" in note for note in found.notes)
    assert found.circuit.scores is not None
    assert found.circuit.scores.isfinite().all()
    again = Circuit.from_scores(found.circuit.graph, found.circuit.scores, num_edges=81)
    assert torch.equal(again.keep, found.circuit.keep)


def test_a_warm_start_needs_not_be_told() -> None:
    masked = model("gpt2")
    offsets = Start(WarmStart(str(FILES / "gpt2_scores.pt"), magnitude=True), masked.graph).offsets
    assert offsets is not None
    best = masked.graph.to_vector(matrix(masked.graph, "eap_ig", "gpt2/logit_difference/eap").abs())
    assert torch.equal(offsets.argsort()[-20:], best.argsort()[-20:])
