"""Circuits of ACDC against those that the published program found, edge for edge."""

import pytest

from edgeprune.console import no_progress
from edgeprune.methods.acdc import ACDC
from edgeprune.methods.discovery import DiscoveryResult
from tests.references.tiny_models import MODELS, model, numbers, our_name, problem

CLOSE = 1e-6  # losses are float32 here


def found(name: str, graph: str, tau: float, rule: str) -> DiscoveryResult:
    method = ACDC((tau,), absolute=rule == "absolute", direct_edges=graph == "direct")
    return method.discover(problem(model(name), "kl"), no_progress)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("graph", ["plain", "direct"])
@pytest.mark.parametrize("tau", [0.3, 0.05, 0.005])
@pytest.mark.parametrize("rule", ["signed", "absolute"])
def test_the_kept_edges_are_those_of_the_published_program(name: str, graph: str, tau: float, rule: str) -> None:
    ours, content = found(name, graph, tau, rule), numbers("acdc")
    theirs = content["circuits"][f"{name}/{graph}/{tau}/{rule}"]
    circuit, about = ours.circuits[f"tau-{tau}"], ours.about[f"tau-{tau}"]
    effects = {
        our_name(content["edges"][place]): effect
        for place, effect in zip(theirs["kept"], theirs["effects"], strict=True)
    }
    assert set(circuit.edges()) == effects.keys()
    assert circuit.scores is not None
    for edge, effect in effects.items():
        assert circuit.scores[circuit.graph.index(edge)].item() == pytest.approx(effect, abs=CLOSE)
    assert about["loss"] == pytest.approx(theirs["kl"], abs=CLOSE)
    assert circuit.num_edges + about["direct_tested"] - about["direct_removed"] == theirs["count"]


def test_what_the_direct_edges_change() -> None:
    """The numbers of decision 16."""
    plain, direct = (
        set(found("gpt2", graph, 0.05, "signed").circuits["tau-0.05"].edges()) for graph in ("plain", "direct")
    )
    assert (len(plain), len(direct), len(plain & direct)) == (85, 86, 80)
