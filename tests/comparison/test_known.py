"""A circuit against a known one: by hand, against itself, and in agreement with the measures it is made of."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from edgeprune import canonical
from edgeprune.circuit import Circuit
from edgeprune.comparison.conventions import CONVENTIONS
from edgeprune.comparison.known import AgainstKnown, against_known, plotted, role_recall
from edgeprune.comparison.mib_roc import mib_roc
from edgeprune.comparison.overlap import by_chance
from edgeprune.comparison.roc import curve_of_scores, roc
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph

SMALL = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))
DOCSTRING = canonical.load("docstring")
GREATER_THAN = canonical.load("greater_than")


def noise(graph: EdgeGraph, seed: int = 0) -> Tensor:
    return torch.randn(graph.shape, generator=torch.Generator().manual_seed(seed))


def rates(found: AgainstKnown, convention: str = "own", level: str = "edges") -> dict[str, float | None]:
    match = found.matches[convention]["edges" if level == "edges" else "nodes"]
    return {name: getattr(match, name) for name in ("tpr", "fpr", "precision", "recall", "f1")}


def counts(found: AgainstKnown, convention: str = "own", level: str = "edges") -> tuple[int, int, int, int]:
    match = found.matches[convention]["edges" if level == "edges" else "nodes"]
    return match.num_counted, match.num_true, match.num_found, match.num_both


# ---------------------------------------------------------------- without scores
@pytest.mark.parametrize("name", canonical.names())
def test_a_published_circuit_is_itself(name: str) -> None:
    known = canonical.load(name)
    found = against_known(known.circuit(), name)
    number = len(known.roles)
    assert found.summary == f"{number} of {number} component types"
    perfect = {"tpr": 1, "fpr": 0, "precision": 1, "recall": 1, "f1": 1}
    for convention in ("own", *CONVENTIONS):
        assert rates(found, convention) == perfect
        # in xproportion every node is in the circuit, so none can be found wrongly
        assert rates(found, convention, "nodes") in (perfect, {**perfect, "fpr": None})
    assert (found.name, found.published) == (name, True)


def test_by_hand() -> None:
    """Three of the 24 edges, and two others."""
    right = ["embed->a0.h5.v", "a0.h5->a1.h4.v", "a3.h6->logits"]
    wrong = ["embed->logits", "embed->a0.h0.q"]
    found = against_known(Circuit.from_edges(DOCSTRING.graph, right + wrong), "docstring")
    assert counts(found) == counts(found, "one_embedding") == (1281, 24, 5, 3)
    assert rates(found) == {"tpr": 3 / 24, "fpr": 2 / 1257, "precision": 3 / 5, "recall": 3 / 24, "f1": 6 / 29}
    # direct edges behind a0.h5.v, a1.h4.v and a0.h0.q
    assert counts(found, "acdc") == (1281 + 96, 37, 8, 5)
    assert rates(found, "acdc")["fpr"] == 3 / (1281 + 96 - 37)
    assert counts(found, "no_embedding") == (1281 - 97, 16, 2, 2)
    # embed, a0.h5, a1.h4 and a3.h6 of the embedding and six heads, and a0.h0
    assert counts(found, level="nodes") == (33, 7, 5, 4)
    assert rates(found, level="nodes")["fpr"] == 1 / 26
    assert found.roles is not None
    assert (found.summary, found.roles["roles_complete"]) == ("0 of 4 component types", 0)  # nothing reaches the logits
    assert found.chance == by_chance(3, 5, 24, 1281)


def test_an_empty_circuit_and_a_full_one() -> None:
    graph = DOCSTRING.graph
    empty, full = (against_known(Circuit(graph, keep), DOCSTRING) for keep in (torch.zeros(graph.shape), graph.exists))
    assert rates(empty) == {"tpr": 0, "fpr": 0, "precision": 0, "recall": 0, "f1": 0}
    assert (rates(full)["tpr"], rates(full)["fpr"], rates(full)["precision"]) == (1, 1, 24 / 1281)
    assert (empty.summary, full.summary) == ("0 of 4 component types", "4 of 4 component types")


def test_any_circuit_can_be_the_known_one() -> None:
    truth, found = (Circuit.random(SMALL, size, seed=size) for size in (20, 30))
    result = against_known(Circuit(SMALL, found.keep), truth)
    both = int((found.keep & truth.keep).sum())
    assert result.summary == f"{both} of 20 edges"
    assert (result.name, result.published, result.roles) == ("reference", False, None)
    assert counts(result) == (SMALL.num_edges, 20, 30, both)
    assert result.to_dict().keys() == {"name", "published", "summary", "conventions", "chance"}


def test_nothing_is_true() -> None:
    nothing, some = Circuit.from_edges(SMALL, []), Circuit.random(SMALL, 9)
    result = against_known(some, nothing)
    assert rates(result) == {"tpr": None, "fpr": 9 / SMALL.num_edges, "precision": 0, "recall": 0, "f1": 0}
    assert result.mib_auroc == {"signed": None, "absolute": None}
    assert "roc" not in result.to_dict()
    assert against_known(nothing, nothing).matches["own"]["edges"].f1 == 1


# ---------------------------------------------------------------- with scores
def test_curves_and_areas_are_those_of_the_measures() -> None:
    truth = Circuit.from_edges(SMALL, ["embed->a0.h0.q", "a0.h0->m1", "m1->logits"])
    found = Circuit(SMALL, SMALL.exists, noise(SMALL))
    result = against_known(found, truth)
    for convention in CONVENTIONS:
        for level, match in result.matches[convention].items():
            measures, written = roc(found, truth, convention, level).measures(), match.to_dict()
            areas = {name: measures[name] for name in ("auc", "pessimistic_auc", "average_precision")}
            assert {name: written[name] for name in areas} == areas
    own = result.matches["own"]["edges"].curve
    assert own is not None
    assert own.auc == roc(found, truth).auc
    assert result.mib_auroc == {
        "signed": mib_roc(found, truth, absolute=False).auroc,
        "absolute": mib_roc(found, truth).auroc,
    }
    assert result.to_dict()["roc"]["edges"] == {"fpr": own.fpr.tolist(), "tpr": own.tpr.tolist()}


def test_scores_that_rank_by_absolute_value() -> None:
    truth = Circuit.random(SMALL, 20, seed=1)
    scores = -truth.keep.float()
    signed, absolute = (
        against_known(Circuit(SMALL, truth.keep, scores, header), truth).matches["own"]["edges"].to_dict()
        for header in ({}, {"absolute": True})
    )
    assert (signed["auc"], absolute["auc"], absolute["average_precision"]) == (0, 1, 1)


def test_points_of_a_plot_are_points_of_the_curve() -> None:
    scores, truth = torch.rand(3000, generator=torch.Generator().manual_seed(0)), torch.arange(3000) < 300
    curve = curve_of_scores(scores, truth)
    shown = plotted(curve)
    places = list(zip(shown["fpr"], shown["tpr"], strict=True))
    assert set(places) <= set(zip(curve.fpr.tolist(), curve.tpr.tolist(), strict=True))
    assert (places[0], places[-1]) == ((0, 0), (1, 1))
    assert places == sorted(places)
    assert 150 < len(places) <= 200
    assert max(b[0] + b[1] - a[0] - a[1] for a, b in pairwise(places)) < 0.03
    trapezoid = float(torch.trapezoid(torch.tensor(shown["tpr"]), torch.tensor(shown["fpr"])))
    assert trapezoid == pytest.approx(curve.auc, abs=0.01)


# ---------------------------------------------------------------- files, other graphs
@pytest.mark.parametrize("scores", [None, noise(DOCSTRING.graph)])
def test_what_is_written(scores: Tensor | None) -> None:
    circuit = Circuit(DOCSTRING.graph, DOCSTRING.circuit().keep, scores)
    written = against_known(circuit, "docstring").to_dict()
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert list(written["conventions"]) == ["own", *CONVENTIONS]
    assert {"roles", "num_roles", "roles_found", "node_recall", "edges_not_dangling"} <= written.keys()
    assert ("auc" in written["conventions"]["own"]["edges"]) == ("roc" in written) == (scores is not None)


def test_a_published_circuit_on_a_graph_with_other_embeddings() -> None:
    split = EdgeGraph(replace(DOCSTRING.graph.arch, split_embedding=True))
    result = against_known(DOCSTRING.circuit(split), DOCSTRING)
    assert counts(result) == counts(result, "two_embeddings") == (1281 + 97, 32, 32, 32)
    assert counts(result, "one_embedding") == (1281, 24, 24, 24)


def test_what_is_refused() -> None:
    circuit = Circuit.random(SMALL, 5)
    with pytest.raises(EdgepruneError, match="'ioi' is one of gpt2, with num_layers=12; this graph has 2"):
        against_known(circuit, "ioi")
    with pytest.raises(EdgepruneError, match="no published circuit named 'iol'"):
        against_known(circuit, "iol")
    with pytest.raises(EdgepruneError, match="num_layers=2, the known circuit has 4"):
        against_known(circuit, DOCSTRING.circuit())
    with pytest.raises(EdgepruneError, match="NaN cannot be ranked"):
        against_known(
            Circuit(SMALL, circuit.keep, torch.full(SMALL.shape, torch.nan)), Circuit.random(SMALL, 5, seed=1)
        )


# ---------------------------------------------------------------- roles
@pytest.mark.parametrize("name", canonical.names())
def test_a_published_circuit_has_its_roles(name: str) -> None:
    known = canonical.load(name)
    result = role_recall(known.circuit(), known)
    number = len(known.roles)
    assert result["summary"] == f"{number} of {number} component types"
    assert (result["roles_found"], result["roles_complete"], result["num_roles"]) == (number, number, number)
    assert (result["node_recall"], result["edges"]["recall"], result["edges"]["precision"]) == (1, 1, 1)
    assert result["edges_not_dangling"] == result["edges"]


def test_nothing_is_found_in_an_empty_circuit() -> None:
    result = role_recall(Circuit.from_edges(GREATER_THAN.graph, []), GREATER_THAN)
    assert result["summary"] == "0 of 5 component types"
    assert (result["node_recall"], result["edges"]["recall"], result["roles_complete"]) == (0, 0, 0)


def test_roles_by_hand() -> None:
    edges = ["embed->a0.h1.v", "a0.h1->a5.h5.k", "a5.h5->m9", "m9->logits", "embed->a1.h0.q", "embed->m2", "m3->m4"]
    result = role_recall(Circuit.from_edges(GREATER_THAN.graph, edges), GREATER_THAN)
    assert {name: role["nodes_found"] for name, role in result["roles"].items()} == {
        "early_heads": [],
        "early_head_of_mlps": ["a0.h1"],
        "early_mlps": [],  # two kept edges touch them, but they lead nowhere
        "year_heads": ["a5.h5"],
        "late_mlps": ["m9"],
    }
    assert result["roles"]["late_mlps"] == {
        "found": True,
        "complete": False,
        "nodes_found": ["m9"],
        "nodes_missed": ["m8", "m10", "m11"],
        "recall": 1 / 4,
    }
    assert (result["roles_found"], result["roles_complete"]) == (3, 1)
    assert result["summary"] == "3 of 5 component types"
    assert result["node_recall"] == 3 / 17
    assert (result["edges"]["both"], result["edges"]["only_found"]) == (6, 1)
    assert result["edges"]["recall"] == 6 / 235
    assert (result["edges_not_dangling"]["both"], result["edges_not_dangling"]["only_found"]) == (4, 0)


def test_a_circuit_with_two_embeddings_is_held_against_the_one_that_was_published() -> None:
    ioi = canonical.load("ioi")
    split = EdgeGraph(ArchSpec(num_layers=12, num_heads=12, num_kv_heads=12, split_embedding=True))
    result = role_recall(Circuit.from_edges(split, ["tok_embed->a9.h9.v", "a9.h9->logits"]), ioi)
    assert result["summary"] == "1 of 7 component types"
    assert (result["edges"]["precision"], result["edges"]["recall"]) == (1, 2 / 1021)


def test_a_circuit_of_another_model() -> None:
    with pytest.raises(
        EdgepruneError, match="'docstring' is one of attn-only-4l, with num_layers=4; this graph has 12"
    ):
        role_recall(Circuit.from_edges(GREATER_THAN.graph, []), canonical.load("docstring"))
