import pytest
import torch
from torchmetrics.functional.classification import (
    binary_f1_score,
    binary_jaccard_index,
    binary_precision,
    binary_recall,
)

from edgeprune.errors import EdgepruneError
from edgeprune.metrics.overlap import edge_overlap

EXISTS = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()


def test_by_hand() -> None:
    found = torch.tensor([[1, 1, 1], [0, 1, 0]]).bool()  # 3 existing edges: (0, 2) does not exist
    reference = torch.tensor([[1, 0, 1], [1, 1, 1]]).bool()  # 4
    assert edge_overlap(found, reference, EXISTS) == {
        "precision": 2 / 3,
        "recall": 2 / 4,
        "jaccard": 2 / 5,
        "f1": 4 / 7,
        "both": 2,
        "only_found": 1,
        "only_reference": 2,
    }


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_torchmetrics(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found, reference, exists = (torch.rand(30, 20, generator=generator) < share for share in (0.2, 0.4, 0.8))
    ours = edge_overlap(found, reference, exists)
    entries = found[exists].int(), reference[exists].int()
    theirs = {
        "precision": binary_precision,
        "recall": binary_recall,
        "jaccard": binary_jaccard_index,
        "f1": binary_f1_score,
    }
    for name, metric in theirs.items():
        assert ours[name] == pytest.approx(metric(*entries).item(), abs=1e-6), name  # theirs are float32


def test_exchanging_the_circuits_exchanges_precision_and_recall() -> None:
    found, reference = torch.zeros(2, 3).bool(), EXISTS.clone()
    found[0, 0] = True
    there, back = edge_overlap(found, reference, EXISTS), edge_overlap(reference, found, EXISTS)
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"]) == (1.0, 0.2)
    assert (there["jaccard"], there["f1"]) == (back["jaccard"], back["f1"])


@pytest.mark.parametrize(("found", "reference", "share"), [(0, 0, 1.0), (0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.0)])
def test_empty_and_full(found: int, reference: int, share: float) -> None:
    overlap = edge_overlap(torch.full((2, 3), found), torch.full((2, 3), reference), EXISTS)
    assert {overlap[name] for name in ("precision", "recall", "jaccard", "f1")} == {share}


def test_edges_that_do_not_exist_leave_a_circuit_empty() -> None:
    overlap = edge_overlap(~EXISTS, torch.zeros(2, 3), EXISTS)
    assert overlap["precision"] == 1.0
    assert overlap["only_found"] == 0


def test_refuses_matrices_of_two_graphs() -> None:
    with pytest.raises(EdgepruneError, match=r"one graph, got shapes \(2, 3\), \(3, 2\), \(2, 3\)"):
        edge_overlap(EXISTS, EXISTS.reshape(3, 2), EXISTS)
